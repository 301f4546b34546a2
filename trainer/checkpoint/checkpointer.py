"""The checkpoints of a run as it trains: base or delta, at most one on its way to the disk, none waited for.

A rank's thread writes while training goes on. What is to be written is fixed at a step's end; from then on training
only sets aside rows that it changes before the thread has read them (`trainer.checkpoint.snapshot`). Ranks agree by
collectives of a process group of their own, at the end of a writing.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.errors import InputError
from common.seeding import random_states
from common.storage import Storage
from serving.checkpoints.chain import Link
from serving.checkpoints.manifest import BASE, DELTA, Manifest, step_folder
from serving.checkpoints.restore import MAP
from sharding.apply import sharded_tables
from sharding.hashing.hashed_items import hash_state
from sharding.tables import table_shards
from sharding.world import World
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.retention import remove_old
from trainer.checkpoint.snapshot import TableSnapshot
from trainer.checkpoint.touched import TouchedRows
from trainer.checkpoint.writing import Outcome, Writing

WRITING = timedelta(hours=6)
"""How long the first rank to have written its part waits for the last: a base on a slow store takes its time. That a
rank is gone is heard sooner: at once where its connections end, else by training's own collectives."""

DenseState = Callable[[], dict[str, Tensor]]
"""What all ranks have alike, live, by name."""


@dataclass
class ChainSoFar:
    """What has been written since the last base, as far as the next checkpoint needs to know.

    Attributes:
        newest: name of the newest checkpoint, empty before the first.
        state: of its manifest.
        base_step: step of its base.
        base_bytes: rows and their optimizer states in the base.
        delta_bytes: the same in all deltas since.
    """

    newest: str = ""
    state: str = ""
    base_step: int = -1
    base_bytes: int = 0
    delta_bytes: int = 0

    @classmethod
    def of(cls, chain: list[Link]) -> ChainSoFar:
        """Of a chain read back."""
        sizes = [_table_bytes(link.manifest) for link in chain]
        newest, base = chain[-1], chain[0].manifest
        return cls(newest.name, newest.manifest.state, base.step, sizes[0], sum(sizes[1:]))

    def next_kind(self, step: int, config: CheckpointConfig) -> str:
        """Whether the checkpoint of a step is to be a base or a delta."""
        old = config.base_every and step - self.base_step >= config.base_every
        long = self.delta_bytes > config.chain_share * self.base_bytes
        again = self.newest == step_folder(step)  # a delta cannot be made from what it takes the place of
        return BASE if not self.newest or old or long or again else DELTA

    def add(self, outcome: Outcome) -> None:
        """A checkpoint has become visible."""
        if outcome.kind == BASE:
            self.base_step, self.base_bytes, self.delta_bytes = outcome.step, outcome.table_bytes, 0
        else:
            self.delta_bytes += outcome.table_bytes
        self.newest, self.state = outcome.name, outcome.state


def _table_bytes(manifest: Manifest) -> int:
    dense: int = manifest.files[manifest.dense]["bytes"]
    return manifest.size - dense


