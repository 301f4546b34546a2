"""The network interface by which a node speaks to the others.

gloo and NCCL choose one themselves: gloo by what the host's own name resolves to, which Debian's /etc/hosts maps to
127.0.1.1, and NCCL whichever comes first, which may be Docker's bridge. So it is chosen here, from the route to the
first node, and told to both.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from torchx_components.endings import Fault

SOMEWHERE = ("198.51.100.1", "2001:db8::1")
"""Addresses reserved for documentation (RFC 5737, RFC 3849): the way to them is the default route."""


@dataclass(frozen=True)
class Interface:
    """A network interface that is up.

    Attributes:
        name: what the system calls it.
        addresses: its addresses that other nodes may reach, IPv4 first; none of IPv6's that hold on one link only.
    """

    name: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Path:
    """How the other nodes reach this one.

    Attributes:
        interface: its name; empty if the address belongs to none that the system lists.
        address: this node's, on that interface.
    """

    interface: str
    address: str


def found(host: str, others: Sequence[str] = ()) -> Path | None:
    """The path by which the route to the other nodes leads; None where this node has no address but loopback.

    Args:
        host: the first node's name, which on that node itself may resolve to loopback.
        others: names of nodes, if they are known.
    """
    for name in (host, *others, *SOMEWHERE):
        for address in resolve(name):
            if ipaddress.ip_address(address).is_loopback:
                continue
            own = address if is_own(address) else source(address)
            if own and not ipaddress.ip_address(own).is_loopback:
                return Path(_holder(own), own)
    reachable = [Path(each.name, each.addresses[0]) for each in interfaces() if each.addresses]
    return reachable[0] if reachable else None


def named(name: str, origin: str) -> Path:
    """The path by an interface that the user names; `origin` says where.

    Raises:
        Fault: there is none of that name, or it has no address.
    """
    there = interfaces()
    for each in there:
        if each.name == name and each.addresses:
            return Path(name, each.addresses[0])
    known = "; ".join(f"{each.name} ({', '.join(each.addresses)})" for each in there if each.addresses) or "none"
    wrong = "has no address" if any(each.name == name for each in there) else "is not there, or is not up"
    raise Fault(f"{origin} {name}: {wrong}; with an address that other nodes can reach: {known}")


def announce(path: Path, environment: MutableMapping[str, str], *, is_wanted: bool) -> None:
    """Tell gloo, NCCL and TensorPipe, in the workers' environment; what the user has set there stays, if he names none.

    NCCL takes a name for the beginning of one, unless it follows `=`.
    """
    if not path.interface:
        return
    for variable, value in (
        ("GLOO_SOCKET_IFNAME", path.interface),
        ("NCCL_SOCKET_IFNAME", f"={path.interface}"),
        ("TP_SOCKET_IFNAME", path.interface),
    ):
        if is_wanted or variable not in environment:
            environment[variable] = value


def resolve(name: str) -> list[str]:
    """The addresses of a name, IPv4 first; none if it is not known here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    by_family = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in by_family))


def is_own(address: str) -> bool:
    """Whether an address is this node's: a socket can be bound to it."""
    with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def source(address: str) -> str | None:
    """The own address from which packets to `address` leave; None where no route leads there. Sends nothing."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def interfaces() -> list[Interface]:
    """The interfaces that are up, in the system's order; loopback is among them, without an address."""
    found: dict[str, list[str]] = {}
    for name, address in _addresses():
        usable = found.setdefault(name, [])
        if address is not None and not (address.is_loopback or address.is_link_local):
            usable.append(str(address))
    return [
        Interface(name, tuple(sorted(usable, key=lambda text: ipaddress.ip_address(text).version)))
        for name, usable in found.items()
    ]


def _holder(address: str) -> str:
    return next((each.name for each in interfaces() if address in each.addresses), "")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Entry(ctypes.Structure):
    """The beginning of `struct ifaddrs` (getifaddrs(3)), as far as it is read."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]
_IS_UP = 1


def _addresses() -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address | None]]:
    """(name, address) of each address of an interface that is up, and (name, None) for its link. Linux."""
    system = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Entry)()
    if system.getifaddrs(ctypes.byref(first)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        entry = first
        while entry:
            here = entry.contents
            if here.flags & _IS_UP:
                yield here.name.decode(), _address(here.address)
            entry = here.next
    finally:
        system.freeifaddrs(first)


def _address(where: int | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read a `struct sockaddr_in` or `sockaddr_in6`; of other families nothing."""
    if where is None:
        return None
    family = int.from_bytes(ctypes.string_at(where, 2), sys.byteorder)
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(ctypes.string_at(where + 4, 4))
    if family == socket.AF_INET6:
        return ipaddress.IPv6Address(ctypes.string_at(where + 8, 16))
    return None
