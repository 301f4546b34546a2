"""What stands on the page, what is said where there is nothing to show, and that no text breaks the markup."""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from semantic_ids.quality.diagnostics import diagnose, usage_curves
from semantic_ids.quality.report import page
from semantic_ids.quality.unknown import unknown_figures
from tests.common.html_reader import Page
from tests.data.written_log import Event, WrittenLog


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """30 users, whose events on the three unknown items are organic and whose others are not."""
    generator = np.random.default_rng(0)
    histories = [
        [
            Event(item, at, 0, None, int(item < 3), 100)
            for at, item in enumerate(generator.integers(9, size=20).tolist())
        ]
        for _ in range(30)
    ]
    log = WrittenLog(histories, [[]] * 5 + [[0]] * 5, event_types=("listen", "<like>"))
    store = log.store(tmp_path_factory.mktemp("unknown") / "store")
    return unknown_figures(store, np.arange(10) >= 3, seed=0, replicates=100)


@pytest.fixture(scope="module")
def whole(unknown: dict[str, Any]) -> dict[str, Any]:
    """Figures with all there may be."""
    codes_nC = np.random.default_rng(1).integers(0, 16, (1500, 3)).astype(np.uint16)
    sizes = np.array(list(Counter(map(tuple, codes_nC.tolist())).values()))
    errors = np.array([0.5, 0.3, 0.2])
    diagnostics = diagnose(codes_nC, sizes, 16, errors, 1600, errors_held_out_C=errors * 1.1)
    return {
        "counts": {"items": 1600, "known": 1500, "unknown": 100},
        "levels": 3,
        "codes": 16,
        "dimensions": 32,
        "quantizer": "residual-kmeans",
        "embeddings": "content",
        "fingerprint": "0123456789abcdef",
        "diagnostics": {**diagnostics, "usage": usage_curves(codes_nC, 16), "unknown": unknown},
        "neighbour_overlap": {"overlap": 0.625, "queries": 1000, "database": 1500, "k": 10},
        "drift": [
            ("error of new items", 1.5, 1.25, "refit advised"),
            ("items <new>", 1234, None, "told"),
            ("verdict", "", "", "refit advised: JS divergence is high"),
        ],
        "refit": [("items whose tuple changed", "12.0%", 0.5, "few")],
    }


def charts(html: str) -> list[str]:
    return re.findall(r'aria-label="([^"]*)"', html)


def test_whole_page(whole):
    html = page("codes <of> a & b", whole)
    read = Page(html)
    assert "codes <of> a & b" in read.texts
    assert "script" not in read.tags
    assert not any("http" in (value or "") for _, value in read.attributes)
    assert not re.search(r"\b(nan|inf|None)\b", read.text)
    assert charts(html) == [
        "share by level",
        "% of items by place of the code",
        "squared error left, of all by levels read",
        "% by ",
        "distinct beginnings of tuples by levels read",
        "% by items that share one tuple",
        "% unknown by popularity decile of items",
        "% unknown by age decile of items",
        "% unknown by artist",
        "% unknown by activity decile of users",
    ]
    for text in ("1.6k", "1.5k", "62.5%", "22.0%", "residual-kmeans", "0123456789abcdef"):
        assert text in read.text
    for sentence in whole["diagnostics"]["findings"]:
        assert sentence in read.texts
    assert "Measured for 1,000 items among 1,500 of the catalogue." in read.text
    assert "100 of 1,600 items (6.25%) had no vector" in read.text


def test_leaks_are_told_with_their_verdict(whole, unknown):
    read = Page(page("codes", whole))
    (row,) = (row for row in unknown["leakage"]["training"] if row["leaks"] and row["indicator"] == "own")
    assert row["label"] == "organic"
    assert row["verdict"].startswith("unknown predicts organic: AUC 1.000 (1.000–1.000)")
    assert f"Training events: {row['verdict']}." in read.texts
    assert "<like>" in read.texts
    assert read.texts.count("leaks") == sum(row["leaks"] for rows in unknown["leakage"].values() for row in rows)
    assert "cannot be told" in read.texts
    assert "No label is given away" not in read.text


def test_no_leak_is_told_too(whole):
    figures = copy.deepcopy(whole)
    for rows in figures["diagnostics"]["unknown"]["leakage"].values():
        for row in rows:
            row["leaks"] = False
    assert "No label is given away" in Page(page("codes", figures)).text


