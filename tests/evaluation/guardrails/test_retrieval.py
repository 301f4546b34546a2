from __future__ import annotations

from typing import Any

import pytest

from common.errors import InputError
from evaluation.guardrails.base import FAIL, INFO, ORDER, PASS, WARN, Guardrail, in_order
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.guardrails.retrieval import calibrated, overlap_with_exact, popularity, recall_by_depth, recalls

CONFIG = GuardrailsConfig()


def summary(engine: str = "exact", **engines: dict[str, Any]) -> dict[str, Any]:
    return {"engine": engine, "baselines": ["mostpop"], "engines": {engine: {}, "mostpop": {}, **engines}}


def overlap(share: float, depth: str = "100") -> dict[str, Any]:
    return {"overlap": {"10": 1.0, depth: share}}


@pytest.mark.parametrize(
    ("engines", "verdict"),
    [
        ({"beam": overlap(0.96), "hybrid": overlap(0.99)}, PASS),
        ({"beam": overlap(0.94)}, FAIL),
        ({"hybrid": overlap(0.9), "beam": overlap(1.0)}, FAIL),
        ({"faiss": overlap(0.6), "beam": overlap(1.0)}, PASS),
        ({"hnsw": overlap(0.4), "beam": overlap(1.0)}, WARN),
        ({"hnsw": overlap(0.4), "beam": overlap(0.4)}, FAIL),
        ({"beam": overlap(0.1, depth="50")}, INFO),
        ({}, INFO),
    ],
)
def test_engines_must_return_what_exact_scoring_returns(engines: dict[str, Any], verdict: str) -> None:
    found = overlap_with_exact(summary(**engines), CONFIG)
    assert found.verdict == verdict, found.found
    if verdict in (FAIL, WARN):
        assert all(name in found.advice for name, one in engines.items() if one["overlap"]["100"] <= 0.94)


def test_lists_that_end_early_are_told() -> None:
    found = overlap_with_exact(summary(beam={"overlap": {"100": 1.0, "500": 0.4}}), CONFIG)
    assert found.verdict == PASS
    assert "beam 40.0% of the first 500" in found.found
    assert "Further down" not in overlap_with_exact(summary(beam=overlap(0.99)), CONFIG).found


def test_without_an_exact_engine_there_is_nothing_to_hold_against() -> None:
    assert overlap_with_exact(summary("beam", faiss=overlap(0.1)), CONFIG).verdict == INFO
    assert overlap_with_exact(summary("bounded", beam=overlap(0.1)), CONFIG).verdict == FAIL


def test_recall_is_told_as_deep_as_lists_go() -> None:
    figures = {"recall@1": 0.01, "recall@10": 0.1, "recall@1000": 0.9, "hr@10": 0.5}
    assert recalls(figures) == {1: 0.01, 10: 0.1, 1000: 0.9}
    found = recall_by_depth({**summary(beam=figures), "engines": {"beam": figures, "mostpop": figures}})
    assert found.verdict == INFO
    assert "beam 0.100 at 10, 0.900 at 1,000" in found.found
    assert "mostpop" not in found.found
    assert recall_by_depth(summary()).verdict == INFO


def curve(ece: float, chance: float = 0.01, requests: int = 100, gap: float = -0.02) -> dict[str, Any]:
    return {"requests": requests, "ece": ece, "chance": chance, "gap": gap}


@pytest.mark.parametrize(
    ("lists", "levels", "verdict"),
    [
        ({"top@10": curve(0.05)}, [curve(0.02)], PASS),
        ({"top@10": curve(0.05)}, [curve(0.02), curve(0.2)], WARN),
        ({"top@10": curve(0.2)}, [], WARN),
        ({"top@10": curve(0.2, chance=0.19)}, [], PASS),  # as much as chance gives
        ({"top@10": curve(0.0, requests=0)}, [], INFO),
        ({}, [], INFO),
    ],
)
def test_probabilities_must_come_true(lists: dict[str, Any], levels: list[dict[str, Any]], verdict: str) -> None:
    found = calibrated({"calibration": {"lists": lists, "levels": levels}}, CONFIG)
    assert found.verdict == verdict, found.found


def test_the_level_that_is_off_is_named() -> None:
    found = calibrated({"calibration": {"levels": [curve(0.0), curve(0.3, gap=0.3)]}}, CONFIG)
    assert "level 2" in found.advice
    assert "level 1" not in found.advice
    assert "under-confident by 0.300" in found.found
    assert calibrated({}, CONFIG).verdict == INFO


def test_lists_that_are_as_narrow_as_mostpop_are_warned_of() -> None:
    wide = {"gini@10": 0.7, "coverage@10": 0.5, "novelty@10": 9.0, "stratified-recall@10": 0.3}
    narrow = {"gini@10": 0.9, "coverage@10": 0.1, "novelty@10": 7.0, "stratified-recall@10": 0.1}
    of = {"engine": "exact", "engines": {"exact": wide, "mostpop": narrow}}
    assert popularity(of).verdict == PASS
    for name, value in narrow.items():
        found = popularity({**of, "engines": {"exact": {**wide, name: value}, "mostpop": narrow}})
        assert found.verdict == WARN, name
    assert popularity({"engine": "exact", "engines": {"exact": wide}}).verdict == INFO


def test_what_to_look_at_first_comes_first() -> None:
    made = [
        Guardrail(str(place), verdict, "", "", "do") for place, verdict in enumerate([PASS, INFO, FAIL, WARN, FAIL])
    ]
    assert [one.name for one in in_order(made)] == ["2", "4", "3", "1", "0"]
    assert ORDER[0] == FAIL
    with pytest.raises(AssertionError, match="without advice"):
        Guardrail("x", WARN, "", "")


def test_shares_above_one_are_refused_together() -> None:
    with pytest.raises(InputError) as told:
        GuardrailsConfig(overlap=95, unknown_share=5)
    assert len(told.value.faults) == 2
