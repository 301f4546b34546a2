from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.baselines import neighbours
from evaluation.baselines.neighbours import BM25_B, BM25_K, NeighboursConfig, neighbour_table
from tests.evaluation.baselines.helpers import Drawn, drawn

ROOM_GB = 1.0


def reference(case: Drawn, config: NeighboursConfig) -> np.ndarray:
    """[N, N] pair by pair, from the definition."""
    num_items = case.num_items
    histories = [own[-config.newest :] if config.newest else own for own in case.histories]
    weights = np.ones(len(histories))
    if config.weighting != "cosine":
        weights = np.array([np.log(1 + num_items / max(1, len(own))) ** 2 for own in histories])
        weights *= sum(map(len, histories)) / sum(w * len(own) for w, own in zip(weights, histories, strict=True))
    pairs_NN, events_N = np.zeros((num_items, num_items)), np.zeros(num_items)
    for weight, own in zip(weights, histories, strict=True):
        for place, item in enumerate(own if config.window else sorted(set(own))):
            events_N[item] += weight
            for there, other in enumerate(own if config.window else sorted(set(own))):
                if item != other and (not config.window or abs(place - there) <= config.window):
                    pairs_NN[item, other] += weight
    pairs_NN[:, case.plays_N < config.min_plays] = 0
    factor_N = np.sqrt(events_N)
    if config.weighting == "bm25":
        length_N = events_N / events_N[events_N > 0].mean()
        factor_N = 1 / (BM25_K * (1 - BM25_B + BM25_B * length_N) + 1)
        return pairs_NN * np.outer(factor_N, factor_N)
    with np.errstate(invalid="ignore"):
        return np.where(pairs_NN > 0, pairs_NN / (np.outer(factor_N, factor_N) + config.shrinkage), 0)


def most_similar(similarity_NN: np.ndarray, most: int) -> np.ndarray:
    """Of each row the greatest, of equal ones those of lower columns; float32."""
    kept_NN = np.zeros_like(similarity_NN, dtype=np.float32)
    for row, own in enumerate(similarity_NN.astype(np.float32)):
        best = sorted(range(len(own)), key=lambda column: (-own[column], column))[:most]
        kept_NN[row, best] = own[best]
    return kept_NN


CONFIGS = st.builds(
    NeighboursConfig,
    window=st.sampled_from([0, 1, 3, 100]),
    weighting=st.sampled_from(["cosine", "tfidf", "bm25"]),
    shrinkage=st.sampled_from([0.0, 2.5]),
    neighbours=st.integers(1, 9),
    min_plays=st.integers(1, 3),
    newest=st.sampled_from([0, 1, 4]),
)


@settings(deadline=None, max_examples=150)
@given(drawn(), CONFIGS)
def test_a_table_is_that_of_every_pair_counted_on_its_own(case: Drawn, config: NeighboursConfig) -> None:
    found = neighbour_table(case.log, config, ROOM_GB, quiet=True)
    assert found.data.dtype == np.float32
    similarity_NN = reference(case, config)
    all_NN = neighbour_table(case.log, dataclasses.replace(config, neighbours=99), ROOM_GB, quiet=True).toarray()
    np.testing.assert_allclose(all_NN, similarity_NN, rtol=1e-6, atol=0)
    # What is kept is decided by the numbers as counted: sums in another order round otherwise.
    np.testing.assert_array_equal(found.toarray(), most_similar(all_NN, config.neighbours))


def test_ties_and_order_of_a_table_by_hand() -> None:
    case = Drawn([[0, 1, 2], [2, 1, 0, 0]], [[0] * 3, [0] * 4], [3, 3], 4, [], [], [])
    config = NeighboursConfig(window=1, shrinkage=0.0, neighbours=1)
    table = neighbour_table(case.log, config, ROOM_GB, quiet=True)
    # 0–1 and 1–2 are neighbours twice each, every item was played twice: 2 / √(2·2).
    assert table.indices.tolist() == [1, 0, 1]
    assert table.data.tolist() == [1.0, 1.0, 1.0]
    assert table.indptr.tolist() == [0, 1, 2, 3, 3]


def content(table: sp.csr_matrix) -> list[bytes]:
    return [part.tobytes() for part in (table.indptr.astype(np.int64), table.indices.astype(np.int64), table.data)]


@settings(deadline=None)
@given(drawn(), CONFIGS, st.integers(1, 30))
def test_memory_changes_nothing(case: Drawn, config: NeighboursConfig, range_pairs: int) -> None:
    whole = neighbour_table(case.log, config, ROOM_GB, quiet=True)
    assert content(neighbour_table(case.log, config, ROOM_GB, range_pairs, quiet=True)) == content(whole)


def test_a_fit_that_cannot_work_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Drawn([[0, 1, 2, 1]], [[0] * 4], [4], 3, [], [], [])
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 8)
    with pytest.raises(InputError) as caught:
        neighbour_table(case.log, NeighboursConfig(window=0), 1e-7)
    assert len(caught.value.faults) == 2
    assert (
        "the training events hold 9 pairs, and the limit is 8; lower baseline.item_knn.newest" in caught.value.faults[0]
    )
    assert "and `baseline.memory_gb` is 1e-07; lower baseline.item_knn.neighbours or" in caught.value.faults[1]
    with pytest.raises(InputError, match=r"item_knn.window` is 2.* hold 16 pairs.*lower baseline.item_knn.window$"):
        neighbour_table(case.log, NeighboursConfig(window=2), 1)
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 16)
    neighbour_table(case.log, NeighboursConfig(window=2), 1, quiet=True)
