"""A pipeline as operators start it: one line on each node, real stages, real processes, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Prepared
from tests.ranks import run_module
from tests.torchx_components.whole_run import write_whole_run
from torchx_components.pipeline import main
from torchx_components.stages import leading
from torchx_components.stages.processes import Stops

ROOT = Path(__file__).parents[2]

ENDLESS = "synthesize: {{kind: yambda, out: {folder}/log}}\n"
"""A log of 46 million events: minutes of work for one process."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_whole_run(tmp_path)


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(ENDLESS.format(folder=tmp_path))
    return path


@dataclass
class Node:
    """A pipeline's process on one of the nodes, all of which are this machine."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def waits_for(self, text: str, seconds: float = 120) -> None:
        wait_until(lambda: text in self.said or self.process.poll() is not None, seconds)
        assert text in self.said, self.said

    def ends(self, seconds: float = 400) -> int:
        return self.process.wait(seconds)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it has not come to pass in time"
        time.sleep(0.05)


@dataclass
class Nodes:
    """Starts nodes, and leaves none behind."""

    folder: Path
    started: list[Node] = field(default_factory=list)

    def start(self, config: Path, *arguments: str) -> Node:
        log = self.folder / f"node-{len(self.started)}.log"
        command = [sys.executable, "-m", "torchx_components.pipeline", "--config", str(config), *arguments]
        own = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # a node must not take itself for a rank of these tests
        environment = {name: value for name, value in os.environ.items() if name not in own}
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=output, text=True
            )
        self.started.append(Node(process, log))
        return self.started[-1]

    def run(self, config: Path, *arguments: str) -> tuple[int, str]:
        """One node, to its end."""
        node = self.start(config, *arguments)
        return node.ends(), node.said


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    started = Nodes(tmp_path)
    yield started
    for node in started.started:
        for pid in [*_below(node.process.pid), node.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.wait()


def _below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [found for child in map(int, children) for found in (*_below(child), child)]


def of_two(node: int, port: int, *flags: str) -> list[str]:
    return ["--nodes", "2", "--node-rank", str(node), "--endpoint", f"localhost:{port}", *flags]


@pytest.fixture
def port() -> int:
    """One that is free, and the one above it too."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            found: int = low.getsockname()[1]
            try:
                high.bind(("127.0.0.1", found + 1))
            except OSError:
                continue
            return found


RunHere = Callable[..., tuple[int, str]]


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunHere:
    """One node, to its end, in this process; what it starts are processes that need not import anything."""
    printed = tmp_path / "printed"

    def read(command: list[str], _environment: object, _stops: Stops) -> tuple[int, str, str]:
        return started(command, printed), printed.read_text(), Path(f"{printed}.errors").read_text()

    def run(command: list[str], _environment: object, _stops: Stops, _watch: object) -> int:
        return started(command)

    def started(command: list[str], said: Path | None = None) -> int:
        assert command[:2] == [sys.executable, "-m"]
        return run_module(*command[2:], said=said)

    def run_it(config: Path, *arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main(["--config", str(config), *arguments])
        return status, "".join(capfd.readouterr())

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(leading, "read", read)
    monkeypatch.setattr(leading, "run", run)
    return run_it


def lines(said: str, step: str) -> list[str]:
    """What the pipeline says of a stage."""
    return [line for line in said.splitlines() if line.startswith(f"pipeline: {step}")]


# ── a whole run ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_run_over_two_nodes_and_what_is_done_again_after_a_change(
    config: Path, nodes: Nodes, run_here: RunHere, port: int
) -> None:
    folder = config.parent
    keys = [f"prepare.out={folder}/other store", f"train.run={folder}/other"]
    second = nodes.start(config, *of_two(1, port), *keys)
    second.waits_for("looks for node 0")
    first = nodes.start(config, *of_two(0, port), *keys)
    assert first.ends() == 0, first.said
    assert second.ends(30) == 0, second.said
    for number, name in enumerate(("prepare", "fit_ids", "train", "evaluate"), start=1):
        began, ended = lines(first.said, f"{number}/4 {name}")
        assert ("on 1 process of node 0:" if number < 3 else "on 2 nodes × 1 = 2 processes:") in began
        assert ": done in " in ended
        part = "waits for node 0" if number < 3 else "its part"
        if number > 1:  # a first stage may be over before another node has heard of it
            assert f"pipeline (node 1): {number}/4 {name}, {part}" in second.said
    (manifest,) = (folder / "other" / "checkpoints").glob("step-*/manifest.json")
    assert json.loads(manifest.read_text())["world_size"] == 2
    figures = (folder / "other" / "metrics.json").read_text()
    assert json.loads(figures)["users"] > 0
    assert not (folder / "store").exists(), "what refers to a key that was given follows it"

    # The same with another key of one stage, on another number of nodes: that stage alone is run.
    status, said = run_here(config, *keys, "evaluate.bootstrap=11")
    assert status == 0, said
    assert [": skipped" in line for line in lines(said, "")] == [True, True, True, False, False]
    assert "on 1 process: `bootstrap` was 10 and is 11" in lines(said, "4/4 evaluate")[0]
    assert (folder / "other" / "metrics.json").read_text() != figures

    # What reads what a stage has made anew is run again too.
    status, said = run_here(config, *keys, "--stages", "prepare,fit_ids", "prepare.split.kind=held-out-users")
    assert status == 0, said
    assert '`split.kind` was "leave-last-out" and is "held-out-users"' in lines(said, "1/2 prepare")[0]
    assert f"what `store` names ({folder / 'other store'}) is not what was read" in lines(said, "2/2 fit_ids")[0]


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────


