"""The flat trie against a dictionary of prefixes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from common.errors import InputError
from semantic_ids.codes.trie import CodeTrie, build_trie
from tests.semantic_ids.codes.trie_helpers import Catalogue, catalogues, groups_of, long_tails, prefixes_of


def same(one: CodeTrie, other: CodeTrie) -> None:
    assert (one.codes_per_level, one.num_levels) == (other.codes_per_level, other.num_levels)
    for level in range(one.num_levels):
        np.testing.assert_array_equal(one.codes[level], other.codes[level])
        np.testing.assert_array_equal(one.child_offsets[level], other.child_offsets[level])
    np.testing.assert_array_equal(one.leaf_offsets, other.leaf_offsets)
    np.testing.assert_array_equal(one.leaf_items, other.leaf_items)
    np.testing.assert_array_equal(one.unknown_items, other.unknown_items)


@given(catalogues())
@settings(max_examples=200, deadline=None)
def test_trie_equals_a_dictionary_of_prefixes(catalogue: Catalogue) -> None:
    codes_NC, plays_N, num_codes = catalogue
    trie = build_trie(*catalogue)
    assert (trie.num_levels, trie.num_items) == (codes_NC.shape[1], len(codes_NC))
    assert trie.unknown_items.tolist() == np.flatnonzero(~codes_NC.any(axis=1)).tolist()

    prefixes = prefixes_of(codes_NC)
    for level in range(trie.num_levels):
        assert trie.codes[level].tolist() == [prefix[-1] for prefix in prefixes[level + 1]]
        assert trie.parents(level).tolist() == [prefixes[level].index(prefix[:-1]) for prefix in prefixes[level + 1]]

        owners, children = trie.children(level, np.arange(len(prefixes[level]))[::-1])
        asked = prefixes[level][::-1]
        reached = [(asked[owner], prefixes[level + 1][child]) for owner, child in zip(owners, children, strict=True)]
        assert reached == [(one, child) for one in asked for child in prefixes[level + 1] if child[:-1] == one]

        every = np.array(list(product(range(num_codes), repeat=level + 1)))
        places = {prefix: place for place, prefix in enumerate(prefixes[level + 1])}
        assert trie.find(every).tolist() == [places.get(tuple(row), -1) for row in every.tolist()]

    groups = groups_of(codes_NC, plays_N)
    assert trie.num_leaves == len(groups)
    leaves, items = trie.items(np.arange(len(groups)))
    assert list(zip(leaves.tolist(), items.tolist(), strict=True)) == [
        (leaf, item) for leaf, group in enumerate(groups.values()) for item in group
    ]
    assert [tuple(row) for row in trie.tuples(np.arange(len(groups))).tolist()] == list(groups)


def test_arrays_are_as_narrow_as_they_can_be() -> None:
    codes_NC, plays_N, codes = long_tails(5_000, 8, 1024)
    trie = build_trie(codes_NC, plays_N, codes)
    assert {array.dtype for array in trie.codes} == {np.dtype(np.uint16)}
    assert trie.leaf_items.dtype == trie.unknown_items.dtype == np.uint32
    forms = [offsets.form for offsets in trie.child_offsets]
    assert forms[:2] == ["plain", "plain"]
    assert forms[3:] == ["counted", "one", "one", "one", "one"]
    assert trie.num_bytes == 2 * sum(map(len, trie.codes)) + 4 * len(codes_NC) + trie.leaf_offsets.num_bytes + sum(
        offsets.num_bytes for offsets in trie.child_offsets
    )


def test_find_refuses_codes_out_of_range() -> None:
    trie = build_trie(np.array([[0, 1], [1, 0]]), np.zeros(2, np.int64), 2)
    # 65,536 would be 0 in 16 bits, and −65,535 would be 1: a range check must tell them apart.
    asked = [[0, 1], [0, 2], [1, -1], [1, 0], [1, 65536], [0, -65535], [65536, 1]]
    assert trie.find(np.array(asked)).tolist() == [0, -1, -1, 1, -1, -1, -1]


def test_eight_levels_of_1024_codes_do_not_overflow() -> None:
    catalogue = long_tails(6_000, 8, 1024)
    codes_NC, plays_N, _ = catalogue
    trie = build_trie(*catalogue)
    groups = groups_of(codes_NC, plays_N)
    leaf_of_item = trie.find(codes_NC)
    places = {prefix: place for place, prefix in enumerate(groups)}
    assert leaf_of_item.tolist() == [places[tuple(row)] for row in codes_NC.tolist()]
    np.testing.assert_array_equal(trie.tuples(leaf_of_item), codes_NC)
    leaves, items = trie.items(leaf_of_item)
    assert np.split(items, np.flatnonzero(np.diff(leaves)) + 1)[17].tolist() == groups[tuple(codes_NC[17].tolist())]
    for length in range(1, 8):  # a prefix that nobody has at the level where it parts
        asked = codes_NC[:300, :length].astype(np.int64)
        known = set(prefixes_of(codes_NC)[length])
        asked[:, -1] = (asked[:, -1] + np.arange(300)) % 1024
        held = [tuple(row) in known for row in asked.tolist()]
        assert (trie.find(asked) >= 0).tolist() == held
        assert length < 3 or not all(held)


def test_codes_of_sixteen_bits() -> None:
    codes_NC = np.array([[65535, 0], [32768, 65535], [65535, 65535], [0, 40000]], np.uint16)
    trie = build_trie(codes_NC, np.zeros(4, np.int64), 65536)
    assert trie.find(codes_NC).tolist() == [2, 1, 3, 0]
    assert trie.leaf_items.tolist() == [3, 1, 0, 2]


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────


@given(catalogues())
@settings(max_examples=25, deadline=None)
def test_a_trie_comes_back_as_it_was_saved(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> None:
    folder = tmp_path_factory.mktemp("trie") / "trie"
    trie = build_trie(*catalogue)
    trie.save(folder)
    same(CodeTrie.open(folder), trie)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trie in which every form of offsets occurs."""
    folder = tmp_path_factory.mktemp("pristine") / "trie"
    build_trie(*long_tails(2_000, 8, 1024)).save(folder)
    return folder


