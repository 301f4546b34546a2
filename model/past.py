"""What a model keeps of the tokens that it has read: keys, values, and what biases ask of a key.

Memory is allotted in advance, so that a longer past is the same memory and a few more rows. A `Past` never changes: who
continues one that somebody else has continued already is given a copy.

Bytes a token: Σ over blocks of heads · (E + F) · 4, twice less in bfloat16, and 24 for what biases ask.

Shapes: n tokens of the past · q tokens that are added · H heads · E width of a key · F width of a value · R rows that
there is memory for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.biases import Tokens

_ROUND = 64
"""Memory is allotted in so many rows, and for an eighth more than is asked for: n tokens added one by one are then
copied a few times each, and a request's own tokens find room."""

_NOTES = 3
"""Key time, duration bucket, organic."""


class Memory:
    """Rows of one user, of which several pasts may be the first so many.

    Attributes:
        used: rows that somebody keeps; those behind may be written over.
    """

    def __init__(self, blocks: int, rows: int, device: torch.device) -> None:
        """Room for `rows` tokens; that of keys and values is allotted when their first ones come."""
        self.used, self.rows = 0, rows
        self.keys_HRE: list[Tensor | None] = [None] * blocks
        self.values_HRF: list[Tensor | None] = [None] * blocks
        self.notes_3R = torch.zeros(_NOTES, rows, dtype=torch.int64, device=device)

    def write(self, block: int, first: int, k_qHE: Tensor, v_qHF: Tensor) -> None:
        """Put a block's keys and values at the rows from `first` on."""
        for kept, new_qHE in ((self.keys_HRE, k_qHE), (self.values_HRF, v_qHF)):
            tokens, heads, width = new_qHE.shape
            held = kept[block]
            if held is None:
                held = kept[block] = new_qHE.new_empty(heads, self.rows, width)
            held[:, first : first + tokens] = new_qHE.transpose(0, 1)

    def copy(self, rows: int, used: int) -> Memory:
        """Memory of another size with the first `used` rows of this one."""
        copied = Memory(len(self.keys_HRE), rows, self.notes_3R.device)
        copied.used = used
        copied.notes_3R[:, :used] = self.notes_3R[:, :used]
        for kept, copies in ((self.keys_HRE, copied.keys_HRE), (self.values_HRF, copied.values_HRF)):
            for block, held in enumerate(kept):
                if held is not None and used:
                    copies[block] = copy_HRE = held.new_empty(held.shape[0], rows, held.shape[2])
                    copy_HRE[:, :used] = held[:, :used]
        return copied

    @property
    def nbytes(self) -> int:
        """Of all that is allotted."""
        held = [*self.keys_HRE, *self.values_HRF, self.notes_3R]
        return sum(part.numel() * part.element_size() for part in held if part is not None)


@dataclass(frozen=True)
class Past:
    """The tokens of one user that have been read, in every block.

    Args:
        memory: whose first rows they are.
        length: n.
    """

    memory: Memory
    length: int = 0

    @classmethod
    def empty(cls, blocks: int, device: torch.device) -> Past:
        """Of a user of whom nothing is known."""
        return cls(Memory(blocks, 0, device))

    @property
    def nbytes(self) -> int:
        """Of the memory, also of what is not in use yet."""
        return self.memory.nbytes

    def keys(self, block: int) -> Tensor:
        """[H, n, E], a view."""
        held = self.memory.keys_HRE[block]
        assert held is not None, "an empty past has no keys"
        return held[:, : self.length]

    def values(self, block: int) -> Tensor:
        """[H, n, F], a view."""
        held = self.memory.values_HRF[block]
        assert held is not None, "an empty past has no values"
        return held[:, : self.length]

    def as_keys(self) -> Tokens:
        """What biases ask of the tokens; as queries these have no clocks any more."""
        times_n, duration_buckets_n, organic_n = self.memory.notes_3R[:, : self.length]
        return Tokens(
            offsets=torch.tensor([0, self.length]),
            positions_L=torch.arange(self.length, device=times_n.device),
            query_times_L=times_n,
            key_times_L=times_n,
            duration_buckets_L=duration_buckets_n,
            organic_L=organic_n,
        )

    def longer(self, tokens: Tokens, start: int, stop: int, *, keep: bool, taken: set[int]) -> Past:
        """This past and the tokens start … stop-1 of a batch, whose keys and values are to be written yet.

        Args:
            keep: whether the result is to last; if not, it holds until this past is continued again.
            taken: memory, by `id`, that others who are continued at the same time have been given; it grows.
        """
        length = self.length + stop - start
        memory = self.memory
        if memory.rows < length or memory.used != self.length or id(memory) in taken:
            memory = memory.copy(-(-(length + length // 8) // _ROUND) * _ROUND, self.length)
        taken.add(id(memory))
        notes = (tokens.key_times_L, tokens.duration_buckets_L, tokens.organic_L)
        for row, note_L in enumerate(notes):
            memory.notes_3R[row, self.length : length] = note_L[start:stop]
        if keep:
            memory.used = length
        return Past(memory, length)
