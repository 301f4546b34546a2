"""What holds for every engine: seen items never come back, lists are full where they can be, order is defined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.baselines.lists import FixedListEngine
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import Engine, RankedCatalogue, ranked_catalogue, whole_catalogue
from serving.engines.beam import BeamEngine
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from serving.engines.faiss_indexes import IndexConfig
from serving.engines.hybrid import CodeScorer, HybridEngine, ItemScorer
from serving.engines.item_vectors import ItemExactEngine, ItemFaissEngine
from tests.serving.engines.helpers import Case, cases, hidden, query_of

CPU = torch.device("cpu")


NOBODY = np.empty(0, np.int64)
Make = Callable[[Case, np.ndarray], Engine]


def catalogue(case: Case, denied: np.ndarray) -> RankedCatalogue:
    return ranked_catalogue(case.table, CPU, denied)


def exact(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    return ExactEngine(case.heads, CodeTrie.of(case.table), catalogue(case, denied))


def near(kind: str) -> Make:
    def make(case: Case, denied: np.ndarray = NOBODY) -> Engine:
        index = IndexConfig(kind=kind)
        return FaissEngine(case.heads, case.table, catalogue(case, denied), beams=3, near=2, index=index)

    return make


def beam(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    return BeamEngine(case.heads, CodeTrie.of(case.table), catalogue(case, denied))


def narrow_beam(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    return BeamEngine(case.heads, CodeTrie.of(case.table), catalogue(case, denied), width=1)


def hybrid(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    trie = CodeTrie.of(case.table)
    sources = [narrow_beam(case, denied), near("flat")(case, denied)]
    return HybridEngine(sources, CodeScorer(case.heads, trie, catalogue(case, denied)), candidates=1)


def popular(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    return most_popular(case.table.training_plays_N, denied)


def most_popular(plays_N: np.ndarray, denied: np.ndarray = NOBODY) -> FixedListEngine:
    return FixedListEngine("mostpop", torch.from_numpy(plays_N).float(), whole_catalogue(plays_N, CPU, denied))


def item_vectors(case: Case) -> Tensor:
    """A vector an item of the store; some items share one."""
    rows = torch.nn.functional.normalize(hidden(8, 5) + 0.1, dim=1)
    return rows[torch.arange(len(case.table.codes_NC)) * 3 % 8]


def item_exact(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    order = catalogue(case, denied)
    return ItemExactEngine(item_vectors(case)[order.item_order], order, 0.2)


def item_near(kind: str) -> Make:
    def make(case: Case, denied: np.ndarray = NOBODY) -> Engine:
        order = catalogue(case, denied)
        return ItemFaissEngine(item_vectors(case)[order.item_order], order, 0.2, IndexConfig(kind=kind))

    return make


def item_hybrid(case: Case, denied: np.ndarray = NOBODY) -> Engine:
    order = catalogue(case, denied)
    scorer = ItemScorer(item_vectors(case)[order.item_order], order, 0.2)
    return HybridEngine([item_near("hnsw")(case, denied)], scorer, candidates=2)


OF_CODES = {
    "exact": exact,
    "faiss": near("flat"),
    "ivfpq": near("ivfpq"),
    "hnsw": near("hnsw"),
    "beam": beam,
    "narrow beam": narrow_beam,
    "hybrid": hybrid,
    "popular": popular,
}
ALL = {
    **OF_CODES,
    "item exact": item_exact,
    "item faiss": item_near("flat"),
    "item ivfpq": item_near("ivfpq"),
    "item hnsw": item_near("hnsw"),
    "item hybrid": item_hybrid,
}


def engines(makers: dict[str, Make]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", list(makers.values()), ids=list(makers))


@engines(ALL)
@settings(max_examples=40, deadline=None)
@given(case=cases(), k=st.integers(1, 15), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_lists_hold_unseen_items_once_and_as_many_as_there_are(make: Make, case: Case, k: int, share: float) -> None:
    """Of items that nobody may be given, none; of those whom one user may not be given, none to that user."""
    denied = np.flatnonzero(np.random.default_rng(len(case.seen)).random(len(case.table.codes_NC)) < share)
    engine = make(case, denied)
    items_BK, scores_BK = engine.retrieve(case.query, k)
    assert items_BK.shape == scores_BK.shape == (len(case.seen), k)
    returnable = set(range(len(case.table.codes_NC))) if engine.name == "mostpop" else set(case.known)
    returnable -= set(denied.tolist())
    for items, scores, seen in zip(items_BK.tolist(), scores_BK, case.seen, strict=True):
        left = returnable - set(seen)
        found = items[: min(k, len(left))]
        assert set(found) <= left
        assert len(set(found)) == len(found)
        assert items[len(found) :] == [-1] * (k - len(found))
        assert torch.isfinite(scores[: len(found)]).all()
        assert (scores[len(found) :] == -torch.inf).all()
        assert (scores[: len(found)].diff() <= 0).all()


@engines(ALL)
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_equal_scores_come_by_plays_then_by_index(make: Make, case: Case) -> None:
    plays = case.table.training_plays_N
    for k in (3, len(plays)):
        items_BK, scores_BK = make(case, NOBODY).retrieve(case.query, k)
        for items, scores in zip(items_BK.tolist(), scores_BK.tolist(), strict=True):
            rows = [(-score, -int(plays[item]), item) for item, score in zip(items, scores, strict=True) if item >= 0]
            assert rows == sorted(rows)


@engines(OF_CODES)
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_a_shorter_list_is_the_beginning_of_the_tied_order(make: Make, case: Case) -> None:
    """Where a list is cut among items of one tuple, the right ones of them are in it."""
    plays, codes = case.table.training_plays_N, case.table.codes_NC
    items_BK, _ = make(case, NOBODY).retrieve(case.query, 2)
    for items, seen in zip(items_BK.tolist(), case.seen, strict=True):
        for item in (item for item in items if item >= 0 and case.table.known_N[item]):
            twins = [other for other in case.known if (codes[other] == codes[item]).all() and other not in seen]
            before = [other for other in twins if (-plays[other], other) < (-plays[item], item)]
            assert set(before) <= set(items)


def test_most_popular_looks_no_deeper_than_it_must() -> None:
    """Histories of hundreds in a catalogue of thousands: lists are those of a sort of everything."""
    random = np.random.default_rng(0)
    plays = random.integers(0, 20, 3000)
    seen = [random.integers(0, 3000, length).tolist() for length in (0, 700, 3)]
    seen.append(np.argsort(-plays, kind="stable")[:900].tolist())
    query = query_of(hidden(4), seen)
    engine = most_popular(plays)
    found = engine.retrieve(query, 50)
    scores_n = torch.from_numpy(plays).float()[engine.catalogue.item_order]
    expected = engine.catalogue.top(scores_n.repeat(4, 1), query, 50)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_most_popular_is_plays_without_the_seen() -> None:
    query = query_of(hidden(3), [[], [1, 0, 1], [0, 1, 2, 3, 4]])
    items, scores = most_popular(np.array([3, 9, 0, 9, 1])).retrieve(query, 4)
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
