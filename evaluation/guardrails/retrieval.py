"""Whether the engines that would ship return what exact scoring returns, and lists are more than what is popular."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.guardrails.base import FAIL, INFO, PASS, WARN, Guardrail, not_judged, percent
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.metrics.ranking import HR_DEPTHS

OVERLAP, DEPTHS, CALIBRATION, POPULARITY = (
    "engines against exact scoring",
    "recall by depth",
    "calibration",
    "popularity",
)

EXACT = ("exact", "bounded")
"""Engines that return the exact lists, so that others can be held against them."""
VECTORS = ("faiss", "ivfpq", "hnsw")
"""Engines that find by vectors, and rank by other scores than the model's where its output are codes."""
AT = "100"
"""Depth at which lists are compared: of as many candidates a later stage chooses."""

_CODE_LISTS = "top@10"

Summary = Mapping[str, Any]


def overlap_with_exact(summary: Summary, config: GuardrailsConfig) -> Guardrail:
    """The share of the exact engine's first 100 that each other engine returns among its first 100."""
    rule = (
        f"Of the first {AT} of exact scoring, at least {percent(config.overlap)} in the first {AT} of every engine "
        f"with the same scores; {percent(config.vector_overlap)} of engines that search by vectors."
    )
    primary, engines = summary["engine"], summary["engines"]
    if primary not in EXACT:
        return not_judged(OVERLAP, f"{primary} is the first engine, which is not exact; put exact first", rule)
    shares: dict[str, float] = {
        name: figures["overlap"][AT]
        for name, figures in engines.items()
        if name != primary and name not in summary["baselines"] and AT in figures.get("overlap", {})
    }
    if not shares:
        return not_judged(OVERLAP, f"no other engine was evaluated whose lists reach {AT} places", rule)
    found = (
        f"Of {primary}'s first {AT}: " + ", ".join(f"{name} {percent(share)}" for name, share in shares.items()) + "."
    )
    deep = {name: _deepest(engines[name]["overlap"]) for name in shares if name not in VECTORS}
    short = {name: one for name, one in deep.items() if one[1] < config.overlap}
    if short:
        told = ", ".join(f"{name} {percent(share)} of the first {depth:,}" for name, (depth, share) in short.items())
        found += f" Further down, where lists may end, it is less: {told}."
    low = [name for name, share in shares.items() if share < config.overlap and name not in VECTORS]
    low_vectors = [name for name, share in shares.items() if share < config.vector_overlap and name in VECTORS]
    advice = []
    if low:
        advice.append(f"raise `beams` or `candidates` ({', '.join(low)}) until lists are those that were measured")
    if low_vectors:
        names = ", ".join(low_vectors)
        advice.append(f"do not ship {names} on the figures of {primary}; hybrid scores their finds exactly")
    if advice:
        return Guardrail(OVERLAP, FAIL if low else WARN, found, rule, "; ".join(advice), {"overlap": shares})
    return Guardrail(OVERLAP, PASS, found, rule, figures={"overlap": shares})


def _deepest(overlap: Mapping[str, float]) -> tuple[int, float]:
    """The deepest depth that was compared, and the share there."""
    depth = max(int(depth) for depth in overlap)
    return depth, overlap[str(depth)]


def recall_by_depth(summary: Summary) -> Guardrail:
    """Held-out items in the first 10 … 1000 of the model's engines: how deep a ranking stage must look."""
    rule = "Told, not judged: recall at a depth is the most that a later stage can make of it."
    own = {name: one for name, one in summary["engines"].items() if name not in summary["baselines"]}
    rows = {name: recalls(figures) for name, figures in own.items()}
    rows = {name: found for name, found in rows.items() if found}
    if not rows:
        return not_judged(DEPTHS, "no list is deep enough", rule)
    told = "; ".join(
        f"{name} " + ", ".join(f"{share:.3f} at {depth:,}" for depth, share in found.items() if depth > 1)
        for name, found in rows.items()
    )
    return Guardrail(DEPTHS, INFO, f"Recall of held-out items: {told}.", rule, figures={"recall": rows})


def recalls(figures: Mapping[str, Any]) -> dict[int, float]:
    """Recall by depth, as far as an engine's lists reach."""
    return {depth: figures[f"recall@{depth}"] for depth in HR_DEPTHS if f"recall@{depth}" in figures}


def calibrated(summary: Summary, config: GuardrailsConfig) -> Guardrail:
    """Expected calibration error of the first 10 together, and of each code level."""
    limit = config.calibration_error
    rule = f"Expected calibration error no more than {limit:g} beyond what chance gives a perfectly calibrated model."
    calibration = summary.get("calibration") or {}
    rows = {"the first 10": calibration.get("lists", {}).get(_CODE_LISTS)}
    rows |= {f"level {number}": one for number, one in enumerate(calibration.get("levels", []), start=1)}
    held = {name: one for name, one in rows.items() if one and one["requests"]}
    if not held:
        return not_judged(CALIBRATION, "the first engine's scores are no probabilities", rule)
    told = ", ".join(
        f"{name} {one['ece']:.3f} ({'over' if one['gap'] < 0 else 'under'}-confident by {abs(one['gap']):.3f})"
        for name, one in held.items()
    )
    found = f"Expected calibration error: {told}."
    figures = {"ece": {name: one["ece"] for name, one in held.items()}}
    off = [name for name, one in held.items() if one["ece"] - one["chance"] > limit]
    if off:
        advice = (
            f"recalibrate before probabilities of {', '.join(off)} are used as such, for thresholds or beside those of "
            "other models"
        )
        return Guardrail(CALIBRATION, WARN, found, rule, advice, figures)
    return Guardrail(CALIBRATION, PASS, found, rule, figures=figures)


_BETTER_HIGH = {"coverage@10": "items shown", "novelty@10": "novelty, bits", "stratified-recall@10": "recall by rarity"}


def popularity(summary: Summary, baseline: str = "mostpop") -> Guardrail:
    """How evenly lists show the catalogue, beside MostPop: a model that shows what is popular anyway adds little."""
    rule = (
        "Lists are less concentrated than MostPop's (lower exposure Gini; higher coverage and novelty), and recall of "
        "rare items, weighted by plays to the −½, is higher."
    )
    engines = summary["engines"]
    if baseline not in engines:
        return not_judged(POPULARITY, f"{baseline} was not evaluated; add it to `baselines`", rule)
    own, other = engines[summary["engine"]], engines[baseline]
    pairs = {name: (own[name], other[name]) for name in ("gini@10", *_BETTER_HIGH) if name in own and name in other}
    if not pairs:
        return not_judged(POPULARITY, "lists have less than 10 places", rule)
    labels = {"gini@10": "Gini", **_BETTER_HIGH}
    found = (
        "Beside MostPop: "
        + ", ".join(f"{labels[name]} {a:.3f} (MostPop {b:.3f})" for name, (a, b) in pairs.items())
        + "."
    )
    worse = [labels[name] for name, (a, b) in pairs.items() if (a >= b if name == "gini@10" else a <= b)]
    figures = {name: list(values) for name, values in pairs.items()}
    if worse:
        advice = "see the segments by training plays: what is rare is not found, and shown less it becomes rarer still"
        return Guardrail(POPULARITY, WARN, f"{found} No better: {', '.join(worse)}.", rule, advice, figures)
    return Guardrail(POPULARITY, PASS, found, rule, figures=figures)
