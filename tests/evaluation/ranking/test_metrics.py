from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.regression import r2_score
from torchrec.metrics.ne import compute_cross_entropy, compute_ne

from evaluation.metrics.calibration import calibration
from evaluation.ranking.metrics import NEAREST, asked_of, gain_of, sums_of, values_of
from tests.evaluation.ranking.helpers import BOTH, LIKE, PLAYED, figures, made_up, only_asked


def test_a_binary_task_by_hand() -> None:
    """Users 3 and 5 have both labels, 4 has one; user 5 is asked three times, once without an answer."""
    said = np.array([0.8, 0.4, 0.9, 0.6, 0.3, 0.1])
    labels = np.array([1, 0, 1, 0, 1, np.nan])
    found = figures(LIKE, said, labels, np.array([3, 3, 4, 5, 5, 5]))
    loss = -(math.log(0.8) + math.log(0.6) + math.log(0.9) + math.log(0.4) + math.log(0.3)) / 5
    entropy = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert found == {
        "ne": pytest.approx(loss / entropy),
        "auc": pytest.approx(4 / 6),  # .8 and .9 above .4 and .6, .3 above neither
        "gauc": pytest.approx((2 * 1 + 2 * 0) / 4),
        "gauc-users": pytest.approx(0.5),
        "calibration": pytest.approx(3.0 / 3),
        "ece": pytest.approx((0.2 + 0.4 + 0.1 + 0.6 + 0.7) / 5),  # a bin a prediction
    }


def test_group_auc_weighs_users_by_their_predictions() -> None:
    said, labels = np.array([0.9, 0.1, 0.9, 0.1, 0.1, 0.1]), np.array([0, 1, 1, 0, 0, 0])
    found = figures(LIKE, said, labels, np.array([0, 0, 1, 1, 1, 1]))
    assert found["gauc"] == pytest.approx(4 / 6)
    assert found["gauc-users"] == pytest.approx(1 / 2)


def test_a_regression_by_hand() -> None:
    found = figures(PLAYED, np.array([1.0, 2, 3, 7]), np.array([1.0, 3, 5, np.nan]))
    assert found == {"mse": pytest.approx(5 / 3), "mae": 1.0, "r2": pytest.approx(1 - (5 / 3) / (8 / 3))}
    far = figures(PLAYED, np.array([1.0, 2, 3]) + 1e6, np.array([1.0, 3, 5]) + 1e6)
    assert far["r2"] == pytest.approx(found["r2"])


