"""What is said of predicted actions, on a terminal and on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.ranking.comparison import compare_predictions
from evaluation.ranking.intervals import summarise
from evaluation.ranking.report import differences_of, format_tasks, render_ranking_report, summary_of_tasks
from tests.common.test_charts import Page
from tests.evaluation.ranking.helpers import BOTH, made_up


def summary_of(labels: np.ndarray, predictions: np.ndarray, users: np.ndarray) -> dict[str, Any]:
    models = {name: summarise(BOTH, predictions, labels, users, samples=20) for name in ("merged", "logistic")}
    return {
        "split": "leave-last-out",
        "events": "test",
        "predictions": len(users),
        "users": len(np.unique(users)),
        "checkpoint": "step-00000007",
        "epoch": 3,
        "form": "merged",
        "models": {name: summary_of_tasks(of_model) for name, of_model in models.items()},
    }


def page_of(tmp_path: Path, summary: dict[str, Any]) -> Page:
    (tmp_path / "metrics.jsonl").write_text("")
    return Page(render_ranking_report(tmp_path, json.loads(json.dumps(summary, allow_nan=False))))


def test_figures_stand_beside_their_intervals(tmp_path: Path) -> None:
    predictions, labels, users = made_up(0, 300, 30)
    summary = summary_of(labels, predictions, users)
    like = summary["models"]["merged"]["like"]
    told = format_tasks(summary).splitlines()
    assert told[0] == "leave-last-out, test events, 300 predictions of 30 users, 95% intervals over users"
    row = next(line for line in told if line.startswith("merged  like"))
    assert f"{like['ne']:.4f}" in row
    assert f"{like['gauc']:.4f}" in row
    bounds = told[told.index(row) + 1]
    assert "{:.4f}–{:.4f}".format(*like["intervals_95"]["ne"]) in bounds
    played = next(line for line in told if line.startswith("logistic  played"))
    assert f"{summary['models']['logistic']['played']['r2']:.4f}" in played
    page = page_of(tmp_path, summary)
    assert {"like", "played", "merged", "logistic", f"{like['ne']:.4f}", "Are its probabilities true?"} <= set(
        page.texts
    )


def test_a_task_that_asks_nothing_has_no_figures(tmp_path: Path) -> None:
    predictions, labels, users = made_up(0, 300, 30)
    labels[:, 0] = np.nan
    summary = summary_of(labels, predictions, users)
    like = summary["models"]["merged"]["like"]
    assert (like["predictions"], like["mean_label"], like["mean_prediction"]) == (0, None, None)
    assert "ne" not in like
    assert "nan" not in format_tasks(summary)
    page = page_of(tmp_path, summary)
    assert "None of these events has what the task asks about." in page.texts
    assert "like: NE" in page.texts
    assert "–" in page.texts


def test_another_run_stands_beside_this_one(tmp_path: Path) -> None:
    truth, labels, users = made_up(0, 3000, 300)
    noise = np.random.default_rng(5).random(truth.shape)
    compared = compare_predictions(BOTH, truth, noise, labels, users, samples=50)
    summary = summary_of(labels, noise, users)
    summary["against"] = {"run": "runs/other", "differences": differences_of(compared)}
    page = page_of(tmp_path, summary)
    assert "Against runs/other" in page.texts
    assert page.texts.count("worse") == len(compared) == 5
    assert f"{compared[0].before:.4f}" in page.texts
