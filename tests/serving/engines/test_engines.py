"""What holds for every engine: seen items never come back, lists are full where they can be, order is defined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import Engine, RankedCatalogue, ranked_catalogue
from serving.engines.beam import BeamEngine
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from serving.engines.popular import MostPopularEngine
from tests.serving.engines.helpers import Case, cases, hidden, query_of

CPU = torch.device("cpu")


def exact(case: Case) -> Engine:
    return ExactEngine(case.heads, CodeTrie.of(case.table), ranked_catalogue(case.table, CPU))


def faiss(case: Case) -> Engine:
    return FaissEngine(case.heads, case.table, ranked_catalogue(case.table, CPU), beams=3, near=2)


def beam(case: Case) -> Engine:
    return BeamEngine(case.heads, CodeTrie.of(case.table), ranked_catalogue(case.table, CPU))


def narrow_beam(case: Case) -> Engine:
    return BeamEngine(case.heads, CodeTrie.of(case.table), ranked_catalogue(case.table, CPU), width=1)


def popular(case: Case) -> Engine:
    return MostPopularEngine(torch.from_numpy(case.table.training_plays_N))


@pytest.mark.parametrize("make", [exact, faiss, popular, beam, narrow_beam])
@settings(max_examples=40, deadline=None)
@given(case=cases(), k=st.integers(1, 15))
def test_lists_hold_unseen_items_once_and_as_many_as_there_are(
    make: Callable[[Case], Engine], case: Case, k: int
) -> None:
    engine = make(case)
    items_BK, scores_BK = engine.retrieve(case.query, k)
    assert items_BK.shape == scores_BK.shape == (len(case.seen), k)
    returnable = set(range(len(case.table.codes_NC))) if engine.name == "mostpop" else set(case.known)
    for items, scores, seen in zip(items_BK.tolist(), scores_BK, case.seen, strict=True):
        left = returnable - set(seen)
        found = items[: min(k, len(left))]
        assert set(found) <= left
        assert len(set(found)) == len(found)
        assert items[len(found) :] == [-1] * (k - len(found))
        assert torch.isfinite(scores[: len(found)]).all()
        assert (scores[len(found) :] == -torch.inf).all()
        assert (scores[: len(found)].diff() <= 0).all()


@pytest.mark.parametrize("make", [exact, faiss, popular, beam, narrow_beam])
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_equal_scores_come_by_plays_then_by_index(make: Callable[[Case], Engine], case: Case) -> None:
    plays = case.table.training_plays_N
    for k in (3, len(plays)):
        items_BK, scores_BK = make(case).retrieve(case.query, k)
        for items, scores in zip(items_BK.tolist(), scores_BK.tolist(), strict=True):
            rows = [(-score, -int(plays[item]), item) for item, score in zip(items, scores, strict=True) if item >= 0]
            assert rows == sorted(rows)


@pytest.mark.parametrize("make", [exact, faiss, popular, beam, narrow_beam])
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_a_shorter_list_is_the_beginning_of_the_tied_order(make: Callable[[Case], Engine], case: Case) -> None:
    """Where a list is cut among items of one tuple, the right ones of them are in it."""
    plays, codes = case.table.training_plays_N, case.table.codes_NC
    items_BK, _ = make(case).retrieve(case.query, 2)
    for items, seen in zip(items_BK.tolist(), case.seen, strict=True):
        for item in (item for item in items if item >= 0 and case.table.known_N[item]):
            twins = [other for other in case.known if (codes[other] == codes[item]).all() and other not in seen]
            before = [other for other in twins if (-plays[other], other) < (-plays[item], item)]
            assert set(before) <= set(items)


def test_most_popular_is_plays_without_the_seen() -> None:
    plays = torch.tensor([3, 9, 0, 9, 1])
    items, scores = MostPopularEngine(plays).retrieve(query_of(hidden(3), [[], [1, 0, 1], [0, 1, 2, 3, 4]]), 4)
    assert items.tolist() == [[1, 3, 0, 4], [3, 4, 2, -1], [-1, -1, -1, -1]]
    inf = float("inf")
    assert scores.tolist() == [[9, 9, 3, 1], [9, 1, 0, -inf], [-inf] * 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 12))
def test_top_among_candidates_is_top_of_their_best_scores(seed: int, size: int, k: int) -> None:
    random = np.random.default_rng(seed)
    num_items = size + 2
    catalogue = RankedCatalogue(torch.from_numpy(random.permutation(num_items)[:size]), num_items)
    columns = torch.from_numpy(random.integers(0, size, (3, random.integers(0, 20))))
    scores = torch.from_numpy(random.integers(0, 4, columns.shape)).float()
    query = query_of(hidden(3), [random.integers(0, num_items, random.integers(0, 5)).tolist() for _ in range(3)])
    dense = torch.full((3, size), -torch.inf)
    for row in range(3):
        for column, score in zip(columns[row].tolist(), scores[row].tolist(), strict=True):
            dense[row, column] = max(float(dense[row, column]), score)
    expected = catalogue.top(dense, query, k)
    found: tuple[Tensor, Tensor] = catalogue.top_of(columns, scores, query, k)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
