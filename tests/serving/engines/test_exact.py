from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.engines.exact
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import ranked_catalogue
from serving.engines.exact import ExactEngine
from tests.serving.engines.helpers import Case, cases, code_table, hidden, log_probability, make_heads, query_of

CPU = torch.device("cpu")


def engine_of(case: Case) -> ExactEngine:
    return ExactEngine(case.heads, CodeTrie.of(case.table), ranked_catalogue(case.table, CPU))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_scores_are_the_chain_rule_item_by_item(case: Case) -> None:
    engine = engine_of(case)
    order = engine.catalogue.item_order.tolist()
    assert sorted(order) == case.known
    expected = [
        [log_probability(case.heads, x_D, case.table.codes_NC[item]) for item in order] for x_D in case.hidden_BD
    ]
    torch.testing.assert_close(
        engine.scores(case.hidden_BD).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("users", [1, 7])
def test_blocks_of_prefixes_change_nothing(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    table = code_table(random.integers(0, 8, (150, 3)), 8)
    case = Case(table, make_heads(3, 8), hidden(users), [[]] * users)
    engine = engine_of(case)
    whole = engine.scores(case.hidden_BD)
    for logits in (1, users * 8 * 3, users * 8 * 64):
        monkeypatch.setitem(serving.engines.exact.CACHED_LOGITS, "cpu", logits)
        torch.testing.assert_close(engine.scores(case.hidden_BD), whole)


def test_probabilities_of_a_whole_catalogue_sum_to_what_the_unknown_tuple_leaves() -> None:
    tuples = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1).reshape(-1, 2)
    heads = make_heads(2, 4)
    table = code_table(tuples, 4)
    x_BD = hidden(5)
    scores = ExactEngine(heads, CodeTrie.of(table), ranked_catalogue(table, CPU)).scores(x_BD)
    unknown = torch.tensor([log_probability(heads, x_D, tuples[0]) for x_D in x_BD]).exp()
    torch.testing.assert_close(scores.exp().sum(1) + unknown.float(), torch.ones(5))


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 14), st.integers(0, 2**31))
def test_what_nobody_may_be_given_is_left_out_of_the_lists(case: Case, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    denied = np.flatnonzero(random.random(len(case.table.codes_NC)) < 0.4)
    whole = engine_of(case)
    items, scores = whole.retrieve(case.query, len(case.table.codes_NC))
    catalogue = ranked_catalogue(case.table, CPU, denied)
    found, found_scores = ExactEngine(case.heads, CodeTrie.of(case.table), catalogue).retrieve(case.query, k)
    for row, item_list in enumerate(items.tolist()):
        left = [place for place, item in enumerate(item_list) if item >= 0 and item not in denied][:k]
        assert found[row, : len(left)].tolist() == [item_list[place] for place in left]
        torch.testing.assert_close(found_scores[row, : len(left)], scores[row, left])
        assert (found[row, len(left) :] == -1).all()


def test_items_of_one_tuple_come_by_plays_then_by_index() -> None:
    codes = np.array([[1, 1], [2, 0], [1, 1], [1, 1], [2, 0]])
    table = code_table(codes, 3, plays_N=np.array([0, 5, 7, 0, 9]))
    engine = ExactEngine(make_heads(2, 3), CodeTrie.of(table), ranked_catalogue(table, CPU))
    items, scores = engine.retrieve(query_of(hidden(4), [[]] * 4), 5)
    for row, values in zip(items.tolist(), scores.tolist(), strict=True):
        assert [item for item in row if item in (0, 2, 3)] == [2, 0, 3]
        assert [item for item in row if item in (1, 4)] == [4, 1]
        assert len(set(values)) == 2
