"""Decoding that can only name items of the catalogue: steps down the prefix trie for many beams at once, in torch.

A beam is a prefix, named by its node. A step gathers where the children of every beam begin and end, then their codes
and log-probabilities; no beam is looked at by itself, and nothing of V numbers is made unless a mask is asked for.
Node -1 is no beam: a place that fewer beams than asked for have left empty. It has no continuations.

How many continuations there are depends on the beams, so on a GPU a step waits for such numbers now and then.

B users · b beams of a user, or nodes in one row · w beams kept · V codes per level · M_l nodes of level l · X leaves ·
S continuations, ragged · n known items.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semantic_ids.codes.offsets import BLOCK, BLOCK_BITS, Offsets
from semantic_ids.codes.trie import CodeTrie


@dataclass(frozen=True)
class Continuations:
    """Every valid next code of some nodes, node after node, codes ascending: [S] each."""

    beams_S: Tensor
    """Position among the nodes asked for."""
    nodes_S: Tensor
    """The child, a node of the level stepped to; nodes of the last level are leaves."""
    codes_S: Tensor
    log_p_S: Tensor

    def where(self, kept_S: Tensor) -> Continuations:
        """Some of them."""
        return Continuations(self.beams_S[kept_S], self.nodes_S[kept_S], self.codes_S[kept_S], self.log_p_S[kept_S])


@dataclass(frozen=True)
class Beams:
    """The beams kept of every user, best first: [B, w] each. Empty places have -1, and a score of -inf."""

    nodes_Bw: Tensor
    codes_Bw: Tensor
    """The code that each beam was continued by."""
    came_from_Bw: Tensor
    """Position among the user's beams before the step."""
    scores_Bw: Tensor


