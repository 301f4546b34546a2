from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from benchmarks import ablate, harness
from benchmarks.ablate import Difference, compare, picture
from evaluation.guardrails.ablations import read_ablations
from tests.conftest import Prepared
from tests.ranks import run_module


def test_a_difference_is_found_only_where_there_is_one() -> None:
    random = np.random.default_rng(0)
    users = random.random((3, 400))  # how hard each user is, for all variants alike
    scores = {
        "first": users,
        "same": users + 0.05 * random.normal(size=users.shape),
        "better": users + 0.02 + 0.05 * random.normal(size=users.shape),
    }
    first, same, better = compare(scores, "test")
    assert (first.difference, first.low, first.high) == (0.0, 0.0, 0.0)
    assert same.low < 0 < same.high
    assert 0 < better.low < better.difference < better.high
    assert better.difference == pytest.approx(0.02, abs=0.01)
    # Paired: the spread of users, far larger than the difference, does not count.
    assert better.high - better.low < 0.02


def test_the_picture_shows_every_variant() -> None:
    shown = [
        Difference(name, events, 0.1, value, value - 0.02, value + 0.02)
        for events in ("validation", "test")
        for name, value in (("a < b", 0.0), ("worse", -0.05))
    ]
    root = ElementTree.fromstring(picture(shown, "HR@10"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "worse", "validation events", "test events", "difference of HR@10, 95% interval"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4 + 2  # and the legend


def test_variants_are_trained_compared_and_not_trained_again(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One has a code table of its own. Only its fitting is called as users call it: importing takes seconds."""
    call_for_real = ablate._call

    def call(arguments: list[str]) -> None:
        flag, entry, *keys = arguments
        if entry == "semantic_ids.fit":
            call_for_real(arguments)
        else:
            assert flag == "-m"
            assert run_module(entry, *keys) == 0

    monkeypatch.setattr(ablate, "_call", call)
    monkeypatch.setattr(ablate, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.harness.RESULTS", tmp_path)
    small = {"model": {"width": 16, "max_history": 16}, "batch": {"tokens": 256, "bins": 1}, "epochs": 2}
    config = tmp_path / "base.yaml"
    sections = {
        "fit_ids": {"store": str(prepared.store), "out": str(tmp_path / "unused"), "levels": 2, "codes": 8},
        "train": {"store": str(prepared.store), "codes": str(prepared.codes), **small},
    }
    config.write_text(yaml.safe_dump(sections))
    plan = {
        "config": str(config),
        "runs": str(tmp_path / "runs"),
        "at_once": 2,
        "stream": True,
        "keys": ["log_every=1"],
        "seeds": [0],
        "variants": {"plain": [], "no time": ["model.biases.time=false"]},
        "codes": {"no time": ["codes=4"]},
    }
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(plan))
    assert ablate.main(["--config", str(tmp_path / "pair.yaml")]) == 0
    kept = json.loads((tmp_path / "ablate-pair.json").read_text())
    lines = (tmp_path / "runs" / "plain-seed0" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["kind"] == "train" and row["step"] > 1]
    assert kept["figures"].pop("plain, loss in the stream") == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert kept["figures"].pop("no time, loss in the stream") > 0
    assert kept["figures"].keys() == {
        f"{name}, {events}" for name in ("plain", "no time") for events in ("validation", "test")
    }
    rows = read_ablations(tmp_path / "ablate-pair.json")
    assert {f"{row['variant']}, {row['events']}" for row in rows} == kept["figures"].keys()
    assert all(row["low"] <= row["difference"] <= row["high"] for row in rows)
    page = (tmp_path / "ablate-pair.md").read_text()
    assert f"they were trained at `{harness.commit()}`" in page
    assert "| no time |" in (tmp_path / "ablate-pair.md").read_text()
    assert (tmp_path / "ablate-pair.svg").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("ranks*.parquet")}
    assert len(before) == 4
    assert ablate.main(["--config", str(tmp_path / "pair.yaml")]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "NDCG@10" in capsys.readouterr().out
    own = tmp_path / "runs" / "no-time-codes"
    assert json.loads((own / "manifest.json").read_text())["codes"] == 4
    assert not (tmp_path / "unused").exists()
    runs = [tmp_path / "runs" / name / "config.yaml" for name in ("plain-seed0", "no-time-seed0")]
    assert [yaml.safe_load(run.read_text())["codes"] for run in runs] == [str(prepared.codes), str(own)]
