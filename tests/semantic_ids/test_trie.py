"""The flat trie against a dictionary of prefixes."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.trie import build_trie


@st.composite
def catalogues(draw):
    levels, codes = draw(st.integers(1, 4)), draw(st.sampled_from([2, 4]))
    num_items = draw(st.integers(0, 30))
    row = st.lists(st.integers(0, codes - 1), min_size=levels, max_size=levels)
    codes_NC = np.array(draw(st.lists(row, min_size=num_items, max_size=num_items)), np.int64).reshape(-1, levels)
    plays_N = np.array(draw(st.lists(st.integers(0, 2), min_size=num_items, max_size=num_items)), np.int64)
    return codes_NC, plays_N, codes


@given(catalogues())
@settings(max_examples=200, deadline=None)
def test_trie_equals_a_dictionary_of_prefixes(catalogue):
    codes_NC, plays_N, num_codes = catalogue
    num_levels = codes_NC.shape[1]
    trie = build_trie(codes_NC, plays_N, num_codes)
    known = [item for item in range(len(codes_NC)) if codes_NC[item].any()]
    assert trie.num_levels == num_levels
    assert trie.unknown_items.tolist() == sorted(set(range(len(codes_NC))) - set(known))

    prefixes: list[list[tuple[int, ...]]] = [[()]]
    for level in range(num_levels):
        prefixes.append(sorted({tuple(codes_NC[item, : level + 1].tolist()) for item in known}))
        assert trie.codes[level].tolist() == [prefix[-1] for prefix in prefixes[-1]]
        assert trie.parents[level].tolist() == [prefixes[-2].index(prefix[:-1]) for prefix in prefixes[-1]]

        owners, children = trie.children(level, np.arange(len(prefixes[-2]))[::-1].copy())
        asked = prefixes[-2][::-1]
        reached = [(asked[owner], prefixes[-1][child]) for owner, child in zip(owners, children, strict=True)]
        expected = [(parent, child) for parent in asked for child in prefixes[-1] if child[:-1] == parent]
        assert reached == expected

        every = np.array(list(product(range(num_codes), repeat=level + 1)))
        found = [prefixes[-1].index(tuple(row)) if tuple(row) in prefixes[-1] else -1 for row in every.tolist()]
        assert trie.find(every).tolist() == found

    groups: dict[tuple[int, ...], list[int]] = {prefix: [] for prefix in prefixes[-1]}
    for item in sorted(known, key=lambda item: (-plays_N[item], item)):
        groups[tuple(codes_NC[item].tolist())].append(item)
    leaves, items = trie.items(np.arange(len(groups)))
    assert list(zip(leaves.tolist(), items.tolist(), strict=True)) == [
        (leaf, item) for leaf, group in enumerate(groups.values()) for item in group
    ]


def test_find_refuses_codes_out_of_range():
    trie = build_trie(np.array([[0, 1], [1, 0]]), np.zeros(2, np.int64), 2)
    # (0, 2) and (1, 0) have the same key parent · V + code: a range check must tell them apart.
    assert trie.find(np.array([[0, 1], [0, 2], [1, -1], [1, 0]])).tolist() == [0, -1, -1, 1]


def test_eight_levels_of_1024_codes_do_not_overflow():
    generator = np.random.default_rng(0)
    codes_NC = generator.integers(0, 1024, (500, 8))
    codes_NC[250:] = codes_NC[:250]  # every tuple is shared by two items
    codes_NC[250:, -1] ^= np.arange(250) % 2  # … or parts from the other at the last level
    trie = build_trie(codes_NC, np.zeros(500, np.int64), 1024)
    assert len(trie.codes[-1]) == len({tuple(row) for row in codes_NC.tolist()})
    leaf_of_item = trie.find(codes_NC)
    assert (leaf_of_item >= 0).all()
    leaves, items = trie.items(leaf_of_item)
    assert all(item in items[leaves == item] for item in range(500))
