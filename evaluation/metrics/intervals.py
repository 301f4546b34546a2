"""Bootstrap intervals over users: how much a figure would move with other users of the same kind.

Users are drawn with replacement, each with all requests that are theirs, since one user's requests are alike. A
figure is Σ top / Σ bottom over the requests drawn: with ones beneath, a mean over requests, in which a user weighs by
requests; otherwise a ratio whose two sums are drawn together. Intervals are percentiles (Efron & Tibshirani 1993,
chapter 13). One set of resamples serves all figures, so their intervals are about the same imaginary audiences.

R requests · U users · M figures · S resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.seeding import derive_seed
from evaluation.results import Floats, Ints

RESAMPLES = 1000
LEVEL = 0.95

_MAX_COUNTS = 1 << 24
"""How often each user was drawn, in how many resamples: numbers held at once."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """A figure that is Σ top_R / Σ bottom_R; 0 where nothing is beneath."""

    top_R: Floats
    bottom_R: Floats

    def of(self, requests: Ints) -> Ratio:
        """The same of some requests only."""
        return Ratio(self.top_R[requests], self.bottom_R[requests])


Metric = Floats | Ratio
"""A value a request, whose mean is meant, or a ratio."""

Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class Figure:
    """A figure and its 95% interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def mean_of(metric: Metric) -> float:
    """The figure over all requests."""
    if isinstance(metric, Ratio):
        bottom = float(metric.bottom_R.sum())
        return float(metric.top_R.sum()) / bottom if bottom else 0.0
    return float(metric.mean())


def figures_of(metrics: Metrics, users_R: Ints, samples: int = RESAMPLES, seed: int = 0) -> dict[str, Figure]:
    """Every metric with its interval; see `bootstrap_intervals`."""
    intervals = bootstrap_intervals(metrics, users_R, samples, seed)
    return {name: Figure(mean_of(metric), *intervals[name]) for name, metric in metrics.items()}


def bootstrap_intervals(
    metrics: Metrics, users_R: Ints, samples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of each metric under resampling of users with replacement.

    Args:
        users_R: the user of each request.
        samples: S.
    """
    if not metrics:
        return {}
    values_SM = resampled(UserSums.of(metrics, users_R), samples, seed)
    return dict(zip(metrics, percentiles(values_SM, level), strict=True))


def percentiles(values_SM: npt.NDArray[np.float64], level: float = LEVEL) -> list[tuple[float, float]]:
    """The middle `level` of each column; a resample in which a figure has nothing beneath (NaN) is left out of it."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    bounds = np.quantile(values_SM, tails, axis=0)
    for column in np.flatnonzero(np.isnan(values_SM).any(axis=0)):
        defined = values_SM[~np.isnan(values_SM[:, column]), column]
        bounds[:, column] = np.quantile(defined, tails) if len(defined) else 0.0
    return [(float(low), float(high)) for low, high in bounds.T]


@dataclass(frozen=True, eq=False)
class UserSums:
    """What each user adds to the sums of each figure.

    Args:
        tops_UM: above.
        bottoms_UX: beneath; figures that are means share a column, the user's requests.
        bottom_of_M: column of `bottoms_UX` of each figure.
    """

    tops_UM: npt.NDArray[np.float64]
    bottoms_UX: npt.NDArray[np.float64]
    bottom_of_M: Ints

    @classmethod
    def of(cls, metrics: Metrics, users_R: Ints) -> UserSums:
        """Sums by user of the requests of each."""
        assert metrics, "sums of nothing"
        assert len(users_R), "no request, no figure"
        _, inverse_R = np.unique(users_R, return_inverse=True)
        ones_R = np.ones(len(users_R))
        tops: list[Floats] = []
        bottoms: dict[int, Floats] = {}  # by identity: the arrays are held by `metrics` meanwhile
        bottom_of: list[int] = []
        for metric in metrics.values():
            top_R, bottom_R = (metric.top_R, metric.bottom_R) if isinstance(metric, Ratio) else (metric, ones_R)
            assert len(top_R) == len(bottom_R) == len(users_R), "metrics of other requests"
            tops.append(np.bincount(inverse_R, top_R).astype(np.float64))
            if id(bottom_R) not in bottoms:
                bottoms[id(bottom_R)] = np.bincount(inverse_R, bottom_R).astype(np.float64)
            bottom_of.append(list(bottoms).index(id(bottom_R)))
        return cls(np.stack(tops, axis=1), np.stack(list(bottoms.values()), axis=1), np.array(bottom_of))

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.tops_UM)

    def figures(self, counts_SU: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Figures [S, M] of audiences in which each user stands so often; NaN where nothing is beneath."""
        bottoms_SM = (counts_SU @ self.bottoms_UX)[:, self.bottom_of_M]
        with np.errstate(invalid="ignore", divide="ignore"):
            figures_SM: npt.NDArray[np.float64] = np.where(
                bottoms_SM != 0, counts_SU @ self.tops_UM / bottoms_SM, np.nan
            )
        return figures_SM


def resampled(sums: UserSums, samples: int, seed: int) -> npt.NDArray[np.float64]:
    """Figures [S, M] of resampled audiences; which ones they are is a function of the seed and the number of users."""
    figures_SM = np.empty((samples, sums.tops_UM.shape[1]))
    for first, counts_sU in drawn(sums.num_users, samples, seed):
        figures_SM[first : first + len(counts_sU)] = sums.figures(counts_sU)
    return figures_SM


def drawn(num_users: int, samples: int, seed: int) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """How often each user is drawn, as matrices, so that every resampled sum is a product of two; blocks by blocks."""
    generator = np.random.default_rng(derive_seed(seed, "bootstrap over users"))
    block = max(1, _MAX_COUNTS // num_users)
    counts_sU = np.empty((min(block, samples), num_users))
    for first in range(0, samples, block):
        some = counts_sU[: samples - first]
        for row in some:
            row[:] = np.bincount(generator.integers(num_users, size=num_users, dtype=np.uint32), minlength=num_users)
        yield first, some
