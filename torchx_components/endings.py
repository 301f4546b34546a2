"""How the ranks and nodes of a job ended, and the one status that follows for all of them."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch.distributed import Store
from torch.distributed.elastic.rendezvous import RendezvousError

DONE = 0
BUG = 1
FAULT = 2
WORSE = 3
LOST = 4
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

PRECEDENCE = (FAULT, WORSE, INTERRUPTED, TERMINATED, BUG, LOST)
"""Of several endings, which one the job has: causes before what follows from them."""

FINAL = (FAULT, WORSE, INTERRUPTED, TERMINATED)
"""Another start would end alike, or nobody wants one."""


STORE_ERRORS = (RuntimeError, RendezvousError)
"""What a store raises, itself or through the rendezvous, whose process is gone or silent."""


class Fault(Exception):
    """What the user can mend: status 2."""


class Lost(Exception):
    """The nodes could not come together, or fell apart: status 4."""


@dataclass(frozen=True)
class RankEnd:
    """A rank that ended otherwise than well, by itself.

    Attributes:
        rank: among all ranks of the job.
        local_rank: among those of its node.
        node: the name of its node.
        code: its exit status; if negative, the number of the signal that ended it.
        seconds: how long it ran.
        said: what it told of the fault; empty if it left no word.
    """

    rank: int
    local_rank: int
    node: str
    code: int
    seconds: float
    said: str = ""

    @property
    def status(self) -> int:
        """The status that it means for the job. SIGKILL comes from outside: no memory left, or somebody."""
        if self.code == -signal.SIGKILL:
            return LOST
        return self.code if self.code in PRECEDENCE else BUG

    def __str__(self) -> str:
        how = f"by {_signal_name(-self.code)}" if self.code < 0 else f"with status {self.code}"
        return f"rank {self.rank} (local {self.local_rank}) on {self.node} ended {how} after {duration(self.seconds)}"


@dataclass(frozen=True)
class NodeEnd:
    """How a node ended for good.

    Attributes:
        node: its name.
        status: its own.
        ranks: those that ended otherwise than well, by themselves.
        said: why, where it is not for its ranks.
    """

    node: str
    status: int
    ranks: tuple[RankEnd, ...] = ()
    said: str = ""


def overall(statuses: Iterable[int]) -> int:
    """The one status of several."""
    found = set(statuses)
    return next((status for status in PRECEDENCE if status in found), DONE)


def describe(ranks: Sequence[RankEnd], most: int = 8) -> str:
    """Ranks in a line: those first that no other rank's end explains."""
    ordered = sorted(ranks, key=lambda end: (end.code == LOST, end.rank))
    shown = "; ".join(map(str, ordered[:most]))
    return shown if len(ranks) <= most else f"{shown}; and {len(ranks) - most} more"


def describe_early_stop(number: signal.Signals) -> str:
    """A signal when there was no rank to pass it on to."""
    return f"stopped by {number.name} while no ranks were running here"


def duration(seconds: float) -> str:
    """A time as one would say it: `3 s`, `12 min`, `2 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Endings:
    """Where the launchers of a job tell one another how their node ended: one growing value in the rendezvous' store.

    It is read by `get`, which keeps the store's time-out also where the first node fell silent. A store that is gone
    ends nothing: whoever reads it knows only what was told before.

    Args:
        store: of the rendezvous, which lives in the first node's launcher.
        node: this node's name.
        is_host: whether the store lives in this process, so that the others can read only as long as it stays.
    """

    _KEY = "segue/endings"
    _HEARD = "heard"

    def __init__(self, store: Store, node: str, *, is_host: bool) -> None:
        self._store = cast(Any, store)  # its `append` is missing in torch's annotations
        self._node = node
        self._is_host = is_host
        self._told: list[NodeEnd] = []
        self._store.append(self._KEY, "\n")  # from now on there is something to get

    def told(self) -> list[NodeEnd]:
        """The nodes that ended for good, as far as this one has heard."""
        with contextlib.suppress(*STORE_ERRORS):
            self._read()
        return self._told

    def tell(self, end: NodeEnd) -> None:
        """Let the other nodes know how this one ended."""
        with contextlib.suppress(*STORE_ERRORS):
            self._store.append(self._KEY, json.dumps(asdict(end)) + "\n")

    def wait(self, nodes: int, living: Callable[[], int], seconds: float) -> list[NodeEnd]:
        """Wait until the other nodes have ended too, and have heard of all; returns what is known by then.

        Args:
            nodes: how many there were.
            living: how many of them still give signs of life: for a dead one nobody waits.
            seconds: the longest to wait.
        """
        with contextlib.suppress(*STORE_ERRORS):
            self._wait_for_ends(nodes, living, seconds)
            self._store.append(self._KEY, f"{self._HEARD}\n")
            if self._is_host:
                self._wait_for_readers()
        return self._told

    def _wait_for_ends(self, nodes: int, living: Callable[[], int], seconds: float) -> None:
        until = time.monotonic() + seconds
        complete_since = None
        while self._read() < nodes and time.monotonic() < until:
            # A node between two rounds of the rendezvous is not among the living for a moment.
            now = time.monotonic()
            complete_since = (complete_since or now) if len(self._told) >= living() else None
            if complete_since is not None and now - complete_since > 2:
                return
            time.sleep(0.2)

    def _wait_for_readers(self) -> None:
        until = time.monotonic() + 5
        while self._lines().count(self._HEARD) < len(self._told) and time.monotonic() < until:
            time.sleep(0.1)

    def _read(self) -> int:
        """Hear what is new; returns how many nodes have ended."""
        self._told = [_parse(line) for line in self._lines() if line != self._HEARD]
        return len(self._told)

    def _lines(self) -> list[str]:
        return [line for line in self._store.get(self._KEY).decode().splitlines() if line]


def _parse(line: str) -> NodeEnd:
    content = json.loads(line)
    return NodeEnd(**{**content, "ranks": tuple(RankEnd(**rank) for rank in content["ranks"])})
