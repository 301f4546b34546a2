"""Training on several ranks, resumed, repeated. Losses and parameters compared whole.

Under torchrun, as users start it: tests/trainer/test_restart.py.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import resolve
from data import prepare, synthesize
from data.event_store import EventStore
from evaluation import evaluate
from semantic_ids import fit
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import step_folder
from serving.checkpoints.model import dense_tensors, find_chain, load_model, run_storage
from sharding.apply import gather_table, sharded_tables
from sharding.world import open_world
from tests.conftest import Prepared
from tests.ranks import run_module, train_on_ranks
from tests.yambda_example import write_yambda_example
from trainer import train as train_module
from trainer.config import TrainConfig
from trainer.train import assembled, describe_precision, main

ROOT = Path(__file__).parents[2]
SMALL = [
    "epochs=6",
    "validate_every=2",
    "log_every=1",
    "seed=5",
    "model.width=16",
    "model.heads=2",
    "model.head_dim_qk=8",
    "model.head_dim_v=8",
    "model.max_history=32",
    "batch.tokens=64",
    "batch.bins=6",
    "batch.windows=tiled",
    "batch.shuffle_ties=true",
    "optimizer.warmup_steps=4",
    "optimizer.clip_norm=1.0",
]
NO_DROPOUT = ["model.dropout=0.0", "model.input_dropout=0.0"]


def train_on(ranks: int, prepared: Prepared, run: Path, *keys: str) -> None:
    """Train in a job of its own, but without torchrun, under which every rank takes seconds to import everything."""
    train_on_ranks(ranks, f"store={prepared.store}", f"codes={prepared.codes}", f"run={run}", *SMALL, *keys)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train")]


def parameters(run: Path) -> dict[str, Tensor]:
    """Every parameter of the newest checkpoint, tables whole, read by one process whatever wrote them."""
    with open_world() as world:
        storage = run_storage(run)
        model = load_model(storage, find_chain(storage, "latest"), world)
        tables = {name: gather_table(table, world) for name, table in sharded_tables(model).items()}
        dense = dense_tensors(model)
    return {name: value.clone() for name, value in (tables | dense).items() if value is not None}


@pytest.fixture(scope="module")
def two_ranks(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks, with dropout."""
    run = tmp_path_factory.mktemp("two") / "run"
    train_on(2, prepared, run)
    return run


def test_the_same_global_batches_on_one_two_and_three_ranks_train_the_same_model(
    prepared: Prepared, tmp_path: Path
) -> None:
    for ranks in (1, 2, 3):
        train_on(ranks, prepared, tmp_path / str(ranks), *NO_DROPOUT)
    one = losses(tmp_path / "1")
    assert len(one) >= 20
    assert one[-1] < 0.95 * one[0], "nothing was learnt, so equality would prove little"
    expected = parameters(tmp_path / "1")
    for ranks in (2, 3):
        assert losses(tmp_path / str(ranks)) == pytest.approx(one, rel=1e-5)
        found = parameters(tmp_path / str(ranks))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_two_runs_with_one_seed_are_bit_identical(two_ranks: Path, prepared: Prepared, tmp_path: Path) -> None:
    train_on(2, prepared, tmp_path / "again")
    assert losses(tmp_path / "again") == losses(two_ranks)
    again, once = parameters(tmp_path / "again"), parameters(two_ranks)
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_who_measures_steps_goes_through_those_of_a_training(prepared: Prepared, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("whole", "measured")}
    for name, run in places.items():
        keys = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={run}", *SMALL]
        with assembled(resolve(TrainConfig, "train", None, keys)) as (trainer, progress):
            if name == "whole":
                all_steps = trainer.train(progress).step
                continue
            for steps in (3, 4, all_steps - 7):
                trainer.advance(progress, steps)
            assert progress.step == all_steps > 7
            assert trainer.wait.in_all > 0
            assert not records(run, "validation")
    assert losses(places["measured"]) == losses(places["whole"])


