"""The metrics as the benchmark of Yambda computed them for its tables (arXiv 2505.22238), quirks included.

For figures that are to stand beside the published ones, under names of their own: `yambda/…`. What differs from
`evaluation.metrics.ranking`, where nothing does:

    yambda/ndcg@k       Σ DCG / Σ IDCG over all requests: a ratio of means, in which a request with many targets weighs
                        more
    yambda/recall@k     a target that was played several times stands in the denominator as often, and in the ideal
                        list of NDCG too, while it can be found once: a perfect list reaches 1 in neither
    yambda/coverage@k   of the items of the model's item table, whatever of them may be returned

The benchmark's coverage is of the lists of all users that it trained on, here of those that are asked, so it can only
be lower. Later revisions of the benchmark's code compute NDCG and recall otherwise than its tables were; a figure made
by one of those is not comparable, neither with the tables nor with this.

R requests · T targets · K places kept of a list.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics.intervals import Metric, Ratio
from evaluation.metrics.lists import Items, exposure
from evaluation.metrics.ranking import discounted_gains, found_within, ideal_gains, within
from evaluation.results import EngineResult, Targets

YAMBDA_DEPTHS = (10, 100)


def yambda_metrics(result: EngineResult, targets: Targets, depth: int) -> dict[str, Metric]:
    """NDCG as a ratio and recall a request, by name, for the depths that the lists reach."""
    depths = within(YAMBDA_DEPTHS, depth)
    if not depths:
        return {}
    gains_Rk = discounted_gains(result.places_T, targets.offsets_R1, depths)
    found_Rk = found_within(result.places_T, targets.offsets_R1, depths)
    plays_R = np.add.reduceat(targets.counts_T, targets.offsets_R1[:-1])
    metrics: dict[str, Metric] = {
        f"yambda/ndcg@{k}": Ratio(gains_Rk[:, i], ideal_gains(plays_R, k)) for i, k in enumerate(depths)
    }
    return metrics | {f"yambda/recall@{k}": found_Rk[:, i] / plays_R for i, k in enumerate(depths)}


def yambda_coverage(items_RK: Items, table_items: int) -> dict[str, float]:
    """Coverage by name, for the depths that the kept places reach.

    Args:
        table_items: items of the model's item table.
    """
    return {
        f"yambda/coverage@{k}": float((exposure(items_RK, k, table_items) > 0).sum() / table_items)
        for k in within(YAMBDA_DEPTHS, items_RK.shape[1])
    }