@pytest.fixture
def saved(pristine: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(pristine, tmp_path / "trie")


def test_deep_levels_come_back_mapped(saved: Path) -> None:
    trie = CodeTrie.open(saved)
    same(trie, build_trie(*long_tails(2_000, 8, 1024)))
    assert {offsets.form for offsets in (*trie.child_offsets, trie.leaf_offsets)} == {"plain", "counted", "one"}
    assert all(isinstance(codes.base, np.memmap) for codes in trie.codes)


def test_equal_tries_are_equal_bytes(saved: Path, tmp_path: Path) -> None:
    build_trie(*long_tails(2_000, 8, 1024)).save(tmp_path / "again")
    files = sorted(file.name for file in saved.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in files:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


ARRAYS = [
    "level-0-codes",
    "level-7-codes",
    "level-0-children-plain",
    "level-3-children-blocks",
    "level-3-children-more",
    "leaf-blocks",
    "leaf-more",
    "leaf-items",
]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("how", ["gone", "cut", "shorter", "another type", "told another type", "pickled", "not told"])
def test_damage_is_told(saved: Path, name: str, how: str) -> None:
    file, manifest = saved / f"{name}.npy", json.loads((saved / "trie.json").read_text())
    array = np.load(file)
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "shorter":
        np.save(file, array[:-1])
    elif how in ("another type", "told another type"):
        np.save(file, array.astype(np.int64))
        manifest["arrays"][name]["dtype"] = "int64" if how == "told another type" else str(array.dtype)
        (saved / "trie.json").write_text(json.dumps(manifest))
    elif how == "pickled":
        np.save(file, array.astype(object), allow_pickle=True)
    else:
        del manifest["arrays"][name]
        (saved / "trie.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=name if how != "not told" else "expected"):
        CodeTrie.open(saved)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit_together_are_told(saved: Path, name: str) -> None:
    manifest = json.loads((saved / "trie.json").read_text())
    array = np.load(saved / f"{name}.npy")[:-1]
    np.save(saved / f"{name}.npy", array)
    manifest["arrays"][name]["length"] = len(array)
    (saved / "trie.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"trie\.json: .*expected .*run semantic_ids\.fit again"):
        CodeTrie.open(saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "`format` is 'other'"),
        ({"format_version": 0}, "`format_version` is 0"),
        ({"nodes": []}, "whole numbers"),
        ({"nodes": ["1"]}, "whole numbers"),
        ({"known": None}, "whole numbers"),
        ({"unknown": -1}, "whole numbers"),
        ({"arrays": []}, "an object"),
        ({"unknown": 3}, "`unknown-items` holds 0, expected 3"),
    ],
)
def test_a_manifest_that_cannot_be_is_told(saved: Path, change: dict[str, object], told: str) -> None:
    manifest = json.loads((saved / "trie.json").read_text())
    (saved / "trie.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=told):
        CodeTrie.open(saved)


@dataclass
class Table:
    """What a trie asks of a code table."""

    path: Path
    codes_NC: np.ndarray
    training_plays_N: np.ndarray
    codes_per_level: int


def test_a_table_has_the_trie_beside_it_or_one_made_of_its_codes(saved: Path) -> None:
    table = Table(saved.parent, *long_tails(2_000, 8, 1024))
    trie = CodeTrie.of(table)
    assert isinstance(trie.leaf_items.base, np.memmap)
    table.path = saved.parent / "elsewhere"
    same(trie, CodeTrie.of(table))
    assert not isinstance(CodeTrie.of(table).leaf_items.base, np.memmap)


@pytest.mark.parametrize("other", [(1_999, 8, 1024), (2_000, 7, 1024), (2_000, 8, 1023)])
def test_the_trie_of_another_table_is_refused(saved: Path, other: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=rf"2000 items of 8 levels × 1024 codes.*{other[0]} items"):
        CodeTrie.of(Table(saved.parent, *long_tails(*other)))
