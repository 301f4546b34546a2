from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchx_components.stages.catalogue import STAGES
from torchx_components.stages.finished import Finished

FIT_IDS = next(stage for stage in STAGES if stage.name == "fit_ids")
EVALUATE = next(stage for stage in STAGES if stage.name == "evaluate")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Of a fit that has been done, by hand."""
    for name, size in (("store/manifest.json", 10), ("codes/manifest.json", 10), ("codes/table.parquet", 2 << 20)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
    config = {
        "store": str(tmp_path / "store"),
        "out": str(tmp_path / "codes"),
        "refit_of": None,
        "rq_vae": {"width": 8},
    }
    done(config)
    return config


def done(config: dict[str, Any]) -> None:
    finished = Finished(FIT_IDS, config)
    finished.why_not()
    finished.keep()


def why_not(config: dict[str, Any]) -> str:
    return Finished(FIT_IDS, config).why_not()


def test_what_is_as_it_was_is_done(config: dict[str, Any], tmp_path: Path) -> None:
    assert why_not(config) == ""
    (tmp_path / "store" / "another file").touch()  # of a store, its manifest says what it is
    os.utime(tmp_path / "store" / "manifest.json", (0, 0))  # written again, the same
    assert why_not(config) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rq_vae": {"width": 16}}, "`rq_vae.width` was 8 and is 16"),
        ({"refit_of": "older"}, '`refit_of` was null and is "older"'),
        ({"new": 1}, "`new` was null and is 1"),
    ],
)
def test_a_changed_key(config: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    assert why_not(config | change) == reason


def _cut(path: Path) -> None:
    path.write_bytes(b"x")


def _touch(path: Path) -> None:
    os.utime(path, (0, 0))


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("store/manifest.json", _cut, "what `store` names"),
        ("store/manifest.json", Path.unlink, "what `store` names"),
        ("codes/manifest.json", _cut, "is not what was made"),
        ("codes/table.parquet", _cut, "is not what was made"),
        ("codes/table.parquet", _touch, "is not what was made"),  # too large to be read each time
        ("codes/table.parquet", Path.unlink, "is not what was made"),
        (".codes.fit_ids.json", Path.unlink, "not done before"),
        (".codes.fit_ids.json", _cut, "not done before"),
    ],
)
def test_a_changed_file(
    config: dict[str, Any], tmp_path: Path, file: str, change: Callable[[Path], None], reason: str
) -> None:
    change(tmp_path / file)
    assert reason in why_not(config)
    (tmp_path / "store" / "manifest.json").touch()
    done(config)
    assert why_not(config) == "", "and then it is done again"


def test_another_output(config: dict[str, Any], tmp_path: Path) -> None:
    assert why_not(config | {"out": str(tmp_path / "elsewhere")}) == "not done before"


def test_nothing_made_is_not_done(tmp_path: Path) -> None:
    config = {"out": str(tmp_path / "codes"), "store": ""}
    done(config)
    assert "is not what was made" in why_not(config)


def test_an_evaluation_of_validation_events_has_files_of_its_own(tmp_path: Path) -> None:
    config = {"run": str(tmp_path / "run"), "events": "validation"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics-validation.json").write_text("{}")
    finished = Finished(EVALUATE, config)
    finished.why_not()
    finished.keep()
    (tmp_path / "run" / "metrics.json").write_text("{}")  # of the test events
    assert finished.why_not() == ""
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")  # the run was trained further
    assert "what `run` names" in finished.why_not()


def test_a_log_named_by_a_glob(tmp_path: Path) -> None:
    prepare = next(stage for stage in STAGES if stage.name == "prepare")
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    config = {"path": str(tmp_path / "*.csv"), "out": str(tmp_path / "store")}
    finished = Finished(prepare, config)
    finished.why_not()
    finished.keep()
    assert finished.why_not() == ""
    (tmp_path / "b.csv").write_text("2")
    assert "what `path` names" in finished.why_not()
