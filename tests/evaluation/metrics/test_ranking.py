from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalPrecision,
    RetrievalRecall,
)

from evaluation.metrics import ranking
from evaluation.metrics.ranking import metric_names, metrics_of_places, per_request_metrics
from tests.evaluation.metrics.helpers import random_lists, random_targets, result_of, targets_of

THEIRS = {
    "hr": RetrievalHitRate,
    "recall": RetrievalRecall,
    "precision": RetrievalPrecision,
    "ndcg": RetrievalNormalizedDCG,
}


def slow_metrics(places: list[int], depth: int) -> dict[str, float]:
    """One request, by the definitions, a place at a time."""
    hits = [place in places for place in range(1, depth + 1)]
    values: dict[str, float] = {}
    for name in metric_names(depth):
        family, _, k = name.partition("@")
        if family == "mrr":
            values[name] = max([1 / place for place in range(1, depth + 1) if hits[place - 1]], default=0.0)
            continue
        first = hits[: int(k)]
        ideal = min(int(k), len(places))
        if family == "hr":
            values[name] = float(any(first))
        elif family == "recall":
            values[name] = sum(first) / len(places)
        elif family == "precision":
            values[name] = sum(first) / int(k)
        elif family == "ndcg":
            gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(first) if hit)
            values[name] = gain / sum(1 / math.log2(place + 2) for place in range(ideal))
        else:
            values[name] = sum(sum(first[: place + 1]) / (place + 1) for place, hit in enumerate(first) if hit) / ideal
    return values


def test_one_target_by_hand() -> None:
    places = np.array([1, 2, 3, 10, 11, 50, 51, 200, 201, 0])
    metrics = metrics_of_places(places, np.arange(11), 1000)
    assert metrics["hr@10"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert metrics["hr@1"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(metrics["ndcg@10"], [1, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(metrics["ndcg@200"][-3:], [1 / math.log2(201), 0, 0])
    np.testing.assert_allclose(metrics["mrr"][[0, 1, 3, 8, 9]], [1, 0.5, 0.1, 1 / 201, 0])
    for k in ranking.HR_DEPTHS:
        np.testing.assert_array_equal(metrics[f"hr@{k}"], metrics[f"recall@{k}"])
    np.testing.assert_allclose(metrics["map@10"], np.where(places <= 10, metrics["mrr"], 0))


def test_many_targets_by_hand() -> None:
    """Targets at places 2, 5 and 40 and one not found; a request with more targets than places; one with none found."""
    places = np.array([5, 0, 40, 2, *range(12, 0, -1), 0, 0])
    metrics = metrics_of_places(places, np.array([0, 4, 16, 18]), 60)
    assert list(metrics) == list(metric_names(60))
    assert {int(name.split("@")[1]) for name in metrics if "@" in name} == {1, 10, 50}
    assert metrics["hr@1"].tolist() == [0, 1, 0]
    assert metrics["hr@10"].tolist() == [1, 1, 0]
    assert metrics["recall@10"].tolist() == [2 / 4, 10 / 12, 0]
    assert metrics["recall@50"].tolist() == [3 / 4, 1, 0]
    assert metrics["precision@10"].tolist() == [0.2, 1, 0]
    assert metrics["mrr"].tolist() == [0.5, 1, 0]
    gain = 1 / math.log2(3) + 1 / math.log2(6)
    ideal = 1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(5)
    np.testing.assert_allclose(metrics["ndcg@10"], [gain / ideal, 1, 0])
    np.testing.assert_allclose(metrics["map@10"], [(1 / 2 + 2 / 5) / 4, 1, 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.sampled_from([1, 9, 10, 11, 100, 130]), st.integers(1, 40))
def test_against_the_definitions(seed: int, requests: int, depth: int, block: int) -> None:
    """In blocks of few targets too, however many targets a request has."""
    random = np.random.default_rng(seed)
    lists = random_lists(random, requests, 150, depth)
    targets = random_targets(random, requests, 150, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_BLOCK_TARGETS", block)
        ours = per_request_metrics(result_of(lists, targets), targets, depth)
    assert tuple(ours) == metric_names(depth)
    for request in range(requests):
        places = []
        for item in targets.items_T[targets.offsets_R1[request] : targets.offsets_R1[request + 1]]:
            at = lists[request].tolist()
            places.append(at.index(item) + 1 if item in at else 0)
        found = {name: values[request] for name, values in ours.items()}
        assert found == pytest.approx(slow_metrics(places, depth), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 60), st.integers(1, 5))
def test_against_torchmetrics(seed: int, requests: int, items: int, most: int) -> None:
    """An independent implementation, given scores of a whole catalogue instead of places."""
    random = np.random.default_rng(seed)
    lists = np.stack([random.permutation(items) for _ in range(requests)])
    targets = random_targets(random, requests, items, most)
    depth = 1000
    relevant = np.zeros((requests, items), bool)
    relevant[targets.requests_T, targets.items_T] = True
    scores = np.empty((requests, items))
    np.put_along_axis(scores, lists, -np.arange(items, dtype=np.float64)[None].repeat(requests, 0), axis=1)
    flat = (
        torch.from_numpy(scores).flatten(),
        torch.from_numpy(relevant).flatten(),
        torch.arange(requests).repeat_interleave(items),
    )
    ours = {
        name: values.mean() for name, values in per_request_metrics(result_of(lists, targets), targets, depth).items()
    }
    theirs = {"mrr": float(RetrievalMRR()(*flat[:2], indexes=flat[2]))}
    # At a depth, theirs divides by the targets found, not by those that there are; here the lists end before it.
    theirs["map@100"] = float(RetrievalMAP()(*flat[:2], indexes=flat[2]))
    for name in ours:
        family, _, k = name.partition("@")
        if family in THEIRS:
            theirs[name] = float(THEIRS[family](top_k=int(k))(*flat[:2], indexes=flat[2]))
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_the_order_of_targets_and_of_requests_says_nothing(seed: int, requests: int) -> None:
    random = np.random.default_rng(seed)
    lists, targets = random_lists(random, requests, 40, 30), random_targets(random, requests, 40, 6)
    by_request = [
        targets.items_T[first:last].tolist()
        for first, last in zip(targets.offsets_R1[:-1], targets.offsets_R1[1:], strict=True)
    ]
    order = random.permutation(requests)
    shuffled = targets_of([random.permutation(by_request[request]).tolist() for request in order])
    one = per_request_metrics(result_of(lists, targets), targets, 30)
    other = per_request_metrics(result_of(lists[order], shuffled), shuffled, 30)
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values[order], atol=1e-12)
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()


def test_places_below_the_depth_are_not_found() -> None:
    places, offsets = np.array([3, 12, 30, 11]), np.array([0, 2, 4])
    cut = metrics_of_places(np.where(places <= 10, places, 0), offsets, 10)
    deep = metrics_of_places(places, offsets, 10)
    for name, values in cut.items():
        np.testing.assert_array_equal(values, deep[name])


def test_of_nothing() -> None:
    targets = targets_of([[3], [4, 5]])
    metrics = per_request_metrics(result_of(np.full((2, 10), -1), targets), targets, 10)
    assert {float(value) for values in metrics.values() for value in values} == {0.0}
    assert all(len(values) == 0 for values in metrics_of_places(np.zeros(0, int), np.zeros(1, int), 10).values())
