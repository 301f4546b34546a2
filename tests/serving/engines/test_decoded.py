from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import ranked_catalogue
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from tests.serving.engines.helpers import Case, cases, code_table, hidden, log_probability, make_heads, query_of

CPU = torch.device("cpu")


def all_tuples(case: Case) -> np.ndarray:
    codes, levels = case.table.codes_per_level, case.table.num_levels
    return np.array(list(itertools.product(range(codes), repeat=levels)))


@settings(max_examples=25, deadline=None)
@given(cases())
def test_with_room_for_all_beams_decode_gives_every_tuple(case: Case) -> None:
    if case.table.codes_per_level**case.table.num_levels > 100:
        return
    tuples = all_tuples(case)
    engine = FaissEngine(case.heads, case.table, ranked_catalogue(case.table, CPU), beams=len(tuples))
    vectors, log_p = engine.decode(case.hidden_BD)
    for row, x_D in enumerate(case.hidden_BD):
        expected = np.array([log_probability(case.heads, x_D, codes) for codes in tuples])
        order = np.argsort(-expected)
        np.testing.assert_allclose(log_p[row].numpy(), expected[order], rtol=1e-4, atol=1e-4)
        if np.diff(np.sort(expected)).min(initial=1.0) > 1e-3:
            np.testing.assert_allclose(vectors[row].numpy(), case.table.decode(tuples[order]), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_lists_are_brute_force_over_beams_and_items(case: Case) -> None:
    """With every neighbour asked of every beam the definition can be written out in numpy."""
    engine = FaissEngine(case.heads, case.table, ranked_catalogue(case.table, CPU), beams=4, near=1000)
    vectors, log_p = (value.double().numpy() for value in engine.decode(case.hidden_BD))
    depth = len(case.table.codes_NC)
    items_BK, scores_BK = engine.retrieve(case.query, depth)
    step = np.square(case.table.codebooks_CVd[-1].astype(np.float64)).sum(1).mean()
    for row, seen in enumerate(case.seen):
        left = [item for item in case.known if item not in seen]
        distance = np.square(case.table.decode(case.table.codes_NC[left])[:, None] - vectors[row]).sum(-1)
        best = dict(zip(left, (log_p[row] - 2 * distance / step).max(1, initial=-np.inf), strict=True))
        items = items_BK[row, : len(left)].tolist()
        assert sorted(items) == left
        np.testing.assert_allclose(scores_BK[row, : len(left)], [best[item] for item in items], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("near", [1, 5, 1000])
def test_users_of_one_batch_do_not_change_one_another(near: int) -> None:
    random = np.random.default_rng(0)
    table = code_table(random.integers(0, 8, (60, 2)), 8)
    engine = FaissEngine(make_heads(2, 8, sharpness=3.0), table, ranked_catalogue(table, CPU), beams=6, near=near)
    x_BD = hidden(5)
    seen = [random.integers(0, 60, length).tolist() for length in (0, 3, 50, 1, 10)]
    together, _ = engine.retrieve(query_of(x_BD, seen), 5)
    alone = [engine.retrieve(query_of(x_D[None], [own]), 5)[0] for x_D, own in zip(x_BD, seen, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_more_beams_come_closer_to_exact_scoring() -> None:
    """Rows of a wide codebook are all about as far apart, so that what tells items apart is in the beams alone."""
    random = np.random.default_rng(1)
    table = code_table(random.integers(0, 16, (400, 2)), 16, width=64)
    heads, catalogue = make_heads(2, 16, sharpness=0.2), ranked_catalogue(table, CPU)
    query = query_of(hidden(40), [[]] * 40)
    exact, _ = ExactEngine(heads, CodeTrie.of(table), catalogue).retrieve(query, 40)
    shared = []
    for beams in (1, 8, 64):
        found, _ = FaissEngine(heads, table, catalogue, beams=beams).retrieve(query, 40)
        shared.append(float((found[:, :, None] == exact[:, None, :]).any(-1).float().mean()))
    assert shared[0] + 0.1 < shared[1] < shared[2] - 0.1
    assert shared[2] > 0.95


@pytest.mark.parametrize("k", [5, 120, 350])
@pytest.mark.parametrize("users", [1, 40])
def test_a_list_cut_among_items_of_one_tuple_holds_the_right_ones(k: int, users: int) -> None:
    """FAISS chooses by other code above a depth of 100 and for more than 20 queries."""
    random = np.random.default_rng(2)
    codes = random.integers(1, 4, (1200, 1))
    table = code_table(codes, 4, plays_N=random.integers(0, 3, 1200))
    catalogue = ranked_catalogue(table, CPU)
    items, _ = FaissEngine(make_heads(1, 4), table, catalogue).retrieve(query_of(hidden(users), [[]] * users), k)
    for row in items:
        code_of_found = codes[row.numpy(), 0]
        for code in np.unique(code_of_found):
            members = [item for item in catalogue.item_order.tolist() if codes[item, 0] == code]
            found = row[torch.from_numpy(code_of_found == code)].tolist()
            assert found == members[: len(found)]


def test_a_level_that_only_tells_items_apart_blurs_as_if_it_were_not_there() -> None:
    table = code_table(np.random.default_rng(3).integers(0, 4, (20, 2)), 4)
    longer = code_table(np.random.default_rng(3).integers(0, 4, (20, 3)), 4)
    longer.codebooks_CVd[:2], longer.codebooks_CVd[2] = table.codebooks_CVd, 0
    engines = [
        FaissEngine(make_heads(each.num_levels, 4), each, ranked_catalogue(each, CPU)) for each in (table, longer)
    ]
    assert engines[0].twice_variance == engines[1].twice_variance > 1e-3


def test_equal_codebook_rows_of_the_last_level_are_no_division_by_zero() -> None:
    table = code_table(np.array([[1], [1], [0]]), 2)
    table.codebooks_CVd[:] = 0
    items, scores = FaissEngine(make_heads(1, 2), table, ranked_catalogue(table, CPU)).retrieve(
        query_of(hidden(1), [[]]), 3
    )
    assert sorted(items[0].tolist()) == [-1, 0, 1]
    assert torch.isfinite(scores[0, :2]).all()
