"""Does what the model says is likely happen as often? Confidence held against outcome, over requests.

For lists: the probability that the model gives to its first k items together, Σ exp(score), against whether the next
item, the request's first target, was among them. For code levels: the probability of the likeliest code against
whether it was the target's.

    rate − confidence below 0: over-confident; above 0: under-confident
    ECE       Σ over bins (share of requests) × |confidence − rate| (Naeini et al. 2015); with bins of equal mass unless
              said otherwise, since confidences crowd where bins of equal width are few
    chance    the ECE to expect of a model that is perfectly calibrated, from the finite number of requests in each
              bin alone: an ECE near it says nothing against the model
    Brier     mean (confidence − outcome)²

Probabilities are what the model gave to these items, among all items: what a list leaves out, since the user has seen
it or since it is denied, keeps its share, and takes it when it is what happens next.

R requests · K places kept of a list · C code levels · N items · X requests that count · b bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.metrics.lists import row_blocks
from evaluation.metrics.ranking import within
from evaluation.results import EngineResult, Floats, Ints, LevelResult, Targets

CALIBRATION_DEPTHS = (1, 10, 100)
BINS = 10

Bools = npt.NDArray[np.bool_]
Binning = Callable[[Floats, int], Ints]


@dataclass(frozen=True)
class Bin:
    """Requests of like confidence (`low` to `high`, both of which occur): mean confidence, and how often it came so."""

    low: float
    high: float
    requests: int
    confidence: float
    rate: float


@dataclass(frozen=True)
class Calibration:
    """A reliability curve, least confident bin first, and what it sums up to; see the module for the terms."""

    requests: int
    confidence: float
    rate: float
    ece: float
    chance: float
    brier: float
    bins: tuple[Bin, ...]

    @property
    def gap(self) -> float:
        """Rate − confidence: below 0 the model is over-confident, above 0 under-confident."""
        return self.rate - self.confidence


def list_calibration(
    result: EngineResult, targets: Targets, sharers_N: Ints | None = None, bins: int = BINS
) -> dict[str, Calibration]:
    """Calibration of the first k places, by `top@k`, for the depths that the kept places reach.

    Args:
        result: of an engine whose scores are log-probabilities.
        sharers_N: items that have the item's codes, itself included. Each of them is scored with the probability of the
            codes, which is shared out among them evenly. Where no two items have the same codes, it can be left out.
    """
    assert result.log_probabilities, "scores that are no log-probabilities have no calibration"
    depths = within(CALIBRATION_DEPTHS, result.scores_RK.shape[1])
    confidence_kR = np.empty((len(depths), len(targets)))
    for rows in row_blocks(len(targets)):
        probabilities_rK = np.exp(result.scores_RK[rows].astype(np.float64))
        if sharers_N is not None:
            filled_rK = result.items_RK[rows] >= 0
            probabilities_rK[filled_rK] /= sharers_N[result.items_RK[rows][filled_rK]]
        # Of many rounded numbers, the sum may be more than a probability can be.
        confidence_kR[:, rows] = np.minimum([probabilities_rK[:, :k].sum(axis=1) for k in depths], 1.0)
    places_R = result.places_T[targets.first_T]
    return {
        f"top@{k}": calibration(confidence_kR[i], (places_R >= 1) & (places_R <= k), bins) for i, k in enumerate(depths)
    }


def level_calibration(levels: LevelResult, bins: int = BINS) -> list[Calibration]:
    """Calibration of each code level, given the true codes before it, over the requests whose item has codes."""
    known_R = ~np.isnan(levels.confidence_RC[:, 0])
    confidence_XC, correct_XC = levels.confidence_RC[known_R].astype(np.float64), levels.correct_RC[known_R]
    return [calibration(confidence_XC[:, level], correct_XC[:, level], bins) for level in range(confidence_XC.shape[1])]


def equal_mass(confidence_X: Floats, bins: int) -> Ints:
    """Bin of each request, so that bins hold as many requests each; equal confidences are in one bin.

    A bin ends with a confidence that occurs, so what is in it does not depend on the order of the requests.
    """
    last = (len(confidence_X) * np.arange(1, bins) - 1) // bins
    return np.searchsorted(np.unique(np.sort(confidence_X)[last]), confidence_X).astype(np.int64)


def equal_width(confidence_X: Floats, bins: int) -> Ints:
    """Bin of each request: [i / bins, (i + 1) / bins), the last with its end, as published ECEs have it."""
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(edges, confidence_X, side="right").astype(np.int64)


def calibration(confidence_X: Floats, outcome_X: Bools, bins: int = BINS, binning: Binning = equal_mass) -> Calibration:
    """Hold confidences, 0 to 1, against whether it came so. Of no requests, everything is 0."""
    if not len(confidence_X):
        return Calibration(0, 0.0, 0.0, 0.0, 0.0, 0.0, ())
    of_X = binning(confidence_X, bins)
    sizes_b, confidences_b, rates_b, variances_b = (
        np.bincount(of_X, weights)
        for weights in (None, confidence_X, outcome_X.astype(np.float64), confidence_X * (1 - confidence_X))
    )
    num_requests = len(confidence_X)
    lows, highs = np.full(len(sizes_b), np.inf), np.full(len(sizes_b), -np.inf)
    np.minimum.at(lows, of_X, confidence_X)
    np.maximum.at(highs, of_X, confidence_X)
    curve = tuple(
        Bin(
            float(lows[b]),
            float(highs[b]),
            int(sizes_b[b]),
            float(confidences_b[b] / sizes_b[b]),
            float(rates_b[b] / sizes_b[b]),
        )
        for b in np.flatnonzero(sizes_b)
    )
    # A bin's sum of outcomes is nearly normal, so its distance from the sum of confidences is √(2/π) deviations.
    return Calibration(
        requests=num_requests,
        confidence=float(confidence_X.mean()),
        rate=float(outcome_X.mean()),
        ece=float(np.abs(confidences_b - rates_b).sum() / num_requests),
        chance=float(np.sqrt(2 / np.pi * variances_b).sum() / num_requests),
        brier=float(((confidence_X - outcome_X) ** 2).mean()),
        bins=curve,
    )
