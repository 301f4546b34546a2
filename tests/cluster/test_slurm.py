"""Jobs as an operator starts them, by TorchX on a Slurm of two nodes: each line here is one that the guide shows.

Where two nodes do the work of two ranks of one machine, what they write must be equal, not merely alike.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.cluster import slurm as cluster_slurm
from tests.cluster.conftest import LONG, environment
from tests.cluster.nodes import Cluster, Node, until
from tests.cluster.slurm import Slurm
from tests.conftest import Prepared
from tests.evaluation.test_evaluate import without_times
from tests.trainer.test_train import ROOT, losses
from tests.yambda_example import write_yambda_example

JOBS = "torchx_components/jobs.py"


class Desk:
    """An operator's shell on the head node, in a checkout of his own.

    Attributes:
        checkout: the rooms, as links, and what jobs leave in the folder where they are started.
    """

    def __init__(self, slurm: Slurm, checkout: Path) -> None:
        self.slurm, self.checkout = slurm, checkout

    def submit(self, component: str, *arguments: str) -> str:
        """`torchx run` of one of our components; returns what it prints, the job's name."""
        options = ("-s", "slurm", "-cfg", "partition=main")
        return self.slurm.ask("torchx", "run", *options, f"{JOBS}:{component}", *arguments, cwd=self.checkout).strip()

    def status(self, handle: str) -> str:
        return self.slurm.ask("torchx", "status", handle, cwd=self.checkout)

    def log(self, handle: str, *arguments: str) -> str:
        return self.slurm.ask("torchx", "log", *arguments, handle, cwd=self.checkout)

    def cancel(self, handle: str) -> None:
        self.slurm.ask("torchx", "cancel", handle, cwd=self.checkout)

    def await_end(self, handle: str, seconds: float = 240) -> None:
        """Wait until Slurm has nothing more to do for a job; one that is to start again is not at its end."""
        line = ("squeue", "--noheader", f"--jobs={self.number(handle)}")
        until(lambda: not self.slurm.ask(*line), f"{handle} ends", seconds)

    def succeed(self, component: str, *arguments: str) -> str:
        """Run a job that must end well; returns its name."""
        handle = self.submit(component, *arguments)
        self.await_end(handle)
        assert "State: SUCCEEDED" in self.status(handle), self.log(handle)
        return handle

    def restarts(self, handle: str) -> list[str]:
        """How often Slurm has started each node's part of a job again."""
        return re.findall(r"Restarts=(\d+)", self.slurm.ask("scontrol", "show", "job", self.number(handle)))

    def account(self, handle: str, column: str) -> list[str]:
        """What Slurm's accounting has of a job and each of its steps."""
        options = ("--parsable2", "--noheader", f"--format={column}")
        return self.slurm.ask("sacct", *options, "-j", self.number(handle)).splitlines()

    def number(self, handle: str) -> str:
        """Slurm's own name of a job."""
        return handle.rpartition("/")[2]

    def await_step(self, run: Path, step: int) -> None:
        file = run / "metrics.jsonl"
        until(lambda: file.exists() and file.read_text().count('"train"') >= step, f"step {step} of {run}", 180)