def test_faults_of_all_stages_are_told_before_any_work(config: Path, nodes: Nodes, run_here: RunHere) -> None:
    chosen = ["--stages", "prepare,fit_ids,train", "--ranks", "3"]
    status, said = nodes.run(config, *chosen, "prepare.kind=none", "fit_ids.codez=4", "train.batch.tokens=1")
    assert status == 2
    assert "3 faults" in said
    assert "data.prepare: `kind` is 'none'" in said
    assert "semantic_ids.fit: command line: unknown key `codez`" in said
    assert "trainer.train: `batch.tokens` is 1" in said
    status, said = run_here(config, "--stages", "train", "--ranks", "3")
    assert status == 2
    assert "`batch.bins` is 2, which 3 ranks do not divide" in said
    assert {path.name for path in config.parent.iterdir()} == {
        "yambda",
        "run.yaml",
        "node-0.log",
        "printed",
        "printed.errors",
    }


def test_a_stage_that_fails_ends_all_nodes_with_its_status(config: Path, nodes: Nodes, port: int) -> None:
    keys = ["--stages", "prepare,fit_ids", f"prepare.path={config.parent}/nowhere"]
    second = nodes.start(config, *of_two(1, port), *keys)
    first = nodes.start(config, *of_two(0, port), *keys)
    assert (first.ends(), second.ends(30)) == (2, 2)
    assert "pipeline: 1/2 prepare: ended with status 2" in first.said
    assert "fit_ids" not in first.said
    assert "over, with status 2" in second.said


def test_a_stage_that_fails_on_all_ranks_ends_all_nodes_with_its_status(config: Path, nodes: Nodes, port: int) -> None:
    keys = ["--stages", "train", "train.resume=true"]  # there is nothing to go on from, not even a store
    second = nodes.start(config, *of_two(1, port), *keys)
    first = nodes.start(config, *of_two(0, port), *keys)
    assert (first.ends(), second.ends(60)) == (2, 2), first.said + second.said
    assert "pipeline: 1/1 train: ended with status 2" in first.said


def test_nodes_that_do_not_mean_the_same(config: Path, nodes: Nodes, port: int) -> None:
    second = nodes.start(config, *of_two(1, port), "--stages", "prepare", "prepare.duplicates=drop")
    first = nodes.start(config, *of_two(0, port), "--stages", "prepare")
    assert second.ends() == 2
    assert "do not mean the same by prepare" in second.said
    assert first.ends(30) in (0, 2)  # it may have been done before it heard of that


