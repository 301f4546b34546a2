"""A self-contained HTML page about an evaluation: verdicts first, then figures, then what they are made of.

A function of what `metrics.json` holds and of the run's folder. No scripts, no network. What was not evaluated is left
out, or said in a sentence; a value that is not finite is never drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.html_page import cards, heading, note, page
from evaluation.report.confidence import calibration_sections
from evaluation.report.engines import engine_sections, retrieval_sections
from evaluation.report.others import ablation_sections, against_sections
from evaluation.report.segments import segment_sections
from evaluation.report.training import code_sections, plan_sections_of, training_sections
from evaluation.report.verdicts import verdict_sections
from evaluation.requests import DAILY, NEXT, PERIOD, YAMBDA

Summary = Mapping[str, Any]

_ASKED = {
    NEXT: "each is asked once, which item comes next, at the time when it does",
    PERIOD: "each is asked once, at the beginning of the held-out period, for all that follows in it",
    DAILY: "each is asked at the beginning of every held-out day for what follows in that day",
    YAMBDA: "each is asked once, as in Yambda's benchmark, for all that follows in the held-out period",
}


def render_report(run: Path, summary: Summary, diagnostics: Mapping[str, Any] | None) -> str:
    """The page as text.

    Args:
        run: the run's folder; training curves are of its `metrics.jsonl`, the plan of its `plan.json`, if there are.
        summary: what `metrics.json` holds.
        diagnostics: of the code table's manifest; None, or without effect, for a model whose output are items.

    Raises:
        InputError: `metrics.jsonl` is damaged.
    """
    sections = [
        heading(run.name, level=1),
        note(_introduction(summary)),
        _cards(summary),
        *verdict_sections(summary.get("guardrails", [])),
        *engine_sections(summary),
        *retrieval_sections(summary),
        *segment_sections(summary.get("segments", []), summary["engine"]),
        *calibration_sections(summary.get("calibration") or {}),
        *against_sections(summary.get("against")),
        *ablation_sections(summary.get("ablations")),
        *training_sections(run),
        *(code_sections(summary["level_accuracy"], diagnostics) if "level_accuracy" in summary else []),
        *plan_sections_of(run),
    ]
    return page(run.name, sections)


def _introduction(summary: Summary) -> str:
    history = "without" if summary["filter_history"] else "with"
    denied = summary.get("denied", 0)
    but = f" but {denied:,} that nobody may be given" if denied else ""
    return (
        f"The {summary['events']} events of {summary['users']:,} users were held out ({summary['split']}). Of these "
        f"users {_ASKED.get(summary['protocol'], summary['protocol'])}: {summary['requests']:,} requests. Every engine "
        f"returned lists of {summary['depth']:,} out of {summary['items']:,} items{but}, {history} those in the user's "
        "history; the higher held-out items stand, the better. Model: checkpoint "
        f"{summary['checkpoint']}, after epoch {summary['epoch']}. Figures that do not name an engine are those of "
        f"{summary['engine']}."
    )


def _cards(summary: Summary) -> str:
    ratio = summary["ndcg@10_over_mostpop"]
    names = {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "recall@100": "recall@100", "mrr": "MRR"}
    if summary["protocol"] == YAMBDA:
        names = {"yambda/ndcg@10": "NDCG@10, Yambda's", "yambda/recall@10": "recall@10, Yambda's"} | names
    figures = [(label, f"{summary[name]:.4f}") for name, label in names.items() if name in summary]
    return cards([*figures, ("NDCG@10 over MostPop", "–" if ratio is None else f"{ratio:.2f}×")])
