"""Is one evaluation better than another? The same requests, request by request, users as the units of chance.

The difference of a figure has a paired bootstrap interval (users drawn once for both) and a two-sided p: with the two
evaluations' results of a user exchanged or not, each with probability ½, how often is the difference as large? For a
mean this is the sign-flip test of the users' summed differences; for a ratio both sums are exchanged together. p is
(b + 1) / (n + 1) for b of n draws (Phipson & Smyth 2010), so it is never 0. Where several metrics are compared, p is
corrected for their number by Holm's step-down (Holm 1979), which needs no independence.

P requests in both · U users · A users whose results differ · M metrics · S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.seeding import derive_seed
from evaluation.metrics.alignment import align
from evaluation.metrics.intervals import (
    RESAMPLES,
    Metric,
    Metrics,
    Ratio,
    UserSums,
    mean_of,
    percentiles,
    resampled,
)
from evaluation.metrics.ranking import per_request_metrics
from evaluation.metrics.yambda import yambda_metrics
from evaluation.results import Evaluation, Floats, Ints

COMPARED = ("hr@10", "ndcg@10", "ndcg@100", "recall@100", "mrr")
"""Metrics that are compared unless others are asked for: each costs the others power under Holm's correction."""

PERMUTATIONS = 10_000
SIGNIFICANT = 0.05

_BLOCK_DRAWS, _BLOCK_USERS = 128, 4096
"""Draws and users worked on at once, a multiple of 64 of them, so that the exchanges stay in the cache."""


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations; `difference` is after − before, p two-sided, `p_holm` corrected."""

    name: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Two evaluations over the requests that both have; `note` says what is left out."""

    requests: int
    users: int
    differences: tuple[Difference, ...]
    note: str = ""


