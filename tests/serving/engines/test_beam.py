"""Beam search against exact scoring, and against a search written out user by user.

B users · K list length · w beams kept.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import semantic_ids.codes.trie_steps
import serving.engines.beam
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import ranked_catalogue
from serving.engines.beam import BeamEngine
from serving.engines.exact import ExactEngine
from serving.engines.lookahead import steps_looking_ahead
from tests.serving.engines.helpers import Case, cases, code_table, hidden, log_probability, make_heads, query_of

CPU = torch.device("cpu")


def engine_of(case: Case, **keys: int) -> BeamEngine:
    return BeamEngine(case.heads, CodeTrie.of(case.table), ranked_catalogue(case.table, CPU), **keys)


def denied_of(case: Case, share: float, seed: int) -> np.ndarray:
    """Items that nobody may be given: some of them, and once in a while all below one first code."""
    random = np.random.default_rng(seed)
    codes_NC = case.table.codes_NC
    denied_N = random.random(len(codes_NC)) < share
    if share and random.random() < 0.5:
        denied_N |= codes_NC[:, 0] == random.choice(codes_NC[:, 0])
    return np.flatnonzero(denied_N)


def larger_case(seed: int = 0, items: int = 400, users: int = 9, seen: int = 60) -> Case:
    random = np.random.default_rng(seed)
    codes_NC = random.integers(0, 12, (items, 3))
    histories = [random.integers(0, items, random.integers(0, seen)).tolist() for _ in range(users)]
    return Case(code_table(codes_NC, 12, seed=seed), make_heads(3, 12, seed=seed), hidden(users, seed), histories)


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(1, 14), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 2**31))
def test_with_as_many_beams_as_tuples_it_is_exact_scoring(case: Case, k: int, denied: float, seed: int) -> None:
    catalogue = ranked_catalogue(case.table, CPU, denied_of(case, denied, seed))
    trie = CodeTrie.of(case.table)
    expected_items, expected_scores = ExactEngine(case.heads, trie, catalogue).retrieve(case.query, k)
    items, scores = BeamEngine(case.heads, trie, catalogue, width=64).retrieve(case.query, k)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5)
    apart = torch.nn.functional.pad(expected_scores.diff().abs() > 1e-4, (1, 1), value=True)
    alone = apart[:, 1:] & apart[:, :-1]
    assert torch.equal(items[alone], expected_items[alone])


def promised(case: Case, prefix: tuple[int, ...]) -> float:
    """Of the known items with a prefix, the most that the other codes give a user of whom nothing is known."""
    nobody = torch.zeros_like(case.hidden_BD[0])
    codes_nC = case.table.codes_NC[case.known]
    below_nC = codes_nC[(codes_nC[:, : len(prefix)] == prefix).all(1)]
    so_far = log_probability(case.heads, nobody, np.array(prefix))
    return max(log_probability(case.heads, nobody, codes) for codes in below_nC) - so_far


def searched(case: Case, user: int, width: int, denied: list[int], lookahead: float) -> list[tuple[float, int]]:
    """(score, item) of all items at the ends of the most promising prefixes, in plain loops."""
    barred = {*case.seen[user], *denied}
    codes, left = case.table.codes_NC, [item for item in case.known if item not in barred]
    beams: list[tuple[int, ...]] = [()]
    for level in range(codes.shape[1]):
        longer = {tuple(codes[item, : level + 1].tolist()) for item in left}
        longer = {prefix for prefix in longer if prefix[:-1] in beams}
        score = {prefix: log_probability(case.heads, case.hidden_BD[user], np.array(prefix)) for prefix in longer}
        if lookahead:
            score = {prefix: own + lookahead * promised(case, prefix) for prefix, own in score.items()}
        beams = sorted(longer, key=lambda prefix: -score[prefix])[:width]
    ends = {beam: log_probability(case.heads, case.hidden_BD[user], np.array(beam)) for beam in beams}
    return [(ends[tuple(codes[item].tolist())], item) for item in left if tuple(codes[item].tolist()) in ends]


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("lookahead", [0.0, 0.75])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_narrow_search_is_the_obvious_one(
    width: int, share: float, lookahead: float, tables: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With items that nobody may be given too: no beam ends at one, and none is spent on the way to it."""
    if not tables:
        monkeypatch.setattr(semantic_ids.codes.trie_steps, "_TABLE_ENTRIES", 0)
    case = larger_case(seed=width, users=4)
    k, denied = width, denied_of(case, share, width)
    trie, catalogue = CodeTrie.of(case.table), ranked_catalogue(case.table, CPU, denied)
    steps = steps_looking_ahead(case.heads, trie, CPU, lookahead)
    engine = BeamEngine(case.heads, trie, catalogue, width=width, steps=steps)
    items, scores = engine.retrieve(case.query, k)
    for user in range(len(case.seen)):
        expected = searched(case, user, width, denied.tolist(), lookahead)
        best = sorted((score for score, _ in expected), reverse=True)[:k]
        expected_scores = torch.tensor(best, dtype=torch.float64)
        torch.testing.assert_close(scores[user, : len(best)].double(), expected_scores, rtol=1e-5, atol=1e-5)
        assert set(items[user].tolist()) - {-1} <= {item for _, item in expected}


