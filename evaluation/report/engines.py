"""All engines and baselines: their figures with intervals, how deep they find, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from common.charts import Interval, Series, interval_chart, line_chart
from common.html_page import figure, heading, note, side_by_side, table
from evaluation.guardrails.retrieval import recalls
from evaluation.report.cells import figure_cell
from evaluation.requests import NEXT, YAMBDA

Figures = Mapping[str, Any]

ENGINES = {
    "exact": "every item scored",
    "bounded": "as exact, without scoring what cannot be listed",
    "beam": "down the codes that items carry",
    "faiss": "nearest vectors, all compared",
    "ivfpq": "nearest vectors, compressed",
    "hnsw": "nearest vectors, by a graph",
    "hybrid": "found by beam and vectors, scored exactly",
    "mostpop": "the most played, for everybody",
}
_MEANINGS = {
    "hr": "requests with a held-out item in the first {k}",
    "ndcg": "held-out items in the first {k}, less the lower they stand",
    "recall": "of the held-out items, share in the first {k}",
    "precision": "of the first {k}, share that were held out",
    "map": "precision at the held-out items of the first {k}",
    "mrr": "mean of 1 / place of the best held-out item",
    "coverage": "items that stand in somebody's first {k}",
    "gini": "how unevenly items stand in the first {k}; 0 evenly",
    "novelty": "bits: how rarely played the first {k} are",
    "stratified-recall": "recall, rare items weighing more",
    "yambda/ndcg": "as in Yambda's benchmark",
    "yambda/recall": "as in Yambda's benchmark",
    "yambda/coverage": "as in Yambda's benchmark",
}
_OF_LISTS = ("coverage", "gini", "novelty", "yambda/coverage")
"""Higher is not better of these, so none is bold."""

_OF_ALL = ("ndcg@10", "ndcg@100", "recall@10", "recall@100", "mrr", "coverage@10", "gini@10", "novelty@10")
_SHOWN = {
    NEXT: ("ndcg@10", "hr@10", "hr@100", "mrr", "coverage@10", "gini@10", "novelty@10"),
    YAMBDA: (
        *(f"yambda/{name}@{k}" for name in ("ndcg", "recall", "coverage") for k in (10, 100)),
        "ndcg@10",
        "gini@10",
    ),
}

_NOTE = (
    "Small figures: 95% bootstrap intervals over users, how far a figure would move with other users of the same kind; "
    "figures of all lists together have none. Where two engines' intervals overlap they may still differ: both "
    "answered the same requests. Bold: the best of the column."
)


def engine_sections(summary: Figures) -> list[str]:
    """The main figures of every engine, NDCG@10 as a picture, and all other metrics folded away."""
    engines: Mapping[str, Figures] = summary["engines"]
    first = engines[summary["engine"]]
    chosen = [name for name in _SHOWN.get(summary["protocol"], _OF_ALL) if name in first]
    everything = [name for name, value in first.items() if "@" in name or name == "mrr" if isinstance(value, float)]
    return [
        heading(f"Held-out {summary['events']} items"),
        _engine_table(engines, summary["baselines"], chosen),
        note(_NOTE),
        _picture(engines, summary["baselines"]),
        _folded(f"All {len(everything)} metrics", _metric_table(engines, everything)),
    ]


def retrieval_sections(summary: Figures) -> list[str]:
    """How deep held-out items are found, and engines beside the first: what they miss, what they cost."""
    engines: Mapping[str, Figures] = summary["engines"]
    first, baselines = summary["engine"], summary["baselines"]
    own = [name for name in engines if name not in baselines]
    charts = [
        _recall_chart(
            {name: engines[name] for name in own},
            "What the model's engines find, by how deep one looks. What a stage of retrieval does not return, no later "
            "stage can rank.",
        )
    ]
    if baselines:
        beside = {name: engines[name] for name in (first, *baselines)}
        charts.append(_recall_chart(beside, f"The same of {first} beside the baselines."))
    return [
        heading("How deep, and at what cost"),
        side_by_side(charts),
        heading(f"Beside {first}", level=3),
        _cost_table(engines, first, own),
    ]


def _engine_table(engines: Mapping[str, Figures], baselines: Sequence[str], chosen: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}<small>{escape(meaning(name))}</small></th>" for name in chosen)
    best = {name: max(figures.get(name, 0.0) for figures in engines.values()) for name in chosen}
    rows = []
    for engine, figures in engines.items():
        said = ENGINES.get(engine, "a baseline" if engine in baselines else "")
        cells = "".join(_cell(figures, name, best[name]) for name in chosen)
        rows.append(f"<tr><td>{escape(engine)}<small>{escape(said)}</small></td>{cells}</tr>")
    corner = '<th style="min-width:10.5rem">engine</th>'
    return f'<div class="scroll"><table><tr>{corner}{head}</tr>{"".join(rows)}</table></div>'


def _metric_table(engines: Mapping[str, Figures], names: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(engine)}</th>" for engine in engines)
    rows = []
    for name in names:
        best = max(figures.get(name, 0.0) for figures in engines.values())
        cells = "".join(_cell(figures, name, best) for figures in engines.values())
        rows.append(f"<tr><td>{escape(name)}<small>{escape(meaning(name))}</small></td>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th>metric</th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(figures: Figures, metric: str, best: float) -> str:
    """A value with its interval beneath; a dash for what an engine has no figure of."""
    is_best = figures.get(metric) == best and metric.partition("@")[0] not in _OF_LISTS
    return figure_cell(figures.get(metric), figures["intervals_95"].get(metric), is_best)


def meaning(metric: str) -> str:
    """What a metric says, in a few words."""
    kind, _, k = metric.partition("@")
    return _MEANINGS.get(kind, "").format(k=k)


def _picture(engines: Mapping[str, Figures], baselines: Sequence[str]) -> str:
    intervals = []
    for name, figures in engines.items():
        low, high = figures["intervals_95"].get("ndcg@10") or (None, None)
        if "ndcg@10" in figures:
            kind = "baselines" if name in baselines else "the model"
            intervals.append(Interval(name, kind, figures["ndcg@10"], low, high))
    return figure(interval_chart(intervals, "NDCG@10, 95% interval"), "NDCG@10 of every engine.")


def _folded(title: str, html: str) -> str:
    return f'<details><summary style="cursor:pointer;margin-top:1rem">{escape(title)}</summary>{html}</details>'


def _recall_chart(engines: Mapping[str, Figures], caption: str) -> str:
    found = {name: recalls(figures) for name, figures in engines.items()}
    depths = sorted({depth for one in found.values() for depth in one})
    series = [Series(name, list(one), list(one.values())) for name, one in found.items()]
    ticks = [(depth, f"{depth:,}") for depth in depths]
    return figure(
        line_chart(series, "length of the list", "recall of held-out items", log_x=True, x_ticks=ticks), caption
    )


def _cost_table(engines: Mapping[str, Figures], first: str, own: Sequence[str]) -> str:
    depths = sorted({int(depth) for name in own for depth in engines[name].get("overlap", {})})
    head = ["engine", *(f"of the first {depth:,}" for depth in depths), "recall@100", "ms a request"]
    rows = []
    for name, figures in engines.items():
        overlap = figures.get("overlap", {})
        shares = [_share(overlap[str(depth)]) if str(depth) in overlap else "–" for depth in depths]
        recall = f"{figures['recall@100']:.4f}" if "recall@100" in figures else "–"
        rows.append([name, *shares, recall, f"{1000 * figures['seconds_per_request']:.3g}"])
    return table(head, rows) + note(
        f"Of the first 10, 50, … of {first}: the share that stands in the engine's own first as many, mean over "
        "requests. Times are those of this evaluation, in batches, on the machine that ran it, without the model's "
        "forward pass; compare them with one another."
    )


def _share(share: float | None) -> str:
    return "–" if share is None or share != share else f"{share:.1%}"
