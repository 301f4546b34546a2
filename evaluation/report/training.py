"""Where the model comes from: its training, its codes, and where its tables lay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.charts import Series, bar_chart, line_chart
from common.errors import InputError
from common.html_page import figure, heading, note, side_by_side
from serving.checkpoints.manifest import selection_metric
from sharding.planning.picture import plan_sections
from sharding.planning.plan_files import PLAN

_VALIDATED = ("ndcg@10", "hr@10", "mrr")


def training_sections(run: Path, tasks: Sequence[str] = ()) -> list[str]:
    """Loss of each code level or task, and metrics on the validation events.

    Args:
        tasks: names of those of a model that predicts actions.

    Raises:
        InputError: `metrics.jsonl` is damaged.
    """
    records = _read_records(run / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    figures = []
    if train:
        steps = [record["step"] for record in train]
        levels = len(train[0]["level_loss"])
        labels = [*tasks] or ([f"level {level + 1}" for level in range(levels)] if levels > 1 else ["loss"])
        lines = [
            Series(label, steps, [row["level_loss"][level] for row in train]) for level, label in enumerate(labels)
        ]
        said = "How surprised the model is by the next item; lower is better."
        if levels > 1:
            said = "How surprised the model is by each code of the next item, given the codes before it."
        if tasks:
            said = "Log loss of each binary task and squared error of each other, per prediction; lower is better."
        figures.append(figure(line_chart(lines, "step", "loss (nats)"), said))
    if validation:
        steps = [record["step"] for record in validation]
        chosen_by = selection_metric(validation[0])
        wanted = [chosen_by, *(f"{task}/auc" for task in tasks)] if tasks else _VALIDATED
        names = [name for name in wanted if all(name in record for record in validation)]
        curves = [Series(name, steps, [record[name] for record in validation]) for name in names]
        figures.append(
            figure(
                line_chart(curves, "step", "metric"),
                f"The validation events during training; the checkpoint was chosen by {chosen_by} here.",
            )
        )
    inner = side_by_side(figures) if figures else note("The run folder has no training records.")
    return [heading("Training"), inner]


def code_sections(level_accuracy: Sequence[float], diagnostics: Mapping[str, Any] | None) -> list[str]:
    """How well each code is predicted, and how good the codes are."""
    labels = [str(level + 1) for level in range(len(level_accuracy))]
    charts = [
        figure(
            bar_chart(labels, {"likeliest code is right": level_accuracy}, "code level", "share of requests"),
            "How often the model's likeliest code is that of the first held-out item, given its codes before it.",
        )
    ]
    levels = (diagnostics or {}).get("levels", [])
    shares = {
        label: [level[key] for level in levels]
        for key, label in (
            ("utilisation", "codes in use"),
            ("gini", "Gini coefficient"),
            ("relative_error", "squared error left"),
        )
        if levels and all(key in level for level in levels)
    }
    if shares:
        places = [str(level + 1) for level in range(len(levels))]
        charts.append(
            figure(
                bar_chart(places, shares, "code level", "share"),
                "The codes themselves: how many are used, how unevenly (0 is even, 1 is all in one), and how much of "
                "the item vectors they leave unsaid.",
            )
        )
    return [heading("Semantic ids"), side_by_side(charts)]


def plan_sections_of(run: Path) -> list[str]:
    """Where the tables lay in training; nothing for a run that kept no plan, or one of another form."""
    try:
        plan = json.loads((run / PLAN).read_text(encoding="utf-8"))
        return [heading("Where everything lay in training"), *plan_sections(plan)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a torn last line, left by a killed run, is left out.

    Raises:
        InputError: another line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise InputError(
                    f"{path}, line {number}: not JSON, though only the last line can be torn; mend or remove the file"
                ) from None
    return records