class TrieSteps:
    """A trie's arrays as tensors of one device, and the steps of constrained decoding on them.

    On the CPU the tensors share the trie's memory, mapped files included.
    """

    def __init__(self, trie: CodeTrie, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.num_levels, self.codes_per_level = trie.num_levels, trie.codes_per_level
        self._codes = [_tensor(codes, np.int16, self.device) for codes in trie.codes]
        self._children = [_Rows(offsets, self.device) for offsets in trie.child_offsets]
        self._leaves = _Rows(trie.leaf_offsets, self.device)
        self._leaf_items = _tensor(trie.leaf_items, np.int32, self.device)

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
        """M_l."""
        return len(self._codes[level])

    def best(
        self,
        level: int,
        nodes_Bb: Tensor,
        scores_Bb: Tensor,
        log_p_BbV: Tensor,
        width: int,
        *,
        without: Tensor | None = None,
    ) -> Beams:
        """The best `width` continuations of each user's beams, by the beam's score plus log_p of the code.

        Equal scores come in order of beam, then code. A continuation of score -inf is valid all the same, and comes
        before empty places.

        Args:
            level: the level that the codes are of; 0 to begin with.
            nodes_Bb: nodes of level - 1.
            scores_Bb: sums of log-probabilities so far.
            log_p_BbV: log-probabilities of this level's codes after each beam.
            width: beams to keep.
            without: [n] continuations that do not count, user · M_l + node of this level, ascending.
        """
        num_users, num_beams = nodes_Bb.shape
        step = self.continuations(level, nodes_Bb.flatten(), log_p_BbV.flatten(0, 1))
        if without is not None and len(without):
            keys_S = step.beams_S // num_beams * self.num_nodes(level) + step.nodes_S
            step = step.where(without[torch.searchsorted(without, keys_S).clamp(max=len(without) - 1)] != keys_S)
        num_steps = len(step.beams_S)
        # Each user's continuations in a row of their own: padded by user, not by beam, little of it is padding.
        counts_B = torch.bincount(step.beams_S, minlength=num_users * num_beams).view(num_users, num_beams).sum(1)
        begin_B = counts_B.cumsum(0) - counts_B
        longest = max(width, int(counts_B.max()) if num_users else 0)
        padding_B = torch.arange(num_users, device=begin_B.device) * longest - begin_B
        places_S = torch.arange(num_steps, device=begin_B.device) + padding_B.repeat_interleave(
            counts_B, output_size=num_steps
        )
        scores_S = scores_Bb.flatten().index_select(0, step.beams_S) + step.log_p_S.to(scores_Bb.dtype)
        scores_BS = scores_Bb.new_full((num_users * longest,), -torch.inf).scatter_(0, places_S, scores_S)

        place_Bw, scores_Bw = _highest(scores_BS.view(num_users, longest), width)
        empty_Bw = place_Bw >= counts_B[:, None]
        if num_steps == 0:
            nowhere_Bw = torch.full_like(place_Bw, -1)
            return Beams(nowhere_Bw, nowhere_Bw, nowhere_Bw, scores_Bw)
        at_Bw = (begin_B[:, None] + place_Bw).masked_fill(empty_Bw, 0)
        nodes, codes, beams = (
            values_S[at_Bw].masked_fill(empty_Bw, -1) for values_S in (step.nodes_S, step.codes_S, step.beams_S)
        )
        return Beams(nodes, codes, torch.where(empty_Bw, -1, beams % num_beams), scores_Bw)

    def items(self, leaves_X: Tensor) -> tuple[Tensor, Tensor]:
        """Every item of some leaves: (position in `leaves_X`, item index), leaf after leaf, each in its defined order.

        A leaf stands for all items that share its tuple, more than one included; -1 has none.
        """
        position, at = self._leaves.expand(leaves_X)
        return position, self._leaf_items[at].long()

    def _valid(self, level: int, nodes_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position, child and code of all continuations."""
        beams_S, children_S = self._children[level].expand(nodes_b)
        codes_S = self._codes[level].index_select(0, children_S).long()
        if self.codes_per_level > 1 << 15:  # in signed 16 bits, codes from there on came out negative
            codes_S &= 0xFFFF
        return beams_S, children_S, codes_S


class _Rows:
    """`Offsets` as tensors."""

    def __init__(self, offsets: Offsets, device: torch.device) -> None:
        self.plain, self.blocks, self.more = (
            None if array is None else _tensor(array, dtype, device)
            for array, dtype in ((offsets.plain, np.int32), (offsets.blocks, np.int64), (offsets.more, np.int32))
        )

    def expand(self, rows_X: Tensor) -> tuple[Tensor, Tensor]:
        """(position in `rows_X`, entry) of all entries of some rows, row after row; row -1 has none."""
        begin_X, end_X = self._ranges(rows_X)
        counts_X = torch.where(rows_X >= 0, end_X - begin_X, 0)
        position_S = torch.repeat_interleave(counts_X)
        shift_X = begin_X - (counts_X.cumsum(0) - counts_X)
        return position_S, torch.arange(len(position_S), device=rows_X.device) + shift_X.index_select(0, position_S)

    def _ranges(self, rows_X: Tensor) -> tuple[Tensor, Tensor]:
        """First entry of each row and the one after its last; of row -1, anything."""
        rows_X = rows_X.clamp(min=0)
        if self.plain is not None:
            return self.plain[rows_X].long(), self.plain[rows_X + 1].long()
        if self.blocks is None or self.more is None:
            return rows_X, rows_X + 1
        word_X = self.blocks[rows_X >> BLOCK_BITS]
        # Marks of the row itself and of those before it in its block, the row's own uppermost of 32 bits.
        marks_X = (word_X << (BLOCK - 1 - (rows_X & (BLOCK - 1)))) & 0xFFFFFFFF
        through_X = (word_X >> 32) + _bits(marks_X)
        before_X = through_X - (marks_X >> 31)
        return rows_X + self.more[before_X], rows_X + 1 + self.more[through_X]


def _bits(marks_X: Tensor) -> Tensor:
    """How many of the lower 32 bits of each number are set; the upper ones are not."""
    pairs = marks_X - ((marks_X >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((eights * 0x01010101) >> 24) & 0xFF


def _highest(scores_BS: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Places and values [B, w] of the highest scores of each row, best first; equal ones by place.

    `topk` does not say which of equal scores it takes. Only where it left out some that are equal to the least that it
    took does that matter; there, as many of those are taken as there is room for, by place.
    """
    highest = scores_BS.topk(width, dim=1)
    least_B1 = highest.values[:, -1:]
    equal_BS = scores_BS == least_B1
    if (equal_BS.sum(1) > (highest.values == least_B1).sum(1)).any():
        above_BS = scores_BS > least_B1
        room_B1 = width - above_BS.sum(1, keepdim=True)
        kept_BS = above_BS | (equal_BS & (equal_BS.cumsum(1) <= room_B1))
        place_Bw = kept_BS.nonzero()[:, 1].view(len(scores_BS), width)
    else:
        place_Bw = highest.indices.sort(dim=1).values
    scores_Bw, order_Bw = torch.sort(scores_BS.gather(1, place_Bw), dim=1, descending=True, stable=True)
    return place_Bw.gather(1, order_Bw), scores_Bw


def _tensor(array: npt.NDArray[np.unsignedinteger], dtype: npt.DTypeLike, device: torch.device) -> Tensor:
    """An array's memory as a tensor of a signed type of the same width, which torch can index by and compute with."""
    with warnings.catch_warnings():
        # Of an array that may not be written to, which nothing here does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array.view(dtype)).to(device)
