"""Items without codes: how much they cost, where they lie, and whether their absence gives something away.

What is judged was counted when the code table was made (`semantic_ids.quality.unknown`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.guardrails.base import FAIL, PASS, WARN, Guardrail, not_judged, percent
from evaluation.guardrails.config import GuardrailsConfig
from semantic_ids.quality.unknown import PARTS

UNKNOWN, MISSINGNESS = "unknown codes", "missingness leakage"
HELD_OUT = "held_out"

LEAST_EVENTS, LEAST_MEMBERS = 100, 100
"""Held-out events, and items or users, that a segment must have for its share to be judged."""

_ADVICE = "give the items vectors, or refit the codes; see the code table's report for the segments"


def unknown_codes(diagnostics: Mapping[str, Any] | None, config: GuardrailsConfig) -> Guardrail:
    """Held-out events on items that no engine can find, all of them and by segment.

    Args:
        diagnostics: of the code table's manifest; None for a model without codes.
    """
    rule = (
        f"At most {percent(config.unknown_share)} of held-out events on items without codes, and no segment with more "
        f"than {config.unknown_ratio:g} times the share of all."
    )
    figures = _counted(diagnostics)
    if isinstance(figures, str):
        return not_judged(UNKNOWN, figures, rule)
    if not figures["unknown_items"]:
        return Guardrail(UNKNOWN, PASS, f"Each of the {figures['items']:,} items has codes.", rule)
    events = figures["parts"][HELD_OUT]
    if not events["events"]:
        return not_judged(UNKNOWN, "the store holds out no events", rule)
    share = events["unknown_events"] / events["events"]
    found = f"{percent(share)} of held-out events are on the {figures['unknown_items']:,} items without codes."
    uneven = [row for row in _segments(figures) if row["share"] > config.unknown_ratio * share]
    uneven.sort(key=lambda row: -row["share"])
    if uneven:
        most = uneven[0]
        found += f" In {len(uneven)} segments it is far more, most in {most['where']}: {percent(most['share'])}."
    bad = share > config.unknown_share or (uneven and uneven[0]["share"] > config.unknown_share)
    verdict = WARN if bad else PASS
    return Guardrail(UNKNOWN, verdict, found, rule, _ADVICE if bad else "", {"share": share, "segments": uneven})


def missingness(diagnostics: Mapping[str, Any] | None) -> Guardrail:
    """Does the mere absence of codes predict a label? Then a model may learn the gaps of the catalogue."""
    rule = (
        "Whether an item has codes must not predict what a user does: AUC within its margin of 0.5, or no further than "
        "chance explains over all questions."
    )
    figures = _counted(diagnostics)
    if isinstance(figures, str):
        return not_judged(MISSINGNESS, figures, rule)
    if not figures["unknown_items"]:
        return Guardrail(MISSINGNESS, PASS, "No item is without codes, so nothing can be told by it.", rule)
    rows = [(part, row) for part in PARTS for row in figures["leakage"][part]]
    leaks = [f"{part.replace('_', '-')} events: {row['verdict']}" for part, row in rows if row["leaks"]]
    told = [row for _, row in rows if row["auc"] is not None]
    if leaks:
        advice = (
            "give those items vectors, or leave their events out, before offline figures are believed: a service in "
            "which the gaps lie elsewhere will not see them"
        )
        verdict = FAIL if any(row["leaks"] for row in figures["leakage"][HELD_OUT]) else WARN
        return Guardrail(MISSINGNESS, verdict, "; ".join(leaks) + ".", rule, advice, {"leaks": leaks})
    if not told:
        return not_judged(MISSINGNESS, "the store has no label that can be held against it", rule)
    furthest = max(told, key=lambda row: abs(row["auc"] - 0.5))
    found = f"{len(told)} questions asked, none leaks. The nearest to it: {furthest['verdict']}."
    return Guardrail(MISSINGNESS, PASS, found, rule, figures={"auc": furthest["auc"], "questions": len(told)})


def _counted(diagnostics: Mapping[str, Any] | None) -> Mapping[str, Any] | str:
    """What was counted, or why there is nothing."""
    if diagnostics is None:
        return "the model's output are items, not codes"
    figures: Mapping[str, Any] | None = diagnostics.get("unknown")
    return figures if figures is not None else "this code table has no counts of unknown items; fit it again"


def _segments(figures: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Segments with events enough; "never played" and the like are named as they are."""
    for name, rows in figures["segments"].items():
        for row in rows:
            members = row["items"] if "items" in row else row["users"]
            if row[f"{HELD_OUT}_events"] >= LEAST_EVENTS and members >= LEAST_MEMBERS:
                yield {"where": f"{name} {row['segment']}", "share": row[f"{HELD_OUT}_unknown_share"]}
