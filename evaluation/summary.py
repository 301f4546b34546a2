"""The figures of an evaluation: what `metrics.json` holds, and the table for a terminal.

R requests · T targets · N items of the store.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data.event_store import EventStore
from data.schema import TIMESTAMP
from evaluation.config import EvaluateConfig
from evaluation.metrics.calibration import Calibration, level_calibration, list_calibration
from evaluation.metrics.lists import coverage_and_gini
from evaluation.metrics.ranking import per_request_metrics
from evaluation.metrics.segments import SegmentRow, segment_rows, standard_segments
from evaluation.metrics.summary import engine_figures
from evaluation.requests import NEXT, YAMBDA, Requests, seen_targets
from evaluation.results import Evaluation, Ints
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.trie import CodeTrie

SHOWN = {
    NEXT: ("ndcg@10", "hr@10", "hr@50", "hr@200", "mrr", "coverage@10", "gini@10", "novelty@10"),
    YAMBDA: tuple(f"yambda/{name}@{k}" for name in ("ndcg", "recall", "coverage") for k in (10, 100)),
}
"""Metrics of the table for a terminal, by protocol; those of other protocols are below."""

_SHOWN = ("ndcg@10", "ndcg@100", "recall@10", "recall@100", "hr@10", "mrr", "coverage@10", "gini@10", "novelty@10")


def validation_figures(result: Evaluation, engine: str) -> dict[str, float]:
    """Means alone, for a training that looks every now and then."""
    found = result.engines[engine]
    metrics = per_request_metrics(found, result.targets, result.depth)
    means = {name: float(values_R.mean()) for name, values_R in metrics.items()}
    return means | coverage_and_gini(found.items_RK, result.num_items)


def summarise(
    config: EvaluateConfig,
    result: Evaluation,
    requests: Requests,
    store: EventStore,
    codes: CodeTable,
    protocol: str,
) -> dict[str, Any]:
    """The figures of all engines, and of the first one everything else: segments, calibration, accuracy of codes."""
    plays_N = codes.training_plays_N.astype(np.int64)
    first = next(iter(result.engines))
    engines = {name: _engine(config, result, name, plays_N, yambda=protocol == YAMBDA) for name in result.engines}
    for name, overlap in result.overlaps.items():
        if name not in config.baselines:
            engines[name]["overlap"] = {str(depth): share for depth, share in overlap.items()}
    summary: dict[str, Any] = {
        "requests": len(result.targets),
        "users": len(np.unique(result.targets.users_R)),
        "items": result.num_items,
        "depth": result.depth,
        "engine": first,
        **{name: value for name, value in engines[first].items() if name not in ("overlap", "seconds_per_request")},
        "ndcg@10_over_mostpop": _over(engines, first, "mostpop"),
        "engines": engines,
        "baselines": list(config.baselines),
        "segments": [_row(row) for row in segments_of(config, result, requests, store, codes)],
        "calibration": calibration_of(result, codes),
    }
    if result.levels is not None:
        summary["level_accuracy"] = result.levels.accuracy_C
    return summary


def _engine(config: EvaluateConfig, result: Evaluation, name: str, plays_N: Ints, *, yambda: bool) -> dict[str, Any]:
    """Every metric of one engine, with 95% intervals over users where it has them, and its time."""
    figures = engine_figures(result, name, plays_N, yambda=yambda, samples=config.bootstrap, seed=config.seed)
    return {
        **{metric: figure.value for metric, figure in figures.items()},
        "intervals_95": {
            metric: [figure.low, figure.high] for metric, figure in figures.items() if figure.low is not None
        },
        "seconds_per_request": result.seconds[name] / len(result.targets),
    }


def segments_of(
    config: EvaluateConfig, result: Evaluation, requests: Requests, store: EventStore, codes: CodeTable
) -> list[SegmentRow]:
    """The standard segments of the first engine."""
    targets, stop_R = result.targets, requests.history_stop_R
    first_E = store.offsets[targets.users_R]
    newest_R = store.column(TIMESTAMP)[first_E + stop_R - 1].astype(np.int64)
    segments = standard_segments(
        targets,
        history_R=stop_R,
        idle_R=targets.times_R - newest_R,
        training_plays_N=codes.training_plays_N.astype(np.int64),
        seen_T=seen_targets(store, targets.users_R, stop_R, targets),
        known_N=codes.known_N if result.levels is not None else None,
    )
    found = next(iter(result.engines.values()))
    return segment_rows(segments, found, targets, result.depth, config.bootstrap, config.seed)


def calibration_of(result: Evaluation, codes: CodeTable) -> dict[str, Any]:
    """Of the first engine's lists, if its scores are log-probabilities, and of the code levels."""
    found = next(iter(result.engines.values()))
    calibration: dict[str, Any] = {}
    if found.log_probabilities:
        sharers_N = sharers(codes) if result.levels is not None else None
        lists = list_calibration(found, result.targets, sharers_N)
        calibration["lists"] = {name: _plain(one) for name, one in lists.items()}
    if result.levels is not None:
        calibration["levels"] = [_plain(one) for one in level_calibration(result.levels)]
    return calibration


