from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import RESULTS
from common.errors import InputError
from evaluation.guardrails.ablations import ablations, read_ablations
from evaluation.guardrails.base import INFO, PASS, WARN

FIRST = {"name": "first", "events": "validation", "value": 0.2, "difference": 0.0, "low": 0.0, "high": 0.0}


def row(name: str, difference: float, events: str = "validation", width: float = 0.01) -> dict[str, Any]:
    bounds = {"low": difference - width, "high": difference + width}
    return {"name": name, "events": events, "value": 0.2 + difference, "difference": difference, **bounds}


def page(folder: Path, content: Any) -> Path:
    path = folder / "page.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_differences_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [FIRST, row("a, b", -0.05), row("a, b", -0.02, "test")]
    found = read_ablations(page(tmp_path, {"figures": {"first, validation": 0.2}, "differences": rows}))
    assert found == [{"variant": one["name"], **{key: one[key] for key in one if key != "name"}} for one in rows]


def test_a_page_without_intervals_has_differences_to_the_first(tmp_path: Path) -> None:
    figures = {"x, test": 0.5, "no bias, none, test": 0.25, "x, loss in the stream": 7.0, "x, validation": 0.1}
    found = read_ablations(page(tmp_path, {"machine": {}, "figures": figures}))
    assert [(one["variant"], one["events"], one["difference"], one["low"]) for one in found] == [
        ("x", "test", 0.0, None),
        ("no bias, none", "test", -0.25, None),
        ("x", "validation", 0.0, None),
    ]
    assert ablations(found[:2]).verdict == INFO


def test_a_page_of_the_benchmark_can_be_read() -> None:
    found = read_ablations(RESULTS / "ablate-movielens-100k.json")
    assert {one["events"] for one in found} == {"validation", "test"}
    assert ablations(found).name == "ablations"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ([], "no `figures`"),
        ({"figures": {}}, "no variant"),
        ({"figures": {"x, test": "high"}}, "'high', which is no finite number"),
        ({"figures": {}, "differences": 7}, "no list"),
        ({"figures": {}, "differences": [{"name": "x"}]}, "difference 1: no events, value, difference, low, high"),
        ({"figures": {}, "differences": [FIRST, {**FIRST, "low": None}]}, "difference 2: .* no finite number"),
    ],
)
def test_what_is_no_such_page_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as told:
        read_ablations(page(tmp_path, content))
    assert "benchmarks.ablate" in str(told.value)


def test_a_page_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        read_ablations(tmp_path / "nowhere.json")


def test_only_a_variant_that_is_surely_better_on_validation_is_warned_of(tmp_path: Path) -> None:
    rows = [FIRST, row("worse", -0.05), row("about as good", 0.005), row("better in the test", 0.1, "test")]
    read = read_ablations(page(tmp_path, {"figures": {}, "differences": rows}))
    assert ablations(read).verdict == PASS
    read = read_ablations(page(tmp_path, {"figures": {}, "differences": [*rows, row("better", 0.02)]}))
    assert ablations(read).verdict == WARN
    assert "Better: better." in ablations(read).found
    assert ablations(None).verdict == INFO
    assert ablations(read[:1]).verdict == INFO
