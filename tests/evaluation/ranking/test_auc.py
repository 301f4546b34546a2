from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from evaluation.ranking.auc import PairCounts, user_auc


def by_pairs(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The definition: every pair of a positive and a negative."""
    up, down = labels > 0, labels <= 0
    won = (predictions[up, None] > predictions[down]) + 0.5 * (predictions[up, None] == predictions[down])
    pairs = weights[up, None] * weights[down]
    return float((won * pairs).sum() / pairs.sum()) if pairs.sum() else float("nan")


def test_by_hand() -> None:
    """Positives .8 and .4, negatives .4 and .1: of four pairs three are won and one is a tie."""
    predictions, labels = np.array([0.4, 0.8, 0.1, 0.4]), np.array([0.0, 1, 0, 1])
    pairs = PairCounts(predictions, labels, np.arange(4))
    assert pairs.auc(np.ones((1, 4))) == pytest.approx([3.5 / 4])
    # The tied negative twice, the lowest left out: two pairs won, two tied.
    assert pairs.auc(np.array([[2.0, 1, 0, 1]])) == pytest.approx([3 / 4])
    assert np.isnan(pairs.auc(np.array([[1.0, 0, 1, 0]]))).all()
    assert user_auc(predictions, labels, np.zeros(4, int), 2) == pytest.approx([3.5 / 4, np.nan], nan_ok=True)
    assert user_auc(predictions, labels, np.array([0, 0, 1, 1]), 2) == pytest.approx([1, 1])
    assert np.isnan(user_auc(np.zeros(0), np.zeros(0), np.zeros(0, int), 3)).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 9), st.integers(1, 30))
def test_is_a_count_of_pairs(seed: int, requests: int, users: int, levels: int) -> None:
    """With ties, whoever is drawn how often; and each user's own."""
    random = np.random.default_rng(seed)
    predictions = random.integers(0, levels, requests) / levels
    labels, users_X = (random.random(requests) < 0.4).astype(float), random.integers(0, users, requests)
    counts = random.integers(0, 3, (4, users)).astype(float)
    wanted = [by_pairs(predictions, labels, row[users_X]) for row in counts]
    assert PairCounts(predictions, labels, users_X).auc(counts) == pytest.approx(wanted, nan_ok=True)
    own = [
        by_pairs(predictions[users_X == u], labels[users_X == u], np.ones((users_X == u).sum())) for u in range(users)
    ]
    assert user_auc(predictions, labels, users_X, users) == pytest.approx(own, nan_ok=True)


@pytest.mark.parametrize("levels", [10, 1 << 20])
def test_against_torchmetrics(levels: int) -> None:
    random = np.random.default_rng(0)
    predictions = random.integers(0, levels, 3000) / levels
    labels = (random.random(3000) < predictions).astype(float)
    (ours,) = PairCounts(predictions, labels, np.arange(3000)).auc(np.ones((1, 3000)))
    theirs = binary_auroc(torch.from_numpy(predictions), torch.from_numpy(labels).int())
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert user_auc(predictions, labels, np.zeros(3000, int), 1) == pytest.approx([ours])
