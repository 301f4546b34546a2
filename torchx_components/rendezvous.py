"""How the nodes of a job come together: torchrun's c10d rendezvous, which says who is missing.

Its store lives in the first node's launcher. Beyond torchrun's, a node waits for the first one as long as for any
other, knows itself to be the first by the addresses it has and not by its name, and gives names when time is up.
"""

from __future__ import annotations

import pickle
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import DEFAULT_PORT, C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
    Token,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from torchx_components.endings import STORE_ERRORS, Endings, Fault, Lost, duration
from torchx_components.interfaces import is_own, resolve
from torchx_components.node_names import expected_names, missing

READ_TIMEOUT = timedelta(seconds=60)
"""How long the store may take to answer."""


@dataclass(frozen=True)
class Endpoint:
    """Where the first node's store listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """From HOST[:PORT].

        Raises:
            Fault: it is not of that form.
        """
        try:
            return cls(*parse_rendezvous_endpoint(text, DEFAULT_PORT))
        except ValueError as error:
            raise Fault(f"--rdzv-endpoint: {error}") from None

    @property
    def is_here(self) -> bool:
        """Whether it is this node's own."""
        return any(is_own(address) for address in resolve(self.host))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port} ({', '.join(resolve(self.host)) or 'a name that this node does not know'})"


def open_store(endpoint: Endpoint, seconds: float, *, is_first: bool) -> tuple[TCPStore, bool]:
    """The job's store, and whether it lives here: on the first node, in whichever of its launchers came first.

    Args:
        endpoint: where.
        seconds: how long to try.
        is_first: whether this is the first node.

    Raises:
        Fault: this node cannot listen there.
        Lost: nobody answered.
    """
    if is_first:
        try:
            return TCPStore(endpoint.host, endpoint.port, is_master=True, timeout=READ_TIMEOUT), True
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error):
                raise Fault(f"this node cannot listen at {endpoint}: {str(error).splitlines()[0]}") from None
    return _join_store(endpoint, seconds), False


def _join_store(endpoint: Endpoint, seconds: float) -> TCPStore:
    began = time.monotonic()
    has_said = False
    while True:
        left = began + seconds - time.monotonic()
        why = _refusal(endpoint, min(5, max(left, 0.1)))
        if why is None:
            store = _connected(endpoint, min(10, max(left, 0.1)))
            if store is not None:
                return store
            why = "what answers there is no launcher of a job"
        if left <= 0:
            raise Lost(
                f"the first node does not answer at {endpoint} after {duration(seconds)}: {why}. Is its launcher "
                f"running? Is that its address, as seen from here? Does a firewall keep port {endpoint.port} shut?"
            )
        if not has_said:
            has_said = True
            say(f"waiting up to {duration(seconds)} for the first node at {endpoint}: {why}")
        time.sleep(min(1, max(left, 0)))


def _refusal(endpoint: Endpoint, seconds: float) -> str | None:
    """Why nobody can connect; None if one can."""
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=seconds).close()
    except socket.gaierror:
        return f"the name {endpoint.host} is not known on this node"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _connected(endpoint: Endpoint, seconds: float) -> TCPStore | None:
    """A client of the store; None where there is none after all.

    In a thread: towards a listener that is no store, its constructor waits without end, and without hearing signals.
    """
    found: list[TCPStore] = []

    def connect() -> None:
        try:
            found.append(TCPStore(endpoint.host, endpoint.port, timeout=READ_TIMEOUT))
        except RuntimeError:
            return

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def say(text: str) -> None:
    """One line from the launcher on standard error."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


class Roll(C10dRendezvousBackend):
    """The rendezvous' shared state, of which it remembers who was there as long as this node was."""

    def __init__(self, store: Store, run_id: str) -> None:
        super().__init__(store, run_id)
        self.own: Any = None
        self.present: list[Any] = []

    def get_state(self) -> tuple[bytes, Token] | None:
        """The state and the token that a change of it needs."""
        found = super().get_state()
        self._note(found)
        return found

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """Change the state, unless another node was faster: in either case, what it is now."""
        found = super().set_state(state, token)
        self._note(found)
        return found

    def _note(self, found: tuple[Any, ...] | None) -> None:
        if found is not None:
            state = pickle.loads(found[0])  # torch's own form of it, which its handler reads the next moment anyway
            nodes = sorted({*state.participants, *state.wait_list})
            if self.own in nodes:  # a node whose time is up removes itself before it says so
                self.present = [node for node in nodes if node in state.last_heartbeats]


