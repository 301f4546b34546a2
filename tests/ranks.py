"""Run a function, or a training, on several gloo ranks, as real processes.

Processes are forked from one that has imported everything once and computed nothing: importing takes seconds, on every
rank of every test.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common.noise import quiet_known_warnings
from sharding.world import World

multiprocessing.set_forkserver_preload(["trainer.train", "evaluation.evaluate", "fbgemm_gpu"])


def run_on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(world, *arguments)` on every rank; returns the results by rank. An error on any rank is raised here.

    The function must stand at the top level of a module: it is sent to other processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        _start(_enter, size, size, folder, function, arguments)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def train_on_ranks(size: int, *keys: str) -> None:
    """`python -m trainer.train key=value …` on every rank, as torchrun would have it without restarts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _start(_train, size, size, port, keys)


def _start(function: Callable[..., None], size: int, *arguments: Any) -> None:
    given = (dict(os.environ), *arguments)  # not that of the process they are forked from
    mp.start_processes(function, args=given, nprocs=size, join=True, start_method="forkserver")


def _become(rank: int, size: int, environment: Mapping[str, str]) -> None:
    quiet_known_warnings()
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))


def _enter(
    rank: int,
    environment: Mapping[str, str],
    size: int,
    folder: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    _become(rank, size, environment)
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    try:
        result = function(World(rank, size, size, torch.device("cpu")), *arguments)
        torch.save(result, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _train(rank: int, environment: Mapping[str, str], size: int, port: int, keys: tuple[str, ...]) -> None:
    from trainer.train import main

    _become(rank, size, environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    status = main(list(keys))
    assert status == 0, f"rank {rank} ended with {status}"