def test_a_node_that_never_comes(config: Path, nodes: Nodes, port: int) -> None:
    status, said = nodes.run(config, *of_two(0, port, "--join-timeout", "2"), "--stages", "prepare")
    assert status == 4
    assert "node 0 waited 2 s to begin: node 1 never came; here: node 0" in said
    assert f"localhost:{port + 1}" in said
    status, said = nodes.run(config, *of_two(1, port, "--join-timeout", "2"), "--stages", "prepare")
    assert status == 4
    assert f"node 1 waited 2 s for the first node, which does not answer at localhost:{port + 1} (localhost is" in said
    assert "Connection refused" in said
    assert not (config.parent / "store").exists()
    elastic = [*of_two(0, port), "--min-nodes", "1"]
    status, said = nodes.run(config, *elastic, "--stages", "prepare")
    assert status == 0, said


def test_a_first_node_that_dies(endless: Path, nodes: Nodes, port: int) -> None:
    second = nodes.start(endless, *of_two(1, port))
    first = nodes.start(endless, *of_two(0, port))
    second.waits_for("1/1 synthesize, waits for node 0")
    children = _below(first.process.pid)
    for pid in (first.process.pid, *children):
        os.kill(pid, signal.SIGKILL)
    assert second.ends(30) == 4
    assert f"at localhost:{port} is lost while node 1 was at 1/1 synthesize: the connection to it broke" in second.said


@pytest.mark.parametrize(("signalled", "number", "status"), [(0, signal.SIGINT, 130), (1, signal.SIGTERM, 143)])
def test_a_signal_to_one_node_ends_all(
    endless: Path, nodes: Nodes, port: int, signalled: int, number: signal.Signals, status: int
) -> None:
    pair = [nodes.start(endless, *of_two(node, port)) for node in (0, 1)]
    pair[1].waits_for("1/1 synthesize, waits for node 0")
    wait_until(lambda: bool(_below(pair[0].process.pid)))
    children = _below(pair[0].process.pid)
    time.sleep(2)  # into its work: a signal before that finds an interpreter that only begins
    pair[signalled].process.send_signal(number)
    assert [node.ends(30) for node in pair] == [status, status], pair[0].said + pair[1].said
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_training_saves_before_the_pipeline_ends_and_the_same_line_goes_on(
    config: Path, nodes: Nodes, prepared: Prepared
) -> None:
    run = config.parent / "run"
    data = [f"train.store={prepared.store}", f"train.codes={prepared.codes}"]
    line = ["--stages", "train", *data, "train.epochs=400", "train.validate_every=400"]
    node = nodes.start(config, *line)
    wait_until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0, 120)
    node.process.send_signal(signal.SIGTERM)
    assert node.ends(60) == 143, node.said
    (saved,) = (run / "checkpoints").glob("step-*/manifest.json")
    step = json.loads(saved.read_text())["step"]
    node = nodes.start(config, *line)
    records = run / "metrics.jsonl"
    wait_until(lambda: json.loads(records.read_text().splitlines()[-1])["step"] > step + 10, 120)
    node.process.send_signal(signal.SIGTERM)
    assert node.ends(60) == 143


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nodes", "2"], "`--endpoint` HOST:PORT is required with 2 nodes"),
        (["--nodes", "2", "--endpoint", "n1"], "`--endpoint` is 'n1', expected HOST:PORT"),
        (["--node-rank", "1"], "`--node-rank` is 1, must be from 0 to 0"),
        (["--min-nodes", "2"], "`--min-nodes` is 2, must be from 1 to 1"),
        (["--stages", "fit"], "`--stages` names 'fit'; stages are synthesize, prepare"),
        (["--stages", "synthesize"], "has no section `synthesize`, which --stages names"),
        (["epochs=1"], "`epochs=1` is not of the form SECTION.key=value"),
        (["plan.nodes=1"], "no stage `plan`"),
        (["synthesize.users=1"], "the file has no section `synthesize`"),
        (["--ranks", "two"], "invalid int value: 'two'"),
    ],
)
def test_faults_of_the_command_line(
    config: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = config.parent / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(reply))
    assert main(["--config", str(config), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert told in json.loads(reply.read_text())["message"]["message"]  # what TorchX shows as the cause
