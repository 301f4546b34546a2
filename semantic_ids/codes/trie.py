"""The code tuples of a catalogue as a flat prefix trie: arrays by level, no pointers (arXiv 2602.22647).

A node of level l is a distinct prefix of l + 1 codes that some known item carries. Nodes of a level stand in
lexicographic order, so the children of a node are a contiguous range of the next level: one gather a decoding step.
In deep levels nearly every node has one child, and where children begin is kept accordingly (`offsets.py`).

Unknown items (the all-zero tuple) are not in the trie and are therefore NOT retrievable by walking it: they share one
meaningless tuple, so reaching it would return the whole unknown part of the catalogue at one score. Whoever wants them
retrieved all the same appends `unknown_items` by an explicit choice. A catalogue without known items has a root that
leads nowhere: levels without nodes, no leaves.

C code levels · V codes per level · M_l nodes of level l · X queries · N items · n known items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.files import read_json_object, write_folder_aside, write_json_atomically
from semantic_ids.codes.offsets import Offsets, faults_of
from semantic_ids.codes.tuples import find_within, order_items

FOLDER = "trie"
"""Of a code table's folder."""
FORMAT = "segue-trie"
FORMAT_VERSION = 1
MANIFEST = "trie.json"

Indices = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint16]
Items = npt.NDArray[np.uint32]


class Coded(Protocol):
    """What a trie needs of a code table, which stands above it."""

    @property
    def path(self) -> Path:
        """The table's folder."""
        ...

    @property
    def codes_NC(self) -> Codes:
        """Codes of every item; an all-zero row means unknown."""
        ...

    @property
    def training_plays_N(self) -> npt.NDArray[np.int64]:
        """Plays of every item in training events."""
        ...

    @property
    def codes_per_level(self) -> int:
        """V."""
        ...


