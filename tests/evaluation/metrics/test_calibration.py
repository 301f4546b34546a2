from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import BinaryCalibrationError

from evaluation.metrics import lists
from evaluation.metrics.calibration import (
    Bin,
    calibration,
    equal_mass,
    equal_width,
    level_calibration,
    list_calibration,
)
from evaluation.results import EngineResult, LevelResult
from tests.evaluation.metrics.helpers import random_lists, result_of, targets_of


def test_by_hand() -> None:
    confidence = np.array([0.9, 0.1, 0.6, 0.2])
    outcome = np.array([True, False, False, True])
    found = calibration(confidence, outcome, bins=2)
    assert found.bins == (
        Bin(0.1, 0.2, 2, pytest.approx(0.15), 0.5),
        Bin(0.6, 0.9, 2, pytest.approx(0.75), 0.5),
    )
    assert found.ece == pytest.approx((0.35 + 0.25) / 2)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.36 + 0.64) / 4)
    assert (found.confidence, found.rate, found.gap) == pytest.approx((0.45, 0.5, 0.05))
    assert found.requests == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 80), st.integers(1, 20))
def test_equal_widths_against_torchmetrics(seed: int, requests: int, bins: int) -> None:
    """Theirs works in float32, so confidences are numbers that it can hold, and none stands on an edge."""
    random = np.random.default_rng(seed)
    confidence = random.random(requests).astype(np.float32)
    outcome = random.random(requests) < 0.4
    ours = calibration(confidence.astype(np.float64), outcome, bins, equal_width)
    theirs = BinaryCalibrationError(n_bins=bins, norm="l1")(
        torch.from_numpy(confidence), torch.from_numpy(outcome).int()
    )
    assert ours.ece == pytest.approx(float(theirs), abs=1e-5)


def test_edges_of_equal_widths() -> None:
    assert equal_width(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), 4).tolist() == [0, 1, 2, 3, 3]


def test_both_binnings_coincide_where_confidences_are_even() -> None:
    confidence = (np.arange(100) + 0.5) / 100
    outcome = np.random.default_rng(0).random(100) < confidence
    assert calibration(confidence, outcome, 10) == calibration(confidence, outcome, 10, equal_width)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 2**31))
def test_equal_mass_keeps_equal_confidences_together(values: list[int], bins: int, seed: int) -> None:
    confidence = np.array(values) / 12
    of = equal_mass(confidence, bins)
    assert len(np.unique(of)) <= bins
    for value in np.unique(confidence):
        assert len(np.unique(of[confidence == value])) == 1
    assert (np.diff(of[np.argsort(confidence)]) >= 0).all()
    order = np.random.default_rng(seed).permutation(len(values))
    outcome = np.random.default_rng(seed).random(len(values)) < 0.5
    one, other = calibration(confidence, outcome, bins), calibration(confidence[order], outcome[order], bins)
    assert [found.requests for found in one.bins] == [found.requests for found in other.bins]
    assert one.ece == pytest.approx(other.ece)


def test_equal_mass_is_equal_where_confidences_are_distinct() -> None:
    confidence = np.random.default_rng(0).random(1000)
    assert np.bincount(equal_mass(confidence, 10)).tolist() == [100] * 10


def test_chance_is_the_ece_of_a_calibrated_model() -> None:
    """Outcomes drawn with the very probabilities, 300 times; the share of over-confident ones is then added."""
    random = np.random.default_rng(0)
    confidence = random.beta(1, 4, 2000)
    drawn = [calibration(confidence, random.random(2000) < confidence) for _ in range(300)]
    assert np.mean([found.ece for found in drawn]) == pytest.approx(drawn[0].chance, rel=0.05)
    over = calibration(confidence, random.random(2000) < confidence / 2)
    assert over.ece > 4 * over.chance
    assert over.gap < 0


def test_lists_by_hand() -> None:
    """Two requests whose first items have codes of their own; the first target of a request is its next item."""
    targets = targets_of([[3, 1], [7, 2]])
    listed = np.array([[1, 3, *[-1] * 8], [2, 4, *[-1] * 8]])
    p = np.array([[0.5, 0.25, *[0] * 8], [0.375, 0.125, *[0] * 8]])
    with np.errstate(divide="ignore"):
        found = list_calibration(result_of(listed, targets, scores_RK=np.log(p)), targets)
    assert list(found) == ["top@1", "top@10"]
    assert (found["top@1"].confidence, found["top@1"].rate) == pytest.approx((0.4375, 0))
    assert (found["top@10"].confidence, found["top@10"].rate) == pytest.approx((0.625, 0.5))
    assert found["top@10"].brier == pytest.approx((0.25**2 + 0.5**2) / 2, abs=1e-6)


def test_items_that_share_their_codes_share_their_probability() -> None:
    """Four items of two tuples: probabilities .6 and .4, each said of two items."""
    targets = targets_of([[0], [3]])
    p = np.array([[0.6, 0.6, 0.4, 0.4]] * 2)
    listed = np.array([[0, 1, 2, 3]] * 2)
    result = result_of(np.pad(listed, ((0, 0), (0, 6)), constant_values=-1), targets)
    scores = np.full((2, 10), -np.inf, np.float32)
    scores[:, :4] = np.log(p)
    result = EngineResult(result.places_T, result.items_RK, scores, log_probabilities=True)
    found = list_calibration(result, targets, np.array([2, 2, 2, 2]))
    assert found["top@1"].confidence == pytest.approx(0.3)
    assert found["top@10"].confidence == pytest.approx(1)
    assert list_calibration(result, targets)["top@10"].confidence == 1  # never more


def test_a_calibrated_list_is_found_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next items drawn with the very probabilities of the scores, requests in several blocks."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(lists, "_BLOCK_REQUESTS", 700)
    logits = random.normal(size=(3000, 130)) * random.uniform(0.5, 3, (3000, 1))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = [int(random.choice(130, p=row)) for row in p]
    listed = np.argsort(-p, axis=1)
    targets = targets_of([[item] for item in drawn])
    result = result_of(listed, targets, scores_RK=np.log(np.take_along_axis(p, listed, axis=1)))
    for found in list_calibration(result, targets).values():
        assert abs(found.gap) < 0.03  # three standard errors
        assert found.ece < 2 * found.chance


def test_levels_leave_unknown_items_out() -> None:
    confidence = np.array([[0.5, 0.75], [np.nan, np.nan], [0.25, 1.0]], np.float32)
    correct = np.array([[True, True], [False, False], [False, True]])
    first, second = level_calibration(LevelResult(confidence, correct))
    assert (first.requests, first.confidence, first.rate) == (2, 0.375, 0.5)
    assert (second.confidence, second.rate, second.brier) == (0.875, 1, 0.03125)
    nothing = level_calibration(LevelResult(np.full((3, 2), np.nan, np.float32), np.zeros((3, 2), bool)))
    assert [(level.requests, level.ece, level.bins) for level in nothing] == [(0, 0, ())] * 2


def test_scores_that_are_none_are_refused() -> None:
    targets = targets_of([[1]])
    result = result_of(random_lists(np.random.default_rng(0), 1, 10, 10), targets)
    with pytest.raises(AssertionError, match="no log-probabilities"):
        list_calibration(EngineResult(result.places_T, result.items_RK, result.scores_RK), targets)
