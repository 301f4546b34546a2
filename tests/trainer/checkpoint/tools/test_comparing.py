"""What changed between two checkpoints, against whole tables held in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from common.storage import open_storage
from serving.checkpoints.chain import Checkpoints
from sharding.tables import table_shards
from sharding.world import open_world
from tests.checkpoint_example import ROWS, WIDTH, gathered, restore, save, train_rows, two_tables, watch, write_chain
from trainer.checkpoint.__main__ import main
from trainer.checkpoint.tools import folding


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "BLOCK_BYTES", 9 * 4 * WIDTH)


def diff(capsys: pytest.CaptureFixture[str], path: Path, first: str, second: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["diff", str(path), first, second, "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    facts: dict[str, Any] = json.loads(last)
    for name in (*facts["tables"], *facts["dense"]):
        assert any(line.startswith(name) for line in text)
    return facts


def expected_changes(path: Path, first: str, second: str) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    with open_world() as world:
        models = [restore(world, path, name) for name in (first, second)]
        old, new = (gathered(table_shards(model)) for model in models)
        dense = [dict(model.module.top.state_dict()) for model in models]
    tables = {}
    for name in old:
        moved = (new[name] - old[name]).abs()
        rows = moved.amax(dim=1) > 0
        tables[name] = {
            "rows": len(moved),
            "changed": int(rows.sum()),
            "share": float(rows.double().mean()),
            "largest": float(moved.max()),
            "mean": float(moved[rows].double().mean()) if rows.any() else 0.0,
        }
    norms = {
        f"top.{name}": float((dense[1][name] - value).double().norm() / value.double().norm())
        for name, value in dense[0].items()
    }
    return tables, norms


def stored_rows(path: Path, names: list[str]) -> dict[str, int]:
    """Different rows in the files of deltas."""

    found: dict[str, set[int]] = {name: set() for name in ROWS}
    for link in Checkpoints(open_storage(path)).links():
        for shard in link.manifest.shards if link.name in names else []:
            with safe_open(str(path / link.name / shard.tables), framework="pt") as file:
                found[shard.table] |= set(file.get_tensor(f"{shard.key}.rows").tolist())
    return {name: len(rows) for name, rows in found.items()}


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_it_measures_what_whole_tables_show(tmp_path: Path, capsys: pytest.CaptureFixture[str], values: str) -> None:
    path = tmp_path / "checkpoints"
    with open_world() as world:
        write_chain(world, path, 4, values=values)
    first, second = "step-00000010", "step-00000030"
    tables, dense = expected_changes(path, first, second)
    stored = stored_rows(path, ["step-00000020", "step-00000030"])
    assert 0 < tables["large"]["changed"] < ROWS["large"]
    found = diff(capsys, path, "10", second)
    assert (found["from"], found["to"]) == (first, second)
    assert found["dense"] == pytest.approx(dense)
    backwards = diff(capsys, path, "30", "10")
    for name, expected in tables.items():
        measured = found["tables"][name]
        assert measured.pop("stored") == backwards["tables"][name].pop("stored") == stored[name]
        assert measured == pytest.approx(expected)
        assert measured == backwards["tables"][name]
    nothing = diff(capsys, path, "latest", "40")
    for name, measured in nothing["tables"].items():
        assert measured == {"rows": ROWS[name], "changed": 0, "stored": 0, "largest": 0, "mean": 0, "share": 0}
    assert set(nothing["dense"].values()) == {0}


def test_rows_that_were_looked_up_need_not_have_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints"
    with open_world() as world:
        model = two_tables(world)
        checkpointer = watch(model, world, path, chain_share=1e9)
        save(checkpointer, 10)
        checkpointer.touched.mark(checkpointer_index(checkpointer, "large"), torch.tensor([3, 4, 60]))
        checkpointer.shards[checkpointer_index(checkpointer, "large")].weight_RD[4, 1] += 0.5
        save(checkpointer, 20)
    large = diff(capsys, path, "10", "20")["tables"]["large"]
    assert (large["changed"], large["stored"]) == (1, 3)
    assert (large["largest"], large["mean"]) == pytest.approx((0.5, 0.5 / WIDTH))


def checkpointer_index(checkpointer: Any, table: str) -> int:
    return next(index for index, shard in enumerate(checkpointer.shards) if shard.table == table)


def test_checkpoints_that_no_deltas_lead_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints"
    with open_world() as world:
        write_chain(world, path, 4, base_every=20)
    tables, _ = expected_changes(path, "step-00000020", "step-00000040")
    found = diff(capsys, path, "20", "40")["tables"]
    for name, expected in tables.items():
        assert found[name].pop("stored") is None
        assert found[name] == pytest.approx(expected)


def test_checkpoints_of_two_models_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints"
    with open_world() as world:
        write_chain(world, path, 1)
        monkeypatch.setitem(ROWS, "large", 62)
        model = two_tables(world)
        train_rows(model, world, 20)
        save(watch(model, world, path), 20)
    capsys.readouterr()
    assert main(["diff", str(path), "10", "20"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "table `large` is [61, 8] there and [62, 8] in step-00000020" in error
    assert "small" not in error