@dataclass(frozen=True, eq=False)
class CodeTrie:
    """The trie. `M_-1` is 1: the root, node 0 of the level before the first."""

    codes_per_level: int
    codes: tuple[Codes, ...]
    """[M_l] of level l: the prefix's last code."""
    child_offsets: tuple[Offsets, ...]
    """[M_{l-1} + 1] of level l: node p of level l - 1 has children child_offsets[l][p] … child_offsets[l][p+1] - 1."""
    leaf_offsets: Offsets
    """[M_{C-1} + 1]: leaf m holds leaf_items[leaf_offsets[m] : leaf_offsets[m + 1]]."""
    leaf_items: Items
    """[n]: known items, leaf after leaf; within a leaf by more training plays, then by lower index."""
    unknown_items: Items
    """Items [N - n] that the trie does not reach, ascending."""

    @staticmethod
    def of(table: Coded) -> CodeTrie:
        """The trie of a code table: the one saved beside it, or else built.

        Raises:
            InputError: the saved one is damaged, or of another table.
        """
        if not (table.path / FOLDER).is_dir():
            return build_trie(table.codes_NC, table.training_plays_N, table.codes_per_level)
        trie = CodeTrie.open(table.path / FOLDER)
        found = trie.num_items, trie.num_levels, trie.codes_per_level
        if found != (expected := (*table.codes_NC.shape, table.codes_per_level)):
            told, wanted = ("{} items of {} levels × {} codes".format(*size) for size in (found, expected))
            raise InputError(
                f"{table.path / FOLDER}: holds the trie of {told}, but the code table beside it has {wanted};"
                " remove this folder, or run semantic_ids.fit again"
            )
        return trie

    @staticmethod
    def open(folder: Path) -> CodeTrie:
        """Map a saved trie into memory: nothing is read but shapes and the last offset of each level.

        Raises:
            InputError: an array is missing, or does not fit the others.
        """
        return _open(Path(folder))

    def leaf_of_items(self) -> Indices:
        """[N] the leaf of each item, −1 of unknown ones."""
        sizes = np.diff(self.leaf_offsets.expanded())
        leaf_N = np.full(self.num_items, -1, np.int64)
        leaf_N[self.leaf_items] = np.repeat(np.arange(len(sizes)), sizes)
        return leaf_N

    def save(self, folder: Path) -> None:
        """Write the trie as NumPy files and `trie.json`, whole or not at all; equal tries give equal bytes."""
        arrays = dict(_flat(self))
        with write_folder_aside(folder) as aside:
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", array, allow_pickle=False)
            content = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "codes": self.codes_per_level,
                "nodes": [len(codes) for codes in self.codes],
                "known": len(self.leaf_items),
                "unknown": len(self.unknown_items),
                "arrays": {name: {"dtype": str(array.dtype), "length": len(array)} for name, array in arrays.items()},
            }
            write_json_atomically(aside / MANIFEST, content)

    @property
    def num_levels(self) -> int:
        """C."""
        return len(self.codes)

    @property
    def num_leaves(self) -> int:
        """M_{C-1}: tuples in use."""
        return len(self.codes[-1])

    @property
    def num_items(self) -> int:
        """N, unknown items included."""
        return len(self.leaf_items) + len(self.unknown_items)

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for _, array in _flat(self))

    def find(self, prefixes_Xl: npt.NDArray[np.integer]) -> Indices:
        """Node [X] that each prefix of l codes names, in level l - 1; -1 where no known item has that prefix."""
        nodes = np.zeros(len(prefixes_Xl), np.int64)
        for level, code_X in enumerate(prefixes_Xl.T):
            alive = np.flatnonzero((nodes >= 0) & (code_X >= 0) & (code_X < self.codes_per_level))
            begin, end = self.child_offsets[level].ranges(nodes[alive])
            begin, end = find_within(self.codes[level], code_X[alive].astype(np.uint16), begin, end)
            nodes = np.full(len(nodes), -1)
            nodes[alive] = np.where(begin < end, begin, -1)
        return nodes

    def children(self, level: int, parents_X: npt.NDArray[np.integer]) -> tuple[Indices, Indices]:
        """Children in `level` of nodes of `level - 1`: (position in `parents_X`, child node), parent after parent."""
        return _expand(self.child_offsets[level], parents_X)

    def parents(self, level: int) -> Indices:
        """[M_l]: the node of level l - 1 that each prefix of level l continues. Derived, so keep it if needed twice."""
        offsets = self.child_offsets[level]
        return np.repeat(np.arange(offsets.rows), np.diff(offsets.expanded()))

    def items(self, leaves_X: npt.NDArray[np.integer]) -> tuple[Indices, Items]:
        """Items of leaves: (position in `leaves_X`, item index), leaf after leaf, each in its defined order."""
        position, at = _expand(self.leaf_offsets, leaves_X)
        return position, self.leaf_items[at]

    def tuples(self, leaves_X: npt.NDArray[np.integer]) -> Codes:
        """Codes [X, C] of leaves, by walking up from each."""
        nodes = leaves_X.astype(np.int64)
        codes_XC = np.empty((len(nodes), self.num_levels), np.uint16)
        for level in reversed(range(self.num_levels)):
            codes_XC[:, level] = self.codes[level][nodes]
            nodes = self.child_offsets[level].rows_of(nodes)
        return codes_XC


def build_trie(
    codes_NC: npt.NDArray[np.integer], training_plays_N: npt.NDArray[np.int64], codes_per_level: int
) -> CodeTrie:
    """Build from codes below V, where the all-zero tuple means unknown; sorting dominates, O(N log N)."""
    item_order, leaf_offsets = order_items(codes_NC, training_plays_N, codes_per_level)
    # By rows, which lie together in memory; levels are then read column by column in order.
    tuples_MC = np.take(codes_NC, item_order[leaf_offsets[:-1]], axis=0)
    codes, child_offsets = [], []
    parents_M = np.zeros(len(tuples_MC), bool)
    parents_M[:1] = True
    num_parents = 1
    for level in range(codes_NC.shape[1]):
        # A tuple starts a new prefix where this code, or one before it, differs from the tuple before.
        starts_M = parents_M.copy()
        starts_M[1:] |= tuples_MC[1:, level] != tuples_MC[:-1, level]
        codes.append(tuples_MC[starts_M, level].astype(np.uint16))
        first_children = np.flatnonzero(parents_M[starts_M])
        assert len(first_children) == num_parents or not len(tuples_MC), (level, len(first_children), num_parents)
        # Without a known item the root is there still, and has no children.
        begins = first_children if len(tuples_MC) else np.zeros(num_parents, np.int64)
        child_offsets.append(Offsets.of(np.append(begins, len(codes[-1]))))
        parents_M, num_parents = starts_M, len(codes[-1])
    unknown_N = np.ones(len(codes_NC), bool)
    unknown_N[item_order] = False
    return CodeTrie(
        codes_per_level,
        tuple(codes),
        tuple(child_offsets),
        Offsets.of(leaf_offsets),
        item_order.astype(np.uint32),
        np.flatnonzero(unknown_N).astype(np.uint32),
    )


