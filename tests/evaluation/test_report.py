from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation import old_metrics as metrics
from evaluation.report import render_report
from tests.common.html_reader import Page


def figures(start: float) -> dict[str, Any]:
    values = {name: start + 0.001 * index for index, name in enumerate(metrics.NAMES)}
    intervals = {name: [value - 0.0002, value + 0.0003] for name, value in values.items() if "coverage" not in name}
    return {**values, "intervals_95": intervals}


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "protocol": "leave-last-out",
        "events": "test",
        "filter_history": True,
        "users": 943,
        "items": 1682,
        **figures(0.3),
        "beam": figures(0.25),
        "faiss": figures(0.2),
        "mostpop": figures(0.1),
        "ndcg@10_over_mostpop": 2.875,
        "level_accuracy": [0.11, 0.32],
        "checkpoint": "step-00000120",
        "epoch": 4,
        **changes,
    }


STRATA = {
    name: [metrics.Stratum("0–4", 10, 0.1), metrics.Stratum("5–9", 11, 0.2)]
    for name in ("exact", "beam", "faiss", "mostpop")
}
DIAGNOSTICS = {"levels": [{"utilisation": 1.0, "gini": 0.4, "relative_error": error} for error in (0.3, 0.1)]}


def train(step: int, loss: float = 2.0) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 2 * loss, "level_loss": [loss, loss]}


def validation(step: int) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "ndcg@10": 0.1, "hr@10": 0.2, "mrr": 0.1}


def render(run: Path, lines: list[str] | None, **changes: Any) -> str:
    run.mkdir(exist_ok=True)
    if lines is not None:
        (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return render_report(run, summary(**changes), STRATA, DIAGNOSTICS)


def records(*values: dict[str, Any]) -> list[str]:
    return [json.dumps(value) + "\n" for value in values]


def test_every_figure_and_chart_is_there(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", records(train(10), train(20), validation(20), train(30), validation(30))))
    for engine in (summary(), summary()["beam"], summary()["faiss"], summary()["mostpop"]):
        for name in metrics.NAMES:
            assert f"{engine[name]:.4f}" in page.texts
            if name in engine["intervals_95"]:
                low, high = engine["intervals_95"][name]
                assert f"{low:.4f}–{high:.4f}" in page.texts
    assert "2.88×" in page.text
    assert page.tags.count("svg") == page.tags.count("figcaption") == 6
    assert page.tags.count("polyline") == 2 + 3
    for words in ("943", "1,682", "step-00000120", "leave-last-out", "level 2", "0–4", "training plays"):
        assert words in page.text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    html = render(tmp_path / "run", records(train(10), validation(10)))
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import|javascript:", html)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = '<b onload="x">&amp; "run"'
    page = Page(render(tmp_path / name, None, checkpoint="<script>step"))
    assert "b" not in page.tags[:10]
    assert "script" not in page.tags
    assert page.texts.count(name) == 1
    assert "<script>step" in page.text


@pytest.mark.parametrize(
    "lines", [None, [], records(validation(5)), records(train(1)), records(train(1), validation(1))]
)
def test_short_and_empty_runs(tmp_path: Path, lines: list[str] | None) -> None:
    page = Page(render(tmp_path / "run", lines))
    kinds = {json.loads(line)["kind"] for line in lines or []}
    assert page.tags.count("svg") == 4 + len(kinds)
    assert page.tags.count("circle") == 2 * ("train" in kinds) + 3 * ("validation" in kinds)
    assert ("no training records" in page.text) == (not kinds)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    whole = records(train(10), train(20))
    assert render(tmp_path / "run", [*whole, records(train(30))[0][:25]]) == render(tmp_path / "run", whole)


def test_damage_elsewhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not JSON"):
        render(tmp_path / "run", [*records(train(10)), "torn\n", *records(train(20))])


def test_a_run_that_diverged_still_has_a_page(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", records(train(1), train(2, float("inf")), train(3, float("nan")))))
    assert page.tags.count("circle") == 2
    page = Page(render(tmp_path / "run", records(train(1, float("nan")))))
    assert "no finite values" in page.text
    assert not re.search(r"\b(nan|inf)\b", page.text)


def test_a_baseline_that_finds_nothing_has_no_ratio(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", None, **{"ndcg@10_over_mostpop": None}))
    assert "–" in page.texts
