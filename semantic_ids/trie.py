"""The code tuples of a catalogue as a flat prefix trie: arrays by level, no pointers (arXiv 2602.22647).

A node of level l is a distinct prefix of l + 1 codes that some known item carries. Nodes of a level stand in
lexicographic order, so the children of a node are a contiguous range of the next level: one gather a decoding step.

Unknown items (the all-zero tuple) are not in the trie and are therefore NOT retrievable by walking it: they share one
meaningless tuple, so reaching it would return the whole unknown part of the catalogue at one score. Whoever wants them
retrieved all the same appends `unknown_items` by an explicit choice.

C code levels · V codes per level · M_l nodes of level l · X queries · n known items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semantic_ids.codebook import CodeTable, order_items

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CodeTrie:
    """The trie. `M_-1` is 1: the root, node 0 of the level before the first."""

    codes_per_level: int
    parents: tuple[Indices, ...]
    """[M_l] of level l: the node of level l - 1 that the prefix continues."""
    codes: tuple[Indices, ...]
    """[M_l] of level l: the prefix's last code."""
    child_offsets: tuple[Indices, ...]
    """[M_{l-1} + 1] of level l: node p of level l - 1 has children child_offsets[l][p] … child_offsets[l][p+1] - 1."""
    leaf_offsets: Indices
    """[M_{C-1} + 1]: leaf m holds leaf_items[leaf_offsets[m] : leaf_offsets[m + 1]]."""
    leaf_items: Indices
    """[n]: known items, leaf after leaf; within a leaf by more training plays, then by lower index."""
    unknown_items: Indices
    """Items that the trie does not reach, ascending."""

    @staticmethod
    def of(table: CodeTable) -> CodeTrie:
        """The trie of a code table."""
        return build_trie(table.codes_NC, table.training_plays_N, table.codes_per_level)

    @property
    def num_levels(self) -> int:
        """C."""
        return len(self.codes)

    def find(self, prefixes_Xl: npt.NDArray[np.integer]) -> Indices:
        """Node [X] that each prefix of l codes names, in level l - 1; -1 where no known item has that prefix."""
        nodes = np.zeros(len(prefixes_Xl), np.int64)
        for level in range(prefixes_Xl.shape[1]):
            # Nodes in lexicographic order are ascending in (parent, code), hence in this key.
            keys = self.parents[level] * self.codes_per_level + self.codes[level]
            code = prefixes_Xl[:, level].astype(np.int64)
            wanted = nodes * self.codes_per_level + code
            at = np.searchsorted(keys, wanted)
            held = (nodes >= 0) & (code >= 0) & (code < self.codes_per_level) & (at < len(keys))
            held[held] = keys[at[held]] == wanted[held]
            nodes = np.where(held, at, -1)
        return nodes

    def children(self, level: int, parents_X: Indices) -> tuple[Indices, Indices]:
        """Children in `level` of nodes of `level - 1`: (position in `parents_X`, child node), parent after parent."""
        return _expand(self.child_offsets[level], parents_X)

    def items(self, leaves_X: Indices) -> tuple[Indices, Indices]:
        """Items of leaves: (position in `leaves_X`, item index), leaf after leaf, each in its defined order."""
        position, at = _expand(self.leaf_offsets, leaves_X)
        return position, self.leaf_items[at]


def build_trie(codes_NC: Indices, training_plays_N: Indices, codes_per_level: int) -> CodeTrie:
    """Build from codes, where the all-zero tuple means unknown; sorting dominates, O(N log N)."""
    item_order, leaf_offsets = order_items(codes_NC, training_plays_N, codes_per_level)
    tuples_MC = codes_NC[item_order[leaf_offsets[:-1]]]
    parents, codes, child_offsets = [], [], []
    parent_of_tuple = np.zeros(len(tuples_MC), np.int64)
    num_parents = 1
    starts_prefix = np.arange(len(tuples_MC)) == 0
    for code_M in tuples_MC.T:
        # A tuple starts a new prefix where this code, or one before it, differs from the tuple before.
        starts_prefix = starts_prefix.copy()
        starts_prefix[1:] |= code_M[1:] != code_M[:-1]
        first = np.flatnonzero(starts_prefix)
        parents.append(parent_of_tuple[first])
        codes.append(code_M[first])
        child_offsets.append(np.searchsorted(parents[-1], np.arange(num_parents + 1)))
        parent_of_tuple, num_parents = np.cumsum(starts_prefix) - 1, len(first)
    unknown_items = np.flatnonzero(~codes_NC.any(axis=1))
    return CodeTrie(
        codes_per_level, tuple(parents), tuple(codes), tuple(child_offsets), leaf_offsets, item_order, unknown_items
    )


def _expand(offsets: Indices, rows_X: Indices) -> tuple[Indices, Indices]:
    """The ranges offsets[r] … offsets[r + 1] - 1 of some rows, one after another, and which row each entry is of."""
    counts = offsets[rows_X + 1] - offsets[rows_X]
    position = np.repeat(np.arange(len(rows_X)), counts)
    before = np.cumsum(counts) - counts
    return position, np.arange(len(position)) - before[position] + offsets[rows_X][position]