class Checkpointer:
    """Watches what training changes, and saves it. Made on all ranks, and called by all at the same steps.

    Args:
        config: when and how.
        storage: where to.
        model: with the tables.
        dense: what all ranks have alike.
        template: manifest of a checkpoint of this run, but for what changes from one to the next.
        chain: the checkpoint that the run goes on from, with all it is made from; empty for a new run.
        say: tells the user something, on rank 0.
        record: keeps figures of a checkpoint, on rank 0.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        storage: Storage,
        world: World,
        model: DistributedModelParallel,
        dense: DenseState,
        template: Manifest,
        chain: list[Link],
        *,
        say: Callable[[str], None],
        record: Callable[[int, dict[str, Any]], None],
    ) -> None:
        self.config, self.storage, self.world, self._model, self._dense = config, storage, world, model, dense
        tables = {name: list(table.size()) for name, table in sharded_tables(model).items()}
        self._template, self._say, self._record = dataclasses.replace(template, tables=tables), say, record
        self.shards = table_shards(model)
        self.touched = TouchedRows(model, self.shards)
        self.chain = ChainSoFar.of(chain) if chain else ChainSoFar()
        self._last_saved = chain[-1].manifest.step if chain else -1
        self._group = dist.new_group(backend="gloo", timeout=WRITING) if world.size > 1 else None
        self._tag, self._attempt = _agreed_tag(world), 0
        self._staging: dict[str, Tensor] = {}
        self._flight: _Flight | None = None
        self.stall_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self._flight is not None and self._flight.thread.is_alive()

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint of this step is on the disk or on its way."""
        return self._last_saved == step

    def begin(self, step: int, epoch: int, progress: dict[str, Any], metrics: dict[str, float]) -> None:
        """Fix what is to be saved, at a step's end, and leave the rest to a thread. Waits for the one before."""
        self.settle()
        start = time.perf_counter()
        kind = self.chain.next_kind(step, self.config)
        masks_R = self.touched.take()
        snapshots = [
            TableSnapshot(shard, mask_R if kind == DELTA else None)
            for shard, mask_R in zip(self.shards, masks_R, strict=True)
        ]
        self._attempt += 1
        tag = f"{self._tag}-{self._attempt}"
        writing = Writing(
            storage=self.storage,
            manifest=self._manifest(kind, tag, step, epoch, progress, metrics),
            tag=tag,
            snapshots=snapshots,
            dense=self._stage() if self.world.is_main else {},
            random=random_states(),
            maps={
                f"{MAP}{name}": value.detach().to("cpu", copy=True) for name, value in hash_state(self._model).items()
            },
            rank=self.world.rank,
            size=self.world.size,
            group=self._group,
            then=lambda: self._tidy(step_folder(step)),
        )
        self._flight = _Flight(writing, masks_R)
        self.touched.before_update = self._before_update
        self._last_saved = step
        self._flight.thread.start()
        self.stall_seconds += time.perf_counter() - start
        if self.config.wait:
            self.settle()

    def _before_update(self, index: int, rows_n: Tensor) -> None:
        start = time.perf_counter()
        assert self._flight is not None
        self._flight.writing.snapshots[index].before_update(rows_n)
        self.stall_seconds += time.perf_counter() - start

    def settle(self, *, warn: bool = True) -> Outcome | None:
        """Wait until nothing is on its way, and take note of how it ended; None if there was nothing."""
        if self._flight is None:
            return None
        start = time.perf_counter()
        flight, self._flight = self._flight, None
        flight.thread.join()
        self.touched.before_update = None
        self.stall_seconds += time.perf_counter() - start
        outcome = flight.outcome
        if outcome is None:
            raise RuntimeError("the ranks lost one another while they wrote a checkpoint") from flight.error
        if outcome.error:
            self.touched.put_back(flight.masks_R)
            self._last_saved = -1
            if warn:
                self._say(
                    f"warning: {self.storage.where(outcome.name)}: cannot be written ({outcome.error}); training goes "
                    f"on, the newest checkpoint is {self.chain.newest or 'none yet'}, and the next one holds these "
                    "changes too"
                )
            return outcome
        self.chain.add(outcome)
        values = {
            "saved": outcome.kind,
            "bytes": outcome.size,
            "seconds": outcome.seconds,
            "stall_seconds": self.stall_seconds,
        }
        self.stall_seconds = 0.0
        self._record(outcome.step, values)
        return outcome

    def poll(self) -> None:
        """Take note of a writing that has ended, without waiting for one that has not."""
        if self._flight is not None and not self.busy:
            self.settle()

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            InputError: it could not be written.
        """
        outcome = self.settle(warn=False)
        if outcome and outcome.error:
            raise InputError(
                f"{self.storage.where(outcome.name)}: cannot be written ({outcome.error}); free space and go on with "
                f"resume=true from {self.chain.newest or 'the start'}, or choose another run or checkpoint.path"
            )

    def _manifest(
        self, kind: str, tag: str, step: int, epoch: int, progress: dict[str, Any], metrics: dict[str, float]
    ) -> Manifest:
        is_delta = kind == DELTA
        return dataclasses.replace(
            self._template,
            kind=kind,
            step=step,
            epoch=epoch,
            parent=self.chain.newest if is_delta else "",
            parent_state=self.chain.state if is_delta else "",
            state=f"{step}-{tag}",
            value_format=self.config.values if is_delta else "float32",
            state_format=self.config.states if is_delta else "float32",
            progress=dict(progress),
            metrics=dict(metrics),
        )

    def _stage(self) -> dict[str, Tensor]:
        """Copies on the host, in memory that is used again and again: fresh pages would cost more than the copying."""
        for name, value in self._dense().items():
            kept = self._staging.get(name)
            if kept is None or kept.shape != value.shape:
                pinned = value.is_cuda
                kept = self._staging[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
            kept.copy_(value, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._staging

    def _tidy(self, written: str) -> None:
        try:
            remove_old(self.storage, self.config.keep, written)
        except Exception as error:
            self._say(f"warning: {self.storage.url}: old checkpoints cannot be removed: {error}")


class _Flight:
    """A writing under way."""

    def __init__(self, writing: Writing, masks_R: list[Tensor]) -> None:
        self.writing, self.masks_R = writing, masks_R
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        # A daemon: when training dies of another rank's death, nobody waits for what that rank will not write.
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def _run(self) -> None:
        try:
            self.outcome = self.writing.run()
        except BaseException as error:
            self.error = error


def _agreed_tag(world: World) -> str:
    """Random, so that no attempt ever meets files of an earlier one; the same on all ranks."""
    told = [secrets.token_hex(4)]
    if world.size > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]
