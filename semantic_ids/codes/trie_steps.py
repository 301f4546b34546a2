"""Decoding that can only name items of the catalogue: steps down the prefix trie for many beams at once, in torch.

A beam is a prefix, named by its node. A step finds where the children of every beam begin and end, then their codes
and log-probabilities; no beam is looked at by itself. In the first levels, where nodes are few and have many children,
a table of nodes × codes says which codes are valid instead. Node -1 is no beam: a place that fewer beams than asked for
have left empty. It has no continuations.

A user's beams stand in the order of their nodes, and so do the children of all of them: what a user must not be given
is looked up among the beams, which are few, and not the other way round.

How many continuations there are depends on the beams, so on a GPU a step waits for such numbers now and then.

B users · b beams of a user, or nodes in one row · w beams kept · V codes per level · M_l nodes of level l · X leaves ·
S continuations, ragged, or places in a user's row of them · P pairs of a user and a node · n known items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_arrays import Rows, as_tensor, expand_ranges, highest, in_rows

LogProbabilities = Callable[[int, int], Tensor]
"""log p [T, V] of the codes after beams first … stop - 1; the next time it is asked, the tensor may be overwritten."""

_TABLE_ENTRIES = 1 << 21
"""The most entries of a level's table of nodes × codes: of 1024 codes, the first two levels have one."""


@dataclass(frozen=True)
class Continuations:
    """Every valid next code of some nodes, node after node, codes ascending: [S] each."""

    beams_S: Tensor
    """Position among the nodes asked for."""
    nodes_S: Tensor
    """The child, a node of the level stepped to; nodes of the last level are leaves."""
    codes_S: Tensor
    log_p_S: Tensor


@dataclass(frozen=True)
class Beams:
    """The beams kept of every user, [B, w] each, nodes ascending. Empty places come last: -1, and a score of -inf."""

    nodes_Bw: Tensor
    codes_Bw: Tensor
    """The code that each beam was continued by."""
    came_from_Bw: Tensor
    """Position among the user's beams before the step."""
    scores_Bw: Tensor


@dataclass(frozen=True)
class _Table:
    """The children of a level's nodes by code; the last row, which node -1 names, has none."""

    child_MV: Tensor
    """-1 where the code does not follow."""
    gain_MV: Tensor
    """What to add to the log-probability of a code: the child's gain in promise, or -inf where it does not follow."""


@dataclass(frozen=True)
class Barred:
    """Children of one level that must not be stepped to: for everybody, or for one user.

    For items as children of leaves, a child is an item's place among the trie's `leaf_items`.
    """

    children_M: Tensor
    """For everybody, ascending."""
    users_P: Tensor
    """Ascending, and within a user children ascend."""
    children_P: Tensor
    parents_P: Tensor

    def of_users(self, first: int, stop: int) -> Barred:
        """What is barred for users first … stop - 1, who become users 0 …"""
        begin, end = torch.searchsorted(self.users_P, self.users_P.new_tensor([first, stop])).tolist()
        pairs = slice(begin, end)
        return Barred(self.children_M, self.users_P[pairs] - first, self.children_P[pairs], self.parents_P[pairs])


