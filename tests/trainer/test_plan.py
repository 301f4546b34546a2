"""A training follows the plan of a dry run, says so in its folder, and refuses what is not for it before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharding.plan import main as plan_main
from sharding.planning.placement_file import read_placement
from tests.conftest import Prepared
from tests.trainer.test_train import NO_DROPOUT, SMALL, losses, train_here, train_on

KEYS = [*NO_DROPOUT, "epochs=1", "validate_every=1"]


def dry_run(prepared: Prepared, out: Path, *keys: str) -> Path:
    model = [key for key in SMALL if key.startswith("model.")]
    given = [f"store={prepared.store}", f"codes={prepared.codes}", "tokens=192", "topology=cpu", "ranks_per_node=2"]
    assert plan_main([*model, *given, f"out={out}", *keys]) == 0
    return out / "plan.json"


def test_two_ranks_follow_the_plan_of_a_dry_run(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = dry_run(prepared, tmp_path / "usual")
    cut = dry_run(prepared, tmp_path / "cut", "sharding.tables.rq.sharding=table-wise")
    train_on(2, prepared, tmp_path / "own", *KEYS)
    train_on(2, prepared, tmp_path / "run", *KEYS, f"sharding.plan={cut}")
    own, followed = (read_placement(tmp_path / run / "plan.json") for run in ("own", "run"))
    assert own == read_placement(usual), "the dry run and the job make the same plan"
    assert followed == read_placement(cut)
    assert followed.table("rq").sharding == "table-wise"
    assert len(followed.table("rq").ranks) == 1
    # Other owners of the rows, the same training.
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "own"), rel=1e-5)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train_here(prepared, tmp_path / "run", *KEYS, "overwrite=true", f"sharding.plan={cut}") == 2
    assert "is for 2 ranks, this job has 1" in capfd.readouterr().err
    assert train_here(prepared, tmp_path / "run", *KEYS, "overwrite=true", "sharding.tables.rq.kernel=uvm") == 2
    assert "which needs GPUs" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before, "an earlier run was touched before the plan was"
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["fits"]
