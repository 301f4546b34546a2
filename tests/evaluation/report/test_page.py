from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation.report import render_report
from sharding.planning.survey import survey_of
from tests.common.html_reader import Page
from tests.evaluation.report.helpers import (
    METRICS,
    figures,
    guardrail,
    item_summary,
    records,
    render,
    segment,
    summary,
    train,
    validation,
    without,
)
from tests.sharding.plan_example import cluster_of, placement_of, plan_of, use_of, workload_of


def test_every_figure_of_every_engine_is_there(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", None))
    for engine in summary()["engines"].values():
        for name in METRICS:
            assert f"{engine[name]:.4f}" in page.texts
            if name in engine["intervals_95"]:
                low, high = engine["intervals_95"][name]
                assert f"{low:.4f}–{high:.4f}" in page.texts
    assert "2.88×" in page.text
    for words in ("943", "1,682", "step-00000120", "leave-last-out", "without those in the user's history"):
        assert words in page.text
    for name in METRICS:
        assert name in page.texts


def test_what_fails_stands_before_what_holds(tmp_path: Path) -> None:
    rails = [
        guardrail(f"rail {verdict}", verdict, advice=f"advice {verdict}")
        for verdict in ("pass", "info", "fail", "warn")
    ]
    page = Page(render(tmp_path / "run", None, summary(guardrails=rails)))
    places = [page.texts.index(f"rail {verdict}") for verdict in ("fail", "warn", "info", "pass")]
    assert places == sorted(places)
    assert places[0] < page.texts.index("Held-out test items")
    assert "Of 4 guardrails: 1 fails, 1 to be weighed, 1 told, 1 holds." in page.texts
    for rail in rails:
        assert rail["rule"] in page.texts
        assert any(rail["found"] in text for text in page.texts)
        assert any(rail["advice"] in text for text in page.texts)
    assert "No guardrail was run." in render(tmp_path / "run", None, without(summary(), "guardrails"))


def test_engines_are_held_beside_the_first(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", None))
    row = page.texts[page.texts.index("93.0%") - 2 :][:6]
    assert row == ["beam", "100.0%", "93.0%", "50.0%", f"{summary()['engines']['beam']['recall@100']:.4f}", "2.5"]


def test_recall_is_drawn_by_depth_on_a_logarithmic_axis(tmp_path: Path) -> None:
    html = render(tmp_path / "run", None)
    chart = html[html.index("recall of held-out items by length of the list") :]
    (first, *_) = re.findall(r'points="([^"]*)"', chart)
    xs = [float(point.split(",")[0]) for point in first.split()]
    assert len(xs) == 7  # 1, 10, 50, 100, 200, 500, 1000
    assert xs[3] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.2)  # ten times as deep, as far to the right


def test_segments_calibration_differences_and_ablations_are_there(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", None))
    for words in ("0–4", "5–9", "plays: 5–9", "0.2000 (0.1900–0.2100)", "codes: known", "All are alike in"):
        assert words in page.text
    for words in ("first 10", "level 2", "as said", "+0.1000", "0.0900"):
        assert words in page.text
    for words in ("runs/before", "940 requests of 939 users", "3 only in the first evaluation", "ndcg@10 fell"):
        assert words in page.text
    for words in ("a & b", "-0.0300", "-0.0400 … -0.0200", "validation events"):
        assert words in page.text


def test_a_model_of_items_without_baselines_has_a_page(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", None, item_summary()))
    for absent in ("Semantic ids", "Is its confidence true?", "Who is found", "Beside runs", "What each part is worth"):
        assert absent not in page.text
    for words in ("yambda/ndcg@10", "as in Yambda's benchmark", "but 7 that nobody may be given", "hnsw"):
        assert words in page.text
    assert "0.2000" in page.texts
    assert "–" in page.texts  # no ratio without MostPop


@pytest.mark.parametrize("protocol", ["period", "daily", "next", "yambda"])
def test_every_protocol_says_what_was_asked(tmp_path: Path, protocol: str) -> None:
    asked = {"period": "all that follows in it", "daily": "held-out day", "next": "comes next", "yambda": "Yambda"}
    text = Page(render(tmp_path / "run", None, summary(protocol=protocol))).text
    assert asked[protocol] in text


def test_short_lists_have_a_page(tmp_path: Path) -> None:
    short = figures(0.2, ("hr@1", "recall@1", "mrr"))
    of = without(summary(engines={"exact": short}, baselines=[], depth=5, segments=[]), *METRICS)
    page = Page(render(tmp_path / "run", None, {**of, **without(short, "seconds_per_request")}))
    assert "no finite values" in page.text  # NDCG@10 has no place in such lists
    bare = without(segment("plays", "0–4", 0.1), "hr@10", "ndcg@10")
    two = [{**bare, "label": label, "intervals_95": {}} for label in ("a", "b")]
    assert "too short" in render(tmp_path / "run", None, {**of, "segments": two})


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    html = render(tmp_path / "run", records(train(10), validation(10)))
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import|javascript:", html)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = '<i onload="x">&amp; "run"'
    markup = "<script>"
    of = summary(
        checkpoint=markup,
        guardrails=[guardrail(markup, "warn", found=markup, rule=markup, advice=markup)],
        segments=[segment(markup, markup, 0.1), segment(markup, "b", 0.1)],
        against={**summary()["against"], "run": markup, "fallen": [markup], "note": markup},
        ablations=[{**row, "variant": f"{row['variant']} {markup}"} for row in summary()["ablations"]],
        engines={**summary()["engines"], markup: figures(0.1)},
    )
    page = Page(render(tmp_path / name, None, of))
    assert not {"script", "onload"} & {*page.tags, *(attribute for attribute, _ in page.attributes)}
    assert page.texts.count(name) == 1
    assert page.text.count(markup) >= 12


@pytest.mark.parametrize(
    "lines", [None, [], records(validation(5)), records(train(1)), records(train(1), validation(1))]
)
def test_short_and_empty_trainings(tmp_path: Path, lines: list[str] | None) -> None:
    page = Page(render(tmp_path / "run", lines))
    kinds = {json.loads(line)["kind"] for line in lines or []}
    assert page.tags.count("svg") == page.tags.count("figcaption") == 10 + len(kinds)
    assert ("no training records" in page.text) == (not kinds)
    assert ("The validation events during training" in page.text) == ("validation" in kinds)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    whole = records(train(10), train(20))
    assert render(tmp_path / "run", [*whole, records(train(30))[0][:25]]) == render(tmp_path / "run", whole)


def test_damage_elsewhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not JSON"):
        render(tmp_path / "run", [*records(train(10)), "torn\n", *records(train(20))])


def numbers(page: Page) -> list[str]:
    return [text for text in page.texts if re.search(r"\b(nan|inf)\b", text)]


def test_a_run_that_diverged_still_has_a_page(tmp_path: Path) -> None:
    page = Page(render(tmp_path / "run", records(train(1), train(2, float("inf")), train(3, float("nan")))))
    assert not numbers(page)
    page = Page(render(tmp_path / "run", records(train(1, float("nan")))))
    assert "no finite values" in page.text
    assert not numbers(page)


def test_a_plan_is_drawn_and_a_plan_of_another_form_is_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    use = use_of("rq", 2**22, 64)
    cluster = cluster_of(2)
    placement = placement_of(cluster, plan_of(use, "table-wise", (0, 0, 2**22, 0, 64)))
    plan = survey_of(placement, cluster, workload_of(use), reserved=0).to_plain()
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    page = Page(render(run, None))
    assert "Where everything lay in training" in page.texts
    assert "rank 1" in page.texts
    for content in ("{}", "[]", "torn {", '{"topology": 3}'):
        (run / "plan.json").write_text(content, encoding="utf-8")
        assert "Where everything lay" not in render(run, None)


def test_codes_without_diagnostics_have_their_accuracy(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    of: dict[str, Any] = summary()
    for diagnostics in (None, {}, {"levels": [{"gini": 0.1}]}):
        page = Page(render_report(tmp_path / "run", of, diagnostics))
        assert "likeliest code is right" in page.text
        assert "codes in use" not in page.text
