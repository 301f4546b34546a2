"""All guardrails of one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.event_store import EventStore
from evaluation.guardrails.ablations import ablations
from evaluation.guardrails.base import Guardrail, in_order, not_judged
from evaluation.guardrails.chance import better_than_chance
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.guardrails.differences import Drawing
from evaluation.guardrails.gains import better_than_mostpop, codes_against_items, knowing_the_time, no_regression
from evaluation.guardrails.leak_probe import LEAK, RULE
from evaluation.guardrails.retrieval import calibrated, overlap_with_exact, popularity, recall_by_depth
from evaluation.guardrails.unknown_codes import missingness, unknown_codes
from evaluation.outputs import Ranks
from evaluation.requests import Requests
from evaluation.results import EngineResult, Evaluation


@dataclass(frozen=True)
class GuardrailContext:
    """What there is to judge by; what is not there is said to be missing, and never passes.

    Args:
        evaluation: what engines returned.
        summary: of `evaluation.summary.summarise`: figures of all engines, calibration.
        requests, store: what was asked, of what.
        config: thresholds.
        filter_history: whether lists are without what a request may see.
        diagnostics: of the code table's manifest; None for a model whose output are items.
        leak: of `leak_probe`, which runs where the model is, on every rank.
        at_newest: the first engine's results with every request made at the time of the newest event it may see.
        no_at_newest: why there are none.
        items: what a run of plain item ids has found.
        items_run: its name.
        against: of the summary, the comparison with a reference run.
        ablated: rows of `guardrails.ablations.read_ablations`.
        drawing: how chance is worked out.
    """

    evaluation: Evaluation
    summary: Mapping[str, Any]
    requests: Requests
    store: EventStore
    config: GuardrailsConfig
    filter_history: bool
    diagnostics: Mapping[str, Any] | None = None
    leak: Guardrail | None = None
    at_newest: EngineResult | None = None
    no_at_newest: str = ""
    items: Ranks | None = None
    items_run: str = ""
    against: Mapping[str, Any] | None = None
    ablated: list[dict[str, Any]] | None = None
    drawing: Drawing = field(default_factory=Drawing)


def run_guardrails(context: GuardrailContext) -> list[Guardrail]:
    """Every guardrail, what to look at first before the rest."""
    one, summary, config, drawing = context.evaluation, context.summary, context.config, context.drawing
    engine = summary["engine"]
    return in_order(
        [
            context.leak or not_judged(LEAK, "the model was not probed", RULE),
            better_than_chance(
                one,
                engine,
                context.requests,
                context.store,
                filter_history=context.filter_history,
                drawing=drawing,
            ),
            better_than_mostpop(one, engine, drawing=drawing),
            no_regression(context.against),
            overlap_with_exact(summary, config),
            codes_against_items(one, engine, context.items, config, name=context.items_run, drawing=drawing),
            unknown_codes(context.diagnostics, config),
            missingness(context.diagnostics),
            popularity(summary),
            calibrated(summary, config),
            knowing_the_time(one, engine, context.at_newest, config, why_not=context.no_at_newest, drawing=drawing),
            recall_by_depth(summary),
            ablations(context.ablated),
        ]
    )
