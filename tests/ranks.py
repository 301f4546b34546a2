"""Run a function, or a training, on several gloo ranks, or a module alone, as real processes.

Processes are forked from one that has imported everything once and computed nothing: importing takes seconds, on every
rank of every test.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
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


def start_module(
    module: str, *arguments: str, said: Path | None = None, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """`python -m MODULE ARGUMENT …` in the background.

    Args:
        said: file for what it prints; its errors go to the file beside that, with `.errors` after its name.
        environment: this process's own if not given.
    """
    given = (dict(os.environ if environment is None else environment), module, arguments, said)
    process = multiprocessing.get_context("forkserver").Process(target=_become_module, args=given)
    process.start()
    return process


def run_module(module: str, *arguments: str, said: Path | None = None) -> int:
    """The same to its end; returns the exit status."""
    process = start_module(module, *arguments, said=said)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _start(function: Callable[..., None], size: int, *arguments: Any) -> None:
    spawn(function, (dict(os.environ), *arguments), size)  # not that of the process they are forked from


def spawn(function: Callable[..., None], args: tuple[Any, ...], nprocs: int, join: bool = True) -> None:
    """`torch.multiprocessing.spawn` of processes that need not import anything."""
    mp.start_processes(function, args=args, nprocs=nprocs, join=join, start_method="forkserver")


def _become_module(environment: Mapping[str, str], module: str, arguments: Sequence[str], said: Path | None) -> None:
    if said is not None:
        for stream, file in ((1, said), (2, f"{said}.errors")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # it has been imported, and runs as the main one now
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def become(rank: int, size: int, environment: Mapping[str, str]) -> None:
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
    become(rank, size, environment)
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

    become(rank, size, environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    status = main(list(keys))
    assert status == 0, f"rank {rank} ended with {status}"
