from __future__ import annotations

import math
import time

import numpy as np
import pytest

from data.ranking.tasks import BINARY
from evaluation.metrics.intervals import Figure, Ratio, figures_of
from evaluation.ranking.intervals import summarise
from tests.evaluation.ranking.helpers import BOTH, LIKE, PLAYED, made_up
from tests.evaluation.ranking.helpers import figures as figures_of_task


def test_everything_that_is_said_of_a_task() -> None:
    predictions, labels, users = made_up(0, 400, 30)
    found = summarise(BOTH, predictions, labels, users, samples=50)
    assert [(one.name, one.kind) for one in found] == [(task.name, task.kind) for task in BOTH]
    for column, one in enumerate(found):
        asked = ~np.isnan(labels[:, column])
        assert (one.requests, one.users) == (asked.sum(), len(np.unique(users[asked])))
        assert one.mean_label == pytest.approx(np.nanmean(labels[:, column]))
        assert one.mean_prediction == pytest.approx(predictions[asked, column].mean())
        values = figures_of_task(BOTH[column], predictions[:, column], labels[:, column], users)
        assert {name: figure.value for name, figure in one.figures.items()} == values
        assert (one.reliability is not None) == (one.kind == BINARY)
        for name, figure in one.figures.items():
            assert figure.low <= figure.high
            assert name == "ece" or figure.low < figure.value < figure.high
    assert found[0].reliability.ece == pytest.approx(found[0].figures["ece"].value)
    assert found == summarise(BOTH, predictions, labels, users, samples=50)
    assert found != summarise(BOTH, predictions, labels, users, samples=50, seed=1)


def test_intervals_of_means_and_ratios_are_those_of_the_metrics_of_lists() -> None:
    """The same audiences: where a figure is a mean or a ratio of sums, so are its intervals."""
    predictions, labels, users = made_up(0, 400, 30, missing=0.0)
    like, played = summarise(BOTH, predictions, labels, users, samples=200, seed=3)
    wanted = figures_of(
        {
            "mse": (predictions[:, 1] - labels[:, 1]) ** 2,
            "calibration": Ratio(predictions[:, 0], labels[:, 0]),
        },
        users,
        200,
        seed=3,
    )
    for name, found in (("mse", played), ("calibration", like)):
        figure = found.figures[name]
        assert (figure.low, figure.high) == pytest.approx((wanted[name].low, wanted[name].high))


def test_of_nothing_there_is_nothing_to_say() -> None:
    nothing = np.zeros((0, 2))
    like, played = summarise(BOTH, nothing, nothing, np.zeros(0, int))
    assert (like.requests, like.figures, like.reliability.bins) == (0, {}, ())
    assert (played.users, played.figures, played.reliability) == (0, {}, None)
    assert summarise((), np.zeros((3, 0)), np.zeros((3, 0)), np.arange(3)) == ()
    (alone,) = summarise((PLAYED,), np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1, int), samples=10)
    assert alone.figures == {"mse": Figure(1, 1, 1), "mae": Figure(1, 1, 1)}


def test_audiences_without_one_of_the_labels_are_left_out() -> None:
    """A single positive: the user who has it is missing from a third of the audiences."""
    predictions, labels = np.linspace(0.1, 0.9, 20)[:, None], np.zeros((20, 1))
    labels[10] = 1
    (found,) = summarise((LIKE,), predictions, labels, np.arange(20), samples=300)
    for figure in found.figures.values():
        assert math.isfinite(figure.low)
        assert math.isfinite(figure.high)


def test_intervals_of_auc_and_ne_hold_the_truth_as_often_as_they_say() -> None:
    """Uniform probabilities that are the truth: AUC is 5/6, NE 1/2 over ln 2, whoever is asked."""
    random, held = np.random.default_rng(7), np.zeros(2)
    truth = 5 / 6, 0.5 / math.log(2)
    for seed in range(150):
        users = np.repeat(np.arange(80), random.integers(1, 6, 80))
        said = random.random((len(users), 1))
        labels = (random.random(said.shape) < said).astype(float)
        (found,) = summarise((LIKE,), said, labels, users, samples=200, seed=seed)
        figures = found.figures["auc"], found.figures["ne"]
        held += [one.low <= true <= one.high for one, true in zip(figures, truth, strict=True)]
    assert held / 150 == pytest.approx(0.95, abs=0.07)


def test_a_thousand_resamples_of_many_predictions_take_seconds() -> None:
    predictions, labels, users = made_up(0, 100_000, 20_000)
    start = time.process_time()
    summarise(BOTH, predictions, labels, users)
    assert time.process_time() - start < 60  # about 3 s on a machine that has nothing else to do
