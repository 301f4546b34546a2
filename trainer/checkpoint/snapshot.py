"""The rows of a table as they are at a step boundary, read while training goes on.

Copying them all at the boundary would stall training for as long as memory needs. Instead nothing is copied then. A
thread reads the rows block by block, and training, just before its backward changes rows that have not been read yet,
sets their old values aside (copy on write, a row at a time). What the thread yields is the state of the boundary, bit
for bit. Beyond a byte a row, memory holds one block and the rows set aside.

On an accelerator, where a thread's reads would have to be ordered against the kernels of training, all rows are copied
to the host at the boundary.

Shapes: R rows of the shard · n rows of a block · D columns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sharding.tables import TableShard

BLOCK_BYTES = 2**19
"""Of values read at a time: training waits at most for the copying of one block."""

_PENDING, _ASIDE = 1, 2
"""Marks of rows: to be read; set aside before they changed. Rows that are not wanted have 0."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a shard: numbers in it, ascending, int64 [n]; values [n, D]; states by name [n] or [n, D]."""

    rows_n: np.ndarray
    values_nD: np.ndarray
    states: dict[str, np.ndarray]


def _put(old: Rows, block: Rows) -> None:
    """Put values set aside into a block that has some of their rows."""
    first, last = np.searchsorted(old.rows_n, (block.rows_n[0], block.rows_n[-1] + 1))
    at = np.searchsorted(block.rows_n, old.rows_n[first:last])
    block.values_nD[at] = old.values_nD[first:last]
    for name, kept in old.states.items():
        block.states[name][at] = kept[first:last]


class TableSnapshot:
    """The wanted rows of a shard as they were when this was made.

    Args:
        shard: the live memory.
        mask_R: wanted rows, uint8 [R], not 0; nobody else uses it from now on. None wants all.
        at_once: copy now; always so where the memory is an accelerator's.
    """

    def __init__(self, shard: TableShard, mask_R: Tensor | None, *, at_once: bool = False) -> None:
        self.shard, self._is_base = shard, mask_R is None
        self._lock = threading.Lock()
        self._training_waits = False
        self._read_until = 0  # rows before this one have been read, or are not wanted
        self._aside: list[Rows] = []
        self._marks_R = torch.ones(shard.rows, dtype=torch.uint8) if mask_R is None else mask_R.cpu()
        self._live = None if shard.weight_RD.is_cuda else _arrays(shard)
        if at_once or self._live is None:
            self._set_aside(torch.from_numpy(self._wanted()))
            self._live = None

    def _wanted(self) -> np.ndarray:
        return np.arange(self.shard.rows) if self._is_base else np.flatnonzero(self._marks_R.numpy())

    def count(self) -> int:
        """How many rows are wanted."""
        return self.shard.rows if self._is_base else int(np.count_nonzero(self._marks_R.numpy()))

    def before_update(self, rows_n: Tensor) -> None:
        """Set aside what of these rows is wanted and not read yet. Called before they change."""
        if self._live is None or self._read_until >= self.shard.rows:
            return
        rows_n = rows_n[rows_n >= self._read_until]
        rows_n = rows_n[self._marks_R.index_select(0, rows_n) == _PENDING]
        if len(rows_n):
            self._set_aside(rows_n.unique())  # a popular row comes hundreds of times

    def _set_aside(self, rows_n: Tensor) -> None:
        at = rows_n.to(self.shard.weight_RD.device)
        values = self.shard.weight_RD.index_select(0, at).cpu().numpy()  # an eighth of the time of indexing
        states = {name: state.index_select(0, at).cpu().numpy() for name, state in self.shard.states.items()}
        self._marks_R.index_fill_(0, rows_n, _ASIDE)
        aside = Rows(rows_n.numpy(), values, states)
        self._training_waits = True
        with self._lock:  # a block being read is whole before the rows may change, and the next one knows of them
            self._aside.append(aside)
        self._training_waits = False

    def blocks(self) -> Iterator[Rows]:
        """The wanted rows, ascending; called once, from another thread than training's."""
        wanted = self._wanted()
        size = max(1, BLOCK_BYTES // (4 * self.shard.columns))
        for begin in range(0, len(wanted), size):
            rows_n = wanted[begin : begin + size]
            while self._training_waits:  # a lock goes to whoever asks first, which a loop that has just left it does
                time.sleep(1e-5)
            with self._lock:
                block = self._read(rows_n)
                for aside in self._aside:
                    _put(aside, block)
                self._read_until = int(rows_n[-1]) + 1
            yield block
        with self._lock:
            self._read_until = self.shard.rows
            self._aside.clear()

    def _read(self, rows_n: np.ndarray) -> Rows:
        """Live values, to be replaced where they are set aside; of a copy taken at once, room for all of them."""
        if self._live is None:
            states = {
                name: np.empty((len(rows_n), *state.shape[1:]), np.float32) for name, state in self.shard.states.items()
            }
            return Rows(rows_n, np.empty((len(rows_n), self.shard.columns), np.float32), states)
        if rows_n[-1] - rows_n[0] + 1 == len(rows_n):
            at = slice(rows_n[0], rows_n[-1] + 1)
            states = {name: kept[at].copy() for name, kept in self._live.states.items()}
            return Rows(rows_n, self._live.values_nD[at].copy(), states)
        states = {name: kept.take(rows_n, axis=0) for name, kept in self._live.states.items()}
        return Rows(rows_n, self._live.values_nD.take(rows_n, axis=0), states)


def _arrays(shard: TableShard) -> Rows:
    """The live memory of a shard as arrays."""
    states = {name: state.numpy() for name, state in shard.states.items()}
    return Rows(np.empty(0, np.int64), shard.weight_RD.numpy(), states)
