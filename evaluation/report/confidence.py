"""Reliability: what the model says is likely, held against how often it happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.charts import Series, line_chart
from common.html_page import figure, heading, note, side_by_side, table

Calibration = Mapping[str, Any]


def calibration_sections(calibration: Mapping[str, Any]) -> list[str]:
    """Curves and figures of lists and code levels; nothing where no engine gives probabilities."""
    lists = {f"first {name.removeprefix('top@')}": one for name, one in calibration.get("lists", {}).items()}
    levels = {f"level {number}": one for number, one in enumerate(calibration.get("levels", []), start=1)}
    curves = [
        (
            lists,
            "That the next item is among the first 1, 10, 100, as the model's probabilities of these add up to. Items "
            "that lists leave out keep their probability, so filtered lists are right more often than said.",
        ),
        (levels, "That the likeliest code of a level is the right one, given the item's codes before it."),
    ]
    charts = [_reliability(kinds, caption) for kinds, caption in curves if kinds]
    if not charts:
        return []
    return [
        heading("Is its confidence true?"),
        side_by_side(charts),
        heading("In figures", level=3),
        _table(lists | levels),
    ]


def _reliability(kinds: Mapping[str, Calibration], caption: str) -> str:
    bins = {name: one["bins"] for name, one in kinds.items()}
    most = max((bin["confidence"] for some in bins.values() for bin in some), default=0.0)
    series = [
        Series(name, [bin["confidence"] for bin in some], [bin["rate"] for bin in some]) for name, some in bins.items()
    ]
    if most:
        series.append(Series("as said", [0, most], [0, most]))
    return figure(
        line_chart(series, "probability that the model gives", "how often it came so"),
        f"{caption} Requests in ten groups of like confidence; below the line “as said” the model is over-confident.",
    )


def _table(kinds: Mapping[str, Calibration]) -> str:
    rows: list[Sequence[str]] = [
        [
            name,
            f"{one['requests']:,}",
            f"{one['confidence']:.4f}",
            f"{one['rate']:.4f}",
            f"{one['gap']:+.4f}",
            f"{one['ece']:.4f}",
            f"{one['chance']:.4f}",
            f"{one['brier']:.4f}",
        ]
        for name, one in kinds.items()
    ]
    head = ["", "requests", "said", "came so", "gap", "ECE", "ECE by chance", "Brier"]
    return table(head, rows) + note(
        "Gap: below 0 over-confident. ECE: expected calibration error, the mean distance over the groups between what "
        "was said and what came. ECE by chance: what so few requests give a perfectly calibrated model; an error near "
        "it says nothing against the model. Brier: mean squared error of the probabilities."
    )
