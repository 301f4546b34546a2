from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics.intervals import Ratio, mean_of
from evaluation.metrics.ranking import per_request_metrics
from evaluation.metrics.yambda import yambda_coverage, yambda_metrics
from evaluation.results import Targets
from tests.evaluation.metrics.helpers import random_lists, random_targets, result_of, targets_of


def slow(lists: np.ndarray, targets: Targets, k: int) -> tuple[float, float]:
    """NDCG and recall from lists of played items with their repeats, places marked one at a time."""
    gains, ideals, recalls = [], [], []
    for request, row in enumerate(lists.tolist()):
        span = slice(targets.offsets_R1[request], targets.offsets_R1[request + 1])
        played = np.repeat(targets.items_T[span], targets.counts_T[span]).tolist()
        marks = [item in played for item in row[:k]]
        gains.append(sum(1 / math.log2(place + 2) for place, mark in enumerate(marks) if mark))
        ideals.append(sum(1 / math.log2(place + 2) for place in range(min(k, len(played)))))
        recalls.append(sum(marks) / len(played))
    return sum(gains) / sum(ideals), sum(recalls) / len(recalls)


def test_by_hand() -> None:
    """User 0 played item 7 three times and finds it first; user 1 played two items and finds one third."""
    targets = targets_of([[7], [1, 2]], counts=[[3], [1, 1]])
    lists = np.full((2, 10), -1)
    lists[0, 0], lists[1, :3] = 7, [5, 6, 2]
    result = result_of(lists, targets)
    metrics = yambda_metrics(result, targets, 10)
    assert list(metrics) == ["yambda/ndcg@10", "yambda/recall@10"]
    assert metrics["yambda/recall@10"].tolist() == [1 / 3, 1 / 2]
    second, third = 1 / math.log2(3), 1 / 2
    assert mean_of(metrics["yambda/ndcg@10"]) == pytest.approx((1 + third) / ((1 + second + third) + (1 + second)))
    assert yambda_coverage(result.items_RK, 16) == {"yambda/coverage@10": 4 / 16}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30))
def test_against_the_definitions(seed: int, requests: int, most: int) -> None:
    random = np.random.default_rng(seed)
    lists, targets = random_lists(random, requests, 130, 110), random_targets(random, requests, 130, most)
    metrics = yambda_metrics(result_of(lists, targets), targets, 110)
    for k in (10, 100):
        ndcg, recall = slow(lists, targets, k)
        assert mean_of(metrics[f"yambda/ndcg@{k}"]) == pytest.approx(ndcg)
        assert mean_of(metrics[f"yambda/recall@{k}"]) == pytest.approx(recall)


def test_without_repeats_and_with_equal_ideals_it_is_the_plain_metric() -> None:
    random = np.random.default_rng(0)
    lists, targets = random_lists(random, 30, 50, 20), targets_of(random.integers(0, 50, (30, 1)).tolist())
    result = result_of(lists, targets)
    plain, quirky = per_request_metrics(result, targets, 20), yambda_metrics(result, targets, 20)
    for name in ("ndcg@10", "recall@10"):
        assert mean_of(quirky[f"yambda/{name}"]) == pytest.approx(plain[name].mean())


def test_shorter_lists_have_fewer_figures() -> None:
    targets = targets_of([[1]])
    assert yambda_metrics(result_of(np.zeros((1, 9), int), targets), targets, 9) == {}
    assert isinstance(yambda_metrics(result_of(np.zeros((1, 99), int), targets), targets, 99)["yambda/ndcg@10"], Ratio)
