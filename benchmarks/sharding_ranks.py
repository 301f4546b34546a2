"""Processes of `benchmarks.sharding`: gloo ranks spawned together, what they send counted, what they hold at most.

Bytes are counted where TorchRec hands tensors to torch.distributed, so they are those of the algorithm: what a rank
gives to others, not what gloo makes of a reduce-scatter on its way. DistributedDataParallel's all-reduce does not pass
here.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from common.memory import peak_bytes, resident_bytes
from common.noise import quiet_known_warnings
from sharding.world import World

LIVE_ONLY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
"""Blocks go back to the system when they are freed, so that resident memory is what is held, not what once was."""

REUSING = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
    "OMP_WAIT_POLICY": "passive",
}
"""Freed blocks are kept for the next step: otherwise faulting pages in again is what is timed. Idle threads do not
spin, which on cores that are busy otherwise would make two threads slower than one."""


def on_ranks(size: int, environment: dict[str, str], work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(world, *arguments)` on so many gloo ranks; what each returned, by rank, as JSON holds it."""
    kept = {name: os.environ.get(name) for name in (*environment, "OMP_NUM_THREADS")}
    os.environ.update(environment, OMP_NUM_THREADS="1")
    try:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_enter, args=(size, folder, work, arguments), nprocs=size, join=True)
            return [json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]
    finally:
        for name, before in kept.items():
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _enter(rank: int, size: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    quiet_known_warnings()
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=5))
    try:
        result = work(World(rank, size, size, torch.device("cpu")), *arguments)
        (Path(folder) / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def timed(work: Callable[[], Any], times: int) -> float:
    """Median seconds, the ranks starting together; the first run is not counted."""
    seconds = []
    for _ in range(times + 1):
        dist.barrier()
        start = time.perf_counter()
        work()
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────


class PeakMemory:
    """Growth of the largest resident set of this process, from when it was made."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        self._before = resident_bytes()

    def growth(self) -> int:
        """Bytes so far."""
        return peak_bytes() - self._before


# ── traffic ──────────────────────────────────────────────────────────────────────────────────────────────

BAGS, ROWS = "bags", "rows"
"""Collections: tables whose rows are summed, tables whose rows travel each by itself."""


class Sending:
    """Counts bytes that this rank gives to others, under `COLLECTION.STAGE`, while it is entered.

    Stages are those of `sharding.planning.traffic`: ids, forward, backward. In the backward a collection is told by its
    collective, so a model may have bags that travel by AlltoAll, or rows, not both.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes: dict[str, int] = {}
        self._stage, self._collection = "forward", ""
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._has_rows = False
        for module in model.modules():
            if isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
                is_bags = isinstance(module, ShardedEmbeddingBagCollection)
                self._has_rows |= not is_bags
                module.register_forward_pre_hook(self._entering(BAGS if is_bags else ROWS))

    @contextmanager
    def counting(self) -> Iterator[Sending]:
        """From the first forward to the last backward."""
        counted: dict[str, Callable[..., None]] = {
            "all_to_all_single": self._all_to_all,
            "reduce_scatter": self._reduce_scatter,
            "reduce_scatter_tensor": self._reduce_scatter_tensor,
            "all_gather": self._all_gather,
            "all_gather_into_tensor": self._all_gather,
            "broadcast": self._broadcast,
        }
        patches = [patch.object(dist, name, _also(getattr(dist, name), count)) for name, count in counted.items()]
        for one in patches:
            one.start()
        try:
            yield self
        finally:
            for one in patches:
                one.stop()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """What is sent in here is a gradient."""
        self._stage = "backward"
        try:
            yield
        finally:
            self._stage = "forward"

    def _entering(self, collection: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _arguments: Any) -> None:
            self._collection = collection

        return hook

    def _add(self, size: int, tensor: Tensor, *, all_to_all: bool = False) -> None:
        stage = "ids" if tensor.dtype in (torch.int64, torch.int32) else self._stage
        collection = self._collection
        if self._stage == "backward":
            collection = ROWS if all_to_all and self._has_rows else BAGS
        key = f"{collection}.{stage}"
        self.bytes[key] = self.bytes.get(key, 0) + size

    def _all_to_all(
        self,
        output: Tensor,  # noqa: ARG002
        input: Tensor,
        output_split_sizes: Sequence[int] | None = None,  # noqa: ARG002
        input_split_sizes: Sequence[int] | None = None,
        **_others: Any,
    ) -> None:
        own = input_split_sizes[self._rank] if input_split_sizes else len(input) // self._ranks
        row = _size(input) // len(input) if len(input) else 0
        self._add(_size(input) - own * row, input, all_to_all=True)

    def _reduce_scatter(self, output: Tensor, input_list: list[Tensor], **_others: Any) -> None:
        self._add(sum(map(_size, input_list)) - _size(output), output)

    def _reduce_scatter_tensor(self, output: Tensor, input: Tensor, **_others: Any) -> None:
        self._add(_size(input) - _size(output), output)

    def _all_gather(self, outputs: Any, tensor: Tensor, **_others: Any) -> None:  # noqa: ARG002
        self._add((self._ranks - 1) * _size(tensor), tensor)

    def _broadcast(self, tensor: Tensor, group_src: int | None = None, **_others: Any) -> None:
        if group_src == self._rank:
            self._add((self._ranks - 1) * _size(tensor), tensor)


def _also(function: Callable[..., Any], count: Callable[..., None]) -> Callable[..., Any]:
    """The function, with its arguments looked at before."""

    def both(*arguments: Any, **keywords: Any) -> Any:
        looked_at = {{"output_tensor": "output", "input_tensor": "input"}.get(k, k): v for k, v in keywords.items()}
        count(*arguments, **looked_at)
        return function(*arguments, **keywords)

    return both


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
