"""What a chain of checkpoints restores, read block by block and written as the files of a base, by one process.

The pieces are those of the newest checkpoint, a file for each rank that wrote it, so that ranks which restore it still
read little of what is not theirs. Where an older checkpoint cut a table's columns elsewhere, its cuts are kept too: a
row-wise optimizer state differs from column piece to column piece, and would be lost in a wider one.

Shapes: R rows of a block · D columns.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.progress import Progress
from common.storage import Sink, Storage
from common.tensor_files import Layout, TensorFileWriter
from serving.checkpoints.manifest import BASE, Manifest, Shard
from serving.checkpoints.restore import ChainReader
from sharding.tables import TableShard
from trainer.checkpoint.writing import bits_of, layout_of

BLOCK_BYTES = 64 * 2**20
"""Of float32 values decoded at a time."""


def row_blocks(
    reader: ChainReader, table: str, rows: range, columns: range, states: Mapping[str, int] | None = None
) -> Iterator[TableShard]:
    """A rectangle of a table as a chain restores it, block by block.

    Args:
        states: dimensions, 1 or 2, of the optimizer states wanted.

    Yields:
        Blocks whose `weight_RD` is float32 [R, D] and whose states are float32 [R] or [R, D].
    """
    num_rows, width = reader.manifest.tables[table]
    size = max(1, BLOCK_BYTES // (4 * len(columns)))
    for begin in range(rows.start, rows.stop, size):
        count = min(size, rows.stop - begin)
        shapes = {name: (count, len(columns))[:dimensions] for name, dimensions in (states or {}).items()}
        block = TableShard(
            table,
            num_rows,
            width,
            first_row=begin,
            first_column=columns.start,
            weight_RD=torch.empty(count, len(columns)),
            states={name: torch.empty(shape) for name, shape in shapes.items()},
        )
        reader.fill([block])
        yield block


@dataclass
class Folding:
    """Files of a base that restores what a chain does.

    Args:
        reader: of the chain, verified.
        storage: where to.
        tag: part of the names of all files written.
        training: with what only training needs, optimizer and random states.

    Attributes:
        files: name → `bytes` and `xxh3_128` of every file begun; empty values while it is not whole.
    """

    reader: ChainReader
    storage: Storage
    tag: str
    training: bool
    files: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def write_tables(self) -> Manifest:
        """Write all rows; returns the manifest of a base with these files, whose dense file is yet to be named."""
        old = self.reader.manifest
        shards: list[Shard] = []
        random: list[str] = []
        values = sum(shard.rows * shard.columns for shard in old.shards)
        with Progress("fold", values, "values") as progress:
            for file in dict.fromkeys([*old.random, *(shard.tables for shard in old.shards)]):
                rank = old.random.index(file) if self.training and file in old.random else None
                beside = self.reader.random(rank) if rank is not None else {}
                written = self._write_file(file, beside | self.reader.maps_in(file), progress)
                shards += written
                random += [self._name(file)] if rank is not None else []
        constants: dict[str, Any] = {"kind": BASE, "parent": "", "parent_state": ""}
        constants |= {"value_format": "float32", "state_format": "float32"}
        return dataclasses.replace(old, **constants, shards=shards, random=random, files=dict(self.files))

    def write_tensors(self, file: str, tensors: Mapping[str, Tensor]) -> str:
        """A file of tensors in memory; returns its name."""
        name = self._name(file)
        with self._create(name) as sink:
            writer = TensorFileWriter(sink, [layout_of(key, value) for key, value in tensors.items()])
            for key, value in tensors.items():
                writer.write(key, bits_of(value))
            writer.finish()
        self._note(name, sink)
        return name

    def remove(self) -> None:
        """Remove whatever was begun; as far as that is possible, since a disk or a store has just failed."""
        for name in self.files:
            try:
                self.storage.remove(self._path(name))
            except Exception:
                return

    def _path(self, name: str) -> str:
        return f"{self.reader.chain[-1].name}/{name}"

    def _name(self, old: str) -> str:
        return f"{old.partition('.')[0]}.{self.tag}.safetensors"

    def _create(self, name: str) -> Sink:
        self.files[name] = {}
        return self.storage.create(self._path(name))

    def _note(self, name: str, sink: Sink) -> None:
        self.files[name] = {"bytes": sink.size, "xxh3_128": sink.digest}

    def _write_file(self, old_file: str, beside: Mapping[str, Tensor], progress: Progress) -> list[Shard]:
        """The pieces of one rank, and what lies beside them as it is; returns the pieces."""
        pieces = {
            piece: self._states_of(shard) if self.training and shard.states else {}
            for shard in self.reader.manifest.shards
            if shard.tables == old_file
            for piece in self._pieces(shard)
        }
        if not pieces and not beside:
            return []
        value_layouts = [Layout(f"{piece.key}.values", "float32", (piece.rows, piece.columns)) for piece in pieces]
        value_layouts += [layout_of(name, value) for name, value in beside.items()]
        state_layouts = [
            Layout(f"{piece.key}.{name}", "float32", (piece.rows, piece.columns)[:dimensions])
            for piece, states in pieces.items()
            for name, dimensions in states.items()
        ]
        states_name = next((piece.states for piece in pieces if piece.states), "")
        with ExitStack() as stack:
            sinks = {
                name: stack.enter_context(self._create(name)) for name in (self._name(old_file), states_name) if name
            }
            value_file = TensorFileWriter(sinks[self._name(old_file)], value_layouts)
            state_file = TensorFileWriter(sinks[states_name], state_layouts) if states_name else None
            for piece, states in pieces.items():
                self._write_piece(piece, states, value_file, state_file, progress)
            for name, value in beside.items():
                value_file.write(name, bits_of(value))
            value_file.finish()
            if state_file:
                state_file.finish()
        for name, sink in sinks.items():
            self._note(name, sink)
        return list(pieces)

    def _states_of(self, shard: Shard) -> dict[str, int]:
        """Dimensions of a shard's optimizer states by name."""
        with self.reader.open(self.reader.chain[-1], shard.states) as file:
            names = [name for name in file.keys() if name.startswith(f"{shard.key}.")]  # noqa: SIM118 — not a dictionary
            return {name.removeprefix(f"{shard.key}."): len(file.get_slice(name).get_shape()) for name in names}

    def _pieces(self, shard: Shard) -> Iterator[Shard]:
        """A shard of the newest checkpoint, cut wherever some checkpoint of the chain cuts its columns."""
        first, last = shard.first_column, shard.first_column + shard.columns
        cuts = {first, last}
        for link in self.reader.chain:
            for other in link.manifest.shards:
                if other.table == shard.table:
                    cuts |= {
                        cut for cut in (other.first_column, other.first_column + other.columns) if first < cut < last
                    }
        for begin, end in itertools.pairwise(sorted(cuts)):
            yield dataclasses.replace(
                shard,
                key=f"{shard.table}.{shard.first_row}.{begin}",
                tables=self._name(shard.tables),
                states=self._name(shard.states) if self.training and shard.states else "",
                first_column=begin,
                columns=end - begin,
                stored=shard.rows,
            )

    def _write_piece(
        self,
        piece: Shard,
        states: Mapping[str, int],
        value_file: TensorFileWriter,
        state_file: TensorFileWriter | None,
        progress: Progress,
    ) -> None:
        """Values and the first state side by side, each further state in a reading of its own.

        A file has one tensor after another, and nothing larger than a block is ever held.
        """
        rows = range(piece.first_row, piece.first_row + piece.rows)
        columns = range(piece.first_column, piece.first_column + piece.columns)
        for index, name in enumerate([*states] or [""]):
            wanted = {name: states[name]} if name else {}
            for block in row_blocks(self.reader, piece.table, rows, columns, wanted):
                if index == 0:
                    value_file.write(f"{piece.key}.values", block.weight_RD.numpy())
                    progress.advance(block.weight_RD.numel())
                if state_file and name:
                    state_file.write(f"{piece.key}.{name}", block.states[name].numpy())
