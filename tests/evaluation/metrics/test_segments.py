from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics.intervals import figures_of, mean_of
from evaluation.metrics.ranking import per_request_metrics
from evaluation.metrics.segments import (
    Segment,
    duration,
    fifths,
    parted,
    segment_rows,
    standard_segments,
    stratified_recall,
)
from tests.evaluation.metrics.helpers import random_evaluation, result_of, targets_of


def labels(segments: list[Segment]) -> list[tuple[str, int]]:
    return [(segment.label, int(segment.members.sum())) for segment in segments]


def test_fifths_by_hand() -> None:
    segments = fifths("plays", np.arange(1000, 1010))
    assert labels(segments) == [(f"1,00{low}–1,00{low + 1}", 2) for low in (0, 2, 4, 6, 8)]
    assert [np.flatnonzero(segment.members).tolist() for segment in segments] == [[i, i + 1] for i in range(0, 10, 2)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([4, 4, 4], ["4"]), ([7], ["7"]), ([1, 9] * 10, ["1", "9"]), ([0] * 8 + [999, 5000], ["0", "999–5,000"])],
)
def test_fifths_of_few_distinct_values(values: list[int], expected: list[str]) -> None:
    assert [segment.label for segment in fifths("plays", np.array(values))] == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_fifths_are_a_partition_in_order(values: list[int]) -> None:
    segments = fifths("plays", np.array(values))
    assert 1 <= len(segments) <= 5
    assert (np.sum([segment.members for segment in segments], axis=0) == 1).all()
    for lower, higher in pairwise(segments):
        assert np.array(values)[lower.members].max() < np.array(values)[higher.members].min()


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59, 60, 3599, 3600, 86_399, 86_400, 8_640_000)] == [
        "0 s", "59 s", "1 min", "60 min", "1 h", "24 h", "1 d", "100 d",
    ]  # fmt: skip


def test_a_segment_of_requests_has_their_rows() -> None:
    evaluation = random_evaluation(0, 80, 150, 120, users=30)
    result, targets = evaluation.engines["made"], evaluation.targets
    members = np.random.default_rng(0).random(80) < 0.4
    (row,) = segment_rows([Segment("half", "some", members)], result, targets, 120, samples=50, seed=3)
    metrics = per_request_metrics(result, targets, 120)
    chosen = {name: metrics[name][members] for name in ("hr@10", "ndcg@10", "recall@100")}
    assert row.figures == figures_of(chosen, targets.users_R[members], 50, 3)
    assert (row.requests, row.targets) == (members.sum(), targets.sizes_R[members].sum())


def test_a_segment_of_targets_has_those_alone() -> None:
    """Request 0 has targets at places 1 and 3, and 9 not found; request 1 at place 2."""
    targets = targets_of([[5, 9, 6], [7]])
    lists = np.array([[5, 0, 6, *[-1] * 7], [1, 7, *[-1] * 8]])
    result = result_of(lists, targets)
    some, rest = segment_rows(
        parted("kind", np.array([False, True, True, False]), "yes", "no"), result, targets, 10, samples=10
    )
    assert (some.requests, some.targets, rest.requests, rest.targets) == (1, 2, 2, 2)
    assert some.figures["hr@10"].value == 1
    assert some.figures["ndcg@10"].value == pytest.approx((1 / 2) / (1 + 1 / np.log2(3)))
    assert rest.figures["ndcg@10"].value == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert list(rest.figures) == ["hr@10", "ndcg@10"]  # the lists end before recall@100


def test_empty_segments_have_no_row() -> None:
    targets = targets_of([[1], [2]])
    result = result_of(np.zeros((2, 10), int), targets)
    rows = segment_rows(parted("all", np.ones(2, bool), "yes", "no"), result, targets, 10, samples=5)
    assert [row.label for row in rows] == ["yes"]


def test_the_standard_segments() -> None:
    targets = targets_of([[0, 1], [2], [1, 3]])
    segments = standard_segments(
        targets,
        history_R=np.array([5, 500, 50]),
        idle_R=np.array([30, 7200, 30]),
        training_plays_N=np.array([9, 1, 1, 0]),
        seen_T=np.array([True, False, False, True, False]),
        known_N=np.array([True, True, True, False]),
    )
    assert [(one.name, one.label, np.flatnonzero(one.members).tolist()) for one in segments] == [
        ("length of the history, events", "5", [0]),
        ("length of the history, events", "50", [2]),
        ("length of the history, events", "500", [1]),
        ("training plays of the target", "1", [1, 2]),
        ("training plays of the target", "9", [0]),
        ("time since the last event", "30 s", [0, 2]),
        ("time since the last event", "2 h", [1]),
        ("the user and the target", "has played it before", [0, 3]),
        ("the user and the target", "new to the user", [1, 2, 4]),
        ("codes of the target", "known", [0, 1, 2, 3]),
        ("codes of the target", "unknown", [4]),
    ]


def test_stratified_recall_by_hand() -> None:
    """Plays 100, 4 and 0 weigh 1/10, 1/2 and 1."""
    targets = targets_of([[0, 1], [2, 0]])
    result = result_of(np.array([[0, *range(10, 19)], [2, *range(10, 19)]]), targets)
    (figure,) = stratified_recall(result, targets, np.array([100, 4, 0]), 10).values()
    assert figure.top_R.tolist() == pytest.approx([0.1, 1])
    assert figure.bottom_R.tolist() == pytest.approx([0.6, 1.1])
    assert mean_of(figure) == pytest.approx(1.1 / 1.7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 15), st.floats(0, 1))
def test_stratified_recall_by_its_definition(seed: int, requests: int, beta: float) -> None:
    evaluation = random_evaluation(seed, requests, 120, 110)
    result, targets = evaluation.engines["made"], evaluation.targets
    plays = np.random.default_rng(seed).integers(0, 50, 120)
    for k in (10, 100):
        found = total = 0.0
        for item, place in zip(targets.items_T.tolist(), result.places_T.tolist(), strict=True):
            weight = max(int(plays[item]), 1) ** -beta
            total += weight
            found += weight if 1 <= place <= k else 0
        figure = stratified_recall(result, targets, plays, 110, beta)[f"stratified-recall@{k}"]
        assert mean_of(figure) == pytest.approx(found / total)
