"""The figure beside others: more than popularity, more than the clock, no less than plain items or a run before.

R requests · T targets · P requests in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from evaluation.guardrails.base import FAIL, INFO, PASS, WARN, Guardrail, not_judged, percent
from evaluation.guardrails.chance import rows_of
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.guardrails.differences import Drawing, difference, in_words, is_above, ndcg, plain
from evaluation.metrics.alignment import align
from evaluation.metrics.comparison import SIGNIFICANT
from evaluation.outputs import Ranks
from evaluation.results import EngineResult, Evaluation, Floats, Ints, Targets

OVER_MOSTPOP, REQUEST_TIME = "better than MostPop", "knowing the time"
AGAINST_ITEMS, REGRESSIONS = "codes against item ids", "against the reference run"


def better_than_mostpop(
    evaluation: Evaluation, engine: str, *, baseline: str = "mostpop", drawing: Drawing | None = None
) -> Guardrail:
    """Hold an engine against the same list for everybody."""
    rule = f"NDCG@10 lies above MostPop's, p below {SIGNIFICANT} and the 95% interval above 0."
    if baseline not in evaluation.engines:
        return not_judged(OVER_MOSTPOP, f"{baseline} was not evaluated; add it to `baselines`", rule)
    targets = evaluation.targets
    own_R, other_R = (ndcg(evaluation.engines[name].places_T, targets.offsets_R1) for name in (engine, baseline))
    one = difference(other_R, own_R, targets.users_R, drawing or Drawing())
    ratio = one.after / one.before if one.before else None
    times = "" if ratio is None else f", {ratio:.2f} times as much"
    told = f"NDCG@10 {one.after:.4f}, MostPop {one.before:.4f}{times}: {in_words(one)}."
    figures = {**plain(one, baseline, "model"), "ratio": ratio}
    if is_above(one):
        return Guardrail(OVER_MOSTPOP, PASS, told, rule, figures=figures)
    advice = "ship MostPop instead, which costs nothing, or train longer; the segments say where the model is better"
    return Guardrail(OVER_MOSTPOP, FAIL if one.high < 0 else WARN, told, rule, advice, figures)


def knowing_the_time(
    evaluation: Evaluation,
    engine: str,
    at_newest: EngineResult | None,
    config: GuardrailsConfig,
    *,
    why_not: str = "",
    drawing: Drawing | None = None,
) -> Guardrail:
    """How much of NDCG@10 comes from knowing when the event asked for happens.

    Args:
        at_newest: the engine's results for the same requests, made at the time of the newest event that each may see.
        why_not: what to say where there are none.
    """
    rule = (
        f"At most {percent(config.request_time_share)} of NDCG@10 comes from being asked in the very second of the "
        "event: a service knows when it is asked, but lists may be made before, and people hesitate."
    )
    if at_newest is None:
        return not_judged(REQUEST_TIME, why_not or "requests were not made a second time without knowing it", rule)
    targets = evaluation.targets
    newest_R, own_R = (ndcg(found.places_T, targets.offsets_R1) for found in (at_newest, evaluation.engines[engine]))
    one = difference(newest_R, own_R, targets.users_R, drawing or Drawing())
    share = one.difference / one.after if one.after else 0.0
    told = (
        f"NDCG@10 {one.after:.4f} asked at the time of the event, {one.before:.4f} at that of the newest event seen: "
        f"{in_words(one)}. Knowing the time {'gives' if share >= 0 else 'costs'} {percent(abs(share))} of it."
    )
    figures = {**plain(one, "asked at the newest event", "asked at the event"), "share": share}
    if share > config.request_time_share and is_above(one):
        advice = (
            "expect the lower figure where lists are made ahead; model.biases.time_reference=current trains a model "
            "that does not lean on it"
        )
        return Guardrail(REQUEST_TIME, WARN, told, rule, advice, figures)
    return Guardrail(REQUEST_TIME, INFO, told, rule, figures=figures)


def codes_against_items(
    evaluation: Evaluation,
    engine: str,
    items: Ranks | None,
    config: GuardrailsConfig,
    *,
    name: str = "",
    drawing: Drawing | None = None,
) -> Guardrail:
    """Hold a model of codes against one of plain item ids, request by request.

    Args:
        items: what the run of item ids has found, with the same engine, or with its first.
        name: of that run.
    """
    rule = f"NDCG@10 no more than {percent(config.quantised_loss)} below that of plain item ids on the same requests."
    if evaluation.levels is None:
        return not_judged(AGAINST_ITEMS, "the model's output are items themselves", rule)
    if items is None:
        return not_judged(AGAINST_ITEMS, "no run of plain item ids was given to compare with", rule)
    if items.about.get("output", "items") != "items":
        return not_judged(AGAINST_ITEMS, f"the output of {name or 'the other run'} are codes too", rule)
    own_places_T = evaluation.engines[engine].places_T
    try:
        other_P, own_P, users_P = paired_ndcg(items, engine, evaluation.targets, own_places_T)
    except InputError as error:
        return not_judged(AGAINST_ITEMS, str(error).rstrip("."), rule)
    one = difference(other_P, own_P, users_P, drawing or Drawing())
    least = -config.quantised_loss * one.before
    share = one.difference / one.before if one.before else 0.0
    told = (
        f"NDCG@10 {one.after:.4f} by codes, {one.before:.4f} by item ids ({name or 'other run'}): {in_words(one)}, "
        f"{share:+.1%}."
    )
    figures = {**plain(one, "item ids", "codes"), "share": share, "requests": len(users_P)}
    if one.low >= least:
        return Guardrail(AGAINST_ITEMS, PASS, told, rule, figures=figures)
    if one.difference >= least:
        told += " The interval reaches further down, so these requests do not settle it."
        return Guardrail(AGAINST_ITEMS, WARN, told, rule, "evaluate on more users, or train with more seeds", figures)
    advice = "more levels or codes, better item vectors, or a longer training; see the calibration of each level"
    return Guardrail(AGAINST_ITEMS, FAIL, told, rule, advice, figures)


def paired_ndcg(other: Ranks, engine: str, targets: Targets, places_T: Ints) -> tuple[Floats, Floats, Ints]:
    """NDCG@10 [P] of another run and of this one over the requests that both have, and their users.

    Raises:
        InputError: they have none.
    """
    both = align(other.targets, targets)
    other_R = ndcg(other.places[other.engine_like(engine)], other.targets.offsets_R1)
    own_R = ndcg(places_T, targets.offsets_R1)
    return other_R[both.before_P], own_R[both.after_P], rows_of(targets, both.after_P).users_R


def no_regression(against: Mapping[str, Any] | None) -> Guardrail:
    """What the comparison with the reference run found.

    Args:
        against: of the summary: a `Comparison` as a dict, `run` and `fallen`, sentences about metrics that fell.
    """
    rule = f"No metric falls below the reference run's with a corrected p below {SIGNIFICANT} and its interval below 0."
    if against is None:
        return not_judged(REGRESSIONS, "no run was given to compare with", rule)
    rows = against["differences"]
    told = "; ".join(f"{row['name']} {row['difference']:+.4f} ({row['low']:+.4f} … {row['high']:+.4f})" for row in rows)
    over = f"Over {against['requests']:,} requests beside {against['run']}: {told}."
    if against["fallen"]:
        return Guardrail(
            REGRESSIONS,
            FAIL,
            f"{over} Fallen: {'; '.join(against['fallen'])}.",
            rule,
            "do not replace the reference by this run; the segments say who loses",
        )
    if not rows:
        return not_judged(REGRESSIONS, f"nothing could be compared with {against['run']}", rule)
    return Guardrail(REGRESSIONS, PASS, over, rule)