def sharers(codes: CodeTable) -> Ints:
    """[N] how many items have the codes of each item, itself included."""
    leaf_N = CodeTrie.of(codes).leaf_of_items()
    counts = np.bincount(leaf_N[leaf_N >= 0])
    return np.where(leaf_N >= 0, counts[leaf_N] if len(counts) else 0, (leaf_N < 0).sum())


def _plain(calibration: Calibration) -> dict[str, Any]:
    return {**dataclasses.asdict(calibration), "gap": calibration.gap}


def _row(row: SegmentRow) -> dict[str, Any]:
    return {
        "segment": row.name,
        "label": row.label,
        "requests": row.requests,
        "targets": row.targets,
        **{name: figure.value for name, figure in row.figures.items()},
        "intervals_95": {name: [figure.low, figure.high] for name, figure in row.figures.items()},
    }


def _over(engines: dict[str, dict[str, Any]], first: str, baseline: str) -> float | None:
    if baseline not in engines or not engines[baseline]["ndcg@10"]:
        return None
    return float(engines[first]["ndcg@10"] / engines[baseline]["ndcg@10"])


def format_table(summary: dict[str, Any]) -> str:
    """The figures as a table for a terminal: a row an engine, 95% intervals under the metrics that carry them."""
    columns = [name for name in SHOWN.get(summary["protocol"], _SHOWN) if name in summary]
    filtered = "history filtered" if summary["filter_history"] else "history not filtered"
    lines = [
        f"{summary['split']}, {summary['events']} events, {summary['requests']} requests of {summary['users']} users, "
        f"{summary['items']} items, {filtered}, 95% intervals over users"
    ]
    width = max(len(name) for name in columns) + 3
    width = max(width, 16)
    margin = max(len(name) for name in summary["engines"]) + 1
    lines.append(" " * margin + "".join(f"{name:>{width}}" for name in columns) + f"{'ms/request':>12}")
    for name, figures in summary["engines"].items():
        values = "".join(f"{figures[column]:>{width}.4f}" for column in columns)
        lines.append(f"{name:<{margin}}{values}{1000 * figures['seconds_per_request']:>12.3g}")
        bounds = (figures["intervals_95"].get(column) for column in columns)
        lines.append(" " * margin + "".join(f"{f'{b[0]:.4f}–{b[1]:.4f}' if b else '':>{width}}" for b in bounds))
    if "level_accuracy" in summary:
        accuracy = ", ".join(f"{share:.3f}" for share in summary["level_accuracy"])
        lines.append(f"accuracy of each code level, given the levels before it: {accuracy}")
    if summary["ndcg@10_over_mostpop"] is not None:
        lines.append(f"NDCG@10 of {summary['engine']} is {summary['ndcg@10_over_mostpop']:.2f} × that of mostpop")
    return "\n".join(lines)
