"""The processes that train or evaluate together, and the device each of them owns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 … size − 1.
        size: number of processes.
        local_size: number of processes on this node.
        device: where this rank's tensors live.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all (prints, writes files)."""
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        """Whether this rank does, once for its machine, what its neighbours need not do again (verify a store)."""
        return self.rank % self.local_size == 0


@contextmanager
def open_world() -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, or make one of a single process.

    CUDA with NCCL where there is a GPU, the CPU with gloo elsewhere: the only place that asks.
    """
    launched = "RANK" in os.environ
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    # Gloo beside NCCL: objects and CPU tensors (metrics, fingerprints) travel without a detour over the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = None if launched else dist.HashStore()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device)
    finally:
        dist.destroy_process_group()
