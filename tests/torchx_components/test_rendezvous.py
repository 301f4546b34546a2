from __future__ import annotations

import socket
import threading
import time

import pytest
from torch.distributed import Store

from torchx_components.endings import Fault, Lost
from torchx_components.rendezvous import Endpoint, open_store


def test_endpoints() -> None:
    assert Endpoint.parse("n1:29500") == Endpoint("n1", 29500)
    assert Endpoint.parse("[::1]:7").port == 7
    assert Endpoint.parse("127.0.1.1:1").is_here  # as Debian calls the host's own name
    assert not Endpoint.parse("198.51.100.7:1").is_here
    assert "a name that this node does not know" in str(Endpoint.parse("nonesuch.invalid:1"))
    with pytest.raises(Fault, match="--rdzv-endpoint"):
        Endpoint.parse("n1:port")


def test_one_launcher_of_a_node_has_the_store_and_another_joins_it() -> None:
    first, is_host = open_store(Endpoint("localhost", 0), 5, is_first=True)
    assert is_host
    first.set("key", "value")
    second, is_host = open_store(Endpoint("localhost", first.port), 5, is_first=True)
    assert not is_host
    assert second.get("key") == b"value"


def test_a_port_that_something_else_has_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """Towards such a listener torch's own client waits without end."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(Lost, match=f"port {port} shut"):
            open_store(Endpoint("localhost", port), 1.5, is_first=True)
    assert time.monotonic() - began < 10
    assert "what answers there is no launcher of a job" in capfd.readouterr().err


def test_a_first_node_that_comes_late_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        endpoint = Endpoint("localhost", probe.getsockname()[1])
    with pytest.raises(Lost, match="connection refused"):
        open_store(endpoint, 1, is_first=False)
    assert capfd.readouterr().err.count("waiting up to 1 s for the first node") == 1
    stores: list[Store] = []
    late = threading.Timer(1, lambda: stores.append(open_store(endpoint, 5, is_first=True)[0]))
    late.start()
    store, is_host = open_store(endpoint, 20, is_first=False)
    late.join()
    assert not is_host
    store.set("key", "value")
    assert stores[0].get("key") == b"value"
    assert "for the first node" in capfd.readouterr().err
