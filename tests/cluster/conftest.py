"""Nodes once for all tests here, and trainings of one machine to hold those of two against.

SEGUE_CLUSTER_SEED=N draws the same moments for kills again; without it each run draws others.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import nodes
from tests.cluster.nodes import Cluster
from tests.cluster.slurm import HEAD
from tests.conftest import Prepared
from tests.trainer.test_train import NO_DROPOUT, ROOT, SMALL

LONG = [*SMALL, "epochs=32", "validate_every=16", "checkpoint.every=5"]
"""128 steps: time enough for something to happen in between."""
NAMES = ("n1", "n2")
SEED = int(os.environ.get("SEGUE_CLUSTER_SEED", time.time_ns() % 100_000))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := nodes.why_not():
        pytest.skip(reason)
    with nodes.cluster_of(HEAD, *NAMES) as found:
        yield found


@pytest.fixture(scope="session")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks of one machine train without interruption."""
    return _train_here(tmp_path_factory.mktemp("whole") / "run", keys_of(prepared))


@pytest.fixture(scope="session")
def whole_without_dropout(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where nothing depends on the number of ranks."""
    return _train_here(tmp_path_factory.mktemp("whole") / "run", [*keys_of(prepared), *NO_DROPOUT])


@pytest.fixture
def drawn(request: pytest.FixtureRequest) -> random.Random:
    """A source of moments of this test's own; a test that fails shows what it takes to draw them again."""
    print(f"SEGUE_CLUSTER_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def keys_of(prepared: Prepared) -> list[str]:
    """What is trained in all tests here."""
    return [f"store={prepared.store}", f"codes={prepared.codes}", *LONG]


def environment() -> dict[str, str]:
    """That of a user's shell; nothing in it says where the nodes find one another."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _train_here(run: Path, keys: list[str]) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "trainer.train", f"run={run}", *keys]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return run
