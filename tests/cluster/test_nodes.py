"""The launcher over two nodes: they find one another, and what happens when one is missing, killed or unplugged."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.conftest import NAMES, environment, keys_of
from tests.cluster.nodes import INTERFACE, Cluster, Command, Node, until
from tests.conftest import Prepared
from tests.trainer.test_train import NO_DROPOUT, losses, records

PORT = 29500
LOST = 4
"""Exit status: the job could not come together, or fell apart."""
QUICK_TO_NOTICE = ("--rdzv-conf", "keep_alive_interval=1,keep_alive_max_attempt=3")


class Job:
    """One training over nodes of the cluster, started on each by hand as a scheduler would."""

    def __init__(self, cluster: Cluster, prepared: Prepared, folder: Path) -> None:
        self.run = folder / "run"
        self._cluster, self._prepared, self._folder = cluster, prepared, folder
        self._started = 0

    def start(self, name: str, *keys: str, nodes: str = "2", flags: Sequence[str] = ()) -> Command:
        """Start the launcher on one node, with a rank."""
        self._started += 1
        launcher = [sys.executable, "-m", "torchx_components.launch", "--nnodes", nodes, "--nproc-per-node", "1"]
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"n1:{PORT}", "--rdzv-id", self._folder.name]
        training = ["-m", "trainer.train", f"run={self.run}", *keys_of(self._prepared), "resume=auto", *keys]
        log = self._folder / f"{self._started}-{name}.log"
        return self._cluster[name].start([*launcher, *rendezvous, *flags, *training], log, environment())

    def start_all(self, *keys: str, nodes: str = "2", flags: Sequence[str] = ()) -> list[Command]:
        return [self.start(name, *keys, nodes=nodes, flags=flags) for name in NAMES]

    def steps(self) -> int:
        """Of the training so far."""
        file = self.run / "metrics.jsonl"
        return file.read_text().count('"kind": "train"') if file.exists() else 0

    def await_step(self, step: int, *commands: Command) -> None:
        """Wait until a step is recorded, and no longer than the commands run."""

        def is_there() -> bool:
            if self.steps() >= step:
                return True
            ended = [command.said[-4000:] for command in commands if not command.is_running]
            assert not ended, ended[0]
            return False

        until(is_there, f"step {step} is recorded", seconds=180)


@pytest.fixture
def job(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> Iterator[Job]:
    yield Job(cluster, prepared, tmp_path)
    for name in NAMES:
        cluster[name].plug()
        cluster[name].kill()


def some_moment(drawn: random.Random, job: Job, *commands: Command) -> int:
    """Wait for a moment in the middle of a training of 128 steps; returns the step drawn."""
    step, seconds = drawn.randrange(6, 100), drawn.uniform(0, 0.3)
    print(f"something happens {seconds:.3f} s after step {step}")
    job.await_step(step, *commands)
    time.sleep(seconds)
    return step


def assert_each_step_once(run: Path) -> None:
    assert [record["step"] for record in records(run, "train")] == list(range(1, 129))


def the_rank_of(node: Node) -> int:
    """PID of the one rank on a node."""
    (pid,) = [
        pid
        for pid, words in node.processes().items()
        if "trainer.train" in words and "torchx_components.launch" not in words
    ]
    return pid


# ── the nodes themselves ─────────────────────────────────────────────────────────────────────────────────


def address_of(name: str, asked_on: Node) -> str:
    program = f"import socket; print(socket.gethostname(), socket.gethostbyname({name!r}))"
    return asked_on.run([sys.executable, "-c", program]).stdout.strip()


def test_a_node_has_a_name_that_it_alone_takes_for_its_own(cluster: Cluster) -> None:
    assert address_of("n1", cluster["n1"]) == "n1 127.0.1.1"
    assert address_of("n1", cluster["n2"]) == "n2 10.77.0.11"


def test_killed_nodes_have_no_processes_and_are_there_again(cluster: Cluster, tmp_path: Path) -> None:
    sleeping = cluster["n2"].start(["sleep", "600"], tmp_path / "sleeping.log")
    until(lambda: ["sleep", "600"] in cluster["n2"].processes().values(), "it sleeps")
    cluster["n2"].kill()
    assert sleeping.wait(5) == 137
    assert not cluster["n2"].processes()
    assert cluster["n2"].run(["hostname"]).stdout == "n2\n"


# ── coming together ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("flags", [(), ("--interface", INTERFACE)], ids=["found", "named"])
def test_two_nodes_train_as_two_ranks_of_one_machine(job: Job, whole: Path, flags: tuple[str, ...]) -> None:
    """Although each takes its own name for 127.0.1.1, and both have a Docker bridge of one address."""
    for command in job.start_all(flags=flags):
        assert command.wait() == 0, command.said
    assert losses(job.run) == losses(whole)
    assert_each_step_once(job.run)


@pytest.mark.parametrize("absent", NAMES)
def test_a_node_that_never_comes_is_named(job: Job, absent: str) -> None:
    (present,) = set(NAMES) - {absent}
    began = time.monotonic()
    command = job.start(present, flags=("--join-timeout", "10"))
    assert command.wait(90) == LOST, command.said
    assert time.monotonic() - began < 60, "ten seconds, and what importing torch takes"
    assert absent in command.said if absent == "n1" else "1 of 2" in command.said
    assert "Traceback" not in command.said


# ── falling apart ────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_node_that_is_started_again_ends_as_if_nobody_had_been(
    job: Job, cluster: Cluster, whole: Path, drawn: random.Random
) -> None:
    flags = ("--max-restarts", "3", *QUICK_TO_NOTICE)
    first, second = job.start_all(flags=flags)
    some_moment(drawn, job, first, second)
    cluster["n2"].kill()
    again = job.start("n2", flags=flags)
    assert (first.wait(), again.wait()) == (0, 0), first.said + again.said
    assert losses(job.run) == losses(whole)
    assert_each_step_once(job.run)


def test_when_the_first_node_is_killed_the_other_ends_and_both_can_start_again(
    job: Job, cluster: Cluster, whole: Path, drawn: random.Random
) -> None:
    flags = ("--max-restarts", "3", "--join-timeout", "20", *QUICK_TO_NOTICE)
    first, second = job.start_all(flags=flags)
    some_moment(drawn, job, first, second)
    cluster["n1"].kill()
    assert second.wait(120) == LOST, second.said
    assert "Traceback" not in second.said
    for command in job.start_all(flags=flags):
        assert command.wait() == 0, command.said
    assert losses(job.run) == losses(whole)
    assert_each_step_once(job.run)


def test_an_elastic_job_goes_on_alone_and_takes_the_node_back(
    job: Job, cluster: Cluster, whole_without_dropout: Path, drawn: random.Random
) -> None:
    keep_together = "last_call_timeout=15,keep_alive_interval=1,keep_alive_max_attempt=3"
    flags = ("--max-restarts", "5", "--rdzv-conf", keep_together)
    first, second = job.start_all(*NO_DROPOUT, nodes="1:2", flags=flags)
    some_moment(drawn, job, first, second)
    cluster["n2"].kill()
    until(lambda: "on 1 × cpu" in first.said, "the first node goes on alone", 180)
    job.await_step(job.steps() + 3, first)
    rank = the_rank_of(cluster["n1"])
    os.kill(rank, signal.SIGSTOP)  # or it is done before the other is back
    again = job.start("n2", *NO_DROPOUT, nodes="1:2", flags=flags)
    until(lambda: "another node joins" in first.said, "the first node sees the second", 180)
    os.kill(rank, signal.SIGCONT)
    assert (first.wait(), again.wait()) == (0, 0), first.said + again.said
    assert first.said.count("on 2 × cpu") == 2, first.said
    assert_each_step_once(job.run)
    assert losses(job.run) == pytest.approx(losses(whole_without_dropout), rel=1e-5)


def test_silence_is_told_and_ended(job: Job, cluster: Cluster, whole: Path, drawn: random.Random) -> None:
    """No connection is closed: only a time-out notices."""
    watch = ("watch.timeout_s=12", "watch.heartbeat_s=2")
    first, second = job.start_all(*watch)
    some_moment(drawn, job, first, second)
    cluster["n2"].unplug()
    assert first.wait(120) == LOST, first.said
    assert re.search(r"rank 0 on n1\b.*step \d+", first.said)
    assert re.search(r"rank 1 on n2\b.*step \d+", first.said)
    cluster["n2"].kill()
    cluster["n2"].plug()
    for command in job.start_all(*watch):
        assert command.wait() == 0, command.said
    assert losses(job.run) == losses(whole)
    assert_each_step_once(job.run)
