"""Engines over item vectors against the softmax written out in float64.

B users · D width · n columns · K list length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import serving.engines.item_vectors
from serving.engines.base import Query, RankedCatalogue
from serving.engines.faiss_indexes import IndexConfig
from serving.engines.item_vectors import ItemExactEngine, ItemFaissEngine
from tests.serving.engines.helpers import WIDTH, hidden, query_of


@dataclass(frozen=True)
class Items:
    """A catalogue that some items are denied from, their vectors, and users."""

    catalogue: RankedCatalogue
    vectors_nD: Tensor
    query: Query
    seen: list[list[int]]
    temperature: float

    @property
    def returnable(self) -> list[int]:
        return self.catalogue.item_order.tolist()

    def scores(self) -> Tensor:
        """u · e / τ [B, n], float64."""
        return self.query.hidden_BD.double() @ self.vectors_nD.double().T / self.temperature


def items_of(seed: int, num_items: int, values: int, users: int, *, longest: int | None = None) -> Items:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, num_items + 1))
    catalogue = RankedCatalogue(torch.from_numpy(random.permutation(num_items)[:size]), num_items)
    rows = torch.nn.functional.normalize(hidden(values, seed % 1000 + 1) + 0.1, dim=1)
    most = num_items if longest is None else longest
    seen = [random.integers(0, num_items, random.integers(0, most + 1)).tolist() for _ in range(users)]
    vectors_nD = rows[torch.from_numpy(random.integers(0, values, size))]
    return Items(catalogue, vectors_nD, query_of(hidden(users, seed % 1000), seen), seen, 0.2)


def check(case: Items, scores_Bn: Tensor, found: tuple[Tensor, Tensor], k: int) -> None:
    """Full lists of what may be returned, in the order of the scores; of equal vectors, by column."""
    items_BK, scores_BK = found
    assert items_BK.shape == scores_BK.shape == (len(case.seen), k)
    column_of = {item: column for column, item in enumerate(case.returnable)}
    names = [tuple(row) for row in case.vectors_nD.tolist()]
    for row, seen in enumerate(case.seen):
        left = [item for item in case.returnable if item not in seen]
        length = min(k, len(left))
        items = items_BK[row, :length].tolist()
        assert items_BK[row, length:].tolist() == [-1] * (k - length)
        assert (scores_BK[row, length:] == -torch.inf).all()
        assert len(set(items)) == length
        assert set(items) <= set(left)
        columns = [column_of[item] for item in items]
        torch.testing.assert_close(scores_BK[row, :length].double(), scores_Bn[row, columns], rtol=1e-5, atol=1e-5)
        best = scores_Bn[row, [column_of[item] for item in left]].sort(descending=True).values[:length]
        torch.testing.assert_close(scores_BK[row, :length].double(), best, rtol=1e-5, atol=1e-5)
        for column in columns:  # its equals that stand before it are there, and before it
            twins = [c for c in range(column) if names[c] == names[column] and case.returnable[c] in left]
            assert [c for c in columns[: columns.index(column)] if names[c] == names[column]] == twins


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30), st.integers(1, 4), st.integers(1, 35))
def test_exact_lists_are_the_softmax_over_the_catalogue(
    seed: int, num_items: int, values: int, users: int, k: int
) -> None:
    case = items_of(seed, num_items, values, users)
    engine = ItemExactEngine(case.vectors_nD, case.catalogue, case.temperature)
    assert (engine.name, engine.log_probabilities) == ("exact", True)
    check(case, torch.log_softmax(case.scores(), dim=1), engine.retrieve(case.query, k), k)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 4),
    st.integers(1, 35),
    st.sampled_from(["flat", "hnsw", "ivfpq"]),
)
def test_lists_of_an_index_are_the_products(
    seed: int, num_items: int, values: int, users: int, k: int, kind: str
) -> None:
    case = items_of(seed, num_items, values, users)
    engine = ItemFaissEngine(case.vectors_nD, case.catalogue, case.temperature, IndexConfig(kind=kind))
    assert (engine.name, engine.log_probabilities) == ("faiss" if kind == "flat" else kind, False)
    check(case, case.scores(), engine.retrieve(case.query, k), k)


@pytest.mark.parametrize("k", [1, 40, 700])
def test_blocks_of_users_and_items_change_nothing(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = items_of(5, 900, 300, 7, longest=400)
    engine = ItemExactEngine(case.vectors_nD, case.catalogue, case.temperature)
    expected = torch.log_softmax(case.scores(), dim=1)
    check(case, expected, engine.retrieve(case.query, k), k)
    monkeypatch.setattr(serving.engines.item_vectors, "_BLOCK_USERS", 3)
    for logits in (1, 3 * 100, 3 * 257):
        monkeypatch.setitem(serving.engines.item_vectors._BLOCK_LOGITS, "cpu", logits)
        check(case, expected, engine.retrieve(case.query, k), k)


def test_the_normaliser_does_not_know_whom_it_is_for() -> None:
    """What is excluded for a user takes no part in the list, and keeps its part of the probability."""
    vectors_nD = torch.nn.functional.normalize(
        torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1
    )
    engine = ItemExactEngine(vectors_nD, RankedCatalogue(torch.arange(20), 20), 0.3)
    items, scores = engine.retrieve(query_of(hidden(1).repeat(2, 1), [[], [3, 5]]), 20)
    torch.testing.assert_close(scores[0].exp().sum(), torch.tensor(1.0))
    by_item = dict(zip(items[0].tolist(), scores[0].tolist(), strict=True))
    torch.testing.assert_close(scores[1, :18], torch.tensor([by_item[item] for item in items[1, :18].tolist()]))


def test_very_unequal_logits_do_not_overflow() -> None:
    vectors_nD = torch.eye(WIDTH).repeat(3, 1)
    engine = ItemExactEngine(vectors_nD, RankedCatalogue(torch.arange(3 * WIDTH), 3 * WIDTH), 1e-3)
    _, scores = engine.retrieve(query_of(torch.eye(WIDTH)[:2], [[], []]), 5)
    torch.testing.assert_close(scores[:, :3].exp(), torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(scores[:, 3:], torch.full((2, 2), -1000 - float(np.log(3))))


def test_numbers_sort_as_logits_and_columns_do() -> None:
    logits = torch.tensor([[-torch.inf, -3.5, -0.0, 0.0, 2.5, 2.5, torch.inf, -1e-40, 1e-40]])
    columns = torch.tensor([[7, 2**31, 4, 9, 5, 3, 2, 1, 0]])
    numbers = serving.engines.item_vectors._sortable(logits, columns)
    pairs = sorted(zip((-logits[0]).tolist(), columns[0].tolist(), strict=True))
    back = serving.engines.item_vectors._unsorted(numbers.sort(dim=1, descending=True).values)
    assert list(zip((-back[0][0]).tolist(), back[1][0].tolist(), strict=True)) == pairs


@pytest.mark.parametrize("make", [ItemExactEngine, ItemFaissEngine])
def test_no_users_and_no_items(make: type[ItemExactEngine] | type[ItemFaissEngine]) -> None:
    engine = make(hidden(4), RankedCatalogue(torch.arange(4), 4), 0.5)
    assert [part.shape for part in engine.retrieve(query_of(hidden(0), []), 3)] == [(0, 3), (0, 3)]
    nothing = make(hidden(0), RankedCatalogue(torch.arange(0), 4), 0.5)
    items, scores = nothing.retrieve(query_of(hidden(2), [[1], []]), 3)
    assert (items == -1).all()
    assert (scores == -torch.inf).all()