class TrieSteps:
    """A trie's arrays as tensors of one device, and the steps of constrained decoding on them.

    On the CPU the tensors share the trie's memory, mapped files included.

    Args:
        trie: whose steps they are.
        device: where.
        promises: [M_l] of every level: added to a beam's score for as long as it stands at that node, so that beams are
            compared by what they may come to. Those of the last level are 0: whole tuples have the scores they have.
    """

    def __init__(
        self, trie: CodeTrie, device: torch.device | str = "cpu", promises: Sequence[Tensor] | None = None
    ) -> None:
        self.device = torch.device(device)
        self.num_levels, self.codes_per_level = trie.num_levels, trie.codes_per_level
        self._codes = [as_tensor(codes, np.int16, self.device) for codes in trie.codes]
        self._children = [Rows(offsets, self.device) for offsets in (*trie.child_offsets, trie.leaf_offsets)]
        self._leaf_items = as_tensor(trie.leaf_items, np.int32, self.device)
        self._gains_M = [self._gains(level, promises) for level in range(self.num_levels)]
        self._tables = [self._table(level, offsets.rows) for level, offsets in enumerate(trie.child_offsets)]

    def start(self, num_users: int) -> Beams:
        """One beam a user, at the root: what the step to level 0 begins with."""
        root_B1 = torch.zeros(num_users, 1, dtype=torch.int64, device=self.device)
        return Beams(root_B1, root_B1 - 1, root_B1 - 1, torch.zeros(num_users, 1, device=self.device))

    def continuations(self, level: int, nodes_b: Tensor, log_p_bV: Tensor) -> Continuations:
        """All valid codes of `level` after nodes of level - 1, with what `log_p_bV` says of each."""
        beams, nodes, codes = self._valid(level, nodes_b)
        return Continuations(beams, nodes, codes, log_p_bV.flatten().index_select(0, beams * log_p_bV.size(1) + codes))

    def mask(self, level: int, nodes_b: Tensor) -> Tensor:
        """Which codes of `level` may follow nodes of level - 1: bool [b, V]; nothing follows node -1."""
        beams, _, codes = self._valid(level, nodes_b)
        valid_bV = torch.zeros(len(nodes_b), self.codes_per_level, dtype=torch.bool, device=nodes_b.device)
        valid_bV[beams, codes] = True
        return valid_bV

    def num_nodes(self, level: int) -> int:
        """M_l; of level C, whose nodes are the items, n."""
        return len(self._codes[level]) if level < self.num_levels else len(self._leaf_items)

    def parents(self, level: int, children_X: Tensor) -> Tensor:
        """The node [X] of level - 1 that each node of a level continues; of level C, each item's leaf."""
        return self._children[level].rows_of(children_X)

    def ranges(self, level: int, nodes_X: Tensor) -> tuple[Tensor, Tensor]:
        """First child in `level` of each node of level - 1, and the one after its last; of node -1, anything."""
        return self._children[level].ranges(nodes_X)

    def best(
        self,
        level: int,
        nodes_Bb: Tensor,
        scores_Bb: Tensor,
        log_p: LogProbabilities,
        width: int,
        *,
        barred: Barred | None = None,
        block: int = 1 << 30,
    ) -> Beams:
        """The best `width` continuations of each user's beams, by the beam's score plus log_p of the code.

        With promises, a score holds that of the node where its beam stands. Of equal scores, those of lower nodes. A
        score of -inf is no continuation.

        Args:
            level: the level that the codes are of; 0 to begin with.
            nodes_Bb: nodes of level - 1; each user's ascend, with -1 at the end.
            scores_Bb: of the step before.
            log_p: log-probabilities of this level's codes after beams, users' beams one after another.
            width: beams to keep.
            barred: nodes of this level that do not count.
            block: beams whose log-probabilities are asked for at once.
        """
        if self._tables[level] is not None:
            return self._best_by_table(level, nodes_Bb, scores_Bb, log_p, width, barred, block)
        nodes_T, V = nodes_Bb.flatten(), self.codes_per_level
        beams_S, nodes_S, codes_S = self._valid(level, nodes_T)
        scores_S = scores_Bb.flatten().index_select(0, beams_S)
        gains_M = self._gains_M[level]
        if gains_M is not None:
            scores_S += gains_M.index_select(0, nodes_S)
        at_S = (beams_S if len(nodes_T) <= block else beams_S % block) * V + codes_S
        blocks = range(0, len(nodes_T), block)
        ends = torch.searchsorted(beams_S, torch.tensor([*blocks, len(nodes_T)], device=self.device)).tolist()
        for first, begin, end in zip(blocks, ends, ends[1:], strict=False):
            log_p_xV = log_p(first, min(first + block, len(nodes_T)))
            scores_S[begin:end] += log_p_xV.view(-1).index_select(0, at_S[begin:end])
        if barred is not None:
            beam_X, child_X = self.barred_children(level, nodes_Bb, barred)
            # Children of a beam follow one another: each is as far from the first of them as its node is.
            first_X, _ = self.ranges(level, nodes_T[beam_X])
            scores_S[torch.searchsorted(beams_S, beam_X) + child_X - first_X] = -torch.inf
        bounds_B1 = torch.searchsorted(beams_S, torch.arange(len(nodes_Bb) + 1, device=self.device) * nodes_Bb.size(1))
        place_Bw, kept_Bw = highest(in_rows(scores_S, bounds_B1, -torch.inf), width)
        if not len(scores_S):
            return Beams(place_Bw, place_Bw, place_Bw, kept_Bw)
        empty_Bw = place_Bw < 0
        at_Bw = (bounds_B1[:-1, None] + place_Bw).masked_fill_(empty_Bw, 0)
        nodes, codes, beams = (values_S[at_Bw].masked_fill_(empty_Bw, -1) for values_S in (nodes_S, codes_S, beams_S))
        return Beams(nodes, codes, torch.where(empty_Bw, -1, beams % nodes_Bb.size(1)), kept_Bw)

    def barred_children(self, level: int, nodes_Bb: Tensor, barred: Barred) -> tuple[Tensor, Tensor]:
        """Which children of some beams are barred: (position in nodes_Bb.flatten(), child).

        Args:
            nodes_Bb: nodes of level - 1; each user's ascend, with -1 at the end.
        """
        num_users = len(nodes_Bb)
        found = []
        if len(barred.users_P) and nodes_Bb.numel():
            span = (self.num_nodes(level - 1) if level else 1) + 1
            rows_B1 = torch.arange(num_users, device=self.device)[:, None]
            keys_T = (torch.where(nodes_Bb < 0, span - 1, nodes_Bb) + rows_B1 * span).flatten()
            wanted_P = barred.users_P * span + barred.parents_P
            at_P = torch.searchsorted(keys_T, wanted_P).clamp_(max=len(keys_T) - 1)
            held_P = keys_T[at_P] == wanted_P
            found.append((at_P[held_P], barred.children_P[held_P]))
        if len(barred.children_M):
            begin_T, end_T = self.ranges(level, nodes_Bb.flatten())
            first_T = torch.searchsorted(barred.children_M, begin_T)
            counts_T = torch.searchsorted(barred.children_M, end_T) - first_T
            counts_T.masked_fill_(nodes_Bb.flatten() < 0, 0)
            beam_X, at_X = expand_ranges(first_T, counts_T)
            found.append((beam_X, barred.children_M[at_X]))
        if not found:
            nothing = nodes_Bb.new_zeros(0)
            return nothing, nothing
        return torch.cat([beams for beams, _ in found]), torch.cat([children for _, children in found])

    def items(self, leaves_X: Tensor) -> tuple[Tensor, Tensor]:
        """Every item of some leaves: (position in `leaves_X`, item index), leaf after leaf, each in its defined order.

        A leaf stands for all items that share its tuple, more than one included; -1 has none.
        """
        position, places = self.item_places(leaves_X)
        return position, self.items_at(places)

    def item_places(self, leaves_X: Tensor) -> tuple[Tensor, Tensor]:
        """As `items`, with an item's place among the trie's `leaf_items` instead of its index."""
        return self._children[-1].expand(leaves_X)

    def items_at(self, places_X: Tensor) -> Tensor:
        """The items [X] at places among the trie's `leaf_items`."""
        return self._leaf_items[places_X].long()

    def _best_by_table(
        self,
        level: int,
        nodes_Bb: Tensor,
        scores_Bb: Tensor,
        log_p: LogProbabilities,
        width: int,
        barred: Barred | None,
        block: int,
    ) -> Beams:
        """`best` where a table says which codes are valid: no list of continuations is made."""
        table = self._tables[level]
        assert table is not None
        nodes_T = nodes_Bb.flatten()
        scores_TV = torch.where(nodes_T >= 0, nodes_T, len(table.child_MV) - 1)
        scores_TV = table.gain_MV.index_select(0, scores_TV)
        for first in range(0, len(nodes_T), block):
            beams = slice(first, min(first + block, len(nodes_T)))
            scores_TV[beams] += log_p(beams.start, beams.stop).add_(scores_Bb.view(-1, 1)[beams])
        if barred is not None:
            beam_X, child_X = self.barred_children(level, nodes_Bb, barred)
            scores_TV[beam_X, self._codes_of(level, child_X)] = -torch.inf
        place_Bw, kept_Bw = highest(scores_TV.view(len(nodes_Bb), nodes_Bb.size(1) * self.codes_per_level), width)
        empty_Bw = place_Bw < 0
        came_from_Bw = place_Bw.div(self.codes_per_level, rounding_mode="floor")
        codes_Bw = (place_Bw - came_from_Bw * self.codes_per_level).masked_fill_(empty_Bw, -1)
        parents_Bw = nodes_Bb.gather(1, came_from_Bw.clamp(min=0))
        nodes_Bw = table.child_MV[parents_Bw, codes_Bw].long().masked_fill_(empty_Bw, -1)
        return Beams(nodes_Bw, codes_Bw, came_from_Bw, kept_Bw)

    def _gains(self, level: int, promises: Sequence[Tensor] | None) -> Tensor | None:
        """By how much the promise of each node of a level [M_l] is above its parent's; None without promises."""
        if promises is None:
            return None
        own_M = promises[level].to(self.device)
        if level == 0:
            return own_M
        parents_M = self.parents(level, torch.arange(len(own_M), device=self.device))
        return own_M - promises[level - 1].to(self.device)[parents_M]

    def _table(self, level: int, num_parents: int) -> _Table | None:
        """A level's children by parent and code, where that is small enough."""
        if (num_parents + 1) * self.codes_per_level > _TABLE_ENTRIES:
            return None
        child_MV = torch.full((num_parents + 1, self.codes_per_level), -1, dtype=torch.int32, device=self.device)
        parents, children, codes = self._valid(level, torch.arange(num_parents, device=self.device))
        child_MV[parents, codes] = children.int()
        gain_MV = torch.full(child_MV.shape, -torch.inf, device=self.device)
        gains_M = self._gains_M[level]
        gain_MV[parents, codes] = 0.0 if gains_M is None else gains_M[children]
        return _Table(child_MV, gain_MV)

    def _valid(self, level: int, nodes_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, child and code of all continuations."""
        beams_S, children_S = self._children[level].expand(nodes_b)
        return beams_S, children_S, self._codes_of(level, children_S)

    def _codes_of(self, level: int, nodes_X: Tensor) -> Tensor:
        """The last code of nodes of a level."""
        codes_X = self._codes[level].index_select(0, nodes_X).long()
        if self.codes_per_level > 1 << 15:  # in signed 16 bits, codes from there on came out negative
            codes_X &= 0xFFFF
        return codes_X