@dataclass
class Gathering:
    """What a rendezvous is, beyond torchrun's parameters of it.

    Attributes:
        parameters: torchrun's.
        endpoint: where the store is.
        node: this node's name.
        environment: what the scheduler says.
    """

    parameters: RendezvousParameters
    endpoint: Endpoint
    node: str
    environment: Mapping[str, str] = field(repr=False)

    def seconds(self, name: str) -> timedelta | None:
        """One of the rendezvous' time-outs, if it is given."""
        given = self.parameters.get_as_int(f"{name}_timeout")
        return None if given is None else timedelta(seconds=given)


class Meeting(DynamicRendezvousHandler):
    """A rendezvous that tells who came and who did not. `Meeting.open` makes one."""

    gathering: Gathering
    endings: Endings
    roll: Roll

    @classmethod
    def open(cls, gathering: Gathering) -> Meeting:
        """Reach the store, and be ready for the others.

        Raises:
            Fault: a setting that cannot be.
            Lost: the first node did not answer in time.
        """
        parameters, join = gathering.parameters, gathering.seconds("join")
        assert join is not None
        is_first = parameters.get_as_bool("is_host")
        if is_first is None:
            is_first = gathering.endpoint.is_here
        store, is_host = open_store(gathering.endpoint, join.total_seconds(), is_first=is_first)
        roll = Roll(store, parameters.run_id)
        meeting: Meeting = cls.from_backend(
            parameters.run_id,
            store,
            roll,
            parameters.min_nodes,
            parameters.max_nodes,
            parameters.local_addr,
            RendezvousTimeout(join, *(gathering.seconds(name) for name in ("last_call", "close", "heartbeat"))),
            keep_alive_interval=parameters.get_as_int("keep_alive_interval", 5) or 5,
            keep_alive_max_attempt=parameters.get_as_int("keep_alive_max_attempt", 3) or 3,
        )
        meeting.gathering, meeting.roll = gathering, roll
        roll.own = meeting._this_node
        own_part = PrefixStore(f"segue.{parameters.run_id}", store)
        own_part.set(f"name/{roll.own}", gathering.node)
        meeting._names, meeting._met = own_part, []
        meeting.endings = Endings(own_part, gathering.node, is_host=is_host)
        return meeting

    _names: Store
    _met: list[Any]

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until enough nodes have come.

        Raises:
            Lost: they have not, or the first node is gone.
            RendezvousClosedError: the job has ended.
        """
        # Torch would publish the ranks' store in the first round alone: a node that joins later would wait in vain.
        self._bootstrap_store_info = None
        try:
            info = super().next_rendezvous()
        except RendezvousTimeoutError:
            raise Lost(self._who_is_missing()) from None
        except RendezvousConnectionError:
            raise Lost(self.first_is_gone()) from None
        self._met = self.roll.present
        return info

    def has_lost_one(self) -> bool:
        """Whether a node has left those that met last, be it to start its ranks again."""
        return len(self._state_holder.state.participants) < len(self._met)

    def living(self) -> int:
        """How many nodes give signs of life."""
        self.num_nodes_waiting()  # reads the state anew
        state = self._state_holder.state
        return len({*state.participants, *state.wait_list})

    def first_is_gone(self) -> str:
        """What there is to say when the store does not answer any more."""
        return (
            f"the first node does not answer any more at {self.gathering.endpoint}: its launcher has ended, or the "
            "network between is down"
        )

    def _who_is_missing(self) -> str:
        nodes = self.roll.present
        names = [self._name(node) for node in nodes]
        needed, endpoint = self._settings.min_nodes, self.gathering.endpoint
        came = ", ".join(f"{name} ({node.addr})" for name, node in zip(names, nodes, strict=True))
        expected = expected_names(self.gathering.environment) or [self._name(node) for node in self._met]
        absent = missing(expected, names)
        who = f"missing: {', '.join(absent)}" if absent else f"{needed - len(nodes)} missing"
        return (
            f"{len(nodes)} of {needed} nodes came within {duration(self._settings.timeout.join.total_seconds())}: "
            f"{came}; {who}. Is its launcher running? Does the first node's name lead there to an address that it can "
            f"reach (here it is {endpoint})? Is port {endpoint.port} of the first node open to it?"
        )

    def _name(self, node: Any) -> str:
        key = f"name/{node}"
        try:
            return self._names.get(key).decode() if self._names.check([key]) else str(node.addr)
        except STORE_ERRORS:
            return str(node.addr)
