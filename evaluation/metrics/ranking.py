"""Metrics of one request: where its targets stand in its list. Published names, binary relevance, distinct targets.

With f_k, the targets among the first k places, and n, the targets of the request:

    hr@k          1 if f_k > 0
    recall@k      f_k / n
    precision@k   f_k / k
    ndcg@k        Σ 1 / log2(place + 1) over the targets within k, divided by the same sum of a list that begins with
                  min(k, n) targets
    map@k         mean average precision: Σ (targets up to the place) / place over the targets within k, divided by
                  min(k, n)
    mrr           1 / place of the best target; its depth is that of the list

A target that the list does not hold, or holds below the depth, is not found. With one target a request, recall is
HR and MAP is MRR cut at k.

R requests · T targets · r, t those of a block · F targets of it that were found · k depths.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluation.results import EngineResult, Floats, Ints, Targets

HR_DEPTHS = (1, 10, 50, 100, 200, 500, 1000)
NDCG_DEPTHS = (10, 50, 100, 200)
PRECISION_DEPTHS = (10, 100)

_BLOCK_TARGETS = 1 << 20
"""Targets worked on at once, so that what is worked out of them stays in the cache or near it."""


def metric_names(depth: int) -> tuple[str, ...]:
    """Every metric of lists of that depth; what would need a deeper list is left out."""
    families = {
        "hr": HR_DEPTHS,
        "recall": HR_DEPTHS,
        "ndcg": NDCG_DEPTHS,
        "precision": PRECISION_DEPTHS,
        "map": PRECISION_DEPTHS,
    }
    return (*(f"{family}@{k}" for family, depths in families.items() for k in within(depths, depth)), "mrr")


def within(depths: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Those depths of metrics that lists of `depth` places reach."""
    return tuple(k for k in depths if k <= depth)


def per_request_metrics(result: EngineResult, targets: Targets, depth: int) -> dict[str, Floats]:
    """Every metric of `metric_names(depth)`, float64 [R] each.

    Args:
        depth: length of the lists; targets below it count as not found.
    """
    return metrics_of_places(result.places_T, targets.offsets_R1, depth)


def metrics_of_places(places_T: Ints, offsets_R1: Ints, depth: int) -> dict[str, Floats]:
    """As `per_request_metrics`, from the bare places; each request has at least one target.

    Args:
        places_T: 1-based, 0 where the list does not hold the target; no two of a request are alike, 0 apart.
        offsets_R1: [R + 1], where the targets of each request begin and end.
    """
    num_requests = len(offsets_R1) - 1
    metrics = {name: np.empty(num_requests) for name in metric_names(depth)}
    for first, last in _blocks(offsets_R1):
        begin, end = offsets_R1[first], offsets_R1[last]
        block = _metrics_of_block(places_T[begin:end], offsets_R1[first : last + 1] - begin, depth)
        for name, values_r in block.items():
            metrics[name][first:last] = values_r
    return metrics


