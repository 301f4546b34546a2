"""One checkpoint written by all ranks: each its own rows, rank 0 what all have alike, and the manifest last of all."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.storage import Storage
from common.tensor_files import Layout, TensorFileWriter
from serving.checkpoints.manifest import DELTA, MANIFEST, Manifest, Shard, encode_manifest, read_manifest, step_folder
from serving.checkpoints.row_formats import encode_rows, encode_state, encoded_width
from trainer.checkpoint.snapshot import Rows, TableSnapshot

_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}


READ_AHEAD_BYTES = 2**28
"""Of a rank's rows read into memory before any is written. While rows are unread, training sets aside those that it
changes; a disk takes several times as long as memory. What is larger, as bases are, is read as it is written."""


@dataclass
class Part:
    """What one rank wrote, or why it could not."""

    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    shards: list[Shard] = dataclasses.field(default_factory=list)
    random: str = ""
    dense: str = ""
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a writing ended, alike on all ranks.

    Attributes:
        step: of the checkpoint.
        kind: base or delta.
        state: of its manifest.
        table_bytes: of rows and their optimizer states.
        size: bytes in all.
        seconds: from the boundary until it was visible.
        error: why it came to nothing; empty if it did not.
    """

    step: int
    kind: str
    state: str = ""
    table_bytes: int = 0
    size: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        """Of the checkpoint."""
        return step_folder(self.step)


