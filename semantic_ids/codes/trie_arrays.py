"""A trie's offsets as tensors, and what steps down it do with rows of unequal length.

B rows, users for instance · S places of a row, or ragged entries of all rows · w places kept · X rows or entries asked
for · G groups of places.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from semantic_ids.codes.offsets import BLOCK, BLOCK_BITS, Offsets

_GROUP = 32
"""Places whose highest score stands for them while a long row is searched."""


class Rows:
    """`Offsets` as tensors."""

    def __init__(self, offsets: Offsets, device: torch.device) -> None:
        self._offsets = offsets
        self.plain, self.blocks, self.more = (
            None if array is None else as_tensor(array, dtype, device)
            for array, dtype in ((offsets.plain, np.int32), (offsets.blocks, np.int64), (offsets.more, np.int32))
        )
        self._begins: Tensor | None = None

    def expand(self, rows_X: Tensor) -> tuple[Tensor, Tensor]:
        """(position in `rows_X`, entry) of all entries of some rows, row after row; row -1 has none."""
        begin_X, end_X = self.ranges(rows_X)
        return expand_ranges(begin_X, torch.where(rows_X >= 0, end_X - begin_X, 0))

    def ranges(self, rows_X: Tensor) -> tuple[Tensor, Tensor]:
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

    def rows_of(self, entries_X: Tensor) -> Tensor:
        """The row [X] that each entry belongs to: how many have begun by then. The marks of that are made once."""
        if self.plain is None and self.blocks is None:
            return entries_X
        if self._begins is None:
            self._begins = as_tensor(self._offsets.marks_of_begins(), np.int64, entries_X.device)
        word_X = self._begins[entries_X >> BLOCK_BITS]
        marks_X = (word_X << (BLOCK - 1 - (entries_X & (BLOCK - 1)))) & 0xFFFFFFFF
        return (word_X >> 32) + _bits(marks_X) - 1


def expand_ranges(begin_X: Tensor, counts_X: Tensor) -> tuple[Tensor, Tensor]:
    """(position, begin + 0 … count - 1) of ranges, range after range: [S] each."""
    position_S = torch.repeat_interleave(counts_X)
    shift_X = begin_X - (counts_X.cumsum(0) - counts_X)
    return position_S, torch.arange(len(position_S), device=begin_X.device) + shift_X.index_select(0, position_S)


def in_rows(values_S: Tensor, bounds_B1: Tensor, fill: float) -> Tensor:
    """Ragged values, of which row r has bounds[r] … bounds[r + 1] - 1, as a matrix [B, S] with its rows filled up."""
    counts_B1 = bounds_B1.diff()[:, None]
    longest = int(counts_B1.max()) if len(values_S) else 0
    longest += -longest % _GROUP  # what `highest` would have to make it
    if not longest:
        return values_S.new_full((len(counts_B1), 0), fill)
    place_S = torch.arange(longest, device=values_S.device)
    at_BS = (bounds_B1[:-1, None] + place_S).clamp_(max=len(values_S) - 1)
    return values_S.index_select(0, at_BS.view(-1)).view_as(at_BS).masked_fill_(place_S >= counts_B1, fill)


def highest(scores_BS: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Places and values [B, w] of the highest scores of each row, in the order of their places.

    Of equal scores, those at lower places. A score of -inf is none; where a row has fewer, the last places are -1.
    `topk` does not say which of equal scores it takes, so it only finds how high the lowest of them is.
    """
    num_rows, size = scores_BS.shape
    if size <= width or num_rows == 0:
        return _highest_by_sort(scores_BS, width)
    place_BX, among_BX = None, scores_BS
    if size >= 4 * _GROUP * width and size % _GROUP == 0:
        # The highest `width` scores stand in the `width` groups of the highest maxima; one more tells of ties.
        groups_BGg = scores_BS.view(num_rows, _GROUP, size // _GROUP)
        maxima_BG, group_Bw = groups_BGg.amax(1).topk(width + 1, dim=1)
        group_Bw = group_Bw[:, :width].sort(dim=1).values
        among_BX = groups_BGg.gather(2, group_Bw[:, None].expand(-1, _GROUP, -1)).flatten(1)
        place_BX = group_Bw
    least_B1 = among_BX.topk(width, dim=1, sorted=False).values.amin(1, keepdim=True)
    kept_BX = among_BX >= least_B1
    at_Y = kept_BX.nonzero()[:, 1]
    tied = len(at_Y) != num_rows * width or (place_BX is not None and bool((maxima_BG[:, width:] >= least_B1).any()))
    if tied:
        return _highest_by_sort(scores_BS, width)
    at_Bw = at_Y.view(num_rows, width)
    kept_Bw = among_BX.gather(1, at_Bw)
    if place_BX is None:
        return at_Bw, kept_Bw
    line_Bw = at_Bw.div(width, rounding_mode="floor")
    return line_Bw * (size // _GROUP) + place_BX.gather(1, at_Bw - line_Bw * width), kept_Bw


def _highest_by_sort(scores_BS: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """`highest` for any scores at all."""
    size = scores_BS.size(1)
    ordered_BS, place_BS = torch.sort(scores_BS, dim=1, descending=True, stable=True)
    place_Bw = place_BS[:, :width].masked_fill(ordered_BS[:, :width] == -torch.inf, size)
    place_Bw = F.pad(place_Bw.sort(dim=1).values, (0, max(0, width - size)), value=size)
    values_Bw = F.pad(scores_BS, (0, 1), value=-torch.inf).gather(1, place_Bw)
    return place_Bw.masked_fill(place_Bw == size, -1), values_Bw


def _bits(marks_X: Tensor) -> Tensor:
    """How many of the lower 32 bits of each number are set; the upper ones are not."""
    pairs = marks_X - ((marks_X >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((eights * 0x01010101) >> 24) & 0xFF


def as_tensor(array: npt.NDArray[np.unsignedinteger], dtype: npt.DTypeLike, device: torch.device) -> Tensor:
    """An array's memory as a tensor of a signed type of the same width, which torch can index by and compute with."""
    with warnings.catch_warnings():
        # Of an array that may not be written to, which nothing here does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array.view(dtype)).to(device)