def test_rows_of_drift_and_refit(whole):
    texts = Page(page("codes", whole)).texts
    start = texts.index("error of new items")
    assert texts[start : start + 8] == [
        "error of new items",
        "1.5",
        "1.25",
        "refit advised",
        "items <new>",
        "1,234",
        "–",
        "told",
    ]
    assert texts.index("Verdict: refit advised: JS divergence is high") < start
    start = texts.index("items whose tuple changed")
    assert texts[start : start + 4] == ["items whose tuple changed", "12.0%", "0.5", "few"]


def test_level_table_and_curves_hold_the_figures(whole):
    read = Page(page("codes", whole))
    rows = whole["diagnostics"]["levels"]
    start = read.texts.index("held out") + 1
    table = np.array(read.texts[start : start + 33]).reshape(3, 11)
    assert table[:, 0].tolist() == ["1", "2", "3"]
    assert table[:, 7].tolist() == [f"{row['unique_prefixes']:,}" for row in rows]
    assert table[:, 8].tolist() == ["0.5000", "0.3000", "0.2000"]
    assert table[:, 9].tolist() == ["50.0%", "60.0%", "66.7%"]
    assert table[:, 10].tolist() == ["0.5500", "0.3300", "0.2200"]
    html = page("codes", whole)
    lines = re.findall(r'<polyline points="([^"]*)"', html)
    assert [len(line.split()) for line in lines] == [len(whole["diagnostics"]["usage"]["ranks"])] * 3 + [4, 4, 4, 2]
    for line, values in (
        (lines[3], [1, 0.5, 0.3, 0.2]),
        (lines[4], [1, 0.55, 0.33, 0.22]),
        (lines[5], [1, *(row["unique_prefixes"] for row in rows)]),
    ):
        xs, ys = np.array([point.split(",") for point in line.split()], float).T
        np.testing.assert_allclose(np.diff(xs), xs[1] - xs[0], atol=0.11)
        heights = (ys - ys[0]) / (ys[-1] - ys[0])  # a logarithmic axis
        np.testing.assert_allclose(heights, np.log(values) / np.log(values[-1]), atol=0.01)


def test_what_is_absent_is_said(whole):
    figures = copy.deepcopy({key: whole[key] for key in ("counts", "codes", "diagnostics")})
    figures["counts"] = {"items": 1500, "known": 1500, "unknown": 0}
    figures["diagnostics"]["findings"] = []
    for key in ("usage", "unknown"):
        del figures["diagnostics"][key]
    for row in figures["diagnostics"]["levels"]:
        del row["relative_error_held_out"]
    html = page("codes", figures)
    read = Page(html)
    assert len(charts(html)) == 4
    for sentence in (
        "Nothing: no middle level is much narrower",
        "How often each code is used was not counted for this table.",
        "No vectors were held out of the fit",
        "Whether items keep their nearest neighbours was not measured for this table.",
        "Every item of the catalogue has codes: none is unknown.",
    ):
        assert sentence in read.text
    assert "neighbours are kept" not in read.text
    assert "Drift" not in read.text
    assert "Refit" not in read.text
    assert "20.0%" in read.text  # the error of the fit stands in for that held out


def test_unknown_items_without_figures_or_labels(whole, unknown):
    figures = copy.deepcopy(whole)
    del figures["diagnostics"]["unknown"]
    assert "Where they are was not counted for this table." in Page(page("codes", figures)).text
    # Beside the manifest's fields it is found as well.
    figures["unknown"] = {**unknown, "leakage": {"training": [], "held_out": []}}
    text = Page(page("codes", figures)).text
    assert "The store has no labels against which being unknown could be held." in text
    assert "Where they are" not in text


def test_plain_ids_and_no_known_items_have_a_page():
    ids = np.arange(1, 33, dtype=np.uint16)[:, None]
    plain = diagnose(ids, np.ones(32, int), 64, np.zeros(0), 32)
    counts = {"items": 32, "known": 32, "unknown": 0}
    figures = {"counts": counts, "codes": 64, "diagnostics": plain, "usage": usage_curves(ids, 64)}
    assert not re.search(r"\b(nan|inf)\b", page("ids", figures))
    none = diagnose(np.zeros((0, 2), np.uint16), np.zeros(0, int), 8, np.ones(2), 5)
    html = page("none", {"counts": {"items": 5, "known": 0, "unknown": 5}, "codes": 8, "diagnostics": none})
    assert "No item has codes, so none share a tuple." in Page(html).text
    assert not re.search(r"\b(nan|inf)\b", html)
