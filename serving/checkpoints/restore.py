"""Tables and dense tensors filled from a chain of checkpoints, whatever number of ranks and whatever plan wrote it.

A piece of a table in a file and a piece on this rank overlap in a rectangle; row by row it is copied, base first, each
delta over it. A row-wise optimizer state (one number a row, the mean square over the columns of a piece) goes from
pieces of other columns to a whole row as their mean weighted by columns, which is exactly what a whole row would have
added up had its gradients been those, and from a whole row to each of its pieces as it is.

Shapes: R rows on this rank · n rows in a file · D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import InputError
from common.storage import Storage, local_copies
from serving.checkpoints.chain import Link
from serving.checkpoints.manifest import Manifest, Shard
from serving.checkpoints.row_formats import decode_rows
from sharding.tables import TableShard

BLOCK_ROWS = 65_536
"""Rows decoded at a time."""

MAP = "map."
"""What the names of tensors begin with that say who owns the rows of a hashed table."""


@dataclass
class ChainReader:
    """Reads tensors of a verified chain.

    Args:
        storage: where it lies.
        chain: base first.
        copies: folder for files fetched from elsewhere.
    """

    storage: Storage
    chain: Sequence[Link]
    copies: Path

    @property
    def manifest(self) -> Manifest:
        """Of the newest link."""
        return self.chain[-1].manifest

    def open(self, link: Link, file: str) -> Any:
        """A safetensors file of a link.

        Raises:
            InputError: it is no such file.
        """
        path = self.storage.copy_here(f"{link.name}/{file}", self.copies)
        try:
            return safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.storage.where(f'{link.name}/{file}')}: cannot be read: {error}") from None

    def dense(self) -> dict[str, Tensor]:
        """What all ranks have alike, by name."""
        with self.open(self.chain[-1], self.manifest.dense) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dictionary

    def random(self, rank: int) -> dict[str, Tensor]:
        """The random states of a rank; empty if the checkpoint was written by fewer."""
        if rank >= len(self.manifest.random):
            return {}
        with self.open(self.chain[-1], self.manifest.random[rank]) as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith("random.")}  # noqa: SIM118

    def maps(self) -> list[dict[str, Tensor]]:
        """Who owns the rows of hashed tables, as each rank knew it, by name; empty where there are none."""
        files = dict.fromkeys([*self.manifest.random, *(shard.tables for shard in self.manifest.shards)])
        found = [self.maps_in(file) for file in files]
        return [{name.removeprefix(MAP): value for name, value in maps.items()} for maps in found if maps]

    def maps_in(self, tables: str) -> dict[str, Tensor]:
        """The same of one file of tables, named as they are there."""
        with self.open(self.chain[-1], tables) as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(MAP)}  # noqa: SIM118

    def fill(self, shards: Sequence[TableShard], *, states: bool = True) -> None:
        """Fill pieces of tables, and their optimizer states, in place. Rows that no file has stay as they are."""
        for link in self.chain:
            for target in shards:
                sources = [shard for shard in link.manifest.shards if _overlap(shard, target)]
                for source in sources:
                    self._fill_values(link, source, target)
                if states:
                    for name, state in target.states.items():
                        self._fill_state(link, sources, target, name, state)

    def _fill_values(self, link: Link, source: Shard, target: TableShard) -> None:
        theirs, ours = _column_slices(source, target)
        with self.open(link, source.tables) as file:
            for rows_n, begin, end in _row_blocks(file, source, target):
                encoded = file.get_slice(f"{source.key}.values")[begin:end]
                decoded_nD = decode_rows(link.manifest.value_format, encoded, source.columns)
                _put(target.weight_RD[:, ours], rows_n, decoded_nD[:, theirs])

    def _fill_state(self, link: Link, sources: Sequence[Shard], target: TableShard, name: str, state: Tensor) -> None:
        whole = all(len(_columns(source, target)) == target.columns for source in sources)
        if state.dim() == 2 or whole:
            for source in sources:
                self._copy_state(link, source, target, name, state)
            return
        total_R = torch.zeros_like(state)
        columns_R = torch.zeros_like(state)
        for source in sources:
            share = len(_columns(source, target))
            with self.open(link, source.tables) as file, self.open(link, source.states) as states:
                for rows_n, begin, end in _row_blocks(file, source, target):
                    part_n = states.get_slice(f"{source.key}.{name}")[begin:end].to(state)
                    at = _index(rows_n, len(state)).to(state.device)
                    total_R.index_add_(0, at, part_n * share)
                    columns_R.index_add_(0, at, torch.full_like(part_n, share))
        found_R = columns_R > 0
        state[found_R] = total_R[found_R] / columns_R[found_R]

    def _copy_state(self, link: Link, source: Shard, target: TableShard, name: str, state: Tensor) -> None:
        theirs, ours = _column_slices(source, target)
        with self.open(link, source.tables) as file, self.open(link, source.states) as states:
            for rows_n, begin, end in _row_blocks(file, source, target):
                part = states.get_slice(f"{source.key}.{name}")[begin:end]
                if state.dim() == 1:
                    _put(state, rows_n, part)
                else:
                    _put(state[:, ours], rows_n, part[:, theirs])


@contextmanager
def open_chain(storage: Storage, chain: Sequence[Link]) -> Iterator[ChainReader]:
    """A reader of a verified chain; copies that it had to fetch are removed at the end."""
    with local_copies() as copies:
        yield ChainReader(storage, chain, copies)


def check_tables(manifest: Manifest, where: str, shards: Sequence[TableShard], *, may_grow: bool = False) -> None:
    """Refuse tables of other names, rows or widths; with `may_grow`, tables of this rank may have more rows.

    Raises:
        InputError: naming every difference.
    """
    faults = []
    for shard in shards:
        rows, width = manifest.tables.get(shard.table, (0, 0))
        fits = width == shard.width and (rows == shard.num_rows or (may_grow and 0 < rows <= shard.num_rows))
        if not fits:
            faults.append(
                f"{where}: table `{shard.table}` is {rows} × {width} there and "
                f"{shard.num_rows} × {shard.width} in this model"
            )
    if faults:
        raise InputError(*faults)


def _overlap(source: Shard, target: TableShard) -> bool:
    return source.table == target.table and bool(_columns(source, target)) and bool(_rows(source, target))


def _columns(source: Shard, target: TableShard) -> range:
    """Columns of the table that both have."""
    return range(
        max(source.first_column, target.first_column),
        min(source.first_column + source.columns, target.first_column + target.columns),
    )


def _column_slices(source: Shard, target: TableShard) -> tuple[slice, slice]:
    """Where these columns are in the source, and in the target."""
    columns = _columns(source, target)
    theirs = slice(columns.start - source.first_column, columns.stop - source.first_column)
    return theirs, slice(columns.start - target.first_column, columns.stop - target.first_column)


def _rows(source: Shard, target: TableShard) -> range:
    return range(
        max(source.first_row, target.first_row), min(source.first_row + source.rows, target.first_row + target.rows)
    )


def _row_blocks(file: Any, source: Shard, target: TableShard) -> Iterator[tuple[slice | Tensor, int, int]]:
    """(rows of the target, first and one past the last row in the file) of what both have, block by block.

    The rows are a slice where they follow one another, else int64 [n].
    """
    rows = _rows(source, target)
    if source.stored == source.rows:  # all rows, in order; a delta of every row too
        first, last = rows.start - source.first_row, rows.stop - source.first_row
        for begin in range(first, last, BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, last)
            shift = source.first_row - target.first_row
            yield slice(begin + shift, end + shift), begin, end
        return
    if not source.stored:
        return
    stored_n = file.get_tensor(f"{source.key}.rows")
    first, last = torch.searchsorted(stored_n, torch.tensor([rows.start, rows.stop], dtype=stored_n.dtype)).tolist()
    for begin in range(first, last, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, last)
        yield stored_n[begin:end].long() - target.first_row, begin, end


def _index(rows: slice | Tensor, length: int) -> Tensor:
    return torch.arange(*rows.indices(length)) if isinstance(rows, slice) else rows


def _put(target: Tensor, rows: slice | Tensor, values: Tensor) -> None:
    if isinstance(rows, slice):
        target[rows].copy_(values)
    else:
        target.index_copy_(0, rows.to(target.device), values.to(target))
