"""What the nodes of a pipeline tell one another, through a store on the first of them.

Each node publishes one small JSON text and says it anew, with a growing number, as long as it lives; the first node
reads those of all others, they read its own. Nobody has to know another's clock: what has not changed for a while is
silent. Nothing is pickled, and nothing that arrives is run: a word names a stage, and what is run for it each node
takes from its own command line.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torchx_components.stages.processes import LOST, MENDABLE, TICK_S, Ended, Stops

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

BEAT_S = 0.5
SILENCE_S = 60.0
"""A node that has said nothing for this long is taken for lost; a machine under load may well pause for seconds."""


@dataclass(frozen=True)
class Endpoint:
    """Where the first node is: the launcher meets at `port`, the pipeline at the one above."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def above(self) -> Endpoint:
        """That of the pipeline."""
        return Endpoint(self.host, self.port + 1)


def parse_endpoint(text: str) -> Endpoint:
    """HOST:PORT or [IPv6]:PORT.

    Raises:
        ValueError: it is neither, or the port above is none.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ValueError(f"`--endpoint` is {text!r}, expected HOST:PORT with a port from 1 to 65534")
    return Endpoint(host.strip("[]"), int(port))


class Talk:
    """This node's end of the talk, kept up by a thread of its own.

    Args:
        store: where all write.
        node: this one's number.
        others: whom to listen to.
        silence_s: after how long somebody is silent.
    """

    def __init__(self, store: Store, node: int, others: range, silence_s: float = SILENCE_S) -> None:
        self._store = store
        self._node = node
        self._others = others
        self._silence_s = silence_s
        self._said: dict[str, Any] = {"host": socket.gethostname()}
        self._life = secrets.token_hex(8)  # a node that comes back counts from 0 again
        self._told: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._broken = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="talk", daemon=True)
        self._thread.start()

    def say(self, **values: Any) -> None:
        """Publish values, beside those said before."""
        self._said = {**self._said, **values}

    def told(self, node: int) -> dict[str, Any]:
        """What a node said last; empty where it has not come."""
        return self._told.get(node, {})

    def is_here(self, node: int) -> bool:
        """Whether a node has come, has not left, and is not silent."""
        if self._broken or self.told(node).get("left"):
            return False
        return time.monotonic() - self._heard.get(node, -self._silence_s) < self._silence_s

    def name(self, node: int) -> str:
        """Number and host of a node, as far as they are known."""
        host = self.told(node).get("host")
        return f"node {node} ({host})" if host else f"node {node}"

    def lost(self, node: int) -> str:
        """What is known of why a node is no longer here."""
        if self.told(node).get("left"):
            return "it has left"
        return f"the connection to it broke: {self._broken}" if self._broken else f"silent for {self._silence_s:g} s"

    def close(self) -> None:
        """Say what has not been said yet and end the talk; a thread that the network holds is left to itself."""
        self.say(left=True)
        self._closing.set()
        self._thread.join(4 * BEAT_S)

    def _talk(self) -> None:
        count, closing = 0, False
        try:
            while True:
                self._store.set(f"node/{self._node}", json.dumps({**self._said, "beat": [self._life, count]}))
                for other in self._others:
                    self._listen(other)
                if closing:
                    return
                closing, count = self._closing.wait(BEAT_S), count + 1
        except RuntimeError as error:  # those of torch.distributed: the store has gone
            self._broken = _first_line(error)

    def _listen(self, other: int) -> None:
        key = f"node/{other}"
        if not self._store.check([key]):
            return
        told = json.loads(self._store.get(key))
        if told["beat"] != self.told(other).get("beat"):
            self._told[other] = told
            self._heard[other] = time.monotonic()


def host(endpoint: Endpoint, run_id: str, nodes: int) -> Talk:
    """The first node's end of the talk.

    Raises:
        Ended: the port is taken.
    """
    try:
        listener, address = _listen_at(endpoint.above)
    except OSError as error:
        raise Ended(
            MENDABLE,
            f"the port above that of the endpoint, {endpoint.above}, cannot be listened on: {error.strerror}; name "
            "another port as `--endpoint`",
        ) from None
    store = _open_store(address, endpoint.port + 1, 60.0, listener.detach())
    return Talk(_of_run(store, run_id), 0, range(1, nodes))


def join(endpoint: Endpoint, run_id: str, node: int, timeout_s: float, stops: Stops) -> Talk:
    """Another node's end of the talk, once the first node answers.

    Raises:
        Ended: it does not within `timeout_s`, or this node was asked to stop.
    """
    until = time.monotonic() + timeout_s
    place, seen = endpoint.above, ""
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=5.0).close()  # fails quietly, unlike the store
            store = _open_store(place.host, place.port, 10.0)
            break
        except (OSError, RuntimeError) as error:
            seen = _first_line(error)
        _pause(until, stops, _no_answer(place, node, timeout_s, seen))
    talk = Talk(_of_run(store, run_id), node, range(1))
    while not talk.is_here(0):
        _pause(until, stops, f"{place} answers node {node}, but not as run {run_id!r}; is another job at that port?")
    return talk


def _pause(until: float, stops: Stops, too_late: str) -> None:
    stops.check()
    if time.monotonic() > until:
        raise Ended(LOST, too_late)
    time.sleep(TICK_S)


def _no_answer(place: Endpoint, node: int, timeout_s: float, seen: str) -> str:
    try:
        known = sorted({str(info[4][0]) for info in socket.getaddrinfo(place.host, place.port)})
        resolved = f"{place.host} is {', '.join(known)}"
    except OSError as error:
        resolved = f"{place.host} does not resolve: {error.strerror}"
    return (
        f"node {node} waited {timeout_s:g} s for the first node, which does not answer at {place} ({resolved}; last: "
        f"{seen}); is it running, does the name lead to an address that others reach, are this port and the one below "
        "it open?"
    )


def _listen_at(place: Endpoint) -> tuple[socket.socket, str]:
    """A listening socket, and an address at which this machine reaches it.

    On the endpoint's own address where that is this machine's; many a machine maps its own name to the loopback, where
    nobody else would reach it, and behind a translated address there is no own one: there, on all.
    """
    try:
        family, *_, target = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        address = str(target[0])
        if _means_loopback(place.host) or not _means_loopback(address):
            return socket.create_server((address, place.port), family=family, backlog=1024), address
    except socket.gaierror:
        pass  # a name that only the others know
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", place.port), family=socket.AF_INET6, dualstack_ipv6=True), "127.0.0.1"
    return socket.create_server(("", place.port), backlog=1024), "127.0.0.1"


def _means_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _open_store(host: str, port: int, timeout_s: float, listener: int | None = None) -> TCPStore:
    level = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # of a lost connection it would print a page; we say it in a line
    try:
        from torch.distributed import TCPStore
    finally:
        if level is None:
            del os.environ["TORCH_CPP_LOG_LEVEL"]
        else:
            os.environ["TORCH_CPP_LOG_LEVEL"] = level
    return TCPStore(
        host,
        port,
        is_master=listener is not None,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener,
    )


def _of_run(store: Store, run_id: str) -> Store:
    from torch.distributed import PrefixStore

    return PrefixStore(f"segue/{run_id}", store)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
