"""What a page of `benchmarks.ablate` says: each variant of a training beside the first, with its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from evaluation.guardrails.base import INFO, PASS, WARN, Guardrail, not_judged
from evaluation.outputs import EVENTS

ABLATIONS = "ablations"

_NUMBERS = ("value", "difference", "low", "high")
_AGAIN = "give the JSON page that python -m benchmarks.ablate writes to benchmarks/results, or run it again"

Row = dict[str, Any]


def read_ablations(path: Path) -> list[Row]:
    """Rows of `variant`, `events`, `value`, `difference`, `low`, `high`; the first variant is what others differ from.

    A page from before intervals were kept has none; differences are then those of the rounded values, bounds None.

    Raises:
        InputError: there is no such file, or it is another kind of file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"`ablations`: {path} cannot be read: {error.strerror}; {_AGAIN}") from None
    except ValueError as error:
        raise InputError(f"`ablations`: {path} is not JSON: {error}; {_AGAIN}") from None
    figures = content.get("figures") if isinstance(content, dict) else None
    if not isinstance(figures, dict):
        raise InputError(f"`ablations`: {path} has no `figures`; {_AGAIN}")
    kept = content.get("differences")
    rows = _with_intervals(kept, path) if kept is not None else _from_values(figures, path)
    if not rows:
        raise InputError(f"`ablations`: {path} holds no variant on {' or '.join(EVENTS)} events; {_AGAIN}")
    return rows


def ablations(rows: Sequence[Mapping[str, Any]] | None) -> Guardrail:
    """Is any variant better than what is trained? Judged on validation events, by which choices are made.

    Args:
        rows: of `read_ablations`.
    """
    rule = "No variant lies above the first with its whole 95% interval, on validation events."
    if rows is None:
        return not_judged(ABLATIONS, "no page of benchmarks.ablate was given", rule)
    chosen = [row for row in rows if row["events"] == "validation"] or list(rows)
    first, others = chosen[0], chosen[1:]
    if not others:
        return not_judged(ABLATIONS, "the page has one variant only", rule)
    most, least = (pick(others, key=lambda row: row["difference"]) for pick in (max, min))
    told = (
        f"{len(others)} variants beside {first['variant']} ({first['value']:.4f}, {first['events']} events): from "
        f"{least['variant']} ({least['difference']:+.4f}) to {most['variant']} ({most['difference']:+.4f})."
    )
    if any(row["low"] is None for row in others):
        return Guardrail(ABLATIONS, INFO, f"{told} The page has no intervals, so it is not judged.", rule)
    better = [row["variant"] for row in others if row["low"] > 0]
    if better:
        return Guardrail(
            ABLATIONS, WARN, f"{told} Better: {', '.join(better)}.", rule, "train with what is better, or say why not"
        )
    return Guardrail(ABLATIONS, PASS, told, rule)


def _with_intervals(kept: Any, path: Path) -> list[Row]:
    faults = []
    if not isinstance(kept, list):
        raise InputError(f"`ablations`: {path}: `differences` is no list; {_AGAIN}")
    for number, row in enumerate(kept, start=1):
        missing = [name for name in ("name", "events", *_NUMBERS) if not isinstance(row, dict) or name not in row]
        if missing:
            faults.append(f"`ablations`: {path}, difference {number}: no {', '.join(missing)}; {_AGAIN}")
        elif not all(_is_number(row[name]) for name in _NUMBERS):
            faults.append(f"`ablations`: {path}, difference {number}: {row} holds what is no finite number; {_AGAIN}")
    if faults:
        raise InputError(*faults)
    return [
        {"variant": str(row["name"]), "events": str(row["events"]), **{name: float(row[name]) for name in _NUMBERS}}
        for row in kept
    ]


def _from_values(figures: Mapping[str, Any], path: Path) -> list[Row]:
    rows: list[Row] = []
    for name, value in figures.items():
        variant, _, events = name.rpartition(", ")
        if events not in EVENTS:  # the loss in the stream
            continue
        if not _is_number(value):
            raise InputError(f"`ablations`: {path}: {name} is {value!r}, which is no finite number; {_AGAIN}")
        first = next((row["value"] for row in rows if row["events"] == events), float(value))
        bounds = {"low": None, "high": None}
        rows.append(
            {"variant": variant, "events": events, "value": float(value), "difference": value - first, **bounds}
        )
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
