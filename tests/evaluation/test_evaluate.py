"""The entry point, on a checkpoint of an untrained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from common.storage import LocalStorage
from data.event_store import EventStore
from evaluation import evaluate
from evaluation import old_metrics as metrics
from model.config import ModelConfig
from semantic_ids import fit
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.manifest import MANIFEST, encode_manifest, read_manifest
from sharding.world import open_world
from tests.checkpoint_example import write_untrained
from tests.conftest import Prepared
from tests.evaluation.helpers import make_store

STEP = "step-00000007"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint."""
    run = tmp_path_factory.mktemp("runs") / "run"
    write_checkpoint(run, prepared.store, prepared.codes)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def write_checkpoint(run: Path, store: Path, codes: Path) -> None:
    cfg = ModelConfig(width=8, blocks=1, head_dim_qk=4, head_dim_v=4, max_history=20)
    with open_world() as world:
        write_untrained(run, world, store, codes, cfg, step=7)


def results(run: Path) -> list[str]:
    return [path.name for path in run.rglob("*") if "metrics" in path.name or "report" in path.name]


def fault(capsys: pytest.CaptureFixture[str], run: Path, *arguments: str) -> str:
    """The one message of an evaluation that is refused, and leaves nothing behind."""
    capsys.readouterr()
    assert evaluate.main([f"run={run}", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("evaluation.evaluate: ")
    assert error.count("\n") == 1
    assert results(run) == []
    return error


def test_it_writes_metrics_and_a_report(run: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={run}", "bootstrap=50", "tokens=200"]) == 0
    out = capsys.readouterr().out
    written: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    store = EventStore.open(prepared.store)
    assert written["protocol"] == "leave-last-out"
    assert written["users"] == int((np.diff(store.offsets) >= 3).sum())
    assert written["items"] == written["depth"] == store.num_items
    assert written["checkpoint"] == STEP
    assert len(written["level_accuracy"]) == 2
    for figures in (written, written["beam"], written["faiss"], written["mostpop"]):
        for name in metrics.NAMES:
            assert 0 <= figures[name] <= 1
            assert f"{figures[name]:.4f}" in out
        for name, (low, high) in figures["intervals_95"].items():
            assert low <= figures[name] <= high
    assert written["ndcg@10_over_mostpop"] == pytest.approx(written["ndcg@10"] / written["mostpop"]["ndcg@10"])
    assert f"{written['hr@10']:.4f}" in (run / "report.html").read_text()


def test_validation_events_are_another_set_of_files(run: Path, prepared: Prepared) -> None:
    assert evaluate.main([f"run={run}", "bootstrap=5", "events=validation", "filter_history=false"]) == 0
    assert sorted(path.name for path in run.glob("*validation*")) == [
        "metrics-validation.json",
        "ranks-validation.parquet",
        "report-validation.html",
    ]
    assert not (run / "metrics.json").exists()
    written = json.loads((run / "metrics-validation.json").read_text())
    assert (written["events"], written["filter_history"]) == ("validation", False)
    store = EventStore.open(prepared.store)
    held = store.split().validation
    asked = store.column("item")[store.offsets[:-1] + held.start_U][held.asked_U]
    ranks = pq.read_table(run / "ranks-validation.parquet")
    assert ranks["item"].to_pylist() == asked.tolist()
    assert "Held-out validation items" in (run / "report-validation.html").read_text()


def test_a_model_trained_on_gpus_is_evaluated_on_a_cpu_by_another_backend(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"run={run}", "bootstrap=5"]) == 0
    written = []
    for backend in ("jagged", "dense"):
        path = run / "checkpoints" / STEP / MANIFEST
        manifest = read_manifest(LocalStorage(run / "checkpoints"), STEP)
        manifest.model["attention"]["backend"] = "triton"
        path.write_bytes(encode_manifest(manifest))
        assert evaluate.main([f"run={run}", "bootstrap=5", f"attention_backend={backend}"]) == 0
        written.append(json.loads((run / "metrics.json").read_text()))
    assert written[0]["ndcg@10"] == pytest.approx(written[1]["ndcg@10"], abs=1e-6)
    for file in ("metrics.json", "report.html", "ranks.parquet"):
        (run / file).unlink()
    assert "or backend=jagged, which computes both" in fault(capsys, run, "attention_backend=flex")


def test_it_is_deterministic_whatever_the_batches_are(run: Path) -> None:
    written = []
    for tokens in (4096, 4096, 60):
        assert evaluate.main([f"run={run}", "bootstrap=20", f"tokens={tokens}", f"checkpoint={STEP}"]) == 0
        written.append(json.loads((run / "metrics.json").read_text()))
    assert written[0] == written[1]
    for engine in (
        lambda values: values,
        lambda values: values["beam"],
        lambda values: values["faiss"],
        lambda values: values["mostpop"],
    ):
        for name in metrics.NAMES:
            assert engine(written[2])[name] == pytest.approx(engine(written[0])[name], abs=1e-9)


def test_a_moved_store_may_be_named(run: Path, prepared: Prepared, tmp_path: Path) -> None:
    store, codes = (shutil.copytree(path, tmp_path / path.name) for path in (prepared.store, prepared.codes))
    assert evaluate.main([f"run={run}", f"store={store}", f"codes={codes}", "bootstrap=5"]) == 0


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fault(capsys, tmp_path / "absent")
    assert str(tmp_path / "absent" / "checkpoints") in message
    assert "python -m trainer.train" in message
    assert not (tmp_path / "absent").exists()


def test_a_checkpoint_that_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fault(capsys, run, "checkpoint=step-00000008")
    assert "step-00000008: no such checkpoint" in message
    assert STEP in message


def test_a_store_that_is_not_the_codes_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_store(tmp_path / "other", [[0, 1, 2, 3], [3, 2, 1]], 4)
    trained_with = read_manifest(LocalStorage(run / "checkpoints"), STEP).store_fingerprint
    message = fault(capsys, run, f"store={other.path}")
    assert other.fingerprint in message
    assert trained_with in message


def test_codes_that_the_model_was_not_trained_with(
    run: Path, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other_codes"
    assert fit.main([f"store={prepared.store}", f"out={other}", "levels=2", "codes=16", "seed=5"]) == 0
    store = EventStore.open(prepared.store)
    ours, theirs = CodeTable.open(prepared.codes, store).fingerprint, CodeTable.open(other, store).fingerprint
    assert ours != theirs
    message = fault(capsys, run, f"codes={other}")
    assert ours in message
    assert theirs in message


def test_a_checkpoint_whose_tensors_are_gone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tables,) = (run / "checkpoints" / STEP).glob("tables-*")
    tables.unlink()
    message = fault(capsys, run)
    assert f"{tables}: no such file" in message
    assert f"{STEP} cannot be restored" in message


def test_a_checkpoint_with_a_flipped_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dense,) = (run / "checkpoints" / STEP).glob("dense.*")
    content = bytearray(dense.read_bytes())
    content[len(content) // 2] ^= 1
    dense.write_bytes(content)
    message = fault(capsys, run)
    assert f"{dense}: its checksum is" in message


def test_damaged_training_records_leave_no_half_of_the_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text("torn\n{}\n")
    assert evaluate.main([f"run={run}", "bootstrap=5"]) == 2
    assert "line 1" in capsys.readouterr().err
    assert not (run / "metrics.json").exists()
    assert not (run / "report.html").exists()


def test_nobody_to_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", [[0, 1], [2, 3], [1, 2]] * 5, 4)
    codes = tmp_path / "codes"
    assert fit.main([f"store={store.path}", f"out={codes}", "levels=3", "codes=2"]) == 0
    write_checkpoint(tmp_path / "run", store.path, codes)
    assert "leave-last-out, holds out no test event of any of its 15 users" in fault(capsys, tmp_path / "run")


@pytest.mark.parametrize("setting", ["depth=10", "bootstrap=0", "tokens=0", "depht=10"])
def test_settings_that_break_a_rule(run: Path, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert setting.split("=")[0] in fault(capsys, run, setting)
