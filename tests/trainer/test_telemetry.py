"""What a run writes about itself, and what of it survives a resume."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from model.recommender import Output
from sharding.ranks.rank_log import RankLog
from sharding.world import World, open_world
from trainer.telemetry import IntervalSums, Stopwatch, Telemetry

MAIN = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))


def read(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_resume_drops_what_was_recorded_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, MAIN, resume_step=None)
    for step in range(1, 6):
        telemetry.record("train", step, {"loss": float(step)})
    telemetry.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    telemetry = Telemetry(tmp_path, MAIN, resume_step=3)
    telemetry.record("train", 4, {"loss": 40.0})
    telemetry.close()
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_new_run_starts_an_empty_record(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        telemetry = Telemetry(tmp_path, MAIN, resume_step=None)
        telemetry.record("train", 1, {"loss": value, "level_loss": [value]})
        telemetry.close()
    assert [line["loss"] for line in read(tmp_path)] == [2.0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path / "run", World(1, 2, 2, torch.device("cpu")), resume_step=None)
    telemetry.record("train", 1, {"loss": 1.0})
    telemetry.say("not heard")
    telemetry.close()
    assert not (tmp_path / "run").exists()


def test_the_log_of_the_rank_hears_what_the_terminal_does_and_steps_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for rank in range(2):
        world = World(rank, 2, 2, torch.device("cpu"))
        log, telemetry = RankLog(tmp_path / "logs", world), Telemetry(tmp_path, world, resume_step=None)
        telemetry.say("a line that stays")
        for step in range(1, 40):
            telemetry.say_step(step, 100, 2.5, 1e3, 0.25, step)
        telemetry.record("checkpoint", 7, {"saved": "base"})
        telemetry.close()
        log.close()
    logs = [(tmp_path / "logs" / f"rank-0000{rank}.log").read_text() for rank in range(2)]
    for text in logs:
        assert text.count("INFO step ") == text.count("step 1/100  loss 2.5000") == 1
        assert "data wait 25.0%" in text
        assert 'checkpoint of step 7: {"saved": "base"}' in text
        assert "\r" not in text
        assert "\x1b" not in text
    assert "a line that stays" in logs[0]


def test_what_is_not_for_the_board_is_recorded_alone(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, MAIN, resume_step=None)
    telemetry.record("train", 1, {"loss": 1.0})
    telemetry.record("ranks", 1, {"own_s": [1.0] * 1000}, board=False)
    telemetry.close()
    assert [line["kind"] for line in read(tmp_path)] == ["train", "ranks"]
    assert sum(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) < 1000


def test_interval_sums_are_means_per_target_and_start_anew() -> None:
    sums = IntervalSums(2, torch.device("cpu"))
    for loss, correct, targets in (([3.0, 1.0], [1, 0], 2), ([5.0, 3.0], [2, 1], 6)):
        sums.add(Output(torch.empty(0), torch.tensor(loss), torch.tensor(correct), torch.tensor(targets)))
    with open_world():
        loss, level_loss, accuracy, targets = sums.take()
        assert (loss, level_loss, accuracy, targets) == (1.5, [1.0, 0.5], [3 / 8, 1 / 8], 8)
        assert sums.take()[3] == 0


def test_the_stopwatch_counts_waiting_and_not_working() -> None:
    def slow() -> object:
        for item in range(3):
            time.sleep(0.02)
            yield item

    watch = Stopwatch()
    for _ in watch.timed(slow()):
        time.sleep(0.05)
    assert 0.06 <= watch.seconds < 0.15
