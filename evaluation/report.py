"""A self-contained HTML page about a run: figures, loss curves, recall by popularity, codes. No scripts, no network.

Every figure has a sentence beneath it that says how to read it.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from common.errors import InputError
from evaluation import metrics
from evaluation.charts import Series, bar_chart, line_chart

_ENGINES = {
    "exact": "every item scored by the model",
    "faiss": "items nearest to the decoded codes",
    "mostpop": "most played items, for everybody",
}
_MEANINGS = {
    "hr": "users whose held-out item is among the first {k}",
    "ndcg": "as hr@{k}, but less the lower it stands",
    "mrr": "mean of 1 / place of the held-out item",
    "coverage": "items that stand in somebody's first {k}",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2230; --quiet: #667085; --line: #d8dde6; --page: #ffffff; --card: #f6f8fb;
        --c0: #2563c9; --c1: #d9822b; --c2: #3f9142; --c3: #b0417d; --c4: #6b5bd2; --c5: #8a6d3b;
        --c6: #1f8a99; --c7: #7a808c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --quiet: #98a2b3; --line: #333c4d; --page: #12161f;
        --card: #1a202c; --c0: #6ea3ff; --c1: #f0a860; --c2: #74c476; --c3: #e07fb3; --c4: #a79bf5; --c5: #c9a869;
        --c6: #5cc3d2; --c7: #a9b0bc; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1060px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note, figcaption { color: var(--quiet); font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--card); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .card span { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } tr:first-child th { border-bottom-width: 2px; }
th:first-child, td:first-child { text-align: left; }
th small, td small { color: var(--quiet); font-weight: 400; font-size: .82rem; }
th small, td:first-child small { display: block; }
td:not(:first-child) small { margin-left: .5rem; display: inline-block; } .best { font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1.4rem; }
figure { margin: 0; display: flex; flex-direction: column; }
svg { width: 100%; height: auto; } svg text { fill: var(--quiet); font-size: 12px; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; min-height: 1.3rem; margin-left: .5rem; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .35rem; }
"""


def render_report(
    run: Path, summary: dict[str, Any], strata: dict[str, list[metrics.Stratum]], code_diagnostics: dict[str, Any]
) -> str:
    """The page as text. Loss curves come from the run's `metrics.jsonl`, if there is one."""
    records = _read_records(run / "metrics.jsonl")
    sections = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="note">From each of {summary["users"]:,} users the last event was held out '
        f"({escape(summary['protocol'])}). Every engine ranked the whole catalogue of {summary['items']:,} items, "
        f"without those in the user's history; the higher the held-out item stands, the better. Model: checkpoint "
        f"{escape(summary['checkpoint'])}, after epoch {summary['epoch']}, chosen without the held-out items.</p>",
        _cards(summary),
        "<h2>Held-out test items</h2>",
        _metric_table(summary),
        "<h2>Who is found</h2>",
        f'<div class="pair">{_hit_chart(summary)}{_popularity_chart(strata)}</div>',
        "<h2>Training</h2>",
        _training_charts(records),
        "<h2>Semantic ids</h2>",
        _code_charts(summary["level_accuracy"], code_diagnostics),
    ]
    body = "\n".join(sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(run.name)} – Segue</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _cards(summary: dict[str, Any]) -> str:
    ratio = summary["ndcg@10_over_mostpop"]
    cards = [
        ("NDCG@10", f"{summary['ndcg@10']:.4f}"),
        ("HR@10", f"{summary['hr@10']:.4f}"),
        ("MRR", f"{summary['mrr']:.4f}"),
        ("NDCG@10 over MostPop", "–" if ratio is None else f"{ratio:.2f}×"),
    ]
    inner = "".join(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for label, value in cards)
    return f'<div class="cards">{inner}</div>'


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
    return _figure(
        bar_chart([f"first {k}" for k in depths], bars, "length of the list", "share of users"),
        "Users whose held-out item is in the list, by how far down the list one looks.",
    )


def _popularity_chart(strata: dict[str, list[metrics.Stratum]]) -> str:
    labels = [stratum.label for stratum in next(iter(strata.values()))]
    bars = {name: [stratum.recall for stratum in classes] for name, classes in strata.items()}
    return _figure(
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
            _figure(
                line_chart(levels, "step", "loss (nats)"),
                "How surprised the model is by each code of the next item, given the codes before it; lower is better.",
            )
        )
    if validation:
        steps = [record["step"] for record in validation]
        curves = [Series(name, steps, [record[name] for record in validation]) for name in ("ndcg@10", "hr@10", "mrr")]
        figures.append(
            _figure(
                line_chart(curves, "step", "metric"),
                "Exact scoring on the validation items during training; the checkpoint was chosen by ndcg@10 here.",
            )
        )
    if not figures:
        return '<p class="note">The run folder has no training records.</p>'
    return f'<div class="pair">{"".join(figures)}</div>'


def _code_charts(level_accuracy: list[float], diagnostics: dict[str, Any]) -> str:
    labels = [str(level + 1) for level in range(len(level_accuracy))]
    levels = diagnostics["levels"]
    shares = {
        "codes in use": [level["utilisation"] for level in levels],
        "Gini coefficient": [level["gini"] for level in levels],
        "squared error left": [level["relative_error"] for level in levels],
    }
    accuracy = _figure(
        bar_chart(labels, {"likeliest code is right": level_accuracy}, "code level", "share of users"),
        "How often the model's likeliest code is that of the held-out item, given the item's codes before it.",
    )
    fitted = _figure(
        bar_chart(labels, shares, "code level", "share"),
        "The codes themselves: how many are used, how unevenly (0 is even, 1 is all in one), and how much of the item "
        "vectors they leave unsaid.",
    )
    return f'<div class="pair">{accuracy}{fitted}</div>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


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