@dataclass
class Writing:
    """A checkpoint on its way to the disk.

    Args:
        storage: where to.
        manifest: complete but for what the files will be.
        tag: part of the names of all files of this attempt; like `manifest`, the same on all ranks.
        snapshots: of this rank's pieces of the tables.
        dense: what all ranks have alike, copied; used on rank 0.
        random: this rank's random states.
        maps: owners of this rank's rows of hashed tables, copied.
        rank, size: who writes, of how many.
        group: for agreeing at the end; used by nobody else meanwhile. None for a single process.
        then: called on rank 0 when the checkpoint is visible.
    """

    storage: Storage
    manifest: Manifest
    tag: str
    snapshots: list[TableSnapshot]
    dense: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]
    rank: int
    size: int
    group: Any
    then: Callable[[], None]

    def run(self) -> Outcome:
        """Write; an error on any rank becomes the outcome of all, and what was written of this attempt is removed."""
        start = time.perf_counter()
        part = self._write_own()
        parts: list[Any] = [part]
        if self.group is not None:
            parts = [None] * self.size
            dist.all_gather_object(parts, part, group=self.group)
        outcome = [self._commit(parts, start) if self.rank == 0 else None]
        if self.group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        assert outcome[0] is not None
        return outcome[0]

    def _write_own(self) -> Part:
        part = Part()
        try:
            self._write_tables(part)
            if self.rank == 0:
                part.dense = f"dense.{self.tag}.safetensors"
                self._write_tensors(part, part.dense, self.dense)
        except Exception as error:  # whatever a disk or an object store comes up with must not end the training
            part.error = f"rank {self.rank}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return part

    def _create(self, part: Part, name: str) -> Any:
        part.files[name] = {}  # known before it is whole, so that it can be removed
        return self.storage.create(f"{step_folder(self.manifest.step)}/{name}")

    def _write_tables(self, part: Part) -> None:
        """Values and states side by side, since both must be read at once."""
        of = f"{self.rank:05d}-of-{self.size:05d}.{self.tag}.safetensors"
        tables, states = f"tables-{of}", f"states-{of}"
        part.random = tables
        part.shards = [self._shard(snapshot, tables, states) for snapshot in self.snapshots]
        value_layouts = [layout for shard in part.shards for layout in self._value_layouts(shard)]
        beside = {**self.random, **self.maps}
        value_layouts += [layout_of(name, value) for name, value in beside.items()]
        state_layouts = [
            Layout(
                f"{shard.key}.{name}",
                self.manifest.state_format,
                (shard.stored, *state.shape[1:]),
            )
            for shard, snapshot in zip(part.shards, self.snapshots, strict=True)
            for name, state in snapshot.shard.states.items()
        ]
        blocks = self._read_ahead(part.shards)
        with self._create(part, tables) as value_sink, self._create(part, states) as state_sink:
            value_file = TensorFileWriter(value_sink, value_layouts)
            state_file = TensorFileWriter(state_sink, state_layouts)
            for shard, of_shard in zip(part.shards, blocks, strict=True):
                self._write_shard(shard, of_shard, value_file, state_file)
            for name, value in beside.items():
                value_file.write(name, bits_of(value))
            value_file.finish()
            state_file.finish()
        part.files[tables] = {"bytes": value_sink.size, "xxh3_128": value_sink.digest}
        part.files[states] = {"bytes": state_sink.size, "xxh3_128": state_sink.digest}

    def _shard(self, snapshot: TableSnapshot, tables: str, states: str) -> Shard:
        live = snapshot.shard
        return Shard(
            key=f"{live.table}.{live.first_row}.{live.first_column}",
            table=live.table,
            tables=tables,
            states=states if live.states else "",
            first_row=live.first_row,
            rows=live.rows,
            first_column=live.first_column,
            columns=live.columns,
            stored=snapshot.count(),
        )

    def _value_layouts(self, shard: Shard) -> list[Layout]:
        dtype, width = encoded_width(self.manifest.value_format, shard.columns)
        values = Layout(f"{shard.key}.values", dtype, (shard.stored, width))
        if self.manifest.kind != DELTA:
            return [values]
        return [values, Layout(f"{shard.key}.rows", self._row_dtype(shard), (shard.stored,))]

    def _row_dtype(self, shard: Shard) -> str:
        return "int32" if self.manifest.tables[shard.table][0] < 2**31 else "int64"

    def _read_ahead(self, shards: list[Shard]) -> list[Iterable[Rows]]:
        """The rows of each piece: in memory, as far as it goes, or to be read as they are written."""
        room = READ_AHEAD_BYTES
        blocks: list[Iterable[Rows]] = []
        for shard, snapshot in zip(shards, self.snapshots, strict=True):
            size = 4 * shard.stored * shard.columns
            blocks.append(list(snapshot.blocks()) if size <= room else snapshot.blocks())
            room -= min(size, room)
        return blocks

    def _write_shard(
        self, shard: Shard, blocks: Iterable[Rows], value_file: TensorFileWriter, state_file: TensorFileWriter
    ) -> None:
        """Values go to the disk block by block; row numbers and states, a few bytes a row, wait until values end."""
        rows: list[np.ndarray] = []
        states: dict[str, list[np.ndarray]] = {}
        for block in blocks:
            value_file.write(f"{shard.key}.values", encode_rows(self.manifest.value_format, block.values_nD))
            if self.manifest.kind == DELTA:
                rows.append((block.rows_n + shard.first_row).astype(self._row_dtype(shard)))
            for name, values in block.states.items():
                states.setdefault(name, []).append(encode_state(self.manifest.state_format, values))
        for piece in rows:
            value_file.write(f"{shard.key}.rows", piece)
        for name, pieces in states.items():
            for piece in pieces:
                state_file.write(f"{shard.key}.{name}", piece)

    def _write_tensors(self, part: Part, file: str, tensors: Mapping[str, Tensor]) -> None:
        with self._create(part, file) as sink:
            writer = TensorFileWriter(sink, [layout_of(name, value) for name, value in tensors.items()])
            for name, value in tensors.items():
                writer.write(name, bits_of(value))
            writer.finish()
        part.files[file] = {"bytes": sink.size, "xxh3_128": sink.digest}

    def _commit(self, parts: list[Part], start: float) -> Outcome:
        failed = "; ".join(part.error for part in parts if part.error)
        step, kind = self.manifest.step, self.manifest.kind
        if not failed:
            try:
                files = {name: entry for part in parts for name, entry in part.files.items()}
                self._make_visible(parts, files)
            except Exception as error:
                failed = f"{MANIFEST}: {type(error).__name__}: {error}"
                self._withdraw()
        if failed:
            self._remove_attempt(parts)
            return Outcome(step, kind, seconds=time.perf_counter() - start, error=failed)
        size = sum(entry["bytes"] for entry in files.values())
        table_bytes = size - sum(entry["bytes"] for name, entry in files.items() if name.startswith("dense"))
        outcome = Outcome(step, kind, self.manifest.state, table_bytes, size, time.perf_counter() - start)
        self.then()
        return outcome

    def _make_visible(self, parts: list[Part], files: dict[str, dict[str, Any]]) -> None:
        manifest = dataclasses.replace(
            self.manifest,
            shards=[shard for part in parts for shard in part.shards],
            files=files,
            random=[part.random for part in parts],
            dense=parts[0].dense,
        )
        folder = step_folder(self.manifest.step)
        self.storage.replace(f"{folder}/{MANIFEST}", encode_manifest(manifest))
        with contextlib.suppress(Exception):  # what counts is there; a leftover is in nobody's way
            for name in self.storage.files(folder):
                if name not in files and name != MANIFEST:  # of an attempt cut short, or of what this replaces
                    self.storage.remove(f"{folder}/{name}")

    def _withdraw(self) -> None:
        """An upload may have arrived though its answer did not: a manifest must not outlive the files it names."""
        folder = step_folder(self.manifest.step)
        with contextlib.suppress(Exception):
            if read_manifest(self.storage, folder).state == self.manifest.state:
                self.storage.remove(f"{folder}/{MANIFEST}")

    def _remove_attempt(self, parts: list[Part]) -> None:
        """Make room again: best effort, since the disk has just failed us; the next writing of a step tidies up too."""
        folder = step_folder(self.manifest.step)
        with contextlib.suppress(Exception):
            for part in parts:
                for name in part.files:
                    self.storage.remove(f"{folder}/{name}")
            if not self.storage.files(folder):
                self.storage.remove_folder(folder)


def layout_of(name: str, value: Tensor) -> Layout:
    """How a tensor lies in a file."""
    return Layout(name, _DTYPES[value.dtype], tuple(value.shape))


def bits_of(value: Tensor) -> np.ndarray:
    """The numbers of a tensor on the CPU; of bfloat16, which NumPy lacks, the bits."""
    value = value.contiguous()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