def test_the_mean_label_has_entropy_one_and_r2_zero() -> None:
    labels = np.array([1, 0, 0, 0])
    found = figures(LIKE, np.full(4, 0.25), labels)
    assert (found["ne"], found["auc"], found["calibration"], found["ece"]) == pytest.approx((1, 0.5, 1, 0))
    assert figures(PLAYED, np.full(4, 0.25), labels)["r2"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_what_has_nothing_beneath_is_not_said(label: int) -> None:
    found = figures(LIKE, np.array([0.2, 0.4]), np.full(2, label))
    assert list(found) == (["calibration", "ece"] if label else ["ece"])
    assert list(figures(PLAYED, np.array([0.2, 0.4]), np.full(2, label + 0.1))) == ["mse", "mae"]
    for task in BOTH:
        assert figures(task, np.array([0.2, 0.4]), np.full(2, np.nan)) == {}
    assert "gauc" not in figures(LIKE, np.array([0.2, 0.4]), np.array([0, 1]))  # a user each


def test_a_certainty_that_is_wrong_costs_a_finite_amount() -> None:
    found = figures(LIKE, np.array([1.0, 1.0]), np.array([1, 0]))
    assert found["ne"] == pytest.approx(-math.log(NEAREST) / 2 / math.log(2), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_torchrec_and_torchmetrics(seed: int) -> None:
    predictions, labels, users = made_up(seed, 500, 40)
    found = figures(LIKE, predictions[:, 0], labels[:, 0], users)
    asked = ~np.isnan(labels)
    said, is_like = (torch.from_numpy(column[asked[:, 0], 0]) for column in (predictions, labels))
    ones = torch.ones_like(said)
    cross_entropy = compute_cross_entropy(is_like, said, ones, 1e-12).sum()
    theirs = compute_ne(cross_entropy, ones.sum(), is_like.sum(), (1 - is_like).sum(), 1e-12)
    assert found["ne"] == pytest.approx(float(theirs), rel=1e-6)
    # Ours has bins of equal mass, theirs of equal width: one bin is both, and the curve is compared with our other.
    assert found["ece"] == pytest.approx(calibration(said.numpy(), is_like.numpy() > 0).ece)
    one_bin = binary_calibration_error(said, is_like.int(), n_bins=1)
    assert abs(found["calibration"] - 1) * float(is_like.mean()) == pytest.approx(float(one_bin), abs=1e-6)
    said, played = (torch.from_numpy(column[asked[:, 1], 1]) for column in (predictions, labels))
    found = figures(PLAYED, predictions[:, 1], labels[:, 1], users)
    wanted = [float(measure(said, played)) for measure in (mean_squared_error, mean_absolute_error, r2_score)]
    assert list(found.values()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("column", [0, 1])
def test_an_audience_is_its_users_as_often_as_they_stand_in_it(column: int) -> None:
    """Figures by sums against those of the requests written out, a user that stands there twice being two users."""
    predictions, labels, users = (
        part[..., column] if part.ndim > 1 else part for part in made_up(1, 200, 12, levels=30)
    )
    random = np.random.default_rng(0)
    distinct = np.unique(users)
    counts = random.integers(0, 3, (5, len(distinct)))
    found = sums_of(only_asked(BOTH[column], predictions, labels, users)).figures(counts.astype(float))
    for row, count in enumerate(counts):
        copies = [
            np.flatnonzero(users == user) for user, times in zip(distinct, count, strict=True) for _ in range(times)
        ]
        at, who = np.concatenate(copies), np.repeat(np.arange(len(copies)), [len(copy) for copy in copies])
        wanted = figures(BOTH[column], predictions[at], labels[at], who)
        wanted.pop("ece", None)  # its bins are those of all users
        assert {name: found[name][row] for name in wanted} == {name: pytest.approx(v) for name, v in wanted.items()}


def gain(
    predictions: np.ndarray, labels: np.ndarray, users: np.ndarray, weights: tuple[float, float] = (1.0, 1.0)
) -> float:
    every = asked_of(BOTH, predictions, labels, users)
    return gain_of([values_of(sums_of(asked), asked.num_users) for asked in every], weights)


def test_gain_is_one_less_ne_and_r2() -> None:
    predictions, labels, users = made_up(0, 300, 20)
    ne = figures(LIKE, predictions[:, 0], labels[:, 0])["ne"]
    r2 = figures(PLAYED, predictions[:, 1], labels[:, 1])["r2"]
    assert gain(predictions, labels, users) == pytest.approx((1 - ne + r2) / 2)
    assert gain(predictions, labels, users, (3.0, 1.0)) == pytest.approx((3 * (1 - ne) + r2) / 4)
    perfect = np.nan_to_num(labels)
    assert gain(perfect, labels, users) == pytest.approx(1, abs=1e-5)


def test_gain_leaves_out_what_cannot_be_better_than_anything() -> None:
    predictions, labels, users = made_up(0, 300, 20)
    labels[:, 0] = 1
    assert gain(predictions, labels, users) == pytest.approx(figures(PLAYED, predictions[:, 1], labels[:, 1])["r2"])
    labels[:] = np.nan
    assert gain(predictions, labels, users) == 0.0
    assert gain(predictions[:0], labels[:0], users[:0]) == 0.0


def test_what_is_wrong_with_the_arrays_is_noticed() -> None:
    with pytest.raises(AssertionError, match="asked, and no number said"):
        figures(LIKE, np.array([np.nan, 0.5]), np.array([1, 0]))
    with pytest.raises(AssertionError, match="labels of a binary task"):
        figures(LIKE, np.array([0.5, 0.5]), np.array([0.5, 0]))
    assert figures(PLAYED, np.array([np.nan, 0.5]), np.array([np.nan, 1])) != {}
