"""The benchmark of sharding on tables of nothing: that it measures, and that what must be exact is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import sharding
from benchmarks.harness import Findings
from benchmarks.sharding_prediction import Job, run_jobs, towers
from benchmarks.sharding_price import all_of_it, train_alike
from benchmarks.sharding_ranks import LIVE_ONLY, on_ranks
from benchmarks.sharding_tables import Size
from data.event_store import EventStore
from model.config import ItemTableConfig, ModelConfig
from sharding.planning.policy import ShardingConfig, TablePolicies, TablePolicy
from sharding.planning.traffic import STAGES
from sharding.planning.workload import DenseModel
from sharding.world import World, open_world

SIZE = Size(rows=1680 * 8, bags=64, repeats=2, catalogues=(5000, 20))
TINY = {"width": 16, "blocks": 1, "heads": 1, "head_dim_qk": 8, "head_dim_v": 8, "max_history": 50}
COLUMNS = {name: TablePolicy(sharding="table-wise") for name in ("artist_quotient", "artist_remainder", "event_type")}
JOBS = [
    Job("as configured", ModelConfig(**TINY, items=ItemTableConfig(kind="vocabulary")), 512),
    Job(
        "cut by columns",
        ModelConfig(**TINY),
        512,
        sharding=ShardingConfig(tables=TablePolicies(rq=TablePolicy(sharding="column-wise", columns=4), **COLUMNS)),
    ),
]


def everything(world: World, folder: str, dense: list[DenseModel]) -> dict[str, Any]:
    """All that runs on ranks, in one start of them."""
    return all_of_it(world, SIZE, folder, (500, 16)) | {"prediction": run_jobs(world, f"{folder}/store", JOBS, dense)}


def test_it_measures_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "USERS", 60)
    monkeypatch.setattr(sharding, "ITEMS", 3000)
    store = sharding.make_store(tmp_path)
    dense = towers(JOBS, EventStore.open(store, verify=False))
    by_rank = on_ranks(2, LIVE_ONLY, everything, str(tmp_path), dense)
    with open_world() as world:
        train_alike(world, str(tmp_path), 500, 16)
    findings = Findings()
    jobs = [[own["prediction"][index] for own in by_rank] for index in range(len(JOBS))]
    sharding.report_prediction({2: jobs}, findings)
    sharding.report_price(by_rank[0]["price"], SIZE, findings)
    sharding.report_precisions([own["precisions"] for own in by_rank], findings)
    sharding.report_items([own["items"] for own in by_rank], SIZE, findings)
    sharding.report_alike(tmp_path, findings)
    figures = findings.figures
    assert figures["parameter_bytes_error"] == 0
    assert figures["alltoall_bytes_error"] < 0.1, "of small batches, whose ids are not even"
    for by_stage in (own["sent"] for job in jobs for own in job):
        assert min(by_stage.values()) > 0, "a stage has not been counted"
    assert set(jobs[0][0]["sent"]) == {f"{kind}.{stage}" for kind in ("bags", "rows") for stage in STAGES}
    assert 0 < figures["peak_memory_error"] < 1, "of a few MB, where everything counts"
    assert figures["rows_per_s_ratio_vs_single_process"] > 0
    assert figures["dedup_bytes_saved_little_repetition"] < figures["dedup_bytes_saved"] < 1
    assert figures["dedup_bytes_saved"] > 0.5, "20 items make up 64 tokens"
    assert 1e-5 < figures["float16_error"] < 1e-3 < figures["bfloat16_error"] < 2e-2
    assert 1e-4 < figures["int8_error"] < 2e-2
    assert figures["item_rows_per_s_vocabulary"] > 0
    assert figures["item_rows_per_s_hashed"] > 0
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert figures["max_table_difference"] < 1e-6, "another order of sums, and nothing else"
    assert [title for title, _ in findings.sections][-1] == "The same tables"
