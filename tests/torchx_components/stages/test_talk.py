from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchx_components.stages.processes import Ended, Stops
from torchx_components.stages.talk import Endpoint, Talk, _listen_at, host, join, parse_endpoint

ROOT = Path(__file__).parents[3]

OTHER = """
import sys, time
from torchx_components.stages.processes import Stops
from torchx_components.stages.talk import host, join, parse_endpoint
end, role = parse_endpoint(sys.argv[1]), sys.argv[2]
talk = host(end, "id", 2) if role == "host" else join(end, "id", 1, 60, Stops())
talk.say(role=role)
while not talk.told(1 if role == "host" else 0).get("leave"):
    time.sleep(0.1)
talk.close()
"""


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it has not come to pass in time"
        time.sleep(0.05)


@pytest.fixture
def endpoint() -> Endpoint:
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if port < 65535:
            return Endpoint("127.0.0.1", port - 1)


Start = Callable[[Endpoint, str], subprocess.Popen[bytes]]


@pytest.fixture
def other() -> Iterator[Start]:
    """Starts another node, as a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(endpoint: Endpoint, role: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", OTHER, str(endpoint), role], cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def hears(talk: Talk, node: int, silence_s: float) -> None:
    """Have a talk lose patience sooner than an operator would want."""
    wait_until(lambda: talk.is_here(node))
    talk._silence_s = silence_s


def test_the_first_node_hears_another_fall_silent_come_back_and_leave(endpoint: Endpoint, other: Start) -> None:
    talk = host(endpoint, "id", 3)
    process = other(endpoint, "guest")
    hears(talk, 1, 3.0)
    assert talk.name(1) == f"node 1 ({socket.gethostname()})"
    wait_until(lambda: talk.told(1).get("role") == "guest")
    assert not talk.is_here(2)
    assert talk.name(2) == "node 2"
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not talk.is_here(1))
    assert talk.lost(1) == "silent for 3 s"
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: talk.is_here(1))
    talk.say(leave=True)
    wait_until(lambda: not talk.is_here(1))
    assert talk.lost(1) == "it has left"
    assert process.wait(30) == 0
    talk.close()


@pytest.mark.parametrize(("number", "told"), [(signal.SIGSTOP, "silent for 3 s"), (signal.SIGKILL, "connection")])
def test_another_node_loses_the_first(endpoint: Endpoint, other: Start, number: signal.Signals, told: str) -> None:
    process = other(endpoint, "host")
    with Stops() as stops:
        talk = join(endpoint, "id", 1, 60, stops)
    hears(talk, 0, 3.0)
    process.send_signal(number)
    wait_until(lambda: not talk.is_here(0))
    assert told in talk.lost(0)
    start = time.monotonic()
    talk.close()  # what the network holds does not hold us
    assert time.monotonic() - start < 5
    process.kill()
    talk._thread.join(30)  # nor must it be found by these tests' own end


def test_another_run_at_the_same_port_is_not_taken_for_ours(endpoint: Endpoint) -> None:
    talk = host(endpoint, "id", 2)
    with Stops() as stops, pytest.raises(Ended, match="answers node 1, but not as run 'other'") as ended:
        join(endpoint, "other", 1, 2, stops)
    assert ended.value.status == 4
    talk.close()


def test_a_port_that_is_taken(endpoint: Endpoint) -> None:
    with socket.create_server((endpoint.host, endpoint.port + 1)), pytest.raises(Ended, match="in use") as ended:
        host(endpoint, "id", 2)
    assert ended.value.status == 2


def test_a_signal_ends_the_wait_for_the_first_node(endpoint: Endpoint) -> None:
    with Stops() as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Ended) as ended:
            join(endpoint, "id", 1, 60, stops)
    assert ended.value.status == 143


def test_a_name_that_does_not_resolve_is_said(endpoint: Endpoint) -> None:
    with Stops() as stops, pytest.raises(Ended, match=r"nowhere\.invalid does not resolve"):
        join(Endpoint("nowhere.invalid", endpoint.port), "id", 1, 1, stops)


def test_the_store_listens_on_the_address_of_the_endpoint_alone(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listens_at(name: str, resolved: str) -> str:
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, endpoint.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
        listener, _ = _listen_at(Endpoint(name, endpoint.port))
        with listener:
            address: str = listener.getsockname()[0]
            return address

    anywhere = ("::", "0.0.0.0")
    assert listens_at("localhost", "127.0.0.1") == "127.0.0.1"
    assert listens_at("127.0.0.2", "127.0.0.2") == "127.0.0.2"
    assert listens_at("n1", "127.0.1.1") in anywhere  # a name that its own machine maps to the loopback
    assert listens_at("n1", "192.0.2.1") in anywhere  # an address that is translated on the way here


@pytest.mark.parametrize("text", ["", "n1", ":1", "n1:", "n1:0", "n1:65535", "n1:x"])
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_endpoint(text)


def test_endpoints() -> None:
    assert parse_endpoint("n1:29500") == Endpoint("n1", 29500)
    assert str(parse_endpoint("[fd00::1]:29500").above) == "[fd00::1]:29501"