@pytest.mark.parametrize("stop", ["max_steps=7", "max_steps=8"])
def test_a_resumed_run_goes_the_way_of_the_uninterrupted_one(
    two_ranks: Path, prepared: Prepared, tmp_path: Path, stop: str
) -> None:
    run = tmp_path / "run"
    train_on(2, prepared, run, stop)
    assert len(losses(run)) == int(stop.split("=")[1])
    train_on(2, prepared, run, "resume=true")
    assert losses(run) == losses(two_ranks)
    resumed, whole = parameters(run), parameters(two_ranks)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "keys",
    [
        ["batch.windows=stream", "batch.period_seconds=4000", "epochs=4"],
        ["batch.windows=sampled"],
        ["batch.windows=newest", "stochastic_length.alpha=1.5", "stochastic_length.selection=random"],
    ],
)
def test_every_plan_trains_resumes_and_may_be_loaded_ahead(prepared: Prepared, tmp_path: Path, keys: list[str]) -> None:
    keys = [*keys, "validate_every=6"]
    assert train_here(prepared, tmp_path / "whole", *keys) == 0
    assert len(losses(tmp_path / "whole")) > 4
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    assert train_here(prepared, tmp_path / "cut", *keys, "max_steps=3", "batch.workers=1") == 0
    assert train_here(prepared, tmp_path / "cut", *keys, "resume=true") == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "keys",
    [
        ["optimizer.accumulate=3"],
        ["optimizer.dense=muon", "optimizer.accumulate=2", "optimizer.weight_decay=0.01"],
        ["model.precision=bf16", "model.recompute=true"],
        ["model.architecture=sasrec", "model.attention.kind=softmax", "model.attention.scale=sqrt"],
    ],
)
def test_every_way_of_training_learns_repeats_and_resumes(prepared: Prepared, tmp_path: Path, keys: list[str]) -> None:
    if "model.architecture=sasrec" in keys:
        keys = [*keys, *(f"model.biases.{bias}=false" for bias in ("alibi", "time", "duration", "organic"))]
    keys = [*keys, "validate_every=6"]
    assert train_here(prepared, tmp_path / "whole", *keys) == 0
    assert losses(tmp_path / "whole")[-1] < 0.97 * losses(tmp_path / "whole")[0]
    assert train_here(prepared, tmp_path / "cut", *keys, "max_steps=7") == 0
    assert train_here(prepared, tmp_path / "cut", *keys, "resume=true") == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    resumed, whole = parameters(tmp_path / "cut"), parameters(tmp_path / "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_periods_in_which_nothing_happens_are_passed_over(prepared: Prepared, tmp_path: Path) -> None:
    keys = ["batch.windows=stream", "batch.period_seconds=60", "epochs=60", "validate_every=100"]
    assert train_here(prepared, tmp_path / "run", *keys) == 0
    epochs = {record["epoch"] for record in records(tmp_path / "run", "train")}
    assert 2 < len(epochs) < 60


def test_a_store_split_by_the_clock_is_trained_and_measured_by_its_own_split(tmp_path: Path) -> None:
    raw, store, codes, run = (tmp_path / name for name in ("raw", "store", "codes", "run"))
    small = ["users=60", "items=200", "median_history=60", "embedding_width=8", "days=20"]
    assert synthesize.main(["kind=yambda", f"out={raw}", *small]) == 0
    assert prepare.main(["source=yambda", f"path={raw}", "kind=listens", f"out={store}", "split.kind=yambda"]) == 0
    assert fit.main([f"store={store}", f"out={codes}", "levels=2", "codes=16"]) == 0
    assert train_here(Prepared(store, codes), run) == 0
    assert len(records(run, "validation")) == 3
    assert evaluate.main([f"run={run}", "bootstrap=20"]) == 0
    measured = json.loads((run / "metrics.json").read_text())
    assert measured["protocol"] == "yambda"
    asked = EventStore.open(store).split().test.asked_U
    assert 5 < measured["users"] == asked.sum() < 60


def test_a_split_without_validation_keeps_the_newest_checkpoint(tmp_path: Path) -> None:
    raw = write_yambda_example(tmp_path / "raw", users=60, items=160, seed=1)
    store, codes, run = tmp_path / "store", tmp_path / "codes", tmp_path / "run"
    keys = ["source=yambda", f"path={raw}", "kind=multi_event", f"out={store}", "split.kind=held-out-users"]
    assert prepare.main(keys) == 0
    assert fit.main([f"store={store}", f"out={codes}", "levels=2", "codes=16"]) == 0
    assert train_here(Prepared(store, codes), run) == 0
    assert records(run, "validation") == []
    assert find_chain(run_storage(run), "best") == find_chain(run_storage(run), "latest")


def test_another_seed_gives_another_run(two_ranks: Path, prepared: Prepared, tmp_path: Path) -> None:
    train_on(2, prepared, tmp_path / "other", "seed=6", "max_steps=3")
    assert losses(tmp_path / "other")[0] != losses(two_ranks)[0]


def test_a_run_leaves_what_it_promises(two_ranks: Path) -> None:
    assert (two_ranks / "config.yaml").is_file()
    assert list((two_ranks / "tensorboard").glob("events.*"))
    best = find_chain(run_storage(two_ranks), "best")[-1].name
    left = [path for path in (two_ranks / "checkpoints").rglob("*") if path.is_file()]
    for name in Checkpoints(run_storage(two_ranks)).names():
        listed = set(Checkpoints(run_storage(two_ranks)).link(name).manifest.files) | {"manifest.json"}
        assert {path.name for path in left if path.parent.name == name} == listed
    validations = records(two_ranks, "validation")
    assert len(validations) == 3
    chosen = max(validations, key=lambda record: record["ndcg@10"])
    assert step_folder(chosen["step"]) == best
    for record in records(two_ranks, "train"):
        assert sum(record["level_loss"]) == pytest.approx(record["loss"])


def train_here(prepared: Prepared, run: Path, *keys: str) -> int:
    return main([f"store={prepared.store}", f"codes={prepared.codes}", f"run={run}", *SMALL, *keys])


def test_faults_of_a_configuration_are_named_together(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(prepared, tmp_path / "run", "model.widht=8", "epochs=many", "batch.windows=latest") == 2
    message = capfd.readouterr().err
    for part in ("model.widht", "model.width", "epochs", "many", "batch.windows", "latest", "tiled"):
        assert part in message
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_one_message_and_leaves_no_part(
    prepared: Prepared, tmp_path: Path
) -> None:
    keys = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={tmp_path / 'run'}", *SMALL, "max_steps=1"]
    assert run_module(__name__, *keys, said=tmp_path / "said") == 2
    told = (tmp_path / "said.errors").read_text()
    faults = [line for line in told.splitlines() if line.startswith("trainer.train: ")]
    assert len(faults) == 1
    assert "cannot be written" in faults[0]
    assert "Traceback" not in told
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("overwrite", ["overwrite=true", "overwrite=false"])
def test_a_folder_that_is_not_a_run_is_never_emptied(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str], overwrite: str
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert train_here(prepared, tmp_path, overwrite) == 2
    assert "thesis.txt" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_logs_of_something_else_are_not_a_runs(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-00003.log").touch()
    (tmp_path / "logs" / "server.log").touch()
    assert train_here(prepared, tmp_path, "overwrite=true") == 2
    assert "logs/server.log" in capfd.readouterr().err
    (tmp_path / "logs" / "server.log").unlink()
    assert train_here(prepared, tmp_path, "overwrite=true", "max_steps=1") == 0
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["rank-00000.log"]


def test_starting_anew_removes_every_file_that_an_evaluation_left(prepared: Prepared, tmp_path: Path) -> None:
    left = ["metrics.json", "metrics-validation.json", "ranks-validation.parquet", "report-validation.html"]
    for name in left:
        (tmp_path / name).write_text("of the run before")
    assert train_here(prepared, tmp_path, "overwrite=true", "max_steps=1") == 0
    assert not [name for name in left if (tmp_path / name).exists()]


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (["batch.tokens=16"], ["batch.tokens", "16", "model.max_history", "32"]),
        (["batch.bins=0"], ["batch.bins", "at least 1"]),
        (["resume=true"], ["no checkpoint"]),
        (["store=nowhere"], ["nowhere"]),
    ],
)
def test_a_wrong_value_leaves_no_run_behind(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str], keys: list[str], parts: list[str]
) -> None:
    assert train_here(prepared, tmp_path / "run", *keys) == 2
    message = capfd.readouterr().err
    assert all(part in message for part in parts), message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_a_store_that_does_not_match_its_codes_is_refused_by_both_fingerprints(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = write_yambda_example(tmp_path / "raw", users=20, items=60, seed=9)
    assert prepare.main(["source=yambda", f"path={raw}", "kind=listens", f"out={tmp_path / 'other'}"]) == 0
    capfd.readouterr()
    assert train_here(prepared, tmp_path / "run", f"store={tmp_path / 'other'}") == 2
    message = capfd.readouterr().err
    for manifest in (prepared.store / "manifest.json", tmp_path / "other" / "manifest.json"):
        assert json.loads(manifest.read_text())["fingerprint"] in message
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_resumed_differently_by_accident(
    two_ranks: Path, prepared: Prepared, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in two_ranks.rglob("*"))
    assert train_here(prepared, two_ranks) == 2
    assert "overwrite=true" in capfd.readouterr().err
    assert train_here(prepared, two_ranks, "resume=true", "model.width=32", "optimizer.learning_rate=0.5") == 2
    message = capfd.readouterr().err
    assert "model.width=16" in message
    assert "optimizer.learning_rate" in message
    assert sorted(path.name for path in two_ranks.rglob("*")) == before


if __name__ == "__main__":  # on what is as good as a full disk: the kernel refuses files beyond 20 kB
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    sys.exit(main(sys.argv[1:]))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("has_products", [True, False])
def test_a_precision_that_is_made_up_is_told(
    precision: str, device: str, has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_products)
    monkeypatch.setattr(train_module, "library", lambda: None)
    config = resolve(TrainConfig, "train", None, ["store=s", "codes=c", "run=r", f"model.precision={precision}"])
    told = describe_precision(config, torch.device(device))
    slow = precision == "bf16" and device == "cpu" and not has_products
    assert ("set model.precision=float32" in told) == slow
    assert slow or told == ""
