from __future__ import annotations

import socket
import subprocess

import pytest

from torchx_components import interfaces
from torchx_components.endings import Fault
from torchx_components.interfaces import Interface, Path, announce, found, is_own, named, resolve, source


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a bridge of its own before the network that leads to the others."""
    there = [Interface("lo", ()), Interface("docker0", ("172.17.0.1",)), Interface("eth0", ("10.0.0.5", "fd00::5"))]
    monkeypatch.setattr(interfaces, "interfaces", lambda: there)
    own = {"10.0.0.5", "127.0.1.1"}
    names = {"n1": ["127.0.1.1"], "n2": ["10.0.0.6"], "n5": ["10.0.0.5"]}
    routes = {"10.0.0.6": "10.0.0.5", interfaces.SOMEWHERE[0]: "172.17.0.1"}
    monkeypatch.setattr(interfaces, "is_own", lambda address: address in own)
    monkeypatch.setattr(interfaces, "resolve", lambda name: names.get(name, [name] if name[0].isdigit() else []))
    monkeypatch.setattr(interfaces, "source", routes.get)


def test_the_systems_own_list_agrees() -> None:
    listed = subprocess.run(["ip", "-4", "-o", "addr", "show", "up"], capture_output=True, text=True, check=True).stdout
    expected = {(line.split()[1], line.split()[3].partition("/")[0]) for line in listed.splitlines()}
    ours = {
        (each.name, address) for each in interfaces.interfaces() for address in each.addresses if ":" not in address
    }
    assert ours == {(name, address) for name, address in expected if not address.startswith("127.")}


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    ("host", "others", "path"),
    [
        ("n2", [], Path("eth0", "10.0.0.5")),  # by the route to the first node
        ("n5", [], Path("eth0", "10.0.0.5")),  # the first node itself, known by its address
        ("n1", ["n2"], Path("eth0", "10.0.0.5")),  # known to itself as loopback: by the route to another
        ("n1", ["n9"], Path("docker0", "172.17.0.1")),  # where nothing else is known, the default route
    ],
)
def test_the_route_decides(host: str, others: list[str], path: Path) -> None:
    assert found(host, others) == path


@pytest.mark.usefixtures("several")
def test_a_named_interface_must_have_an_address() -> None:
    assert named("docker0", "--interface") == Path("docker0", "172.17.0.1")
    with pytest.raises(
        Fault, match=r"--interface lo: has no address.*docker0 \(172.17.0.1\); eth0 \(10.0.0.5, fd00::5"
    ):
        named("lo", "--interface")
    with pytest.raises(Fault, match="GLOO_SOCKET_IFNAME ib0: is not there"):
        named("ib0", "GLOO_SOCKET_IFNAME")


def test_what_the_user_has_set_stays_unless_he_names_one() -> None:
    environment = {"NCCL_SOCKET_IFNAME": "ib"}
    announce(Path("eth0", "10.0.0.5"), environment, is_wanted=False)
    assert environment == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "ib",
        "TP_SOCKET_IFNAME": "eth0",
    }
    announce(Path("eth1", "10.0.1.5"), environment, is_wanted=True)
    assert environment["NCCL_SOCKET_IFNAME"] == "=eth1"
    assert environment["GLOO_SOCKET_IFNAME"] == "eth1"
    announce(Path("", "10.0.2.5"), environment, is_wanted=True)
    assert environment["GLOO_SOCKET_IFNAME"] == "eth1"


def test_own_addresses() -> None:
    assert is_own("127.0.0.1")
    assert is_own("127.0.1.1")  # what Debian calls the host's own name
    assert not is_own("198.51.100.1")
    assert source("127.0.0.1") == "127.0.0.1"
    assert resolve("nonesuch.invalid") == []
    assert resolve("127.0.0.1") == ["127.0.0.1"]
    if socket.has_ipv6:
        assert resolve("::1") == ["::1"]
