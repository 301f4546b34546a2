"""Scores of candidates against the chain rule, and lists against exact scoring of all candidates.

B users · D width · K list length · S pairs of a user and a candidate.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import serving.engines.hybrid
from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import Query, RankedCatalogue, ranked_catalogue
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from serving.engines.hybrid import CodeScorer, HybridEngine, ItemScorer
from serving.engines.item_vectors import ItemExactEngine, ItemFaissEngine
from tests.serving.engines.helpers import Case, cases, code_table, hidden, log_probability, make_heads, query_of

CPU = torch.device("cpu")


class Fixed:
    """Returns the lists that it was made with, cut to the length asked for."""

    name, log_probabilities = "fixed", False

    def __init__(self, items_BM: list[list[int]]) -> None:
        self.items_BM, self.asked = torch.tensor(items_BM), 0

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        self.asked = k
        items_BK = torch.nn.functional.pad(self.items_BM, (0, max(0, k - self.items_BM.size(1))), value=-1)[:, :k]
        return items_BK, torch.zeros(items_BK.shape)


def scorer_of(case: Case) -> CodeScorer:
    return CodeScorer(case.heads, CodeTrie.of(case.table), ranked_catalogue(case.table, CPU))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([1, 3, 1 << 20]))
def test_scores_of_codes_are_the_chain_rule(case: Case, numbers: int) -> None:
    scorer = scorer_of(case)
    random = np.random.default_rng(0)
    rows_S = torch.from_numpy(np.sort(random.integers(0, len(case.seen), 17)))
    columns_S = torch.from_numpy(random.integers(0, len(case.known), 17))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(serving.engines.hybrid._BLOCK_NUMBERS, "cpu", numbers)
        scores_S = scorer.scores(case.hidden_BD, rows_S, columns_S)
    expected = [
        log_probability(case.heads, case.hidden_BD[row], case.table.codes_NC[scorer.catalogue.item_order[column]])
        for row, column in zip(rows_S, columns_S, strict=True)
    ]
    torch.testing.assert_close(scores_S.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


def test_each_prefix_of_a_user_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 0], [2, 0, 0], [1, 0, 0]])
    table, heads = code_table(codes, 3), make_heads(3, 3)
    evaluated: list[tuple[int, int]] = []
    level_logits = CascadedHeads.level_logits

    def counted(self: CascadedHeads, x_TD: Tensor, prefix_codes_Tl: Tensor, level: int) -> Tensor:
        evaluated.append((level, len(x_TD)))
        return level_logits(self, x_TD, prefix_codes_Tl, level)

    monkeypatch.setattr(CascadedHeads, "level_logits", counted)
    scorer = CodeScorer(heads, CodeTrie.of(table), ranked_catalogue(table, CPU))
    rows_S, columns_S = torch.arange(2).repeat_interleave(5), torch.arange(5).repeat(2)
    scorer.scores(hidden(2), rows_S, columns_S)
    # A user: nothing; 1 and 2; 1·0, 1·1 and 2·0.
    assert evaluated == [(0, 2), (1, 4), (2, 6)]


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 14))
def test_with_the_whole_catalogue_as_candidates_it_is_exact_scoring(case: Case, k: int) -> None:
    catalogue, trie = ranked_catalogue(case.table, CPU), CodeTrie.of(case.table)
    exact = ExactEngine(case.heads, trie, catalogue)
    near = FaissEngine(case.heads, case.table, catalogue, beams=3, near=2)
    hybrid = HybridEngine([near, exact], scorer_of(case), candidates=len(case.table.codes_NC))
    assert (hybrid.name, hybrid.log_probabilities) == ("hybrid", True)
    expected_items, expected_scores = exact.retrieve(case.query, k)
    items, scores = hybrid.retrieve(case.query, k)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5)
    codes, plays = case.table.codes_NC, case.table.training_plays_N
    apart = torch.nn.functional.pad(expected_scores.diff().abs() > 1e-4, (1, 1), value=True)
    alone = apart[:, 1:] & apart[:, :-1]
    assert torch.equal(items[alone], expected_items[alone])
    for row in items.tolist():  # items of one tuple, whose scores are equal to the bit, come by plays, then by index
        for item in (item for item in row if item >= 0):
            twins = [twin for twin in row if twin >= 0 and (codes[twin] == codes[item]).all()]
            assert twins == sorted(twins, key=lambda twin: (-plays[twin], twin))


def test_candidates_are_united_and_each_is_returned_once() -> None:
    table = code_table(np.arange(1, 13)[:, None], 16)
    heads, catalogue = make_heads(1, 16), ranked_catalogue(table, CPU)
    sources = [Fixed([[3, 4, -1, -1], [0, 1, 2, 3]]), Fixed([[4, 5, 3, -1], [-1, -1, -1, -1]])]
    hybrid = HybridEngine(sources, CodeScorer(heads, CodeTrie.of(table), catalogue), candidates=2)
    query = query_of(hidden(2), [[], []])
    items, scores = hybrid.retrieve(query, 4)
    assert [source.asked for source in sources] == [8, 8]
    for row, united in enumerate(([3, 4, 5], [0, 1, 2, 3])):
        score_of = {item: log_probability(heads, query.hidden_BD[row], table.codes_NC[item]) for item in united}
        best = sorted(united, key=lambda item: -score_of[item])
        assert items[row].tolist() == best + [-1] * (4 - len(best))
        torch.testing.assert_close(
            scores[row, : len(best)].double(), torch.tensor([score_of[item] for item in best]).double()
        )
        assert (scores[row, len(best) :] == -torch.inf).all()
    assert HybridEngine(sources, hybrid.scorer, candidates=100).retrieve(query, 4)
    assert [source.asked for source in sources] == [12, 12]  # there is no more


def test_of_no_candidates_there_is_no_list() -> None:
    table = code_table(np.array([[1], [2]]), 3)
    scorer = CodeScorer(make_heads(1, 3), CodeTrie.of(table), ranked_catalogue(table, CPU))
    items, scores = HybridEngine([Fixed([[-1], [-1]])], scorer).retrieve(query_of(hidden(2), [[0, 1], []]), 3)
    assert (items == -1).all()
    assert (scores == -torch.inf).all()
    near = FaissEngine(make_heads(1, 3), table, scorer.catalogue)
    assert HybridEngine([near], scorer).retrieve(query_of(hidden(0), []), 3)[0].shape == (0, 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 20), st.sampled_from([1, 13, 1 << 20]))
def test_item_vectors_are_scored_by_their_products(seed: int, k: int, size: int, numbers: int) -> None:
    random = np.random.default_rng(seed)
    num_items = size + 3
    catalogue = RankedCatalogue(torch.from_numpy(random.permutation(num_items)[:size]), num_items)
    vectors_nD = hidden(size, seed % 1000)
    query = query_of(hidden(3, seed % 999), [random.integers(0, num_items, 4).tolist() for _ in range(3)])
    exact = ItemExactEngine(vectors_nD, catalogue, 0.5)
    sources = [ItemFaissEngine(vectors_nD, catalogue, 0.5), exact]
    hybrid = HybridEngine(sources, ItemScorer(vectors_nD, catalogue, 0.5), candidates=num_items)
    assert not hybrid.log_probabilities
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(serving.engines.hybrid._BLOCK_NUMBERS, "cpu", numbers)
        items, scores = hybrid.retrieve(query, k)
    assert torch.equal(items, exact.retrieve(query, k)[0])
    expected = sources[0].retrieve(query, k)
    assert torch.equal(items, expected[0])
    torch.testing.assert_close(scores, expected[1])
