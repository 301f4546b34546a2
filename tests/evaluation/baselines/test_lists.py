from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.baselines import lists
from evaluation.baselines.lists import (
    FixedListEngine,
    best_of_all,
    best_of_scored,
    newest_items,
)
from serving.engines.base import whole_catalogue
from tests.evaluation.baselines.helpers import CPU, Drawn, drawn, query_of, same

LENGTHS = st.integers(1, 12)


@pytest.fixture(params=[1, 7, 1 << 22], autouse=True)
def block_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users one by one, a few together, all at once."""
    monkeypatch.setattr(lists, "_BLOCK_NUMBERS", request.param)


def steps(shape: tuple[int, ...], seed: int, low: int = 0) -> np.ndarray:
    """Scores of which many are equal."""
    return np.random.default_rng(seed).integers(low, 4, shape).astype(np.float64)


@settings(deadline=None)
@given(drawn(), LENGTHS, st.integers(0, 999))
def test_a_fixed_list_is_that_of_sorted_scores(case: Drawn, k: int, seed: int) -> None:
    scores_N = steps((case.num_items,), seed, low=-4)
    engine = FixedListEngine("fixed", torch.from_numpy(scores_N).float(), case.catalogue)
    wanted = case.lists(np.tile(scores_N, (len(case.asking), 1)), k)
    same(engine.retrieve(case.query, k), wanted)


@settings(deadline=None)
@given(drawn(), LENGTHS, st.integers(0, 999))
def test_what_has_no_score_comes_by_popularity_after_what_has(case: Drawn, k: int, seed: int) -> None:
    scores_BN = steps((len(case.asking), case.num_items), seed)
    same(best_of_scored(case.catalogue, sp.csr_matrix(scores_BN), case.query, k), case.lists(scores_BN, k))


@settings(deadline=None)
@given(drawn(most_items=40), LENGTHS, st.integers(0, 999), st.booleans())
def test_the_best_of_all_scores_are_those_of_a_sort(case: Drawn, k: int, seed: int, ties: bool) -> None:
    shape = len(case.asking), case.num_items
    scores_BN = steps(shape, seed) if ties else np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape)
    scores_Bn = torch.from_numpy(scores_BN).float()[:, case.catalogue.item_order]
    same(best_of_all(case.catalogue, scores_Bn, case.query, k), case.lists(scores_BN, k))


def test_few_columns_are_sorted_where_few_can_be_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = whole_catalogue(np.zeros(100, np.int64), CPU)
    seen: list[int] = []
    top_of = catalogue.top_of
    monkeypatch.setattr(
        catalogue, "top_of", lambda columns, *rest: seen.append(columns.size(1)) or top_of(columns, *rest)
    )
    scores_BN = torch.arange(200.0).view(2, 100) // 2
    items_BK, _ = best_of_all(catalogue, scores_BN, query_of([[], []], [[99], []]), 5)
    assert items_BK.tolist() == [[98, 96, 97, 94, 95], [98, 99, 96, 97, 94]]
    assert seen == [6]


@settings(deadline=None)
@given(drawn(), st.integers(0, 9), st.sampled_from([1.0, 0.5]))
def test_newer_events_weigh_more(case: Drawn, newest: int, fading: float) -> None:
    history = case.query.history
    assert history is not None
    wanted_BN = np.zeros((len(case.asking), case.num_items))
    for row, own in enumerate(case.asking):
        for age, item in enumerate(reversed(own)):
            if not newest or age < newest:
                wanted_BN[row, item] += fading**age
    np.testing.assert_array_equal(newest_items(history, case.num_items, newest, fading).toarray(), wanted_BN)


def test_the_fifty_thousandth_newest_event_weighs_nothing_and_breaks_nothing() -> None:
    history = query_of([[0, *[1] * 50_000]], [[]]).history
    assert history is not None
    weights = newest_items(history, 2, 0, 0.5)
    assert weights.indices.tolist() == [1]
    assert weights.data.tolist() == [2.0]


def test_nobody_is_given_what_is_denied() -> None:
    catalogue = whole_catalogue(np.array([3, 9, 9, 0]), CPU, np.array([1]))
    assert catalogue.item_order.tolist() == [2, 0, 3]
    engine = FixedListEngine("fixed", torch.tensor([0.0, 5, 0, 0]), catalogue)
    assert engine.retrieve(query_of([[]], [[2]]), 4)[0].tolist() == [[0, 3, -1, -1]]
