from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import lists
from evaluation.metrics.intervals import mean_of
from evaluation.metrics.lists import coverage_and_gini, exposure, novelty
from tests.evaluation.metrics.helpers import random_lists


def slow_gini(counts: np.ndarray) -> float:
    """Half the mean absolute difference of two items drawn, by the mean."""
    return float(np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean()))


def test_exposure_counts_each_list_and_empty_places_never() -> None:
    items = np.array([[0, 1, 2], [1, 3, -1], [1, -1, -1]], np.int32)
    assert exposure(items, 1, 8).tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert exposure(items, 2, 8).tolist() == [1, 3, 0, 1, 0, 0, 0, 0]
    assert exposure(items, 3, 5).tolist() == [1, 3, 1, 1, 0]


def test_by_hand() -> None:
    """Ten places, N = 40: two lists that share half of their items."""
    items = np.array([np.arange(10), np.arange(5, 15)], np.int32)
    figures = coverage_and_gini(items, 40)
    assert list(figures) == ["coverage@10", "gini@10"]
    assert figures["coverage@10"] == 15 / 40
    # 25 items never, 10 once, 5 twice: 1 + 1/N − 2 Σ (how many stand from here up) / (N Σ)
    sorted_counts = [0] * 25 + [1] * 10 + [2] * 5
    area = sum((40 - rank) * count for rank, count in enumerate(sorted_counts))
    assert figures["gini@10"] == pytest.approx(1 + 1 / 40 - 2 * (area / (40 * 20)))


def test_gini_at_its_ends() -> None:
    everyone_the_same = np.zeros((7, 10), np.int32)
    everyone_the_same[:] = np.arange(10)
    assert coverage_and_gini(everyone_the_same, 10)["gini@10"] == pytest.approx(0)
    one_place = np.full((7, 10), -1, np.int32)
    one_place[:, 0] = 3
    assert coverage_and_gini(one_place, 50)["gini@10"] == pytest.approx(49 / 50)
    assert coverage_and_gini(np.full((2, 10), -1, np.int32), 5) == {"coverage@10": 0, "gini@10": 0}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 6))
def test_against_the_definitions(seed: int, requests: int, block: int) -> None:
    random = np.random.default_rng(seed)
    made = random_lists(random, requests, 120, 100).astype(np.int32)
    plays = random.integers(0, 1000, 120) * random.integers(0, 2, 120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "_BLOCK_REQUESTS", block)
        figures = coverage_and_gini(made, 120)
        bits = novelty(made, plays)
    for k in (10, 100):
        shown = Counter(item for row in made[:, :k].tolist() for item in row if item >= 0)
        assert figures[f"coverage@{k}"] == len(shown) / 120
        counts = np.array([shown[item] for item in range(120)])
        assert figures[f"gini@{k}"] == pytest.approx(slow_gini(counts) if shown else 0)
        surprise = [-math.log2((plays[item] + 1) / (plays.sum() + 120)) for item in shown.elements()]
        assert mean_of(bits[f"novelty@{k}"]) == pytest.approx(float(np.mean(surprise)) if surprise else 0)


def test_novelty_by_hand() -> None:
    """Plays, and one more each, are 4, 2, 1 and 1 of 8: 1, 2, 3 and 3 bits."""
    items = np.full((2, 10), -1, np.int32)
    items[0, :2], items[1, :1] = [0, 2], [1]
    figure = novelty(items, np.array([3, 1, 0, 0]))["novelty@10"]
    assert figure.top_R.tolist() == pytest.approx([1 + 3, 2])
    assert figure.bottom_R.tolist() == [2, 1]
    assert mean_of(figure) == pytest.approx(2)
