"""The launcher, with real processes: nodes are launchers on this machine, ranks end as they are told."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchx_components.endings import Fault, NodeEnd, RankEnd
from torchx_components.interfaces import interfaces
from torchx_components.launch import configure, parser, summary

ROOT = Path(__file__).parents[2]

RANK = """
import json, os, pathlib, signal, sys, time

folder = pathlib.Path(os.environ["FOLDER"])
rank, start = os.environ["RANK"], 1 + len(list(folder.glob(f"start-{os.environ['RANK']}-*")))
(folder / f"start-{rank}-{start}").write_text(str(os.getpid()))

def say(text):
    message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
    pathlib.Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}))
    print(text, file=sys.stderr, flush=True)

def save(number, frame):
    time.sleep(float(os.environ.get("SAVING_S", 0)))
    (folder / f"saved-{rank}").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
(folder / f"environment-{rank}").write_text(json.dumps(dict(os.environ)))
do = dict(order.split("=") for order in sys.argv[1:])
order = do.get(f"{rank}.{start}") or do.get(rank) or "0"
if order == "wait":
    time.sleep(60)
if order.startswith("until:"):
    _, awaited, together, alone = order.split(":")
    while not (folder / awaited).exists():
        time.sleep(0.05)
    order = together if os.environ["WORLD_SIZE"] == "2" else alone
if int(order) < 0:
    os.kill(os.getpid(), -int(order))
if order == "2":
    say("no such key `lerning_rate`")
sys.exit(int(order))
"""
"""Each argument is RANK=ORDER or RANK.START=ORDER: a status, a signal as -NUMBER, `wait`, or
`until:FILE:STATUS:STATUS`, the first in a world of two ranks."""


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _leave_nothing_behind() -> Iterator[None]:
    """A launcher that a failed test left running ends, and its ranks with it."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


class Node:
    """A launcher in the background.

    Args:
        folder: of the test; ranks leave traces of their starts there.
        name: of the node.
        flags: the launcher's.
        orders: the ranks'.
        environment: beyond the test's own.
    """

    def __init__(self, folder: Path, name: str, flags: list[str], *orders: str, **environment: str) -> None:
        script = folder / "rank.py"
        script.write_text(RANK)
        self.folder = folder
        self.reply = folder / f"reply-{name}.json"
        mine = {"FOLDER": str(folder), "SLURMD_NODENAME": name, "TORCHELASTIC_ERROR_FILE": str(self.reply)}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "PET_", "VC_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchx_components.launch", *flags, str(script), *orders],
            cwd=ROOT,
            env={**inherited, **mine, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        STARTED.append(self.process)

    def end(self) -> tuple[int, list[str]]:
        """Wait for the exit status; returns it and what the launcher said."""
        error = self.error = self.process.communicate(timeout=60)[1]
        assert "Traceback" not in error, error
        return self.process.returncode, [line[8:] for line in error.splitlines() if line.startswith("launch: ")]

    def starts(self) -> list[str]:
        """RANK-START of each start of a rank."""
        return sorted(path.name[6:] for path in self.folder.glob("start-*"))

    def wait_for(self, name: str) -> Path:
        """Wait until a rank has left a trace."""
        path, until = self.folder / name, time.monotonic() + 40
        while not path.exists():
            assert time.monotonic() < until, f"no {name}"
            time.sleep(0.05)
        return path


def here(ranks: int = 1, *more: str) -> list[str]:
    return ["--nproc-per-node", str(ranks), *more]


def nodes(number: str, *more: str, port: int | None = None) -> list[str]:
    endpoint = f"localhost:{port or free_port()}"
    return ["--nnodes", number, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "job", *more]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def met(said: list[str]) -> list[str]:
    """What was said after the line on the interface."""
    assert "speaks to the other nodes as" in said[0]
    return said[1:]


# ── one node ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fault_is_said_once_by_the_rank_and_not_tried_again(tmp_path: Path) -> None:
    node = Node(tmp_path, "n1", here(2, "--max-restarts", "3"), "0=wait", "1=2")
    assert node.end() == (2, [])
    assert node.error.count("lerning_rate") == 1
    assert "1-2" not in node.starts()
    assert "lerning_rate" in json.loads(node.reply.read_text())["message"]["message"]


def test_a_killed_rank_is_started_again_as_often_as_allowed(tmp_path: Path) -> None:
    node = Node(tmp_path, "n1", here(2, "--max-restarts", "1"), "0=wait", "1=-9")
    status, (first, last) = node.end()
    assert status == 4
    assert first.startswith("rank 1 (local 1) on n1 ended by SIGKILL after ")
    assert first.endswith("; starting again (1 of 1)")
    assert last.startswith("rank 1 (local 1) on n1 ended by SIGKILL after ")
    assert [start for start in node.starts() if start[0] == "1"] == ["1-1", "1-2"]
    assert "ended by SIGKILL" in json.loads(node.reply.read_text())["message"]["message"]


def test_the_status_is_the_ranks(tmp_path: Path) -> None:
    orders = {"3": 3, "7": 1}
    for order in orders:
        (tmp_path / order).mkdir()
    nodes = {order: Node(tmp_path / order, "n1", here(1, "--max-restarts", "1"), f"0={order}") for order in orders}
    for order, node in nodes.items():
        status, said = node.end()
        assert status == orders[order]
        assert len(node.starts()) == (1 if order == "3" else 2)
        assert (said == []) == (order == "3")


def test_sigterm_lets_all_ranks_save(tmp_path: Path) -> None:
    node = Node(tmp_path, "n1", here(2, "--shutdown-timeout", "20"), "0=wait", "1=wait", SAVING_S="2")
    for rank in range(2):
        node.wait_for(f"environment-{rank}")
    node.process.terminate()
    assert node.end() == (143, [])
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}


