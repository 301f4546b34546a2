"""A self-contained HTML page about a run: figures, loss curves, recall by popularity, codes. No scripts, no network.

Every figure has a sentence beneath it that says how to read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.charts import Series, bar_chart, line_chart
from common.errors import InputError
from common.html_page import cards, figure, heading, note, page, side_by_side
from evaluation import old_metrics as metrics
from sharding.planning.picture import plan_sections
from sharding.planning.plan_files import PLAN

_ENGINES = {
    "exact": "every item scored by the model",
    "beam": "beam search down the codes that items carry",
    "faiss": "items nearest to the decoded codes",
    "mostpop": "most played items, for everybody",
}
_MEANINGS = {
    "hr": "users whose held-out item is among the first {k}",
    "ndcg": "as hr@{k}, but less the lower it stands",
    "mrr": "mean of 1 / place of the held-out item",
    "coverage": "items that stand in somebody's first {k}",
}


def render_report(
    run: Path, summary: dict[str, Any], strata: dict[str, list[metrics.Stratum]], code_diagnostics: dict[str, Any]
) -> str:
    """The page as text. Loss curves come from the run's `metrics.jsonl`, if there is one."""
    records = _read_records(run / "metrics.jsonl")
    sections = [
        heading(run.name, level=1),
        note(
            f"Of {summary['users']:,} users {summary['events']} events were held out ({summary['protocol']}). Every "
            f"engine ranked the whole catalogue of {summary['items']:,} items, "
            f"{'without' if summary['filter_history'] else 'with'} those in the user's history; the higher the "
            f"held-out item stands, the better. Model: checkpoint {summary['checkpoint']}, after epoch "
            f"{summary['epoch']}, chosen without the held-out items."
        ),
        _cards(summary),
        heading(f"Held-out {summary['events']} items"),
        _metric_table(summary),
        heading("Who is found"),
        side_by_side([_hit_chart(summary), _popularity_chart(strata)]),
        heading("Training"),
        _training_charts(records),
        heading("Semantic ids"),
        _code_charts(summary["level_accuracy"], code_diagnostics),
        *_plan(run),
    ]
    return page(run.name, sections)


def _plan(run: Path) -> list[str]:
    """Where the tables lay in training; nothing for a run that kept no plan, or one of another form."""
    try:
        plan = json.loads((run / PLAN).read_text(encoding="utf-8"))
        return [heading("Where everything lay in training"), *plan_sections(plan)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _cards(summary: dict[str, Any]) -> str:
    ratio = summary["ndcg@10_over_mostpop"]
    figures = [
        ("NDCG@10", f"{summary['ndcg@10']:.4f}"),
        ("HR@10", f"{summary['hr@10']:.4f}"),
        ("MRR", f"{summary['mrr']:.4f}"),
        ("NDCG@10 over MostPop", "–" if ratio is None else f"{ratio:.2f}×"),
    ]
    return cards(figures)


def _metric_table(summary: dict[str, Any]) -> str:
    """A row a metric, a column an engine; the best of a row is bold."""
    engines = {name: summary if name == "exact" else summary[name] for name in _ENGINES}
    head = "".join(f"<th>{name}<small>{meaning}</small></th>" for name, meaning in _ENGINES.items())
    rows = []
    for metric in metrics.NAMES:
        kind, _, k = metric.partition("@")
        best = max(figures[metric] for figures in engines.values())
        cells = "".join(_metric_cell(figures, metric, figures[metric] == best) for figures in engines.values())
        rows.append(f"<tr><td>{metric}<small>{_MEANINGS[kind].format(k=k)}</small></td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><tr><th>metric</th>{head}</tr>{"".join(rows)}</table></div>'
        '<p class="note">Small figures: 95% bootstrap intervals, how far the mean would move with other users of the '
        "same kind. Where the intervals of two engines overlap widely, these users do not tell them apart. "
        "Bold: the best of the row.</p>"
    )


def _metric_cell(figures: dict[str, Any], metric: str, best: bool) -> str:
    interval = figures["intervals_95"].get(metric)
    bounds = f"<small>{interval[0]:.4f}–{interval[1]:.4f}</small>" if interval else ""
    return f"{'<td class=best>' if best else '<td>'}{figures[metric]:.4f}{bounds}</td>"


def _hit_chart(summary: dict[str, Any]) -> str:
    depths = metrics.HR_DEPTHS
    bars = {name: [(summary if name == "exact" else summary[name])[f"hr@{k}"] for k in depths] for name in _ENGINES}
    return figure(
        bar_chart([f"first {k}" for k in depths], bars, "length of the list", "share of users"),
        "Users whose held-out item is in the list, by how far down the list one looks.",
    )


def _popularity_chart(strata: dict[str, list[metrics.Stratum]]) -> str:
    labels = [stratum.label for stratum in next(iter(strata.values()))]
    bars = {name: [stratum.recall for stratum in classes] for name, classes in strata.items()}
    return figure(
        bar_chart(labels, bars, "training plays of the held-out item", "HR@10"),
        "The same for the first 10, for fifths of the users, by how often their held-out item was played in training: "
        "rare items on the left, which a list that is the same for everybody cannot find.",
    )


def _training_charts(records: list[dict[str, Any]]) -> str:
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    figures = []
    if train:
        steps = [record["step"] for record in train]
        levels = [
            Series(f"level {level + 1}", steps, [record["level_loss"][level] for record in train])
            for level in range(len(train[0]["level_loss"]))
        ]
        figures.append(
            figure(
                line_chart(levels, "step", "loss (nats)"),
                "How surprised the model is by each code of the next item, given the codes before it; lower is better.",
            )
        )
    if validation:
        steps = [record["step"] for record in validation]
        curves = [Series(name, steps, [record[name] for record in validation]) for name in ("ndcg@10", "hr@10", "mrr")]
        figures.append(
            figure(
                line_chart(curves, "step", "metric"),
                "Exact scoring on the validation items during training; the checkpoint was chosen by ndcg@10 here.",
            )
        )
    if not figures:
        return note("The run folder has no training records.")
    return side_by_side(figures)


def _code_charts(level_accuracy: list[float], diagnostics: dict[str, Any]) -> str:
    labels = [str(level + 1) for level in range(len(level_accuracy))]
    levels = diagnostics["levels"]
    shares = {
        "codes in use": [level["utilisation"] for level in levels],
        "Gini coefficient": [level["gini"] for level in levels],
        "squared error left": [level["relative_error"] for level in levels],
    }
    accuracy = figure(
        bar_chart(labels, {"likeliest code is right": level_accuracy}, "code level", "share of users"),
        "How often the model's likeliest code is that of the held-out item, given the item's codes before it.",
    )
    fitted = figure(
        bar_chart(labels, shares, "code level", "share"),
        "The codes themselves: how many are used, how unevenly (0 is even, 1 is all in one), and how much of the item "
        "vectors they leave unsaid.",
    )
    return side_by_side([accuracy, fitted])


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
