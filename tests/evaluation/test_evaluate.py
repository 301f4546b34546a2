"""The entry point, on a checkpoint of an untrained model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import parse
from common.storage import LocalStorage
from data.event_store import EventStore
from evaluation import evaluate
from evaluation.config import EvaluateConfig
from evaluation.outputs import read_ranks, write_ranks
from model.config import ModelConfig
from semantic_ids import fit
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.manifest import MANIFEST, encode_manifest, read_manifest
from serving.engines.exact import ExactEngine
from sharding.world import World, open_world
from tests.checkpoint_example import write_untrained
from tests.conftest import Prepared
from tests.evaluation.helpers import make_store
from tests.ranks import run_on_ranks

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
    assert evaluate.main([f"run={run}", "bootstrap=50", "tokens=200", "engines=[exact,beam,faiss,hybrid]"]) == 0
    out = capsys.readouterr().out
    written: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    store = EventStore.open(prepared.store)
    assert (written["split"], written["protocol"]) == ("leave-last-out", "next")
    assert written["users"] == written["requests"] == int((np.diff(store.offsets) >= 3).sum())
    assert written["items"] == written["depth"] == store.num_items
    assert written["checkpoint"] == STEP
    assert len(written["level_accuracy"]) == 2
    assert list(written["engines"]) == ["exact", "beam", "faiss", "hybrid", "mostpop"]
    assert written["engine"] == "exact"
    for name, figures in written["engines"].items():
        for metric, (low, high) in figures["intervals_95"].items():
            assert low <= figures[metric] <= high, (name, metric)
        for metric in ("ndcg@10", "hr@10", "mrr"):
            assert 0 <= figures[metric] <= 1
            assert f"{figures[metric]:.4f}" in out
        assert figures["seconds_per_request"] > 0
    assert {name: written[name] for name in ("ndcg@10", "mrr")} == {
        name: written["engines"]["exact"][name] for name in ("ndcg@10", "mrr")
    }
    assert written["engines"]["hybrid"]["overlap"]["10"] == pytest.approx(1)  # of so few items all are candidates
    assert written["ndcg@10_over_mostpop"] == pytest.approx(
        written["ndcg@10"] / written["engines"]["mostpop"]["ndcg@10"]
    )
    assert {row["segment"] for row in written["segments"]} >= {"training plays of the target"}
    assert set(written["calibration"]["lists"]) == {"top@1", "top@10", "top@100"}
    assert {one["name"]: one["verdict"] for one in written["guardrails"]}["target leakage"] == "pass"
    assert f"{written['hr@10']:.4f}" in (run / "report.html").read_text()
    assert not (run / ".evaluating").exists()


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
    ranks = read_ranks(run / "ranks-validation.parquet")
    assert ranks.targets.items_T.tolist() == asked.tolist()
    assert ranks.about["events"] == "validation"


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
    first, again, others = (without_times(one) for one in written)
    assert first == again
    for name, figures in first["engines"].items():
        for metric in ("ndcg@10", "hr@10", "recall@10", "mrr", "novelty@10", "gini@10"):
            assert others["engines"][name][metric] == pytest.approx(figures[metric], abs=1e-9)


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    for figures in summary["engines"].values():
        del figures["seconds_per_request"]
    return summary


def test_two_ranks_write_what_one_writes(run: Path, trained: Path, tmp_path: Path) -> None:
    """To the last digit where tables are whole; of sharded ones, sums may be rounded otherwise."""
    keys = ["bootstrap=20", "tokens=200", "baselines=[mostpop,item_knn]"]
    assert evaluate.main([f"run={run}", *keys]) == 0
    spread = shutil.copytree(trained, tmp_path / "spread")
    assert run_on_ranks(2, evaluate_here, [f"run={spread}", *keys]) == [0, 0]
    alone, together = (without_times(json.loads((one / "metrics.json").read_text())) for one in (run, spread))
    assert alone == together
    assert read_ranks(run / "ranks.parquet").places.keys() == read_ranks(spread / "ranks.parquet").places.keys()
    assert run_on_ranks(2, evaluate_here, [f"run={spread}", "tables=sharded", *keys]) == [0, 0]
    sharded = json.loads((spread / "metrics.json").read_text())
    assert sharded["ndcg@10"] == pytest.approx(alone["ndcg@10"], abs=1e-6)


def evaluate_here(world: World, keys: list[str]) -> int:
    """Within a group that there is already."""
    config = parse("evaluation.evaluate", "evaluate", EvaluateConfig, keys)[0]
    evaluate.evaluate_in(config, world)
    return 0


def test_a_run_is_held_against_another(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The untrained model against one that knows: status 3, and everything is written all the same."""
    better = shutil.copytree(trained, tmp_path / "better")
    assert evaluate.main([f"run={better}", "bootstrap=20"]) == 0
    ranks = read_ranks(better / "ranks.parquet")
    places = {name: np.ones_like(places_T) for name, places_T in ranks.places.items()}
    write_ranks(better / "ranks.parquet", dataclasses.replace(ranks, places=places).evaluation(10), ranks.about)
    capsys.readouterr()
    assert evaluate.main([f"run={run}", "bootstrap=20", f"against={better}", "--json"]) == 3
    out, error = capsys.readouterr()
    assert f"evaluation.evaluate: worse than {better}: " in error
    assert "ndcg@10 fell from 1.0000 to" in error
    summary = json.loads(out.splitlines()[-1])
    assert summary["against"]["requests"] == summary["requests"]
    written = json.loads((run / "metrics.json").read_text())
    assert {one["name"]: one["verdict"] for one in written["guardrails"]}["against the reference run"] == "fail"
    assert evaluate.main([f"run={run}", "bootstrap=20", f"against={run}"]) == 0


