"""Steps of constrained decoding against sets of prefixes.

B users · b beams of a user · w beams kept · V codes per level.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import semantic_ids.codes.trie_steps
from semantic_ids.codes.trie import CodeTrie, build_trie
from semantic_ids.codes.trie_steps import Barred, Beams, TrieSteps
from tests.semantic_ids.codes.trie_helpers import Catalogue, catalogues, groups_of, long_tails, prefixes_of

Prefix = tuple[int, ...]


def log_probabilities(shape: tuple[int, ...], seed: int, none: float = 0.0) -> Tensor:
    """Small whole numbers, so that sums are exact and often equal; a share of them −inf."""
    random = np.random.default_rng(seed)
    values = -random.integers(0, 4, shape).astype(np.float32)
    values[random.random(shape) < none] = -np.inf
    return torch.from_numpy(values)


def blocks_of(log_p_BbV: Tensor) -> Callable[[int, int], Tensor]:
    """Log-probabilities that are made when asked for, in a buffer that the next block overwrites."""
    log_p_TV = log_p_BbV.flatten(0, 1)
    buffer_TV = torch.empty_like(log_p_TV)

    def of(first: int, stop: int) -> Tensor:
        buffer_TV.fill_(torch.nan)
        return buffer_TV[: stop - first].copy_(log_p_TV[first:stop])

    return of


def drawn_nodes(prefixes: list[Prefix], count: int, seed: int) -> list[int]:
    """Nodes in any order, repeats and empty places among them."""
    return np.random.default_rng(seed).integers(-1, len(prefixes), count).tolist()


def codes_after(prefixes: list[list[Prefix]], level: int, node: int) -> list[int]:
    """Valid codes, ascending, by looking at every prefix."""
    if node < 0:
        return []
    return [prefix[-1] for prefix in prefixes[level + 1] if prefix[:-1] == prefixes[level][node]]


@given(catalogues(), st.integers(0, 9), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_continuations_are_the_prefixes_that_exist(catalogue: Catalogue, count: int, seed: int) -> None:
    codes_NC, _, num_codes = catalogue
    prefixes, steps = prefixes_of(codes_NC), TrieSteps(build_trie(*catalogue))
    for level in range(steps.num_levels):
        nodes = drawn_nodes(prefixes[level], count, seed + level)
        log_p = log_probabilities((count, num_codes), seed, none=0.1)
        expected = [
            (beam, prefixes[level + 1].index((*prefixes[level][node], code)), code, float(log_p[beam, code]))
            for beam, node in enumerate(nodes)
            for code in codes_after(prefixes, level, node)
        ]
        nodes_b = torch.tensor(nodes, dtype=torch.int64)
        found = steps.continuations(level, nodes_b, log_p)
        columns = (found.beams_S, found.nodes_S, found.codes_S, found.log_p_S)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected

        valid = torch.zeros(count, num_codes, dtype=torch.bool)
        for beam, _, code, _ in expected:
            valid[beam, code] = True
        assert torch.equal(steps.mask(level, nodes_b), valid)


def drawn_beams(prefixes: list[Prefix], users: int, beams: int, seed: int) -> np.ndarray:
    """Of each user, nodes that ascend, then empty places."""
    random = np.random.default_rng(seed)
    nodes = np.full((users, beams), -1)
    for user in range(users):
        drawn = np.sort(random.permutation(len(prefixes))[: random.integers(0, beams + 1)])
        nodes[user, : len(drawn)] = drawn
    return nodes


def drawn_barred(steps: TrieSteps, level: int, users: int, seed: int) -> Barred:
    """Some nodes for everybody, some for each user, the same ones among them."""
    random = np.random.default_rng(seed)
    num_nodes = steps.num_nodes(level)
    for_all = np.flatnonzero(random.random(num_nodes) < random.choice([0.0, 0.2]))
    user, child = np.nonzero(random.random((users, num_nodes)) < random.choice([0.0, 0.3]))
    children = torch.from_numpy(child)
    return Barred(torch.from_numpy(for_all), torch.from_numpy(user), children, steps.parents(level, children))


@pytest.mark.parametrize("tables", [True, False])
@given(catalogues(), st.integers(0, 3), st.integers(1, 4), st.integers(1, 7), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_best_is_a_sort_of_what_exists_and_is_not_barred(
    tables: bool, catalogue: Catalogue, users: int, beams: int, width: int, seed: int
) -> None:
    codes_NC, _, num_codes = catalogue
    prefixes, steps = prefixes_of(codes_NC), with_tables(build_trie(*catalogue), tables)
    for level in range(steps.num_levels):
        nodes = drawn_beams(prefixes[level], users, beams, seed + level)
        scores = log_probabilities((users, beams), seed + 1)
        scores[torch.from_numpy(nodes) < 0] = -torch.inf
        log_p = log_probabilities((users, beams, num_codes), seed + 2, none=0.1)
        barred = drawn_barred(steps, level, users, seed + 3)
        pairs = set(zip(barred.users_P.tolist(), barred.children_P.tolist(), strict=True))
        expected = []
        for user in range(users):
            found = [
                (float(scores[user, beam] + log_p[user, beam, code]), child, code, beam)
                for beam in range(beams)
                for code in codes_after(prefixes, level, nodes[user, beam])
                for child in [prefixes[level + 1].index((*prefixes[level][nodes[user, beam]], code))]
                if (user, child) not in pairs and child not in barred.children_M
            ]
            found = [one for one in found if one[0] > -np.inf]
            kept = sorted(sorted(found, key=lambda one: (-one[0], one[1]))[:width], key=lambda one: one[1])
            expected.append(
                [(child, code, beam, score) for score, child, code, beam in kept]
                + [(-1, -1, -1, -np.inf)] * (width - len(kept))
            )
        block = max(1, seed % 5)
        best = steps.best(level, torch.from_numpy(nodes), scores, blocks_of(log_p), width, barred=barred, block=block)
        assert rows_of(best) == expected
        assert all(column.shape == (users, width) for column in (best.nodes_Bw, best.codes_Bw, best.came_from_Bw))


def with_tables(trie: CodeTrie, tables: bool) -> TrieSteps:
    """Steps whose levels have all a table of their valid codes, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic_ids.codes.trie_steps, "_TABLE_ENTRIES", 1 << 30 if tables else 0)
        return TrieSteps(trie)


