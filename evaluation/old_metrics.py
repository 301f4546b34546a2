"""Ranking metrics over the whole catalogue, one held-out item a user, with bootstrap intervals over users.

`rank` is the 1-based place of the held-out item in a user's list; 0 means that the list does not hold it.

U users evaluated · K list length · N items in the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HR_DEPTHS = (1, 10, 50, 200)
NDCG_DEPTHS = (10, 50, 200)
COVERAGE_DEPTHS = (10, 100)
NAMES = (
    *(f"hr@{k}" for k in HR_DEPTHS),
    *(f"ndcg@{k}" for k in NDCG_DEPTHS),
    "mrr",
    *(f"coverage@{k}" for k in COVERAGE_DEPTHS),
)
"""Every metric by its published name."""

_MAX_COUNTS = 1 << 24
"""How often each user was drawn, in how many resamples: numbers held at once."""

Floats = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]


def hit(rank_U: Ranks, k: int) -> Floats:
    """HR@k per user: 1 where the held-out item is among the first k."""
    return ((rank_U >= 1) & (rank_U <= k)).astype(np.float64)


def ndcg(rank_U: Ranks, k: int) -> Floats:
    """NDCG@k per user. With one relevant item the ideal DCG is 1, so it is 1 / log2(rank + 1) within k, else 0."""
    gain_U: Floats = hit(rank_U, k) / np.log2(np.maximum(rank_U, 1) + 1)
    return gain_U


def reciprocal_rank(rank_U: Ranks) -> Floats:
    """1 / rank per user, 0 where the list does not hold the item."""
    reciprocal_U: Floats = (rank_U >= 1) / np.maximum(rank_U, 1)
    return reciprocal_U


def coverage(items_UK: npt.NDArray[np.int64], k: int, num_items: int) -> float:
    """Share of the catalogue that stands in at least one user's first k; −1 marks an empty place."""
    shown = np.unique(items_UK[:, :k])
    return float((shown >= 0).sum() / num_items)


def per_user_metrics(rank_U: Ranks) -> dict[str, Floats]:
    """Every per-user metric by its published name."""
    metrics = {f"hr@{k}": hit(rank_U, k) for k in HR_DEPTHS}
    metrics |= {f"ndcg@{k}": ndcg(rank_U, k) for k in NDCG_DEPTHS}
    metrics["mrr"] = reciprocal_rank(rank_U)
    return metrics


def bootstrap_intervals(
    metrics: dict[str, Floats], samples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of each metric's mean under resampling of users with replacement.

    One set of resamples serves all metrics, so their intervals are about the same imaginary audiences.
    """
    num_users = len(next(iter(metrics.values())))
    generator = np.random.default_rng(seed)
    values = np.stack(list(metrics.values()), axis=1)
    block = max(1, _MAX_COUNTS // num_users)
    means = np.empty((samples, len(metrics)))
    for first in range(0, samples, block):
        # How often each user is drawn, as a matrix, makes every resampled mean a product of two matrices.
        some = means[first : first + block]
        some[:] = generator.multinomial(num_users, np.full(num_users, 1 / num_users), size=len(some)) @ values
    means /= num_users
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(metrics)}


@dataclass(frozen=True)
class Stratum:
    """Held-out items of one popularity class (`label`: their training plays), and how often they were found."""

    label: str
    users: int
    recall: float


def recall_by_popularity(
    rank_U: Ranks, target_plays_U: npt.NDArray[np.int64], k: int, classes: int = 5
) -> list[Stratum]:
    """HR@k by how often the held-out item was played in training, in classes of (nearly) as many users each."""
    # A class ends with a number of plays that occurs, so that users of equally played items are in one class.
    last = (len(target_plays_U) * np.arange(1, classes) - 1) // classes
    ends = np.unique(np.sort(target_plays_U)[last])
    class_of = np.searchsorted(ends, target_plays_U)
    found = hit(rank_U, k)
    strata = []
    for index in np.unique(class_of):
        members = class_of == index
        low, high = int(target_plays_U[members].min()), int(target_plays_U[members].max())
        label = f"{low:,}–{high:,}" if low < high else f"{low:,}"
        strata.append(Stratum(label, int(members.sum()), float(found[members].mean())))
    return strata