def compare_evaluations(
    before: Evaluation,
    after: Evaluation,
    engine_before: str,
    engine_after: str,
    *,
    names: Sequence[str] = (),
    samples: int = RESAMPLES,
    draws: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare an engine of one evaluation with an engine of another, or of the same.

    Lists of different depths are compared down to the lower one.

    Args:
        names: metrics of one request, Yambda's included; `COMPARED`, as far as the depth goes, where none is given.

    Raises:
        InputError: no request is in both; an engine or a metric that there is not.
    """
    depth = min(before.depth, after.depth)
    faults = [
        f"engine {engine}: the {which} evaluation has {', '.join(evaluation.engines)}; name one of those"
        for which, evaluation, engine in (("first", before, engine_before), ("second", after, engine_after))
        if engine not in evaluation.engines
    ]
    if faults:
        raise InputError(*faults)
    both = align(before.targets, after.targets)
    one = _chosen(_metrics(before, engine_before, depth), names, depth, both.before_P)
    other = _chosen(_metrics(after, engine_after, depth), names, depth, both.after_P)
    users_P = before.targets.users_R[both.before_P]
    differences = compare(one, other, users_P, samples=samples, draws=draws, seed=seed)
    return Comparison(len(users_P), len(np.unique(users_P)), differences, both.note)


def compare(
    before: Metrics,
    after: Metrics,
    users_P: Ints,
    *,
    samples: int = RESAMPLES,
    draws: int = PERMUTATIONS,
    seed: int = 0,
) -> tuple[Difference, ...]:
    """Compare metrics of the same requests, by name.

    Args:
        before, after: of one request each, or ratios, under the same names in the same order.
        users_P: the user of each request.
        samples: of the bootstrap.
        draws: of the permutation test.
    """
    assert list(before) == list(after), "other metrics"
    if not before:
        return ()
    sides = {"before": before, "after": after}
    sums = UserSums.of({f"{side}/{name}": one for side, of in sides.items() for name, one in of.items()}, users_P)
    figures_S2M = resampled(sums, samples, seed)
    differences_SM = figures_S2M[:, len(before) :] - figures_S2M[:, : len(before)]
    p_M = permutation_p(sums, draws, seed)
    rows = zip(before, percentiles(differences_SM), p_M, holm(p_M), strict=True)
    differences = []
    for name, (low, high), p, p_holm in rows:
        values = mean_of(before[name]), mean_of(after[name])
        differences.append(Difference(name, *values, values[1] - values[0], low, high, float(p), float(p_holm)))
    return tuple(differences)


def regressions(comparison: Comparison, significance: float = SIGNIFICANT) -> tuple[Difference, ...]:
    """The metrics that fell: corrected p below the significance, and the whole interval below 0."""
    return tuple(one for one in comparison.differences if one.p_holm < significance and one.high < 0)


def holm(p_M: Floats) -> Floats:
    """p corrected for the number of them: the smallest × M, the next × (M − 1), …, never falling, at most 1."""
    order_M = np.argsort(p_M, kind="stable")
    factors_M = np.arange(len(p_M), 0, -1)
    corrected_M = np.empty(len(p_M))
    corrected_M[order_M] = np.minimum(np.maximum.accumulate(p_M[order_M] * factors_M), 1.0)
    return corrected_M


def permutation_p(sums: UserSums, draws: int, seed: int) -> Floats:
    """Two-sided p [M] of the differences when each user's results are exchanged or not; see the module.

    Users whose sums are the same in both are left out of the draws, which they cannot change.

    Args:
        sums: of M figures before, then of the same figures after.
    """
    columns_U4M = np.concatenate([sums.tops_UM, sums.bottoms_UX[:, sums.bottom_of_M]], axis=1)
    tops_before, tops_after, bottoms_before, bottoms_after = np.split(columns_U4M, 4, axis=1)
    gains_U2M = np.concatenate([tops_after - tops_before, bottoms_after - bottoms_before], axis=1)
    gains_A2M = gains_U2M[(gains_U2M != 0).any(axis=1)]
    # A draw's sums before are those that there were and the gains of the users exchanged; the sums after lose as much.
    exchanged_S2M = np.concatenate([np.zeros((1, gains_A2M.shape[1])), _exchanged_sums(gains_A2M, draws, seed)])
    (top_gain, bottom_gain), totals_4M = np.split(exchanged_S2M, 2, axis=1), columns_U4M.sum(axis=0)
    top_before, top_after, bottom_before, bottom_after = np.split(totals_4M, 4)
    differences_SM = np.abs(
        _quotient(top_after - top_gain, bottom_after - bottom_gain)
        - _quotient(top_before + top_gain, bottom_before + bottom_gain)
    )
    # Sums of the same numbers in another order may differ in their last digits; equal is as large.
    as_large_M = (differences_SM[1:] >= differences_SM[0] - 1e-12).sum(axis=0)
    p_M: Floats = (as_large_M + 1) / (draws + 1)
    return p_M


def _exchanged_sums(gains_AX: npt.NDArray[np.float64], draws: int, seed: int) -> npt.NDArray[np.float64]:
    """Sums [S, X] over the users exchanged, each with probability ½; the same whatever the blocks."""
    num_users, width = gains_AX.shape
    moving = np.flatnonzero((gains_AX != 0).any(axis=0))  # a mean has nothing beneath that could move
    gains_Ax = np.ascontiguousarray(gains_AX[:, moving])
    sums_SX = np.zeros((draws, width))
    generator = np.random.default_rng(derive_seed(seed, "exchange of users' results"))
    for first in range(0, draws, _BLOCK_DRAWS):
        some = slice(first, min(first + _BLOCK_DRAWS, draws))
        words = generator.integers(0, 2**64, size=(some.stop - first, -(-num_users // 64)), dtype=np.uint64)
        for user in range(0, num_users, _BLOCK_USERS):
            gains_ax = gains_Ax[user : user + _BLOCK_USERS]
            bits = words[:, user // 64 : (user + _BLOCK_USERS) // 64].copy().view(np.uint8)
            sums_SX[some, moving] += np.unpackbits(bits, axis=1, count=len(gains_ax)).astype(np.float64) @ gains_ax
    return sums_SX


def _quotient(top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def _metrics(evaluation: Evaluation, engine: str, depth: int) -> dict[str, Metric]:
    result, targets = evaluation.engines[engine], evaluation.targets
    return {**per_request_metrics(result, targets, depth), **yambda_metrics(result, targets, depth)}


def _chosen(metrics: dict[str, Metric], names: Sequence[str], depth: int, rows_P: Ints) -> dict[str, Metric]:
    if unknown := [name for name in names if name not in metrics]:
        raise InputError(
            f"metrics to compare: {', '.join(unknown)} cannot be compared over lists of {depth} places; "
            f"there are {', '.join(metrics)}"
        )
    chosen = names or [name for name in COMPARED if name in metrics]
    picked = {name: metrics[name] for name in chosen}
    return {name: one.of(rows_P) if isinstance(one, Ratio) else one[rows_P] for name, one in picked.items()}