def test_a_rank_that_saves_longer_than_allowed_is_killed_and_that_is_said(tmp_path: Path) -> None:
    node = Node(tmp_path, "n1", here(1, "--shutdown-timeout", "1"), "0=wait", SAVING_S="30")
    node.wait_for("environment-0")
    node.process.send_signal(signal.SIGINT)
    status, (said,) = node.end()
    assert status == 130
    assert said.startswith("local rank 0 on n1 had not ended 1 s after SIGINT (--shutdown-timeout), and was killed")


def test_a_rank_still_saving_when_its_neighbour_has_saved_keeps_its_time(tmp_path: Path) -> None:
    """Both were signalled by a scheduler, past the launcher."""
    node = Node(
        tmp_path, "n1", here(2, "--shutdown-timeout", "2"), "0=wait", "1=until:environment-0:143:1", SAVING_S="30"
    )
    node.wait_for("environment-0")
    began = time.monotonic()
    assert node.end() == (143, [])
    assert time.monotonic() - began < 25  # not the 30 s that others get
    assert not list(tmp_path.glob("saved-0"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nnodes", "2:1", __file__], "min_nodes must be > 0 and <= max_nodes"),
        (["--join-timeout", "0", __file__], "--join-timeout 0: must be at least 1 second"),
        (["--nnodes", "2", "--rdzv-backend", "c10d", __file__], "--rdzv-endpoint is missing"),
        (["-m", "torchx_components.lunch"], "-m torchx_components.lunch: no such module"),
        (["nonesuch.py"], "nonesuch.py: no such file"),
    ],
)
def test_wrong_flags_are_faults(flags: list[str], said: str) -> None:
    with pytest.raises(Fault, match=re.escape(said)):
        configure(parser().parse_args(flags))


def test_an_interface_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    node = Node(tmp_path, "n1", nodes("2", "--interface", "nonesuch0"))
    status, (said,) = node.end()
    assert status == 2
    assert said.startswith("--interface nonesuch0: is not there, or is not up; with an address")
    assert "nonesuch0" in json.loads(node.reply.read_text())["message"]["message"]


# ── several nodes ────────────────────────────────────────────────────────────────────────────────────────


def test_a_rank_killed_on_one_node_starts_all_again(tmp_path: Path) -> None:
    flags = nodes("2", "--max-restarts", "3")
    pair = [Node(tmp_path, name, flags, "0.1=4", "1.1=-9") for name in ("n1", "n2")]
    ends = [node.end() for node in pair]
    assert [status for status, _ in ends] == [0, 0]
    said = [line for _, lines in ends for line in met(lines)]
    killed = next(line for line in said if "SIGKILL" in line)
    assert killed.startswith("rank 1 (local 0) on n")
    assert killed.endswith("; starting again (1 of 3)")
    assert {"0-2", "1-2"} <= set(pair[0].starts())
    environment = json.loads((tmp_path / "environment-0").read_text())
    (chosen,) = {line.rpartition(" ")[2] for line in (lines[0] for _, lines in ends)}
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == (chosen, f"={chosen}")
    assert environment["MASTER_ADDR"] in next(each for each in interfaces() if each.name == chosen).addresses