def _expand(offsets: Offsets, rows_X: npt.NDArray[np.integer]) -> tuple[Indices, Indices]:
    """The entries of some rows, one row's after another's, and which row each entry is of."""
    begin, end = offsets.ranges(rows_X)
    counts = end - begin
    position = np.repeat(np.arange(len(rows_X)), counts)
    before = np.cumsum(counts) - counts
    return position, np.arange(len(position)) + (begin - before)[position]


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────

_AGAIN = "run semantic_ids.fit again"
_DTYPES = {"codes": np.uint16, "plain": np.uint32, "blocks": np.uint64, "more": np.uint32, "items": np.uint32}
"""By the last word of an array's name."""


def _flat(trie: CodeTrie) -> Iterator[tuple[str, npt.NDArray[np.unsignedinteger]]]:
    """Every array of a trie under the name of its file."""
    for level, (codes, offsets) in enumerate(zip(trie.codes, trie.child_offsets, strict=True)):
        yield f"level-{level}-codes", codes
        for name, array in offsets.arrays().items():
            yield f"level-{level}-children-{name}", array
    for name, array in trie.leaf_offsets.arrays().items():
        yield f"leaf-{name}", array
    yield "leaf-items", trie.leaf_items
    yield "unknown-items", trie.unknown_items


def _open(folder: Path) -> CodeTrie:
    file = folder / MANIFEST
    content = read_json_object(file, "the shapes of a trie, which semantic_ids.fit writes")
    _check_manifest(file, content)
    nodes: list[int] = content["nodes"]
    arrays = _mapped(folder, content["arrays"])
    lengths = {f"level-{level}-codes": count for level, count in enumerate(nodes)}
    lengths |= {"leaf-items": content["known"], "unknown-items": content["unknown"]}
    faults = [
        f"{file}: `{name}` holds {len(arrays[name]) if name in arrays else 'nothing'}, expected {length} numbers;"
        f" {_AGAIN}"
        for name, length in lengths.items()
        if name not in arrays or len(arrays[name]) != length
    ]
    offsets = []
    rows = [1, *nodes]
    for level, entries in enumerate([*nodes, content["known"]]):
        prefix = f"level-{level}-children-" if level < len(nodes) else "leaf-"
        named = {kind: arrays[prefix + kind] for kind in ("plain", "blocks", "more") if prefix + kind in arrays}
        told = faults_of(rows[level], entries, named)
        faults += [f"{file}: `{prefix}…`: {fault}; {_AGAIN}" for fault in told]
        offsets.append(Offsets(rows[level], **named))
    if faults:
        raise InputError(*faults)
    codes = tuple(arrays[f"level-{level}-codes"] for level in range(len(nodes)))
    return CodeTrie(
        content["codes"], codes, tuple(offsets[:-1]), offsets[-1], arrays["leaf-items"], arrays["unknown-items"]
    )


def _check_manifest(file: Path, content: dict[str, Any]) -> None:
    for key, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        if content.get(key) != expected:
            raise InputError(f"{file}: `{key}` is {content.get(key)!r}, expected {expected!r}; {_AGAIN}")
    counts = [content.get("codes"), content.get("known"), content.get("unknown"), *(content.get("nodes") or [None])]
    if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(content.get("arrays"), dict):
        raise InputError(
            f"{file}: `codes`, `known` and `unknown` must be whole numbers, `nodes` a list of some, `arrays` an object;"
            f" {_AGAIN}"
        )


def _mapped(folder: Path, told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The arrays that the manifest names, mapped; each of the type and length that it says."""
    arrays, faults = {}, []
    for name, expected in told.items():
        file = folder / f"{name}.npy"
        try:
            # Copy-on-write, so that torch takes the arrays as they are; nothing writes to them.
            array = np.load(file, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            faults.append(f"{file}: not a readable NumPy file: {error}; {_AGAIN}")
            continue
        dtype = np.dtype(_DTYPES.get(name.rsplit("-", 1)[-1], np.uint8))
        found = {"dtype": str(array.dtype), "length": len(array) if array.ndim == 1 else list(array.shape)}
        if found != expected or array.dtype != dtype:
            faults.append(f"{file}: holds {found}, expected {expected}, of {dtype}; {_AGAIN}")
            continue
        arrays[name] = np.asarray(array)
    if faults:
        raise InputError(*faults)
    return arrays
