"""Models that predict actions, as users train and evaluate them: on any ranks, resumed, in a stream, compared."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data import prepare, series_writer
from data.batches import EventColumns
from data.event_store import EventStore
from data.ranking.config import ActionsConfig
from data.ranking.tasks import Labels
from data.schema import TIMESTAMP
from data.sequences import make_plan
from data.split import training_mask
from evaluation import evaluate
from evaluation.outputs import PREDICTIONS
from evaluation.ranking.files import read_predictions
from evaluation.ranking.logistic import columns_of
from evaluation.ranking.predictor import Predictor
from evaluation.ranking.streaming import FIGURES, FOLDER
from model.heads_config import HeadsConfig
from model.task_heads import TaskHeads
from semantic_ids import fit
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.model import features_of, find_chain, load_model, run_storage
from sharding.world import open_world
from tests.conftest import Prepared
from tests.evaluation.test_evaluate import evaluate_here
from tests.ranks import run_on_ranks
from tests.trainer.test_train import NO_DROPOUT, losses, parameters, records, train_here, train_on
from tests.yambda_example import write_yambda_example
from trainer import train

TASKS = "['listened: played_ratio >= 50','like: event_type is like','played: played_ratio / 100']"
RANKING = ["model.output.kind=actions", f"model.output.actions.tasks={TASKS}", "model.output.actions.hidden=8"]
PLAYED = "played: played_ratio / 100"
FORMS = ("interleaved", "merged", "interactions")
STREAM = ["batch.windows=stream", "batch.period_seconds=10000", "batch.predict_first=true", "epochs=100"]


def form(name: str) -> str:
    return f"model.output.actions.form={name}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each form on one rank."""
    folder = tmp_path_factory.mktemp("ranking")
    for name in FORMS:
        assert train_here(prepared, folder / name, *RANKING, *NO_DROPOUT, form(name), "batch.tokens=80") == 0
    return {name: folder / name for name in FORMS}


def evaluated(run: Path, *keys: str) -> dict[str, Any]:
    assert evaluate.main([f"run={run}", "bootstrap=20", *keys]) == 0
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("name", FORMS)
def test_every_form_learns_and_is_validated(runs: dict[str, Path], name: str) -> None:
    found = records(runs[name], "train")
    assert all(len(record["level_loss"]) == 3 for record in found)
    first, last = (np.mean([record["loss"] for record in part]) for part in (found[:3], found[-3:]))
    assert last < first
    validations = records(runs[name], "validation")
    assert len(validations) == 3
    assert {"gain", "like/ne", "listened/auc", "played/mse"} <= set(validations[-1])


def test_training_begins_at_the_mean_label(prepared: Prepared, tmp_path: Path) -> None:
    still = ["max_steps=1", "optimizer.learning_rate=0.0", "optimizer.sparse_learning_rate=0.0", "batch.tokens=80"]
    assert train_here(prepared, tmp_path / "run", *RANKING, *still) == 0
    store, found = EventStore.open(prepared.store), parameters(tmp_path / "run")
    columns = columns_of(store, ast.literal_eval(TASKS))
    labels_ET = columns.labels_ET[training_mask(store.offsets, store.split())]
    rates = torch.from_numpy(np.nanmean(labels_ET, axis=0))
    torch.testing.assert_close(found["tower.heads.bias_K"][:2].sigmoid(), rates[:2])
    torch.testing.assert_close(found["tower.heads.mean_K"], torch.tensor([0.0, 0.0, rates[2]]))
    spread = torch.tensor([1.0, 1.0, float(np.nanstd(labels_ET[:, 2]))])
    torch.testing.assert_close(found["tower.heads.deviation_K"], spread)


@pytest.mark.parametrize("name", ["interleaved", "merged"])
def test_two_ranks_train_the_model_of_one(runs: dict[str, Path], prepared: Prepared, tmp_path: Path, name: str) -> None:
    train_on(2, prepared, tmp_path / "two", *RANKING, *NO_DROPOUT, form(name), "batch.tokens=80")
    assert losses(tmp_path / "two") == pytest.approx(losses(runs[name]), rel=1e-4)
    expected, found = parameters(runs[name]), parameters(tmp_path / "two")
    for table, value in expected.items():
        torch.testing.assert_close(
            found[table], value, rtol=2e-3, atol=1e-4, msg=lambda text, table=table: f"{table}: {text}"
        )


