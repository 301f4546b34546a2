"""Trainings of models that predict actions where something is wrong, or other than before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evaluation import evaluate
from evaluation.config import EvaluateConfig
from evaluation.ranking.evaluate import OF_LISTS
from evaluation.ranking.predictor import RankingValidation
from evaluation.ranking.streaming import FOLDER
from model.task_heads import TaskHeads
from tests.conftest import Prepared
from tests.trainer.test_ranking import RANKING, STREAM
from tests.trainer.test_train import NO_DROPOUT, parameters, records, train_here

HEADS = "tower.heads."
EACH = ["epochs=4", "patience=1", "validate_every=1"]
STILL = ["max_steps=1", "optimizer.learning_rate=0.0", "optimizer.sparse_learning_rate=0.0", "batch.tokens=80"]


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train_here(prepared, run, *RANKING, *NO_DROPOUT, "batch.tokens=80", "max_steps=4") == 0
    return run


@pytest.fixture(scope="module")
def retrieving(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("retrieving") / "run"
    assert train_here(prepared, run, *NO_DROPOUT, "max_steps=2") == 0
    return run


def swapped(tasks: str) -> str:
    first, second, third = tasks.strip("[]").split(",")
    return f"[{second},{first},{third}]"


def test_heads_of_other_tasks_begin_anew_and_it_is_said(
    prepared: Prepared, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By shape alone one task's head would be another's."""
    others = [RANKING[0], swapped(RANKING[1].partition("=")[2]), *RANKING[2:]]
    others[1] = f"model.output.actions.tasks={others[1]}"
    assert train_here(prepared, tmp_path / "fresh", *others, *STILL) == 0
    capfd.readouterr()
    assert train_here(prepared, tmp_path / "other", *others, *STILL, f"start_from={trained}") == 0
    told = capfd.readouterr().err
    assert "heads begin anew: its tasks are ['listened: played_ratio >= 50', 'like: event_type is like'" in told
    fresh, found, theirs = (parameters(run) for run in (tmp_path / "fresh", tmp_path / "other", trained))
    for name, value in found.items():
        assert torch.equal(value, (fresh if name.startswith(HEADS) else theirs)[name]), name
    assert train_here(prepared, tmp_path / "same", *RANKING, *STILL, f"start_from={trained}") == 0
    assert "anew" not in capfd.readouterr().err
    assert all(torch.equal(value, theirs[name]) for name, value in parameters(tmp_path / "same").items())


@pytest.mark.parametrize("parts", ["tables", "all"])
def test_actions_made_otherwise_begin_anew(
    prepared: Prepared, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], parts: str
) -> None:
    """Event types and buckets share a table: row 3 is another action where there are other buckets."""
    keys = [*RANKING, *STILL, f"start_parts={parts}", f"start_from={trained}"]
    assert train_here(prepared, tmp_path / "run", *keys, "model.output.actions.played_buckets=12") == 0
    assert "table `event_type` begins anew: the first 60 of this store's 70 event types" in capfd.readouterr().err


def test_a_retrieval_run_gives_what_it_has_to_a_ranking_one(
    prepared: Prepared, retrieving: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    merged = [*RANKING, "model.output.actions.form=merged", "model.attention.normalise_by=max"]
    assert train_here(prepared, tmp_path / "run", *merged, *STILL, f"start_from={retrieving}") == 0
    told = capfd.readouterr().err
    assert "heads begin anew: its output is codes there" in told
    assert "table `event_type` begins anew" in told
    theirs, found = parameters(retrieving), parameters(tmp_path / "run")
    assert torch.equal(found["rq"], theirs["rq"])


def test_a_gain_that_rises_from_far_below_is_an_improvement(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gains = iter([-3.0, -2.5, -2.0, -2.2])
    monkeypatch.setattr(RankingValidation, "__call__", lambda self: {"gain": next(gains)})
    assert train_here(prepared, tmp_path / "run", *RANKING, "batch.tokens=80", *EACH) == 0
    told = capfd.readouterr().err
    assert [record["gain"] for record in records(tmp_path / "run", "validation")] == [-3.0, -2.5, -2.0, -2.2]
    assert told.count("best so far") == 3
    assert "no improvement in 1 validations: training ends" in told


def test_a_training_that_diverges_in_a_stream_ends_as_any_other(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [*RANKING, *STREAM, "batch.tokens=80", "log_every=1000", "validate_every=1000"]
    rates = ["optimizer.learning_rate=1e18", "optimizer.sparse_learning_rate=1e18", "optimizer.clip_norm=0"]
    assert train_here(prepared, tmp_path / "run", *keys, *rates) == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert len(list((tmp_path / "run" / FOLDER).iterdir())) == 1, "only what the first model predicted is there"


def test_predictions_that_are_no_numbers_are_refused(
    prepared: Prepared, trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(self: TaskHeads, logits_TK: torch.Tensor) -> torch.Tensor:
        return logits_TK.clone().index_fill_(0, torch.tensor([0]), torch.nan)

    monkeypatch.setattr(TaskHeads, "predictions", broken)
    assert evaluate.main([f"run={trained}", "bootstrap=10"]) == 2
    assert "predictions are no finite numbers, the first of them that of event" in capfd.readouterr().err
    assert not (trained / "predictions.parquet").exists()


def test_what_a_killed_evaluation_left_is_ours(prepared: Prepared, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".evaluating" / "evaluate").mkdir(parents=True)
    for name in (".predictions.parquet.writing-x1y2", ".ranks-validation.parquet.writing-ab", "predictions.parquet"):
        (run / name).write_text("torn")
    assert train_here(prepared, run, *RANKING, "batch.tokens=80", "max_steps=1", "overwrite=true") == 0
    assert not [path.name for path in run.iterdir() if "evaluating" in path.name or "parquet" in path.name]


READ = {
    *("run", "checkpoint", "checkpoints", "events", "store", "codes", "tokens", "tables", "whole_tables_gb"),
    *("attention_backend", "bootstrap", "seed", "against", "timeout_s"),
}


def test_every_option_of_an_evaluation_is_read_or_refused() -> None:
    assert {field.name for field in dataclasses.fields(EvaluateConfig)} == READ | set(OF_LISTS)


def told_of(run: Path, capfd: pytest.CaptureFixture[str], *keys: str) -> str:
    capfd.readouterr()
    assert evaluate.main([f"run={run}", "bootstrap=10", *keys]) == 2
    return capfd.readouterr().err


def test_what_cannot_be_compared_is_told(
    prepared: Prepared, trained: Path, retrieving: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for run in (trained, retrieving):
        assert evaluate.main([f"run={run}", "bootstrap=10"]) == 0
    told = told_of(trained, capfd, f"against={retrieving}")
    assert f"{retrieving}: retrieves items, and the run to be evaluated predicts actions" in told
    told = told_of(retrieving, capfd, f"against={trained}")
    assert f"{trained}: predicts actions, and the run to be evaluated retrieves items" in told
    assert "`restart` is about lists" in told_of(trained, capfd, "restart=true")
    other = tmp_path / "other"
    one_task = [RANKING[0], "model.output.actions.tasks=['like: event_type is like']"]
    assert train_here(prepared, other, *one_task, *STILL) == 0
    assert f"{trained}/predictions.parquet: its tasks are" in told_of(other, capfd, f"against={trained}")
    (other / "predictions.parquet").write_text("not Parquet")
    told = told_of(trained, capfd, f"against={other}")
    assert "cannot be read as predictions" in told
    assert "Traceback" not in told


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
