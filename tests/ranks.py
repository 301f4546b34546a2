"""Run a function on several gloo ranks, as real processes, and bring back what each returned."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common.noise import quiet_known_warnings
from sharding.world import World


def run_on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(world, *arguments)` on every rank; returns the results by rank. An error on any rank is raised here.

    The function must stand at the top level of a module: it is sent to spawned processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, args=(size, folder, function, arguments), nprocs=size, join=True)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _enter(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    quiet_known_warnings()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    try:
        result = function(World(rank, size, size, torch.device("cpu")), *arguments)
        torch.save(result, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
