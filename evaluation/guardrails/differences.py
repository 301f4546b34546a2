"""NDCG@10 of the same requests, twice: what two guardrails or more have in common.

R requests · T targets.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.metrics.comparison import PERMUTATIONS, SIGNIFICANT, Difference, compare
from evaluation.metrics.intervals import RESAMPLES, Metric
from evaluation.metrics.ranking import metrics_of_places
from evaluation.results import Floats, Ints

METRIC, DEPTH = "ndcg@10", 10


@dataclass(frozen=True)
class Drawing:
    """How chance is worked out.

    Args:
        seed: of resamples and exchanges.
        samples: resamples of users for an interval.
        draws: exchanges of users' results for a p.
    """

    seed: int = 0
    samples: int = RESAMPLES
    draws: int = PERMUTATIONS


def ndcg(places_T: Ints, offsets_R1: Ints) -> Floats:
    """NDCG@10 [R]."""
    return metrics_of_places(places_T, offsets_R1, DEPTH)[METRIC]


def difference(before: Metric, after: Metric, users_R: Ints, drawing: Drawing) -> Difference:
    """After − before, with interval and p."""
    (one,) = compare(
        {METRIC: before}, {METRIC: after}, users_R, samples=drawing.samples, draws=drawing.draws, seed=drawing.seed
    )
    return one


def is_above(one: Difference) -> bool:
    """Whether what came after is higher, and not by chance."""
    return one.low > 0 and one.p < SIGNIFICANT


def in_words(one: Difference) -> str:
    """The difference, its interval and its p."""
    return f"difference {one.difference:+.4f} ({one.low:+.4f} … {one.high:+.4f}), p\u00a0{one.p:.2g}"


def plain(one: Difference, before: str, after: str) -> dict[str, float]:
    """JSON-like, the two sides by their names."""
    bounds = {"difference": one.difference, "low": one.low, "high": one.high, "p": one.p}
    return {before: one.before, after: one.after, **bounds}
