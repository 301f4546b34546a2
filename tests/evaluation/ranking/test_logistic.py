"""The baseline without a sequence: what it knows of an event lies before it, and what can be learnt so is learnt."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ranking.tasks import BINARY, REGRESSION, Task
from evaluation.ranking.logistic import PRIOR, RECENT, Columns, before, logistic_predictions, running_features

LIKE, RATING = Task("like", BINARY, ""), Task("rating", REGRESSION, "")


def made_up(events: int, seed: int = 0) -> Columns:
    random = np.random.default_rng(seed)
    users_E = np.sort(random.integers(0, 12, events))
    items_E = random.integers(0, 9, events)
    times_E = np.concatenate([np.sort(random.integers(0, 500, size)) for size in np.bincount(users_E, minlength=12)])
    taste = random.normal(size=9)[items_E] + random.normal(size=12)[users_E]
    liked_E = (random.random(events) < 1 / (1 + np.exp(-2 * taste))).astype(np.float32)
    rating_E = (3 + taste + random.normal(size=events) / 4).astype(np.float32)
    labels_ET = np.stack([liked_E, rating_E], axis=1)
    labels_ET[random.random(events) < 0.1, 0] = np.nan
    return Columns(users_E, items_E, items_E % 3, times_E, labels_ET)


@settings(max_examples=30)
@given(keys=st.lists(st.integers(0, 4), max_size=40), seed=st.integers(0, 99))
def test_sums_of_what_came_before(keys: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    keys_E, values_E = np.array(keys, dtype=np.int64), random.normal(size=len(keys))
    order = random.permutation(len(keys))
    expected = np.zeros(len(keys))
    for place, event in enumerate(order):
        earlier = [other for other in order[:place] if keys_E[other] == keys_E[event]]
        expected[event] = values_E[earlier].sum()
    np.testing.assert_allclose(before(keys_E, order, values_E), expected, atol=1e-12)


def test_features_are_running_averages() -> None:
    columns = made_up(120)
    labels_E, fit_E = columns.labels_ET[:, 0].astype(np.float64), np.arange(120) % 4 != 0
    features_EK = running_features(columns, labels_E, fit_E, 0.25)
    in_time = np.argsort(columns.times_E, kind="stable")
    for event in (0, 17, 63, 119):
        own = [other for other in range(event) if columns.users_E[other] == columns.users_E[event]]
        newest = [labels_E[other] for other in own[-RECENT:] if not np.isnan(labels_E[other])]
        earlier = in_time[: int(np.flatnonzero(in_time == event)[0])]
        of_item = [labels_E[o] for o in earlier if columns.items_E[o] == columns.items_E[event] and fit_E[o]]
        of_user = [labels_E[other] for other in own if not np.isnan(labels_E[other])]
        known_of_item = [label for label in of_item if not np.isnan(label)]
        for place, found in ((0, of_user), (2, known_of_item), (6, newest)):
            assert np.isclose(features_EK[event, place], (sum(found) + PRIOR * 0.25) / (len(found) + PRIOR))
        assert np.isclose(features_EK[event, 1], np.log1p(len(of_user)))


def test_no_later_label_reaches_a_prediction() -> None:
    columns = made_up(200)
    fit_E = columns.times_E < 300
    asked_n = np.flatnonzero(~fit_E)
    predicted = logistic_predictions((LIKE, RATING), columns, fit_E, asked_n)
    changed = columns.labels_ET.copy()
    changed[asked_n[-1]] = [1 - changed[asked_n[-1], 0], 9.0]
    others = logistic_predictions((LIKE, RATING), dataclasses.replace(columns, labels_ET=changed), fit_E, asked_n)
    np.testing.assert_array_equal(predicted, others)


def test_it_beats_the_mean_label() -> None:
    columns = made_up(3000, seed=1)
    fit_E = np.random.default_rng(0).random(3000) < 0.8
    asked_n = np.flatnonzero(~fit_E & ~np.isnan(columns.labels_ET[:, 0]))
    predicted_nT = logistic_predictions((LIKE, RATING), columns, fit_E, asked_n)
    labels_nT = columns.labels_ET[asked_n]
    p_n, liked_n = predicted_nT[:, 0], labels_nT[:, 0]
    loss = -np.log(np.where(liked_n > 0, p_n, 1 - p_n)).mean()
    rate = liked_n.mean()
    assert loss < 0.8 * -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert ((predicted_nT[:, 1] - labels_nT[:, 1]) ** 2).mean() < 0.5 * labels_nT[:, 1].var()


def test_a_task_that_nothing_was_asked_of_predicts_nothing() -> None:
    columns = made_up(50)
    columns.labels_ET[:, 0] = np.nan
    predicted_nT = logistic_predictions((LIKE, RATING), columns, np.ones(50, bool), np.arange(50))
    assert (predicted_nT[:, 0] == 0.5).all()


def test_a_feature_that_was_constant_in_the_fit_says_nothing() -> None:
    """Each user has one fitted event, so that nothing was known before any: a later request knows something."""
    random, users = np.random.default_rng(0), 400
    users_E = np.repeat(np.arange(users), 2)
    rating_E = random.uniform(0, 100, 2 * users).astype(np.float32)
    labels_ET = np.stack([(rating_E > 50).astype(np.float32), rating_E], axis=1)
    items_E = np.arange(2 * users)
    columns = Columns(users_E, items_E, items_E, np.arange(2 * users), labels_ET)
    asked_n = np.arange(1, 2 * users, 2)
    predicted_nT = logistic_predictions((LIKE, RATING), columns, np.arange(2 * users) % 2 == 0, asked_n)
    assert np.square(predicted_nT[:, 1] - rating_E[asked_n]).mean() < 1.1 * rating_E[asked_n].var()
    assert ((predicted_nT[:, 0] > 0.3) & (predicted_nT[:, 0] < 0.7)).all()


def test_without_labels_there_is_nothing_to_say() -> None:
    columns = made_up(50)
    predicted_nT = logistic_predictions((LIKE, RATING), columns, np.zeros(50, dtype=bool), np.arange(5))
    assert predicted_nT.tolist() == [[0.5, 0.0]] * 5