@pytest.fixture(scope="module")
def with_series(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The like of `prepared`, with the artists that users preferred, by the hour: the log has less than a day."""
    folder = tmp_path_factory.mktemp("series")
    raw = write_yambda_example(folder / "raw", users=60, items=160, seed=1)
    made = Prepared(folder / "store", folder / "codes")
    keys = ["source=yambda", f"path={raw}", "kind=multi_event", f"out={made.store}", "preferred_artist_days=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_writer, "DAY", 600)
        assert prepare.main([*keys, "series=[preferred_artist]"]) == 0
    assert fit.main([f"store={made.store}", f"out={made.codes}", "levels=2", "codes=16"]) == 0
    return made


def test_series_are_read_alike_on_one_rank_and_two_and_in_evaluation(
    with_series: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    series = EventStore.open(with_series.store).series
    keys = [*RANKING, *NO_DROPOUT, form("merged"), "model.output.actions.series=4", "batch.tokens=90"]
    assert train_here(with_series, tmp_path / "one", *keys) == 0
    train_on(2, with_series, tmp_path / "two", *keys)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    expected, found = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    for table, value in expected.items():
        torch.testing.assert_close(
            found[table], value, rtol=2e-3, atol=1e-4, msg=lambda text, table=table: f"{table}: {text}"
        )
    assert len(expected["event_type"]) == 5 * 12 + series.num_values
    assert evaluated(tmp_path / "one")["predictions"] > 0
    plain = [key for key in keys if "series" not in key]
    assert train_here(with_series, tmp_path / "plain", *plain) == 0
    assert losses(tmp_path / "plain") != losses(tmp_path / "one")
    capfd.readouterr()
    one_step = ["max_steps=1", "start_checkpoint=latest"]
    assert train_here(with_series, tmp_path / "more", *keys, *one_step, f"start_from={tmp_path / 'plain'}") == 0
    assert "begins anew" not in capfd.readouterr().err  # actions keep their rows, values come behind them
    assert train_here(with_series, tmp_path / "fewer", *plain, *one_step, f"start_from={tmp_path / 'one'}") == 0
    assert "table `event_type` begins anew" in capfd.readouterr().err


def test_a_resumed_run_goes_the_way_of_the_uninterrupted_one(prepared: Prepared, tmp_path: Path) -> None:
    keys = [*RANKING, form("merged"), "batch.tokens=80", "epochs=4", "stochastic_length.alpha=1.6"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_here(prepared, whole, *keys) == 0
    assert train_here(prepared, cut, *keys, "max_steps=3", "batch.workers=1") == 0
    assert train_here(prepared, cut, *keys, "resume=true") == 0
    assert losses(cut) == losses(whole)
    expected, found = parameters(whole), parameters(cut)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_every_held_out_event_is_predicted_once_and_figures_are_written(
    runs: dict[str, Path], prepared: Prepared
) -> None:
    found = evaluated(runs["interleaved"])
    store = EventStore.open(prepared.store)
    test = store.split().test
    asked_U = test.asked_U & (test.start_U > 0)
    file = read_predictions(runs["interleaved"] / PREDICTIONS)
    assert file.predictions.events_n.tolist() == (store.offsets[:-1] + test.start_U)[asked_U].tolist()
    assert file.predictions.users_n.tolist() == np.flatnonzero(asked_U).tolist()
    assert found["predictions"] == asked_U.sum()
    assert list(found["models"]) == ["interleaved", "logistic"]
    probabilities = file.predictions.predicted_nT[:, :2]
    assert ((probabilities > 0) & (probabilities < 1)).all()
    like = store.event_types.index("like")
    events_n = file.predictions.events_n
    np.testing.assert_array_equal(file.predictions.labels_nT[:, 1], store.column("event_type")[events_n] == like)
    page = (runs["interleaved"] / "report.html").read_text()
    assert "How well actions are predicted" in page
    assert "logistic" in page


def test_runs_are_compared_event_by_event(runs: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    evaluated(runs["merged"])
    status = evaluate.main([f"run={runs['interactions']}", "bootstrap=20", f"against={runs['merged']}"])
    against = json.loads((runs["interactions"] / "metrics.json").read_text())["against"]
    assert {one["task"] for one in against["differences"]} >= {"played"}
    worse = [one for one in against["differences"] if one["verdict"] == "worse"]
    assert len(worse) == len(against["fallen"])
    assert status == (3 if worse else 0)
    itself = evaluated(runs["merged"], f"against={runs['merged']}")["against"]
    assert all(one["difference"] == one["low"] == one["high"] == 0 for one in itself["differences"])
    assert evaluate.main([f"run={runs['merged']}", "events=validation", f"against={runs['interleaved']}"]) == 2
    assert "predictions-validation.parquet: no such file" in capfd.readouterr().err


def test_two_ranks_write_what_one_writes(runs: dict[str, Path], tmp_path: Path) -> None:
    """To the last digit where tables are whole; of sharded ones, sums may be rounded otherwise."""
    keys = ["bootstrap=20", "tokens=100"]
    spread = shutil.copytree(runs["merged"], tmp_path / "spread")
    alone = evaluated(runs["merged"], *keys)
    assert run_on_ranks(2, evaluate_here, [f"run={spread}", *keys]) == [0, 0]
    assert json.loads((spread / "metrics.json").read_text()) == alone
    assert run_on_ranks(2, evaluate_here, [f"run={spread}", "tables=sharded", *keys]) == [0, 0]
    assert json.loads((spread / "metrics.json").read_text())["gain"] == pytest.approx(alone["gain"], abs=1e-5)


def test_what_is_about_lists_is_refused(runs: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={runs['merged']}", "engines=[beam]", "depth=200"]) == 2
    told = capfd.readouterr().err
    assert "2 faults" in told
    assert "`engines` is about lists" in told
    assert "`depth` is about lists" in told


def test_a_stream_is_predicted_before_it_is_learnt_from(prepared: Prepared, tmp_path: Path) -> None:
    """Every training event but a user's first is predicted once, in a resumed run as in one that was not ended."""
    keys = [*RANKING, *STREAM, "batch.tokens=80", "validate_every=1000"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_here(prepared, whole, *keys) == 0
    figures = json.loads((whole / FIGURES).read_text())
    store = EventStore.open(prepared.store)
    may_be_E = training_mask(store.offsets, store.split())
    may_be_E[store.offsets[:-1]] = False
    files = sorted((whole / FOLDER).iterdir())
    events = np.concatenate([read_predictions(path).predictions.events_n for path in files])
    assert np.sort(events).tolist() == np.flatnonzero(may_be_E).tolist()
    assert figures["predictions"] == len(events)
    assert figures["periods"] == len(files) == len(records(whole, "stream")) > 3
    places = [(record["step"], record["epoch"]) for record in records(whole, "stream")]
    for cut_at in (5, places[2][0]):  # within a period, and behind one
        assert train_here(prepared, cut, *keys, f"max_steps={cut_at}", "overwrite=true") == 0
        # Killed when the next period was predicted, but not learnt from.
        begun = [record for record in records(whole, "stream") if record["step"] == cut_at]
        with (cut / "metrics.jsonl").open("a") as file:
            file.writelines(f"{json.dumps(record)}\n" for record in begun)
        assert train_here(prepared, cut, *keys, "resume=true") == 0
        assert json.loads((cut / FIGURES).read_text()) == figures
        assert [(record["step"], record["epoch"]) for record in records(cut, "stream")] == places


def test_predictions_of_a_period_are_those_of_the_model_before_it(prepared: Prepared, tmp_path: Path) -> None:
    """Each period but the first, by the checkpoint from before it was learnt from, read back."""
    keys = [*RANKING, *STREAM, *NO_DROPOUT, "batch.tokens=80", "validate_every=1", "patience=0", "epochs=4"]
    run = tmp_path / "run"
    assert train_here(prepared, run, *keys, "checkpoint.keep=100") == 0
    before = {record["epoch"]: record["step"] for record in records(run, "stream")}
    assert len(before) >= 3
    store = EventStore.open(prepared.store)
    codes = CodeTable.open(prepared.codes, store)
    split, storage = store.split(), run_storage(run)
    plan = make_plan("stream", store.offsets, store.column("timestamp"), split, 32, seed=0, period_seconds=10_000)
    with open_world() as world:
        for period in sorted(before)[1:]:
            chain = find_chain(storage, f"step-{before[period]:08d}")
            model = load_model(storage, chain, world)
            features = features_of(store, codes, model.module.tower.cfg)
            found = Predictor(model, features, store, world, plan, tokens=80).predict(period)
            file = read_predictions(run / FOLDER / f"period-{period:05d}.parquet")
            assert found is not None
            assert np.array_equal(found.events_n, file.predictions.events_n)
            np.testing.assert_allclose(found.predicted_nT, file.predictions.predicted_nT, atol=1e-6)


def predicted(run: Path) -> list[np.ndarray]:
    """By period."""
    return [read_predictions(path).predictions.predicted_nT for path in sorted((run / FOLDER).iterdir())]


def test_no_label_is_known_before_its_period(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels from the third period on are turned round; what is predicted of the first three stays, bit for bit."""
    keys = [*RANKING, *STREAM, "batch.tokens=80", "validate_every=1000", "epochs=4"]
    assert train_here(prepared, tmp_path / "one", *keys) == 0
    honest, times_E = Labels.of, EventStore.open(prepared.store).column(TIMESTAMP)
    third = int(times_E.min()) + 2 * 10_000

    def turned(self: Labels, columns: EventColumns, at_n: np.ndarray) -> np.ndarray:
        labels_nT = honest(self, columns, at_n)
        return np.where(columns.timestamps[at_n][:, None] >= third, 1 - labels_nT, labels_nT)

    monkeypatch.setattr(Labels, "of", turned)
    assert train_here(prepared, tmp_path / "other", *keys) == 0
    before, after = predicted(tmp_path / "one"), predicted(tmp_path / "other")
    for period in range(3):
        np.testing.assert_array_equal(before[period], after[period])
    assert not np.allclose(before[3], after[3])
    assert np.allclose(before[0].mean(axis=0), [0.5, 0.5, 0], atol=0.3)  # of the first period nothing is known
    like_before, like_after = before[0][:, 1].mean(), before[1][:, 1].mean()
    assert like_after < 0.2 < like_before  # likes are rare, as the first period has told


def test_heads_know_nothing_until_they_begin() -> None:
    """Also those that were begun before, as of a run that was stopped before its first step."""
    heads = TaskHeads(HeadsConfig(kind="actions", actions=ActionsConfig(tasks=["a: event_type is like", PLAYED])), 4)
    heads.start_from(torch.tensor([0.1, 3.0]), torch.tensor([0.3, 2.0]))
    model: Any = SimpleNamespace(module=SimpleNamespace(tower=SimpleNamespace(heads=heads)))
    nothing: Any = None
    train._start_heads(nothing, nothing, model, nothing, nothing)
    assert [heads.bias_K.tolist(), heads.mean_K.tolist(), heads.deviation_K.tolist()] == [[0, 0], [0, 0], [1, 1]]


def test_a_resumed_run_looks_at_no_labels_on_the_whole(
    runs: dict[str, Path], prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where heads begin is in its checkpoint."""
    run = shutil.copytree(runs["merged"], tmp_path / "run")
    monkeypatch.setattr(train, "label_moments", None)
    keys = [*RANKING, *NO_DROPOUT, form("merged"), "batch.tokens=80"]
    assert train_here(prepared, run, *keys, "resume=true") == 0


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["batch.predict_first=true"], "which needs batch.windows=stream and model.output.kind=actions"),
        (["batch.negatives.count=4"], "`batch.negatives` means nothing with `model.output.kind` actions"),
        (["batch.tokens=64"], "`batch.tokens` is 64, less than the 65 tokens of a window"),
        (["model.output.actions.tasks=['like: event_type is liked']"], "the store has no event type 'liked'"),
        (["model.output.actions.series=3"], "has no slow series, but actions.series=3 asks for tokens of them"),
    ],
)
def test_faults(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str], keys: list[str], told: str
) -> None:
    assert train_here(prepared, tmp_path / "run", *RANKING, "batch.tokens=80", *keys) == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