@given(catalogues())
@settings(max_examples=60, deadline=None)
def test_parents_are_those_whose_children_they_are(catalogue: Catalogue) -> None:
    trie = build_trie(*catalogue)
    steps = TrieSteps(trie)
    for level, offsets in enumerate((*trie.child_offsets, trie.leaf_offsets)):
        expected = np.repeat(np.arange(offsets.rows), np.diff(offsets.expanded()))
        assert steps.parents(level, torch.arange(steps.num_nodes(level))).tolist() == expected.tolist()


def rows_of(beams: Beams) -> list[list[tuple[float, ...]]]:
    columns = (beams.nodes_Bw, beams.codes_Bw, beams.came_from_Bw, beams.scores_Bw)
    return [list(zip(*row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]


def decode(steps: TrieSteps, users: int, width: int, seed: int) -> Beams:
    """All levels, log-probabilities of a level depending on level, user and beam alone."""
    beams = steps.start(users)
    for level in range(steps.num_levels):
        log_p = log_probabilities((users, beams.nodes_Bw.size(1), steps.codes_per_level), seed + level)
        beams = steps.best(level, beams.nodes_Bw, beams.scores_Bw, blocks_of(log_p), width, block=7)
    return beams


@given(catalogues(), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_wide_beams_reach_every_item_and_all_of_a_shared_tuple(catalogue: Catalogue, seed: int) -> None:
    codes_NC, plays_N, _ = catalogue
    steps, groups = TrieSteps(build_trie(*catalogue)), list(groups_of(codes_NC, plays_N).values())
    leaves = decode(steps, 2, len(codes_NC) + 1, seed).nodes_Bw
    for leaves_w in leaves:
        position, items = steps.items(leaves_w)
        expected = [(place, item) for place, leaf in enumerate(leaves_w.tolist()) if leaf >= 0 for item in groups[leaf]]
        assert list(zip(position.tolist(), items.tolist(), strict=True)) == expected
        assert sorted(items.tolist()) == np.flatnonzero(codes_NC.any(axis=1)).tolist()


def test_one_beam_brings_all_items_of_its_tuple_the_more_played_first() -> None:
    codes_NC = np.array([[1, 2], [1, 2], [0, 1], [1, 2], [0, 0]], np.uint16)
    steps = TrieSteps(build_trie(codes_NC, np.array([3, 9, 50, 3, 99]), 3))
    likely_12 = torch.tensor([[[-9.0, 0.0, -1.0]]]), torch.tensor([[[0.0, 0.0, -8.0]]])
    beams = steps.start(1)
    for level, log_p in enumerate(likely_12):
        beams = steps.best(level, beams.nodes_Bw, beams.scores_Bw, blocks_of(log_p), 1)
    assert rows_of(beams) == [[(1, 2, 0, -8.0)]]
    assert steps.items(beams.nodes_Bw[0])[1].tolist() == [1, 0, 3]


@pytest.mark.parametrize("num_items", [0, 3])
@pytest.mark.parametrize("levels", [1, 3])
def test_without_known_items_nothing_can_be_reached(num_items: int, levels: int) -> None:
    trie = build_trie(np.zeros((num_items, levels), np.uint16), np.zeros(num_items, np.int64), 4)
    assert trie.unknown_items.tolist() == list(range(num_items))
    steps = TrieSteps(trie)
    assert not steps.mask(0, torch.zeros(2, dtype=torch.int64)).any()
    beams = decode(steps, 2, 3, 0)
    assert rows_of(beams) == [[(-1, -1, -1, -np.inf)] * 3] * 2
    assert [column.tolist() for column in steps.items(beams.nodes_Bw.flatten())] == [[], []]


@pytest.mark.parametrize(("levels", "codes"), [(8, 1024), (5, 65536)])
def test_long_tails_of_wide_codes(levels: int, codes: int) -> None:
    codes_NC, plays_N, _ = catalogue = long_tails(4_000, levels, codes)
    trie, prefixes = build_trie(*catalogue), prefixes_of(codes_NC)
    assert {offsets.form for offsets in (*trie.child_offsets, trie.leaf_offsets)} == {"plain", "counted", "one"}
    steps, groups = TrieSteps(trie), list(groups_of(codes_NC, plays_N).values())
    for level in range(levels):
        followers: dict[Prefix, list[tuple[int, int]]] = {prefix: [] for prefix in prefixes[level]}
        for child, prefix in enumerate(prefixes[level + 1]):
            followers[prefix[:-1]].append((child, prefix[-1]))
        nodes = np.random.default_rng(level).permutation(len(prefixes[level]))[:500]
        expected = [(beam, *one) for beam, node in enumerate(nodes) for one in followers[prefixes[level][node]]]
        found = steps.continuations(level, torch.from_numpy(nodes), torch.zeros(len(nodes), codes))
        assert (
            list(zip(found.beams_S.tolist(), found.nodes_S.tolist(), found.codes_S.tolist(), strict=True)) == expected
        )
        children = torch.arange(len(prefixes[level + 1]))
        parent_of = {child: node for node, prefix in enumerate(prefixes[level]) for child, _ in followers[prefix]}
        assert steps.parents(level, children).tolist() == [parent_of[child] for child in children.tolist()]
    position, items = steps.items(torch.arange(len(groups)).flip(0))
    assert items.tolist() == [item for group in reversed(groups) for item in group]
    assert position.tolist() == [place for place, group in enumerate(reversed(groups)) for _ in group]


def test_a_mapped_trie_is_walked_without_a_copy(tmp_path: Path) -> None:
    trie = build_trie(*long_tails(500, 4, 64))
    trie.save(tmp_path / "trie")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = TrieSteps(mapped := CodeTrie.open(tmp_path / "trie"))
    assert steps._leaf_items.data_ptr() == mapped.leaf_items.ctypes.data
    assert rows_of(decode(steps, 3, 20, 0)) == rows_of(decode(TrieSteps(trie), 3, 20, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    trie = build_trie(*long_tails(4_000, 8, 1024))
    steps, on_gpu = TrieSteps(trie), TrieSteps(trie, "cuda")
    beams, theirs = steps.start(3), on_gpu.start(3)
    for level in range(8):
        log_p = log_probabilities((3, beams.nodes_Bw.size(1), 1024), level)
        beams = steps.best(level, beams.nodes_Bw, beams.scores_Bw, blocks_of(log_p), 20)
        theirs = on_gpu.best(level, theirs.nodes_Bw, theirs.scores_Bw, blocks_of(log_p.cuda()), 20)
        assert rows_of(theirs) == rows_of(beams)