@pytest.fixture(scope="session")
def slurm(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Slurm:
    if reason := cluster_slurm.why_not():
        pytest.skip(reason)
    return Slurm(cluster, tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def desk(slurm: Slurm, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    checkout = tmp_path_factory.mktemp("checkout")
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in (*rooms, ROOT / ".torchxconfig"):
        (checkout / path.name).symlink_to(path)
    train = OmegaConf.from_dotlist([f"store={prepared.store}", f"codes={prepared.codes}", "run=runs/given", *LONG])
    shared = {name: f"${{train.{name}}}" for name in ("store", "codes", "model")}
    sections = {
        "train": train,
        "evaluate": {"run": "${train.run}", "bootstrap": 10, "baselines": ["mostpop"]},
        "plan": {**shared, "tokens": 192, "topology": "cpu", "ranks_per_node": 1, "nodes": 2, "out": "plans/given"},
    }
    OmegaConf.save(OmegaConf.create(sections), checkout / "run.yaml")
    return Desk(slurm, checkout)


@pytest.fixture(scope="session")
def trained(desk: Desk) -> tuple[str, Path]:
    """A training over both nodes: the job's name, and the run's folder."""
    handle = desk.succeed("train", "-j", "2x1", "--env", "OMP_NUM_THREADS=1", "--config", "run.yaml", "run=runs/whole")
    return handle, desk.checkout / "runs/whole"


@pytest.fixture(autouse=True)
def nothing_left(slurm: Slurm) -> Iterator[None]:
    """A test that fails leaves no job to the next."""
    yield
    slurm.ask("scancel", "--user=root")
    until(lambda: not slurm.ask("squeue", "--noheader"), "no job is left", 120)


def kill(node: Node, *, with_launcher: bool) -> None:
    """SIGKILL the rank of a training on one node, and its launcher if asked to, and nothing of Slurm's."""
    for pid, words in node.processes().items():
        is_launcher = "torchx_components.launch" in words
        if "trainer.train" in words and (with_launcher or not is_launcher):
            os.kill(pid, signal.SIGKILL)


def figures(run: Path) -> dict[str, Any]:
    """What an evaluation found, whatever the folder's name and the time it took."""
    written = without_times(json.loads((run / "metrics.json").read_text()))
    return {name: value for name, value in written.items() if name not in ("run", "checkpoint")}


def placement(folder: Path) -> dict[str, Any]:
    """What a plan says, whatever its own folder and the time it took."""
    written: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    del written["seconds"], written["peak_gb"], written["config"]["out"]
    return written


# ── what jobs write ──────────────────────────────────────────────────────────────────────────────────────


def test_a_training_over_two_nodes_is_that_of_two_ranks(desk: Desk, trained: tuple[str, Path], whole: Path) -> None:
    handle, run = trained
    assert losses(run) == losses(whole)
    shown = desk.status(handle)
    assert re.search(r"train\[0\]:SUCCEEDED", shown)
    assert re.search(r"train\[1\]:SUCCEEDED", shown)
    assert "epoch 32/32" in desk.log(f"{handle}/train/0")
    assert "epoch 32/32" not in desk.log(f"{handle}/train/1"), "rank 0 speaks for all"


def test_an_evaluation_over_two_nodes_finds_what_two_ranks_find(
    desk: Desk, trained: tuple[str, Path], tmp_path: Path
) -> None:
    _, run = trained
    here = shutil.copytree(run, tmp_path / "here")
    line = ("-j", "2x1", "--env", "OMP_NUM_THREADS=1", "--config", "run.yaml", "run=runs/whole")
    desk.succeed("evaluate", *line)
    local = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    local += ["-m", "evaluation.evaluate", "--config", str(desk.checkout / "run.yaml"), f"run={here}"]
    subprocess.run(local, cwd=ROOT, env=environment(), check=True, timeout=240)
    assert figures(run) == figures(here)


def test_a_plan_is_the_same_wherever_it_is_made(desk: Desk, tmp_path: Path) -> None:
    desk.succeed("plan", "--config", "run.yaml", "out=plans/there")
    local = [sys.executable, "-m", "sharding.plan", "--config", str(desk.checkout / "run.yaml"), f"out={tmp_path}/here"]
    subprocess.run(local, cwd=ROOT, env=environment(), check=True, timeout=240)
    assert placement(desk.checkout / "plans/there") == placement(tmp_path / "here")


def test_a_pipeline_goes_from_raw_log_to_report(desk: Desk) -> None:
    folder = desk.checkout / "pipeline"
    write_yambda_example(folder / "raw", users=60, items=160, seed=1)
    stages = {
        "prepare": {"source": "yambda", "path": "pipeline/raw", "kind": "multi_event", "out": "pipeline/store"},
        "fit_ids": {"store": "${prepare.out}", "out": "pipeline/codes", "levels": 2, "codes": 16},
        "train": OmegaConf.from_dotlist(
            ["store=${prepare.out}", "codes=${fit_ids.out}", "run=pipeline/run", *LONG, "epochs=4", "validate_every=2"]
        ),
        "evaluate": {"run": "${train.run}", "bootstrap": 10, "baselines": ["mostpop"]},
    }
    OmegaConf.save(OmegaConf.create(stages), desk.checkout / "pipeline.yaml")
    line = ("-j", "2x1", "--env", "OMP_NUM_THREADS=1", "--config", "pipeline.yaml")
    desk.succeed("pipeline", *line)
    assert figures(folder / "run")["users"] > 0
    assert (folder / "run/report.html").exists()
    trained = (folder / "run/metrics.jsonl").read_bytes()
    handle = desk.succeed("pipeline", *line)
    assert (folder / "run/metrics.jsonl").read_bytes() == trained, "what is done is not done again"
    assert "train: skipped" in desk.log(f"{handle}/pipeline/0", "--streams", "stdout"), (
        "stderr is what it shows unasked"
    )


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────


def test_a_fault_fails_the_job_and_the_log_names_it(desk: Desk) -> None:
    line = ("-j", "2x1", "--config", "run.yaml", "run=runs/fault", "model.widht=8")
    handle = desk.submit("train", *line)
    desk.await_end(handle)
    assert "State: FAILED" in desk.status(handle)
    assert "did you mean `model.width`" in desk.log(handle)
    # The job's own is the largest of the nodes', and srun ends by SIGTERM the one that is not the first to end.
    assert "2:0" in desk.account(handle, "ExitCode")


def test_a_cancelled_training_saves_and_goes_on_by_the_same_line(desk: Desk, whole: Path, drawn: random.Random) -> None:
    run = desk.checkout / "runs/cancelled"
    line = ("-j", "2x1", "--env", "OMP_NUM_THREADS=1", "--config", "run.yaml", "run=runs/cancelled", "resume=auto")
    handle = desk.submit("train", *line)
    desk.await_step(run, drawn.randrange(6, 100))
    desk.cancel(handle)
    desk.await_end(handle)
    # `torchx status` and `torchx log` of TorchX 0.7.0 do not know this state, and fail: Slurm's own are left.
    assert desk.account(handle, "State")[0] == "CANCELLED by 0"
    said = (desk.checkout / f"slurm-{desk.number(handle)}-train-0.err").read_text()
    stopped = re.search(r"stopped by SIGTERM after step (\d+), which is saved", said)
    assert stopped, said
    assert int(stopped[1]) == len(losses(run)) < 128
    desk.succeed("train", *line)
    assert losses(run) == losses(whole)


@pytest.mark.parametrize(
    ("option", "restarts"),
    [("--max_restarts", "0"), ("--retries", "1")],
    ids=["rank-by-its-launcher", "launcher-by-slurm"],
)
def test_what_is_killed_on_one_node_is_started_again(
    desk: Desk, whole: Path, drawn: random.Random, option: str, restarts: str
) -> None:
    run = desk.checkout / f"runs/killed-{restarts}"
    line = (option, "2", "--env", "OMP_NUM_THREADS=1", "--config", "run.yaml", f"run={run}", "resume=auto")
    handle = desk.submit("train", "-j", "2x1", *line)
    desk.await_step(run, drawn.randrange(6, 100))
    kill(desk.slurm.nodes["n2"], with_launcher=option == "--retries")
    desk.await_end(handle)
    assert "State: SUCCEEDED" in desk.status(handle), desk.log(handle)
    assert desk.restarts(handle) == [restarts, restarts]
    assert desk.log(handle).count("60 users, 160 items") == 2, "it was started twice"
    assert losses(run) == losses(whole)


def test_a_job_of_which_a_node_was_lost_is_started_again_by_slurm(
    desk: Desk, whole: Path, drawn: random.Random
) -> None:
    run = desk.checkout / "runs/lost"
    line = ("--retries", "2", "--env", "OMP_NUM_THREADS=1", "--config", "run.yaml", "run=runs/lost", "resume=auto")
    handle = desk.submit("train", "-j", "2x1", *line)
    desk.await_step(run, drawn.randrange(6, 100))
    second = desk.slurm.nodes["n2"]
    second.kill()
    time.sleep(5)
    desk.slurm.start_daemon(second)
    desk.await_end(handle)
    assert "State: SUCCEEDED" in desk.status(handle), desk.log(handle)
    assert losses(run) == losses(whole)
