"""Evaluations made up: random lists and targets, places found by looking for them.

R requests · T targets · K list length · N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.results import EngineResult, Evaluation, Targets


def targets_of(
    items: Sequence[Sequence[int]],
    users: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
    counts: Sequence[Sequence[int]] | None = None,
) -> Targets:
    """Targets given request by request; users 0, 1, …, all at time 0, each item once, where not said otherwise."""
    flat = np.array([item for some in items for item in some], np.int64)
    return Targets(
        np.arange(len(items)) if users is None else np.array(users, np.int64),
        np.zeros(len(items), np.int64) if times is None else np.array(times, np.int64),
        np.cumsum([0, *map(len, items)]),
        flat,
        np.ones(len(flat), np.int64)
        if counts is None
        else np.array([one for some in counts for one in some], np.int64),
    )


def result_of(
    lists_RK: np.ndarray, targets: Targets, kept: int = 100, scores_RK: np.ndarray | None = None
) -> EngineResult:
    """What an engine returned that gave these lists, −1 in empty places."""
    places = []
    for request, item in zip(targets.requests_T, targets.items_T, strict=True):
        at = np.flatnonzero(lists_RK[request] == item)
        places.append(int(at[0]) + 1 if len(at) else 0)
    if scores_RK is None:
        scores_RK = np.where(lists_RK >= 0, -np.arange(lists_RK.shape[1], dtype=np.float32), -np.inf)
    return EngineResult(
        np.array(places, np.int64),
        lists_RK[:, :kept].astype(np.int32),
        scores_RK[:, :kept].astype(np.float32),
        log_probabilities=True,
    )


def random_lists(random: np.random.Generator, requests: int, items: int, depth: int) -> np.ndarray:
    """Lists of distinct items, some of them with empty places at the end, some with nothing else."""
    lists = np.stack([random.permutation(items)[:depth] for _ in range(requests)])
    filled = np.where(random.random(requests) < 0.3, random.integers(0, depth + 1, requests), depth)
    return np.where(np.arange(lists.shape[1]) < filled[:, None], lists, -1)


def random_targets(random: np.random.Generator, requests: int, items: int, most: int, users: int = 0) -> Targets:
    """1 to `most` distinct targets a request, played 1 to 3 times; `users` users, or one a request."""
    sizes = random.integers(1, min(most, items) + 1, requests)
    return targets_of(
        [random.permutation(items)[:size].tolist() for size in sizes],
        np.sort(random.integers(0, users, requests)).tolist() if users else None,
        list(range(requests)),
        [random.integers(1, 4, size).tolist() for size in sizes],
    )


def random_evaluation(seed: int, requests: int, items: int, depth: int, *, most: int = 6, users: int = 0) -> Evaluation:
    random = np.random.default_rng(seed)
    targets = random_targets(random, requests, items, most, users)
    lists = random_lists(random, requests, items, depth)
    return Evaluation(targets, {"made": result_of(lists, targets)}, depth, items)
