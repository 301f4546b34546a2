"""The processes that train or evaluate together, and the device each of them owns."""

from __future__ import annotations

import atexit
import gc
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

START = timedelta(minutes=30)
"""How long ranks wait for one another before training begins."""


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 … size − 1.
        size: number of processes.
        local_size: number of processes on this node.
        device: where this rank's tensors live.
        group: the processes, if they are not all there are.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all (prints, writes files)."""
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        """Whether this rank does, once for its machine, what its neighbours need not do again (verify a store)."""
        return self.rank % self.local_size == 0


def alone(world: World) -> World:
    """This process as a world of its own: what lies whole on every rank needs nobody else.

    Collective over `world`.
    """
    if world.size == 1:
        return world
    own, _ = dist.new_subgroups(group_size=1)
    return World(0, 1, 1, world.device, own)


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
    store: dist.Store | None = None if launched else dist.HashStore()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        kept = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=START)
        store = store_of_this_start(kept, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    # Modules, which stand in cycles, hold the group after it is destroyed, and with it gloo's threads, which may still
    # have a tensor to free: once the interpreter is being torn down, that aborts the process (pytorch issue 190489).
    # Collected before that, the group waits for its threads.
    atexit.unregister(gc.collect)
    atexit.register(gc.collect)
    try:
        yield World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device)
    finally:
        dist.destroy_process_group()


def store_of_this_start(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of a store that no earlier start of the same ranks has written into.

    torchrun keeps one store for all restarts, with the addresses of processes that are dead (pytorch issue 167288),
    and its count of restarts differs from node to node (issue 135712). So rank 0 draws a name and tells it to each
    rank that calls; what a dead process once asked is answered too, and nobody reads it.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"start/call/{rank}", own)
        chosen: str = store.get(f"start/answer/{own}").decode()
        store.set(f"start/heard/{chosen}/{rank}", "yes")
        return dist.PrefixStore(chosen, store)
    until = time.monotonic() + START.total_seconds()
    for other in range(1, size):
        while not store.check([f"start/heard/{own}/{other}"]):
            if time.monotonic() > until:
                raise TimeoutError(f"rank {other} of {size} has not come within {START}")
            if store.check([f"start/call/{other}"]):
                store.set(f"start/answer/{store.get(f'start/call/{other}').decode()}", own)
            time.sleep(0.01)
    return dist.PrefixStore(own, store)
