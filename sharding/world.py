"""The processes that train or evaluate together, and the device each of them owns."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from common.errors import Lost
from sharding.ranks.collectives import is_loss

START = timedelta(minutes=30)
"""How long ranks wait for one another before training begins."""


LATER = {"cpu": timedelta(seconds=5), "cuda": timedelta(seconds=60)}
"""Beyond the time that a job gives a step, how long collectives may take: whoever watches (`sharding.ranks.watch`) and
knows which rank holds the others up comes first. NCCL, out of patience, ends the process and does not say for whom."""


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a job leave word for one another: a TCPStore, to which anyone may connect.

    Attributes:
        host, port: of its server.
        prefix: of this start's keys, empty where the server itself is of this start.
    """

    host: str
    port: int
    prefix: str


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 … size − 1.
        size: number of processes.
        local_size: number of processes on this node.
        device: where this rank's tensors live.
        group: the processes, if they are not all there are.
        meeting: where they leave word for one another, if they were launched.
        timeout: how long one of them waits in a collective.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    meeting: Meeting | None = None
    timeout: timedelta = START

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
    own, _ = dist.new_subgroups(group_size=1, timeout=world.timeout)
    return World(0, 1, 1, world.device, own, timeout=world.timeout)


@contextmanager
def open_world(timeout: timedelta = START) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, or make one of a single process.

    CUDA with NCCL where there is a GPU, the CPU with gloo elsewhere: the only place that asks.

    Args:
        timeout: how long a step may take; collectives a little longer.

    Raises:
        Lost: not all processes came.
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
    limit = timeout + LATER[device.type]
    store: dist.Store | None = None if launched else dist.HashStore()
    meeting: Meeting | None = None
    try:
        if launched and "MASTER_ADDR" in os.environ:
            meeting = Meeting(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "")
        if meeting and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            kept = dist.TCPStore(meeting.host, meeting.port, is_master=False, timeout=START)
            meeting = dataclasses.replace(meeting, prefix=name_of_this_start(kept, rank, size))
            store = dist.PrefixStore(meeting.prefix, kept)
        with _until_all_have_come():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise Lost(f"rank {rank} of {size} did not come together with the others: {error}") from error
    # Modules, which stand in cycles, hold the group after it is destroyed, and with it gloo's threads, which may still
    # have a tensor to free: once the interpreter is being torn down, that aborts the process (pytorch issue 190489).
    # Collected before that, the group waits for its threads.
    atexit.unregister(gc.collect)
    atexit.register(gc.collect)
    try:
        yield World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device, meeting=meeting, timeout=limit)
    finally:
        if not isinstance(sys.exception(), Lost):  # or it would wait for those that are gone
            dist.destroy_process_group()


@contextmanager
def _until_all_have_come() -> Iterator[None]:
    """Have no rank leave `init_process_group` before all are through.

    Gloo alone lets a rank go whose own connections stand. If it then ends, by a fault of the user's, a slower one still
    finds its connection closed, and says that somebody was lost where somebody had told what to mend.
    """
    before = os.environ.get(_INIT_BARRIER)
    os.environ[_INIT_BARRIER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_INIT_BARRIER]
        else:
            os.environ[_INIT_BARRIER] = before


_INIT_BARRIER = "TORCH_DIST_INIT_BARRIER"


def name_of_this_start(store: dist.Store, rank: int, size: int) -> str:
    """The name of a part of a store that no earlier start of the same ranks has written into.

    torchrun keeps one store for all restarts, with the addresses of processes that are dead (pytorch issue 167288),
    and its count of restarts differs from node to node (issue 135712). So rank 0 draws a name and tells it to each
    rank that calls; what a dead process once asked is answered too, and nobody reads it.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"start/call/{rank}", own)
        chosen: str = store.get(f"start/answer/{own}").decode()
        store.set(f"start/heard/{chosen}/{rank}", "yes")
        return chosen
    until = time.monotonic() + START.total_seconds()
    for other in range(1, size):
        while not store.check([f"start/heard/{own}/{other}"]):
            if time.monotonic() > until:
                raise Lost(f"rank {other} of {size} has not come within {START}")
            if store.check([f"start/call/{other}"]):
                store.set(f"start/answer/{store.get(f'start/call/{other}').decode()}", own)
            time.sleep(0.01)
    return own
