"""Whom, and what, the model serves well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from common.charts import bar_chart
from common.html_page import figure, heading, note, side_by_side, table
from evaluation.metrics.segments import SEGMENT_METRICS

Row = Mapping[str, Any]

_DRAWN = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}


def segment_sections(rows: Sequence[Row], engine: str) -> list[str]:
    """A chart and a table for everything that requests or targets are parted by."""
    if not rows:
        return []
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["segment"], []).append(row)
    alike = [f"{name}: {parts[0]['label']}" for name, parts in by_name.items() if len(parts) == 1]
    charts = [_chart(name, parts) for name, parts in by_name.items() if len(parts) > 1]
    details = f'<summary style="cursor:pointer;margin-top:1rem">Segments as a table</summary>{_table(rows)}'
    return [
        heading("Who is found"),
        note(
            f"The figures of {engine} for some requests, or some held-out items, only. Segments differ in how "
            "hard they are: read them beside those of another run rather than beside one another."
            + (f" All are alike in: {'; '.join(alike)}." if alike else "")
        ),
        side_by_side(charts),
        f"<details>{details}</details>",
    ]


def _chart(name: str, rows: Sequence[Row]) -> str:
    bars = {shown: [row[metric] for row in rows] for metric, shown in _DRAWN.items() if metric in rows[0]}
    requests = ", ".join(f"{row['requests']:,}" for row in rows)
    if not bars:
        return note(f"{name}: lists are too short for a figure.")
    return figure(
        bar_chart([row["label"] for row in rows], bars, name, "mean"),
        f"By {name}. Requests, from the left: {requests}.",
    )


def _table(rows: Sequence[Row]) -> str:
    names = [name for name in SEGMENT_METRICS if name in rows[0]]
    lines = []
    for row in rows:
        cells = [f"{row['segment']}: {row['label']}", f"{row['requests']:,}", f"{row['targets']:,}"]
        for name in names:
            low, high = row["intervals_95"][name]
            bounds = "" if low is None or high is None else f" ({low:.4f}–{high:.4f})"
            cells.append(f"{row[name]:.4f}{bounds}")
        lines.append(cells)
    return table(["segment", "requests", "held-out items", *(escape(name) for name in names)], lines)