def test_a_fault_on_one_node_ends_all_with_its_words(tmp_path: Path) -> None:
    """Whichever node the rank is on, the other's ranks hang, and hear of it all the same."""
    flags = nodes("2", "--max-restarts", "3")
    pair = [Node(tmp_path, name, flags, "0=2", "1=wait") for name in ("n1", "n2")]
    ends = [node.end() for node in pair]
    assert [status for status, _ in ends] == [2, 2]
    told, hidden = sorted((met(said) for _, said in ends), key=len, reverse=True)
    assert hidden == []
    assert told[0].startswith("rank 0 (local 0) on n")
    assert told[0].endswith("no such key `lerning_rate`")
    assert set(pair[0].starts()) <= {"0-1", "1-1"}  # the other node may hear of it before its rank is up


def test_worse_on_one_node_is_the_status_of_all(tmp_path: Path) -> None:
    flags = nodes("2")
    assert [Node.end(node)[0] for node in [Node(tmp_path, name, flags, "0=3") for name in ("n1", "n2")]] == [3, 3]


def test_a_node_that_does_not_come_is_named_by_all_others(tmp_path: Path) -> None:
    flags = nodes("3", "--join-timeout", "6")
    slurm = {"SLURM_HET_SIZE": "3", **{f"SLURM_JOB_NODELIST_HET_GROUP_{i}": f"n{i + 1}" for i in range(3)}}
    for status, said in [node.end() for node in [Node(tmp_path, name, flags, **slurm) for name in ("n1", "n2")]]:
        assert status == 4
        line = met(said)[-1]
        assert "2 of 3 nodes came within 6 s: n1 (" in line.replace("n2 (", "n1 (")
        assert "; missing: n3. Is its launcher running?" in line


def test_a_first_node_that_does_not_answer_is_waited_for_and_named(tmp_path: Path) -> None:
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "nonesuch.invalid:29500", "--join-timeout", "2"]
    status, said = Node(tmp_path, "n2", ["--nnodes", "2", *endpoint]).end()
    waits, gives_up = met(said)
    assert status == 4
    assert waits.startswith("waiting up to 2 s for the first node at nonesuch.invalid:29500 (a name that this node")
    assert "the first node does not answer at nonesuch.invalid:29500" in gives_up
    assert "is not known on this node" in gives_up


def test_a_signal_while_waiting_for_nodes_ends_at_once(tmp_path: Path) -> None:
    node = Node(tmp_path, "n1", nodes("2", "--join-timeout", "60"))
    assert node.process.stderr is not None
    first = node.process.stderr.readline()
    assert "speaks to the other nodes" in first
    time.sleep(1)
    node.process.terminate()
    began = time.monotonic()
    status, said = node.end()
    assert (status, said[:1]) == (143, ["stopped by SIGTERM while no ranks were running here"])
    assert time.monotonic() - began < 10


def test_an_elastic_job_goes_on_without_a_lost_node(tmp_path: Path) -> None:
    port = free_port()
    quick = "keep_alive_interval=1,keep_alive_max_attempt=5,last_call_timeout=8"
    flags = nodes("1:2", "--max-restarts", "1", "--rdzv-conf", quick, port=port)
    first = Node(tmp_path, "n1", flags, "0=until:lost:4:0", "1=until:lost:4:0")
    until = time.monotonic() + 30
    while not is_listening(port):
        assert time.monotonic() < until
        time.sleep(0.1)
    second = Node(tmp_path, "n2", flags, "0=until:lost:4:0", "1=until:lost:4:0")
    first.wait_for("environment-1")
    children = Path(f"/proc/{second.process.pid}/task/{second.process.pid}/children").read_text().split()
    second.process.kill()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)
    second.process.communicate()
    (tmp_path / "lost").touch()
    status, said = first.end()
    assert status == 0, said
    assert "starting again (1 of 1)" in said[-1]
    assert json.loads((tmp_path / "environment-0").read_text())["WORLD_SIZE"] == "1"


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_said_at_the_end() -> None:
    killed = RankEnd(5, 1, "n2", -signal.SIGKILL, 720)
    lost = RankEnd(0, 0, "n1", 4, 725)
    first, second = NodeEnd("n1", 4, (lost,)), NodeEnd("n2", 1, (killed,))
    line = (
        "rank 5 (local 1) on n2 ended by SIGKILL after 12 min; rank 0 (local 0) on n1 ended with status 4 after 12 min"
    )
    assert summary(first, [first, second], 4) == line
    assert summary(second, [first, second], 4) == line
    assert summary(first, [first, NodeEnd("n3", 4, (), "n2 is missing")], 4).endswith("12 min; n2 is missing")
    silent = NodeEnd("n1", 2, (RankEnd(0, 0, "n1", 2, 1),))
    assert summary(silent, [silent], 2) == "rank 0 (local 0) on n1 ended with status 2 after 1 s"
    assert summary(silent, [NodeEnd("n1", 0)], 0) == ""