def discounted_gains(places_T: Ints, offsets_R1: Ints, depths: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """DCG [R, k]: Σ 1 / log2(place + 1) over the targets of each request that stand within each depth."""
    found_F = np.flatnonzero((places_T > 0) & (places_T <= depths[-1]))
    places_F = places_T[found_F]
    gains_F = _discounts(depths[-1])[places_F - 1]
    return _sums_within(places_F, _requests_of(found_F, offsets_R1), len(offsets_R1) - 1, depths, gains_F)


def found_within(places_T: Ints, offsets_R1: Ints, depths: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Targets [R, k] of each request that stand within each depth."""
    found_F = np.flatnonzero((places_T > 0) & (places_T <= depths[-1]))
    return _sums_within(places_T[found_F], _requests_of(found_F, offsets_R1), len(offsets_R1) - 1, depths, None)


def ideal_gains(relevant_R: Ints, k: int) -> Floats:
    """DCG@k [R] of lists that begin with that many relevant items, or with k where there are more."""
    sums = np.concatenate([[0.0], np.cumsum(_discounts(k))])
    ideal_R: Floats = sums[np.minimum(relevant_R, k)]
    return ideal_R


def _blocks(offsets_R1: Ints) -> list[tuple[int, int]]:
    """Ranges [first, last) of requests, of about `_BLOCK_TARGETS` targets each."""
    wanted = np.arange(0, offsets_R1[-1], _BLOCK_TARGETS)
    cuts = np.unique(np.concatenate([np.searchsorted(offsets_R1[:-1], wanted), [len(offsets_R1) - 1]]))
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def _metrics_of_block(places_t: Ints, offsets_r1: Ints, depth: int) -> dict[str, Floats]:
    sizes_r = np.diff(offsets_r1)
    metrics: dict[str, Floats] = {}
    found_rk = found_within(places_t, offsets_r1, within(HR_DEPTHS, depth))
    for k, found_r in zip(within(HR_DEPTHS, depth), found_rk.T, strict=True):
        metrics[f"hr@{k}"] = (found_r > 0).astype(np.float64)
        metrics[f"recall@{k}"] = found_r / sizes_r
        if k in PRECISION_DEPTHS:
            metrics[f"precision@{k}"] = found_r / k
    if ndcg_depths := within(NDCG_DEPTHS, depth):
        gains_rk = discounted_gains(places_t, offsets_r1, ndcg_depths)
        metrics |= {f"ndcg@{k}": gains_rk[:, i] / ideal_gains(sizes_r, k) for i, k in enumerate(ndcg_depths)}
    if map_depths := within(PRECISION_DEPTHS, depth):
        precisions_rk = _precisions_at_hits(places_t, offsets_r1, map_depths)
        metrics |= {f"map@{k}": precisions_rk[:, i] / np.minimum(sizes_r, k) for i, k in enumerate(map_depths)}
    metrics["mrr"] = _reciprocal_places(places_t, offsets_r1, depth)
    return metrics


def _precisions_at_hits(places_t: Ints, offsets_r1: Ints, depths: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Σ [r, k] over the targets within each depth of the precision at their places."""
    num_requests, deepest = len(offsets_r1) - 1, depths[-1]
    found_F = np.flatnonzero((places_t > 0) & (places_t <= deepest))
    # Sorted by request, then by place, as one number each.
    requests_F, places_F = np.divmod(
        np.sort(_requests_of(found_F, offsets_r1) * (deepest + 1) + places_t[found_F]), deepest + 1
    )
    starts_r = np.searchsorted(requests_F, np.arange(num_requests))
    nth_F = np.arange(1, len(found_F) + 1) - starts_r[requests_F]
    return _sums_within(places_F, requests_F, num_requests, depths, nth_F / places_F)


def _reciprocal_places(places_t: Ints, offsets_r1: Ints, depth: int) -> Floats:
    nowhere = np.iinfo(np.int64).max
    best_r = np.minimum.reduceat(np.where((places_t > 0) & (places_t <= depth), places_t, nowhere), offsets_r1[:-1])
    reciprocal_r: Floats = np.where(best_r < nowhere, 1 / best_r, 0.0)
    return reciprocal_r


def _discounts(k: int) -> Floats:
    """1 / log2(place + 1) of places 1 … k."""
    discounts: Floats = 1 / np.log2(np.arange(2, k + 2))
    return discounts


def _requests_of(targets_F: Ints, offsets_R1: Ints) -> Ints:
    """The request of each target; targets ascend."""
    counts_R = np.diff(np.searchsorted(targets_F, offsets_R1))
    return np.repeat(np.arange(len(counts_R)), counts_R)


def _sums_within(
    places_F: Ints, requests_F: Ints, num_requests: int, depths: tuple[int, ...], weights_F: Floats | None
) -> npt.NDArray[np.float64]:
    """Sums [R, k] of the weights, or counts, of each request's places up to each depth; no place is deeper."""
    shelf_of_place = np.searchsorted(depths, np.arange(depths[-1] + 1))
    shelves_F = requests_F * len(depths) + shelf_of_place[places_F]
    sums = np.bincount(shelves_F, weights_F, minlength=num_requests * len(depths))
    return np.cumsum(sums.reshape(num_requests, len(depths)), axis=1, dtype=np.float64)