def test_looking_ahead_finds_an_item_that_many_others_hide() -> None:
    """Of two first codes one is likelier, but 30 items share it; the other is one item's alone."""
    codes_NC = np.concatenate([np.stack([np.ones(30), np.arange(30)], axis=1).astype(int), [[2, 5]]])
    users_BD = hidden(3)
    users_BD[:, 0] = 0.0
    case = Case(code_table(codes_NC, 30), make_heads(2, 30), users_BD, [[], [], []])
    with torch.no_grad():
        for parameter in case.heads.parameters():
            parameter.zero_()
        case.heads.bias_CV[0, 1], case.heads.bias_CV[0, 2] = 10.0, 9.0
        assert case.heads.shift is not None
        case.heads.shift[2, 0], case.heads.weight_CVD[1, 5, 0] = 1.0, 10.0  # after code 2 the second code is 5
    catalogue, trie = ranked_catalogue(case.table, CPU), CodeTrie.of(case.table)
    exact, _ = ExactEngine(case.heads, trie, catalogue).retrieve(case.query, 1)
    assert exact.flatten().tolist() == [30, 30, 30]
    for lookahead, found in ((0.0, False), (0.75, True)):
        steps = steps_looking_ahead(case.heads, trie, CPU, lookahead)
        items, _ = BeamEngine(case.heads, trie, catalogue, width=1, steps=steps).retrieve(case.query, 1)
        assert torch.equal(items, exact) == found


def test_a_user_who_has_seen_all_of_the_best_prefixes_gets_a_full_list() -> None:
    """Beams spent on what must not come back would leave the list short."""
    random = np.random.default_rng(4)
    codes_NC = np.concatenate([np.full((60, 1), 1), random.integers(0, 30, (60, 2))], axis=1)
    codes_NC = np.concatenate([codes_NC, [[2, code, code] for code in range(6)]])
    case = Case(code_table(codes_NC, 30), make_heads(3, 30), hidden(2), [list(range(60)), list(range(58))])
    with torch.no_grad():
        case.heads.bias_CV[0, 1] += 50  # what has been seen is likelier by far
    items, _ = engine_of(case, width=2).retrieve(case.query, 6)
    assert sorted(items[0].tolist()) == list(range(60, 66))
    assert set(items[1, :2].tolist()) == {58, 59}
    assert len(set(items[1].tolist()) - {-1}) == 6


def test_a_list_is_full_where_nearly_everything_is_denied() -> None:
    case = larger_case(seed=3, seen=2)
    left = [17, 80, 255, 391]
    denied = np.setdiff1d(np.arange(len(case.table.codes_NC)), left)
    catalogue = ranked_catalogue(case.table, CPU, denied)
    items, _ = BeamEngine(case.heads, CodeTrie.of(case.table), catalogue, width=1).retrieve(case.query, 4)
    for row, seen in zip(items.tolist(), case.seen, strict=True):
        assert sorted(item for item in row if item >= 0) == [item for item in left if item not in seen]


def test_blocks_of_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = larger_case(seed=7)
    whole = engine_of(case, width=5).retrieve(case.query, 8)
    for logits in (1, 2 * 8 * 12, 4 * 8 * 12):
        monkeypatch.setitem(serving.engines.beam._BLOCK_LOGITS, "cpu", logits)
        items, scores = engine_of(case, width=5).retrieve(case.query, 8)
        assert torch.equal(items, whole[0])
        torch.testing.assert_close(scores, whole[1])
    for logits in (1, 12, 5 * 12):
        monkeypatch.setitem(serving.engines.beam.CACHED_LOGITS, "cpu", logits)
        items, scores = engine_of(case, width=5).retrieve(case.query, 8)
        assert torch.equal(items, whole[0])
        torch.testing.assert_close(scores, whole[1])


def test_beyond_the_deepest_place_nothing_is_filled() -> None:
    case = larger_case()
    items, scores = engine_of(case, width=3, deepest=7).retrieve(case.query, 10)
    short, short_scores = engine_of(case, width=3).retrieve(case.query, 7)
    assert torch.equal(items[:, :7], short)
    assert torch.equal(scores[:, :7], short_scores)
    assert (items[:, 7:] == -1).all()
    assert (scores[:, 7:] == -torch.inf).all()


def test_no_users() -> None:
    case = larger_case()
    items, scores = engine_of(case).retrieve(query_of(hidden(0), []), 5)
    assert items.shape == scores.shape == (0, 5)
