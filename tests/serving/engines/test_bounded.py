"""Bounds against exact scoring: the same lists, from fewer prefixes.

B users · K list length.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import serving.engines.bounded
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import RankedCatalogue, ranked_catalogue
from serving.engines.beam import BeamEngine
from serving.engines.bounded import BoundedEngine
from serving.engines.exact import ExactEngine
from tests.serving.engines.helpers import Case, cases, code_table, hidden, make_heads, query_of

CPU = torch.device("cpu")


def catalogue_of(case: Case, denied: list[int]) -> RankedCatalogue:
    return ranked_catalogue(case.table, CPU, np.array(denied, np.int64))


def both(case: Case, k: int, denied: list[int], width: int, block: int) -> tuple[BoundedEngine, Tensor, Tensor]:
    """The engine, after it has been held to exact scoring; its list and that one's."""
    trie, catalogue = CodeTrie.of(case.table), catalogue_of(case, denied)
    expected_items, expected_scores = ExactEngine(case.heads, trie, catalogue).retrieve(case.query, k)
    engine = BoundedEngine(case.heads, trie, catalogue, width=width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(serving.engines.bounded._BLOCK, "cpu", block)
        patch.setitem(serving.engines.bounded.CACHED_LOGITS, "cpu", 3 * case.heads.codes)
        items, scores = engine.retrieve(case.query, k)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5)
    return engine, items, expected_items


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 14), st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**31))
def test_it_is_exact_scoring(case: Case, k: int, width: int, block: int, seed: int) -> None:
    """With users' own exclusions and items that nobody may be given, collisions and catalogues of one item."""
    random = np.random.default_rng(seed)
    num_items = len(case.table.codes_NC)
    denied = np.flatnonzero(random.random(num_items) < random.choice([0.0, 0.4])).tolist()
    engine, items, expected = both(case, k, denied, width, block)
    scores = ExactEngine(case.heads, CodeTrie.of(case.table), catalogue_of(case, denied)).retrieve(case.query, k)[1]
    apart = torch.nn.functional.pad(scores.diff().abs() > 1e-4, (1, 0), value=True)
    alone = apart & torch.nn.functional.pad(apart[:, 1:], (0, 1), value=False)
    assert torch.equal(items[alone], expected[alone])
    assert engine.unproven_users == 0
    assert engine.users == len(case.seen)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 3))
def test_ties_come_out_as_in_exact_scoring(seed: int, k: int, width: int) -> None:
    """Heads that know nothing of the user or the codes: every item scores the same, and K cuts a tie."""
    random = np.random.default_rng(seed)
    case = Case(
        code_table(random.integers(0, 4, (40, 3)), 4, seed=seed), make_heads(3, 4), hidden(3), [[1, 5], [], [9]]
    )
    with torch.no_grad():
        for parameter in case.heads.parameters():
            parameter.zero_()
    _, items, expected = both(case, k, random.integers(0, 40, 5).tolist(), width, 7)
    assert torch.equal(items, expected)


def larger(seed: int, sharpness: float) -> Case:
    random = np.random.default_rng(seed)
    codes_NC = random.integers(0, 16, (3000, 4))
    seen = [random.integers(0, 3000, 50).tolist() for _ in range(6)]
    return Case(code_table(codes_NC, 16, seed=seed), make_heads(4, 16, sharpness=sharpness), hidden(6), seen)


def test_a_narrow_beam_misses_what_bounds_find_among_few_prefixes() -> None:
    case = larger(0, sharpness=4.0)
    trie, catalogue = CodeTrie.of(case.table), catalogue_of(case, [])
    exact, _ = ExactEngine(case.heads, trie, catalogue).retrieve(case.query, 20)
    beam, _ = BeamEngine(case.heads, trie, catalogue, width=20).retrieve(case.query, 20)
    engine, items, _ = both(case, 20, [], 20, 64)
    assert not torch.equal(beam, exact)
    assert [set(row) for row in items.tolist()] == [set(row) for row in exact.tolist()]
    assert engine.trie_prefixes == 1 + sum(len(codes) for codes in trie.codes[:-1])
    assert engine.prefixes < 0.5 * engine.trie_prefixes * len(items)


def test_a_user_beyond_the_limit_is_counted_and_has_a_full_list() -> None:
    case = larger(1, sharpness=0.1)  # so even that nothing is ruled out
    trie, catalogue = CodeTrie.of(case.table), catalogue_of(case, [])
    engine = BoundedEngine(case.heads, trie, catalogue, width=30, frontier=20)
    items, scores = engine.retrieve(case.query, 30)
    assert engine.unproven_users == engine.users == 6
    assert (items >= 0).all()
    _, beam_scores = BeamEngine(case.heads, trie, catalogue, width=30).retrieve(case.query, 30)
    assert (scores >= beam_scores - 1e-5).all()
    assert not any(set(row) & set(seen) for row, seen in zip(items.tolist(), case.seen, strict=True))


def test_no_users() -> None:
    case = larger(0, sharpness=1.0)
    engine = BoundedEngine(case.heads, CodeTrie.of(case.table), catalogue_of(case, []))
    items, scores = engine.retrieve(query_of(hidden(0), []), 5)
    assert items.shape == scores.shape == (0, 5)
