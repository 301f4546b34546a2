"""Counts in bounded memory equal a loop over pairs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data.training_events import TrainingEvents
from semantic_ids.vectors import co_occurrence as room
from semantic_ids.vectors.co_occurrence import co_occurrence, heaviest

NUM_ITEMS = 6
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=7), min_size=1, max_size=5)


def events_of(histories: list[list[int]], num_items: int = NUM_ITEMS) -> TrainingEvents:
    lengths = np.array([len(items) for items in histories])
    flat = np.array([item for items in histories for item in items], np.uint32)
    return TrainingEvents(flat, np.cumsum(lengths) - lengths, lengths, num_items)


def loop_over_pairs(histories: list[list[int]], window: int) -> np.ndarray:
    counts = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for items in histories:
        for i, left in enumerate(items):
            for j, right in enumerate(items):
                distance = abs(i - j)
                if left != right and window == 0:
                    counts[left, right] += 1 / (len(items) - 1)
                elif left != right and distance <= window:
                    counts[left, right] += 1 / distance
    return counts


@given(
    histories=HISTORIES,
    window=st.integers(0, 8),
    range_pairs=st.sampled_from([1, 3, 20, 2**25]),
    neighbours=st.lists(st.booleans(), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
)
@settings(max_examples=200, deadline=None)
def test_counts_equal_a_loop_over_pairs(histories, window, range_pairs, neighbours):
    expected = loop_over_pairs(histories, window) * np.array(neighbours)
    found = co_occurrence(events_of(histories), window, neighbours_N=np.array(neighbours), range_pairs=range_pairs)
    np.testing.assert_allclose(found.weights_NN.toarray(), expected, atol=1e-12)
    np.testing.assert_allclose(found.row_totals_N, expected.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(found.column_totals_N, expected.sum(axis=0), atol=1e-12)
    assert found.weights_NN.nnz == np.count_nonzero(expected)


@given(
    histories=HISTORIES,
    window=st.integers(0, 8),
    most=st.integers(1, NUM_ITEMS),
    block_events=st.sampled_from([1, 4, 2**21]),
)
@settings(max_examples=100, deadline=None)
def test_pruning_keeps_the_heaviest_and_all_totals(histories, window, most, block_events):
    expected = loop_over_pairs(histories, window)
    events = events_of(histories)
    blocks = events.blocks
    object.__setattr__(events, "blocks", lambda: blocks(block_events))
    found = co_occurrence(events, window, max_neighbours=most)
    kept = np.zeros_like(expected)
    for row, weights in enumerate(expected.astype(np.float32)):
        best = sorted(np.flatnonzero(weights), key=lambda column: (-weights[column], column))[:most]
        kept[row, best] = expected[row, best]
    np.testing.assert_allclose(found.weights_NN.toarray(), kept, atol=1e-12)
    np.testing.assert_allclose(found.row_totals_N, expected.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(found.column_totals_N, expected.sum(axis=0), atol=1e-12)


@given(
    dense=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6),
    most=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_of_equal_weight_the_lower_columns_are_kept(dense, most):
    array = np.array(dense, float)
    expected = np.zeros_like(array)
    for row, weights in enumerate(array):
        best = sorted(np.flatnonzero(weights), key=lambda column: (-weights[column], column))[:most]
        expected[row, best] = weights[best]
    np.testing.assert_array_equal(heaviest(sp.csr_matrix(array), most).toarray(), expected)


def test_a_range_of_rows_holds_what_it_may(monkeypatch):
    waiting = []
    total = room._Pairs.total
    monkeypatch.setattr(room._Pairs, "total", lambda self: (waiting.append(self._count), total(self))[1])
    generator = np.random.default_rng(0)
    histories = generator.integers(0, 200, (40, 50)).tolist()
    co_occurrence(events_of(histories, 200), 5, range_pairs=1000)
    assert len(waiting) > 15, "2 · 5 · 2000 pairs, a thousand a range"
    assert max(waiting) < 1500


def test_a_hub_is_summed_on_the_way(monkeypatch):
    waiting = []
    total = room._Pairs.total
    monkeypatch.setattr(room._Pairs, "total", lambda self: (waiting.append(self._count), total(self))[1])
    histories = [[0, 1] * 500] * 3
    found = co_occurrence(events_of(histories), 2, range_pairs=10)
    assert found.weights_NN.toarray()[0, 1] == pytest.approx(3 * 999)
    assert len(waiting) > 4, "two items, of which each has thousands of pairs"
    assert max(waiting) < 2000


def test_whole_histories_beyond_the_limit_are_refused(monkeypatch):
    events = events_of([[0, 1, 2, 3, 4, 5] * 2, [1, 2, 3]])
    monkeypatch.setattr(room, "MOST_WHOLE_HISTORY_PAIRS", 36)
    co_occurrence(events, 0)  # 153 pairs, but no more than 36 that differ
    monkeypatch.setattr(room, "MOST_WHOLE_HISTORY_PAIRS", 35)
    with pytest.raises(InputError, match=r"window` is 0.*15 training events of 2 users.*set collaborative.window=5"):
        co_occurrence(events, 0)
    co_occurrence(events, 5)
