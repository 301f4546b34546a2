from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from evaluation import old_metrics as metrics

RANKS = np.array([1, 2, 3, 10, 11, 50, 51, 200, 201, 0])


def test_against_hand_computed_cases() -> None:
    assert metrics.hit(RANKS, 10).tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert metrics.hit(RANKS, 1).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    expected = [1, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(metrics.ndcg(RANKS, 10), expected)
    np.testing.assert_allclose(metrics.ndcg(RANKS, 200)[-3:], [1 / math.log2(201), 0, 0])
    np.testing.assert_allclose(metrics.reciprocal_rank(RANKS)[[0, 1, 3, 8, 9]], [1, 0.5, 0.1, 1 / 201, 0])


def test_names_are_what_is_computed() -> None:
    per_user = metrics.per_user_metrics(RANKS)
    assert [*per_user, "coverage@10", "coverage@100"] == list(metrics.NAMES)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 60))
def test_against_torchmetrics(seed: int, users: int, items: int) -> None:
    """An independent implementation, given scores instead of places; some users' item is not in the catalogue."""
    random = np.random.default_rng(seed)
    scores = np.stack([random.permutation(items) for _ in range(users)]) / items
    target = random.integers(0, items, users)
    missing = random.random(users) < 0.2
    rank = 1 + (scores > scores[np.arange(users), target][:, None]).sum(1)
    rank[missing] = 0
    relevant = (np.arange(items) == target[:, None]) & ~missing[:, None]
    flat = (
        torch.from_numpy(scores).flatten(),
        torch.from_numpy(relevant).flatten(),
        torch.arange(users).repeat_interleave(items),
    )
    ours = {name: values.mean() for name, values in metrics.per_user_metrics(rank).items()}
    theirs = {f"hr@{k}": RetrievalHitRate(top_k=k)(*flat[:2], indexes=flat[2]) for k in metrics.HR_DEPTHS}
    theirs |= {f"ndcg@{k}": RetrievalNormalizedDCG(top_k=k)(*flat[:2], indexes=flat[2]) for k in metrics.NDCG_DEPTHS}
    theirs["mrr"] = RetrievalMRR()(*flat[:2], indexes=flat[2])
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-6)


def test_coverage_counts_items_once_and_empty_places_never() -> None:
    items = np.array([[0, 1, 2], [1, 3, -1], [1, -1, -1]])
    assert metrics.coverage(items, 1, 8) == 2 / 8
    assert metrics.coverage(items, 2, 8) == 3 / 8
    assert metrics.coverage(items, 100, 8) == 4 / 8
    assert metrics.coverage(np.full((2, 3), -1), 3, 8) == 0


def test_bootstrap_is_a_function_of_the_seed_and_not_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    per_user = metrics.per_user_metrics(np.random.default_rng(0).integers(0, 60, 300))
    first = metrics.bootstrap_intervals(per_user, 200, seed=1)
    assert first == metrics.bootstrap_intervals(per_user, 200, seed=1)
    assert first != metrics.bootstrap_intervals(per_user, 200, seed=2)
    monkeypatch.setattr(metrics, "_MAX_COUNTS", 300 * 7)
    blocked = metrics.bootstrap_intervals(per_user, 200, seed=1)
    for name, interval in first.items():
        assert blocked[name] == pytest.approx(interval, abs=1e-12)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    """Around the mean, ± 1.96 standard errors wide; so a quarter as wide for sixteen times the users."""
    widths = []
    for users in (200, 3200):
        values = np.random.default_rng(3).random(users)
        ((low, high),) = metrics.bootstrap_intervals({"x": values}, 1500, seed=0).values()
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(users), rel=0.1)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)


def test_bootstrap_of_what_is_equal_for_all_has_no_width() -> None:
    (interval,) = metrics.bootstrap_intervals({"x": np.full(50, 0.25)}, 100, seed=0).values()
    assert interval == (0.25, 0.25)
    (interval,) = metrics.bootstrap_intervals({"x": np.ones(1)}, 10, seed=0).values()
    assert interval == (1.0, 1.0)


def test_popularity_classes_by_hand() -> None:
    plays = np.arange(10)
    ranks = np.where(plays >= 7, 1, 0)
    strata = metrics.recall_by_popularity(ranks, plays, 10)
    assert [(stratum.label, stratum.users, stratum.recall) for stratum in strata] == [
        ("0–1", 2, 0.0),
        ("2–3", 2, 0.0),
        ("4–5", 2, 0.0),
        ("6–7", 2, 0.5),
        ("8–9", 2, 1.0),
    ]


@pytest.mark.parametrize(
    ("plays", "labels"),
    [([4, 4, 4], ["4"]), ([7], ["7"]), ([1, 9] * 10, ["1", "9"]), ([0] * 8 + [999, 5000], ["0", "999–5,000"])],
)
def test_popularity_classes_of_few_distinct_values(plays: list[int], labels: list[str]) -> None:
    strata = metrics.recall_by_popularity(np.ones(len(plays), np.int64), np.array(plays), 10)
    assert [stratum.label for stratum in strata] == labels
    assert {stratum.recall for stratum in strata} == {1.0}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=60))
def test_popularity_classes_are_a_partition_of_the_users(rows: list[tuple[int, int]]) -> None:
    plays, ranks = (np.array(column) for column in zip(*rows, strict=True))
    strata = metrics.recall_by_popularity(ranks, plays, 10)
    assert 1 <= len(strata) <= 5
    assert sum(stratum.users for stratum in strata) == len(rows)
    found = sum(stratum.users * stratum.recall for stratum in strata)
    assert found == pytest.approx(metrics.hit(ranks, 10).sum())