def test_only_evaluations_of_the_same_are_compared(
    run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    assert "ranks.parquet: no such file" in fault(capsys, run, f"against={other}")
    assert evaluate.main([f"run={other}", "bootstrap=5", "filter_history=false"]) == 0
    message = fault(capsys, run, f"against={other}")
    assert "its filter_history is False, here it is True" in message


def test_what_is_denied_is_not_returned(run: Path, prepared: Prepared, tmp_path: Path) -> None:
    store = EventStore.open(prepared.store)
    assert evaluate.main([f"run={run}", "bootstrap=5"]) == 0
    asked = np.unique(read_ranks(run / "ranks.parquet").targets.items_T)
    denied = asked[: len(asked) // 2]
    (tmp_path / "deny.txt").write_text("\n".join(store.item_ids.take(denied.tolist()).to_pylist()))
    assert evaluate.main([f"run={run}", "bootstrap=5", f"deny={tmp_path / 'deny.txt'}"]) == 0
    assert json.loads((run / "metrics.json").read_text())["denied"] == len(denied)
    ranks = read_ranks(run / "ranks.parquet")
    for name, places_T in ranks.places.items():
        assert (places_T[np.isin(ranks.targets.items_T, denied)] == 0).all(), name
    assert (ranks.places["mostpop"] > 0).any()


def test_an_evaluation_that_was_ended_goes_on(
    run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["bootstrap=5", "tokens=60"]
    whole = shutil.copytree(trained, tmp_path / "whole")
    assert evaluate.main([f"run={whole}", *keys]) == 0
    calls = []
    retrieve = ExactEngine.retrieve

    def ended(self: ExactEngine, query: Any, k: int) -> Any:
        calls.append(k)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return retrieve(self, query, k)

    monkeypatch.setattr(ExactEngine, "retrieve", ended)
    assert evaluate.main([f"run={run}", *keys]) == 130
    assert not (run / "metrics.json").exists()
    assert evaluate.main([f"run={run}", *keys]) == 0
    first, again = (without_times(json.loads((one / "metrics.json").read_text())) for one in (whole, run))
    assert first == again
    begun = len(calls)
    assert evaluate.main([f"run={run}", *keys]) == 0
    assert len(calls) - begun == begun - 1, "two bins were not computed again"


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


@pytest.mark.parametrize(
    "setting",
    ["depth=10", "engines=[bean]", "engines=[exact,exact]", "protocol=daily", "bootstrap=0", "tokens=0", "depht=10"],
)
def test_settings_that_break_a_rule(run: Path, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert setting.split("=")[0] in fault(capsys, run, setting)
