"""Summaries as evaluations write them, and pages of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.metrics.ranking import metric_names
from evaluation.report import render_report

OF_LISTS = ("coverage@10", "coverage@100", "gini@10", "gini@100")
METRICS = (*metric_names(1000), "stratified-recall@10", "novelty@10", *OF_LISTS)
DIAGNOSTICS = {"levels": [{"utilisation": 1.0, "gini": 0.4, "relative_error": error} for error in (0.3, 0.1)]}


def figures(start: float, names: tuple[str, ...] = METRICS, **more: Any) -> dict[str, Any]:
    values = {name: round(start + 0.001 * index, 4) for index, name in enumerate(names)}
    intervals = {name: [value - 0.0002, value + 0.0003] for name, value in values.items() if name not in OF_LISTS}
    return {**values, "intervals_95": intervals, "seconds_per_request": start / 100, **more}


def curve(*rates: float) -> dict[str, Any]:
    bins = [
        {"low": 0.1 * at, "high": 0.1 * at + 0.1, "requests": 9, "confidence": 0.1 * at + 0.05, "rate": rate}
        for at, rate in enumerate(rates)
    ]
    summed = {"confidence": 0.1, "rate": 0.2, "gap": 0.1, "ece": 0.03, "chance": 0.01, "brier": 0.09}
    return {"requests": 9 * len(rates), "bins": bins, **summed}


def segment(name: str, label: str, value: float) -> dict[str, Any]:
    values = {"hr@10": value, "ndcg@10": value / 2}
    bounds = {metric: [one - 0.01, one + 0.01] for metric, one in values.items()}
    return {"segment": name, "label": label, "requests": 50, "targets": 60, **values, "intervals_95": bounds}


def guardrail(name: str, verdict: str, **more: Any) -> dict[str, Any]:
    told = {"found": f"{name} was found", "rule": f"rule of {name}", "advice": "", "figures": {}}
    return {"name": name, "verdict": verdict, **told, **more}


AGAINST = {
    "run": "runs/before",
    "requests": 940,
    "users": 939,
    "note": "3 only in the first evaluation",
    "differences": [
        {"name": name, "before": 0.1, "after": 0.1 + by, "difference": by, "low": by - 0.01, "high": by + 0.01}
        | {"p": 0.004, "p_holm": 0.02}
        for name, by in (("ndcg@10", -0.05), ("hr@10", 0.02))
    ],
    "fallen": ["ndcg@10 fell"],
}
ABLATIONS = [
    {"variant": variant, "events": events, "value": 0.1 + by, "difference": by, "low": by - 0.01, "high": by + 0.01}
    for events in ("validation", "test")
    for variant, by in (("first", 0.0), ("no bias", -0.03), ("a & b", 0.01))
]


def summary(**changes: Any) -> dict[str, Any]:
    """Of a model of codes, with everything that there can be."""
    overlap = {"overlap": {"10": 1.0, "100": 0.93, "1000": 0.5}}
    engines = {
        "exact": figures(0.3, overlap=dict.fromkeys(("10", "100", "1000"), 1.0)),
        "beam": figures(0.25, **overlap),
        "mostpop": figures(0.1),
    }
    return {
        "protocol": "next",
        "split": "leave-last-out",
        "events": "test",
        "filter_history": True,
        "requests": 943,
        "users": 943,
        "items": 1682,
        "depth": 1000,
        "checkpoint": "step-00000120",
        "epoch": 4,
        "denied": 0,
        "engine": "exact",
        **{name: value for name, value in engines["exact"].items() if name not in ("overlap", "seconds_per_request")},
        "ndcg@10_over_mostpop": 2.875,
        "engines": engines,
        "baselines": ["mostpop"],
        "level_accuracy": [0.11, 0.32],
        "calibration": {"lists": {"top@1": curve(0.1), "top@10": curve(0.1, 0.3)}, "levels": [curve(0.2, 0.1)] * 2},
        "segments": [segment("plays", "0–4", 0.1), segment("plays", "5–9", 0.2), segment("codes", "known", 0.15)],
        "guardrails": [guardrail("chance", "pass"), guardrail("leak", "fail", advice="look for it")],
        "against": AGAINST,
        "ablations": ABLATIONS,
        **changes,
    }


def without(whole: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name not in names}


def item_summary() -> dict[str, Any]:
    """Of a model of items, with nothing but what must be, on a protocol of many targets."""
    names = (*metric_names(100), *(f"yambda/{kind}@{k}" for kind in ("ndcg", "recall", "coverage") for k in (10, 100)))
    engines = {"exact": figures(0.2, names), "hnsw": figures(0.15, names)}
    plain = without(
        summary(protocol="yambda", baselines=[], engines=engines, depth=100, denied=7),
        *("level_accuracy", "calibration", "segments", "guardrails", "against", "ablations", *METRICS),
    )
    return {**plain, **without(engines["exact"], "seconds_per_request"), "ndcg@10_over_mostpop": None}


def render(run: Path, lines: list[str] | None, of: dict[str, Any] | None = None) -> str:
    run.mkdir(exist_ok=True)
    if lines is not None:
        (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return render_report(run, of or summary(), DIAGNOSTICS)


def records(*values: dict[str, Any]) -> list[str]:
    return [json.dumps(value) + "\n" for value in values]


def train(step: int, loss: float = 2.0) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 2 * loss, "level_loss": [loss, loss]}


def validation(step: int) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "ndcg@10": 0.1, "hr@10": 0.2, "mrr": 0.1}
