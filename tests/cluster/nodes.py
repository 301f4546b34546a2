"""Several nodes on one machine, each with a network, processes, a host name and a /etc/hosts of its own.

A node is a network namespace joined to the others by a veth pair and a bridge, which lies in a namespace too: nothing
of the machine's own network is touched. Its processes live in a PID namespace, so killing its first process ends all
of them at once, and none outlives the tests, however those end. Nodes share the file system, as over NFS.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LAN = "segue-lan"
"""Namespace of the bridge; a node's namespace is called segue-NAME."""
INTERFACE = "eth0"
NETWORK = "10.77.0"
GATEWAY = f"{NETWORK}.1"
TRAP = "172.17.0.1/16"
"""Docker's bridge has the same address on every machine: whoever gives it away as his own is not found there."""
TOOLS = ("ip", "nsenter", "setpriv", "unshare")
PROBE = "ip link add probe0 type veth peer name probe1 && ip link add probe2 type bridge"


def why_not() -> str:
    """What this machine lacks for nodes; empty if nothing."""
    if os.geteuid() != 0:
        return "nodes are network namespaces, which only root may make: run `make test-cluster` as root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install iproute2 util-linux"
    probe = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-c", PROBE]
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        return f"this machine refuses namespaces or veth pairs: {done.stderr.strip()}"
    return ""


class Command:
    """A command under way on a node; what it says, on both streams, goes to `log`."""

    def __init__(self, entering: subprocess.Popen[bytes], log: Path) -> None:
        self._entering = entering
        self.log = log

    @property
    def said(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._entering.poll() is None

    def wait(self, timeout: float = 240) -> int:
        """Its exit status; 128 + the number of the signal that ended it, as a shell has it."""
        try:
            status = self._entering.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s:\n{self.said[-8000:]}") from None
        return status if status >= 0 else 128 - status


class Node:
    """One machine of the cluster, switched on.

    Attributes:
        name: its host name.
        address: where the others reach it.
    """

    def __init__(self, name: str, address: str, etc: Path) -> None:
        self.name, self.address = name, address
        self._namespace, self._etc = f"segue-{name}", etc
        self._make_network()
        self._boot()

    def start(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> Command:
        """Start a command in this process's working folder."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            entering = subprocess.Popen(
                self._entered(command), env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        return Command(entering, log)

    def run(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its status."""
        entered = self._entered(command, cwd)
        return subprocess.run(
            entered, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    def processes(self) -> dict[int, list[str]]:
        """Command lines of all its processes but the first, by the PIDs of this machine."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = (process / "ns/pid").readlink() == self._pid_namespace
                words = (process / "cmdline").read_text(errors="replace").split("\0")[:-1]
            except OSError:  # gone already
                continue
            if is_ours and words and int(process.name) != self._first:
                found[int(process.name)] = words
        return found

    def kill(self) -> None:
        """SIGKILL all its processes at once, as a crash of the node does, and switch it on again, with none."""
        self._power.kill()
        self._power.wait()
        until(lambda: not self.processes(), f"the processes of {self.name} are gone")
        self._boot()

    def unplug(self) -> None:
        """From here on nothing reaches it and nothing comes from it: the others see silence, not closed connections."""
        _ip("-n", LAN, "link", "set", self.name, "down")

    def plug(self) -> None:
        """Take `unplug` back."""
        _ip("-n", LAN, "link", "set", self.name, "up")

    def _entered(self, command: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
        inside = ["nsenter", f"--target={self._first}", "--net", "--mount", "--uts", "--ipc", "--pid"]
        return [*inside, f"--wdns={cwd or Path.cwd()}", "--", *map(str, command)]

    def _make_network(self) -> None:
        _ip("netns", "add", self._namespace)
        _ip("-n", LAN, "link", "add", self.name, "type", "veth", "peer", "name", INTERFACE, "netns", self._namespace)
        _ip("-n", LAN, "link", "set", self.name, "master", "lan0", "up")
        inside = ("-n", self._namespace)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "link", "add", "docker0", "type", "bridge")
        _ip(*inside, "address", "add", TRAP, "dev", "docker0")
        _ip(*inside, "link", "set", "docker0", "up")
        _ip(*inside, "address", "add", f"{self.address}/24", "dev", INTERFACE)
        _ip(*inside, "link", "set", INTERFACE, "up")
        _ip(*inside, "route", "add", "default", "via", GATEWAY)

    def _boot(self) -> None:
        """Start its first process, which does nothing but hold the node's namespaces and collect its orphans."""
        own = [f"mount --bind {path} /etc/{path.name}" for path in self._etc.iterdir()]
        setup = " && ".join([f"hostname {self.name}", *own, "echo up", "exec env --ignore-signal=CHLD sleep infinity"])
        alone = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        entered = ["ip", "netns", "exec", self._namespace, *alone, "sh", "-c", setup]
        # Whatever ends this process switches the nodes off.
        self._power = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *entered], stdout=subprocess.PIPE)
        assert self._power.stdout is not None
        assert self._power.stdout.readline() == b"up\n", f"{self.name} does not boot"
        pid = self._power.pid
        self._first = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        self._pid_namespace = Path(f"/proc/{self._first}/ns/pid").readlink()


class Cluster:
    """Nodes on one network; the first processes are up when this exists.

    Args:
        names: host names of the nodes.
        folder: where their parts of /etc lie.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        _ip("netns", "add", LAN)
        _ip("-n", LAN, "link", "add", "lan0", "type", "bridge")
        _ip("-n", LAN, "address", "add", f"{GATEWAY}/24", "dev", "lan0")
        _ip("-n", LAN, "link", "set", "lan0", "up")
        addresses = {name: f"{NETWORK}.{10 + place}" for place, name in enumerate(names)}
        self.nodes = {name: Node(name, addresses[name], _etc(name, addresses, folder / name)) for name in names}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]


def _etc(name: str, addresses: Mapping[str, str], folder: Path) -> Path:
    """A folder of a node's files of /etc that are not the machine's.

    Its hosts are those that Debian's installer leaves: its own name is an address that only it can reach. There is no
    name server, and no waiting for one.
    """
    folder.mkdir()
    others = [f"{address} {other}" for other, address in addresses.items() if other != name]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 {name}", *others, ""]))
    (folder / "resolv.conf").write_text("")
    return folder


@contextmanager
def cluster_of(*names: str) -> Iterator[Cluster]:
    """Nodes of these names; one cluster at a time on this machine, however many ask."""
    with tempfile.TemporaryDirectory(prefix="segue-cluster-") as folder, _only_one():
        remove_all()  # an earlier one that was killed
        try:
            yield Cluster(names, Path(folder))
        finally:
            remove_all()


def remove_all() -> None:
    """End every process of every node and remove the nodes."""
    namespaces = [path.name for path in Path("/run/netns").glob("segue-*")]
    for namespace in namespaces:
        for pid in subprocess.check_output(["ip", "netns", "pids", namespace], text=True).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:  # went with its node's first process
                continue
    for namespace in namespaces:
        _ip("netns", "delete", namespace)


@contextmanager
def _only_one() -> Iterator[None]:
    with Path("/run/lock/segue-cluster").open("w") as lock:
        _wait_for(lock)
        yield


def _wait_for(lock: TextIO) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another run of the cluster tests is under way on this machine; waiting for its end")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def until(holds: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait until `holds()` is true; `what` says in an error's message what did not come true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so after {seconds:g} s: {what}"
        time.sleep(0.02)
