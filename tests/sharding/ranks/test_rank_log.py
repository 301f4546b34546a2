"""The log of a rank: what goes into it, over several starts, and that it never stands in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sharding.ranks import rank_log
from sharding.ranks.rank_log import LOGGER, RankLog
from sharding.world import World

ROOT = Path(__file__).parents[3]
SECOND = World(1, 4, 2, torch.device("cpu"))


def test_every_start_is_appended_with_who_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for restart in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        log = RankLog(tmp_path, SECOND)
        LOGGER.info("work %d", restart)
        log.close()
    LOGGER.info("after the end")
    lines = (tmp_path / "rank-00001.log").read_text().splitlines()
    assert len(lines) == 6
    for restart, (start, work) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        assert f"pid {os.getpid()}, rank 1 of 4, cpu, torch {torch.__version__}, restart {restart}" in start
        assert work.endswith(f"Z INFO work {restart}")


def test_a_log_that_has_grown_large_is_set_aside_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_log, "_LARGEST", 1000)
    for _ in range(3):
        log = RankLog(tmp_path, SECOND)
        LOGGER.info("x" * 2000)
        log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-00001.log", "rank-00001.log.1"]
    assert all(2000 < path.stat().st_size < 3000 for path in tmp_path.iterdir())


def test_sigusr1_writes_the_stacks_of_all_threads_and_changes_nothing_else(tmp_path: Path) -> None:
    log = RankLog(tmp_path, SECOND, "evaluate-")
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.05)
    log.close()
    assert "test_sigusr1_writes_the_stacks" in (tmp_path / "evaluate-rank-00001.log").read_text()


ALONE = """
import logging, os, signal, sys, warnings
from pathlib import Path
import torch
from sharding.ranks.rank_log import LOGGER, RankLog
from sharding.world import World
log = RankLog(Path(sys.argv[1]), World(0, 1, 1, torch.device("cpu")))
LOGGER.info("between ourselves")
warnings.warn("a warning of ours")
logging.getLogger("library").warning("a warning of a library")
logging.getLogger("library").info("chatter")
print("end of work", flush=True)
if "abort" in sys.argv:
    os.kill(os.getpid(), signal.SIGABRT)
log.close()
"""


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ALONE, str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_warnings_are_in_the_log_and_on_the_terminal_and_a_fatal_signal_says_where(tmp_path: Path) -> None:
    done = alone(tmp_path, "abort")
    log = (tmp_path / "rank-00000.log").read_text()
    assert done.returncode == -signal.SIGABRT
    for text in ("a warning of ours", "a warning of a library"):
        assert log.count(text) == 1
        assert text in done.stderr
    assert "between ourselves" in log
    assert "between ourselves" not in done.stderr
    assert "chatter" not in log + done.stderr
    assert "Fatal Python error: Aborted" in log


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "rank-00000.log").symlink_to("/dev/full")
    done = alone(tmp_path)
    assert (done.returncode, done.stdout) == (0, "end of work\n"), done.stderr
    assert done.stderr.count("No space left on device") == 1
    assert "Traceback" not in done.stderr
