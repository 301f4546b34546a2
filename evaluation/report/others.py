"""The run beside others: the reference that it was compared with, and variants of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.charts import Interval, interval_chart
from common.html_page import figure, heading, note, table

Row = Mapping[str, Any]


def against_sections(against: Mapping[str, Any] | None) -> list[str]:
    """Differences to the reference run, request by request; nothing where there is none."""
    if against is None:
        return []
    rows: Sequence[Row] = against["differences"]
    left_out = f" Left out: {against['note']}." if against["note"] else ""
    parts = [
        heading(f"Beside {against['run']}"),
        note(
            f"{against['requests']:,} requests of {against['users']:,} users are in both evaluations; only those are "
            f"compared.{left_out}"
        ),
    ]
    if not rows:
        return parts
    intervals = [Interval(row["name"], "difference", row["difference"], row["low"], row["high"]) for row in rows]
    parts.append(
        figure(
            interval_chart(intervals, "difference, 95% interval"),
            "This run less the other: right of 0 it is better. An interval that holds 0 does not tell them apart.",
        )
    )
    parts.append(heading("Metric by metric", level=3))
    parts.append(
        table(
            ["metric", "there", "here", "difference", "95% interval", "p", "p, corrected"],
            [
                [
                    row["name"],
                    f"{row['before']:.4f}",
                    f"{row['after']:.4f}",
                    f"{row['difference']:+.4f}",
                    f"{row['low']:+.4f} … {row['high']:+.4f}",
                    f"{row['p']:.2g}",
                    f"{row['p_holm']:.2g}",
                ]
                for row in rows
            ],
        )
    )
    fallen = against["fallen"]
    verdict = f"Fallen: {'; '.join(fallen)}." if fallen else "No metric has fallen."
    parts.append(
        note(f"{verdict} p: how often chance alone makes as large a difference; corrected for all rows (Holm).")
    )
    return parts


def ablation_sections(rows: Sequence[Row] | None) -> list[str]:
    """Variants of the training beside the first; nothing where no page was given."""
    if not rows:
        return []
    first = rows[0]["variant"]
    beside = [row for row in rows if row["variant"] != first]
    intervals = [
        Interval(row["variant"], f"{row['events']} events", row["difference"], row["low"], row["high"])
        for row in beside
    ]
    without = "" if all(row["low"] is not None for row in beside) else " The page that was given has no intervals."
    return [
        heading("What each part is worth"),
        note(f"Trainings that differ from “{first}” in what their names say, from a page of benchmarks.ablate."),
        figure(
            interval_chart(intervals, f"difference to {first}"),
            f"Left of 0: worse than “{first}”, so what the variant leaves out or changes is worth something.{without}",
        ),
        heading("Variant by variant", level=3),
        _ablation_table(rows),
    ]


def _ablation_table(rows: Sequence[Row]) -> str:
    events = list(dict.fromkeys(row["events"] for row in rows))
    of = {(row["variant"], row["events"]): row for row in rows}
    head = ["variant", *(part for name in events for part in (name, "difference", "95% interval"))]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = [variant]
        for name in events:
            row = of.get((variant, name))
            if row is None:
                cells += ["–"] * 3
                continue
            bounds = "–" if row["low"] is None else f"{row['low']:+.4f} … {row['high']:+.4f}"
            cells += [f"{row['value']:.4f}", f"{row['difference']:+.4f}", bounds]
        lines.append(cells)
    return table(head, lines)
