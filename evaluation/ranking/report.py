"""Figures of predicted actions: what `metrics.json` holds, the table for a terminal, and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.charts import Interval, Series, interval_chart, line_chart
from common.html_page import cards, figure, heading, note, page, side_by_side, table
from evaluation.ranking.comparison import TaskDifference
from evaluation.ranking.intervals import TaskSummary
from evaluation.report.cells import figure_cell
from evaluation.report.training import plan_sections_of, training_sections

Summary = Mapping[str, Any]

SHOWN = ("ne", "auc", "gauc", "calibration", "ece", "mse", "mae", "r2")
"""Figures of the table, as far as a task has them."""

_TITLES = {"ne": "NE", "r2": "R²"}

_MEANING = {
    "ne": "normalised entropy: log loss over that of predicting the mean label always; below 1 is better than that",
    "auc": "how often a positive is predicted higher than a negative, whosever they are",
    "gauc": "the same within each user, averaged by how much each was asked",
    "calibration": "mean prediction over mean label; 1 is right on the whole",
    "ece": "mean distance of prediction and outcome over groups of like predictions",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r2": "share of the labels' variance that is explained; 0 is predicting the mean always",
}


def summary_of_tasks(summaries: Sequence[TaskSummary]) -> dict[str, Any]:
    """Plain values by task: every figure, and its 95% interval over users."""
    found = {}
    for one in summaries:
        found[one.name] = {
            "kind": one.kind,
            "predictions": one.requests,
            "users": one.users,
            "mean_label": one.mean_label,
            "mean_prediction": one.mean_prediction,
            **{name: figure.value for name, figure in one.figures.items()},
            "intervals_95": {name: [figure.low, figure.high] for name, figure in one.figures.items()},
            "reliability": None if one.reliability is None else dataclasses.asdict(one.reliability),
        }
    return found


def differences_of(compared: Sequence[TaskDifference]) -> list[dict[str, Any]]:
    """Plain values."""
    return [{**dataclasses.asdict(one), "verdict": one.verdict} for one in compared]


def format_tasks(summary: Summary) -> str:
    """The figures as a table for a terminal: a row a model and task, 95% intervals beneath."""
    models = summary["models"]
    columns = [name for name in SHOWN if any(name in task for tasks in models.values() for task in tasks.values())]
    lines = [
        f"{summary['split']}, {summary['events']} events, {summary['predictions']} predictions of {summary['users']} "
        f"users, 95% intervals over users"
    ]
    margin = 1 + max(len(f"{model}  {task}") for model, tasks in models.items() for task in tasks)
    lines.append(" " * margin + "".join(f"{name:>16}" for name in columns))
    for model, tasks in models.items():
        for task, figures in tasks.items():
            values = "".join(f"{figures[name]:>16.4f}" if name in figures else " " * 16 for name in columns)
            lines.append(f"{f'{model}  {task}':<{margin}}{values}")
            bounds = (figures["intervals_95"].get(name) for name in columns)
            lines.append(" " * margin + "".join(f"{f'{b[0]:.4f}–{b[1]:.4f}' if b else '':>16}" for b in bounds))
    return "\n".join(lines)


def render_ranking_report(run: Path, summary: Summary) -> str:
    """A self-contained page about the predictions of a run's model.

    Raises:
        InputError: the run's `metrics.jsonl` is damaged.
    """
    model, tasks = next(iter(summary["models"].items()))
    sections = [
        heading(run.name, level=1),
        note(
            f"Each of the {summary['predictions']:,} {summary['events']} events of {summary['users']:,} users "
            f"({summary['split']}) was predicted from its item, its context and all that its user did before it. "
            f"Model: checkpoint {summary['checkpoint']}, after epoch {summary['epoch']}; its history is "
            f"{summary['form']}. Figures have 95% intervals over users."
        ),
        cards([_card(name, figures) for name, figures in tasks.items()]),
        *_tables(summary["models"]),
        *_reliability(model, tasks),
        *_against(summary.get("against")),
        *training_sections(run, list(tasks)),
        *plan_sections_of(run),
    ]
    return page(run.name, sections)


def _main(figures: Summary) -> str:
    """The figure of a task that is looked at first."""
    return "ne" if figures["kind"] == "binary" else "r2"


def _card(task: str, figures: Summary) -> tuple[str, str]:
    main = _main(figures)
    return f"{task}: {_TITLES[main]}", f"{figures[main]:.4f}" if main in figures else "–"


def _tables(models: Mapping[str, Summary]) -> list[str]:
    """A table and a picture a task, every model beside the others."""
    sections = [heading("How well actions are predicted")]
    for task, shown in next(iter(models.values())).items():
        names = [name for name in SHOWN if any(name in tasks[task] for tasks in models.values())]
        found = {model: tasks[task] for model, tasks in models.items()}
        sections.append(heading(task, level=3))
        if not names:
            sections.append(note("None of these events has what the task asks about."))
            continue
        sections.append(_table(found, names))
        main = _main(shown)
        intervals = [
            Interval(model, "", figures[main], *figures["intervals_95"][main])
            for model, figures in found.items()
            if main in figures
        ]
        if len(intervals) > 1:
            naive, told = (1.0, "Lower is better; 1") if main == "ne" else (0.0, "Higher is better; 0")
            chart = interval_chart(intervals, _TITLES[main], origin=naive)
            sections.append(figure(chart, f"{told} is predicting the mean label always. 95% intervals."))
    return sections


def _table(models: Mapping[str, Summary], names: Sequence[str]) -> str:
    """A row a figure, a column a model."""
    head = "".join(f"<th>{escape(model)}</th>" for model in models)
    rows = []
    for name in names:
        cells = "".join(figure_cell(one.get(name), one["intervals_95"].get(name)) for one in models.values())
        rows.append(f"<tr><td>{name}<small>{escape(_MEANING[name])}</small></td>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _reliability(model: str, tasks: Mapping[str, Summary]) -> list[str]:
    charts = []
    for name, figures in tasks.items():
        bins = (figures.get("reliability") or {}).get("bins", [])
        if not bins:
            continue
        most = max(max(one["confidence"], one["rate"]) for one in bins)
        series = [
            Series(name, [one["confidence"] for one in bins], [one["rate"] for one in bins]),
            Series("as said", [0, most], [0, most]),
        ]
        charts.append(
            figure(
                line_chart(series, f"probability of {name} that {model} gives", "how often it came so"),
                "Predictions in groups of like probability; below the line “as said” the model promises too much.",
            )
        )
    return [heading("Are its probabilities true?"), side_by_side(charts)] if charts else []


def _against(against: Summary | None) -> list[str]:
    if not against:
        return []
    rows = [
        [
            f"{one['task']} {one['name']}",
            f"{one['before']:.4f}",
            f"{one['after']:.4f}",
            f"{one['difference']:+.4f} ({one['low']:+.4f} … {one['high']:+.4f})",
            one["verdict"],
        ]
        for one in against["differences"]
    ]
    return [
        heading(f"Against {against['run']}"),
        table(["", "before", "now", "difference, 95% interval", "verdict"], rows),
        note("The same events and the same resampled users for both."),
    ]
