"""R requests · T targets · K places of a list · N items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.event_store import EventStore
from evaluation.guardrails.base import FAIL, INFO, PASS
from evaluation.guardrails.chance import better_than_chance, exchange, places_in, rows_of
from evaluation.guardrails.differences import Drawing
from evaluation.requests import Requests, make_requests, seen_targets
from evaluation.results import EngineResult, Evaluation, Targets
from tests.evaluation.helpers import make_store

DRAWING = Drawing(seed=0, samples=300, draws=500)
NUM_ITEMS = 60


@st.composite
def target_sets(draw: st.DrawFn) -> Targets:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    items = np.concatenate([random.permutation(9)[:size] for size in sizes])
    users = np.sort(random.integers(0, 3, len(sizes)))
    return Targets(users, np.arange(len(sizes)), np.cumsum([0, *sizes]), items, np.ones(len(items), np.int64))


@given(target_sets(), st.integers(0, 2**31))
def test_places_are_those_of_a_search_item_by_item(targets: Targets, seed: int) -> None:
    random = np.random.default_rng(seed)
    items_RK = np.stack([np.where(random.random(5) < 0.8, random.permutation(9)[:5], -1) for _ in range(len(targets))])
    expected = [
        list(items_RK[request]).index(item) + 1 if item in items_RK[request] else 0
        for request, item in zip(targets.requests_T, targets.items_T, strict=True)
    ]
    assert places_in(items_RK, targets, 9).tolist() == expected


@given(target_sets(), st.integers(0, 2**31))
def test_rows_of_targets_are_those_asked_for(targets: Targets, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, len(targets), 4)
    taken = rows_of(targets, rows)
    sets = np.split(targets.items_T, targets.offsets_R1[1:-1])
    assert [part.tolist() for part in np.split(taken.items_T, taken.offsets_R1[1:-1])] == [
        sets[row].tolist() for row in rows
    ]
    assert taken.users_R.tolist() == targets.users_R[rows].tolist()


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(0, 2**31))
def test_everybody_has_another_users_targets_once(users: list[int], seed: int) -> None:
    users_R = np.array(users)
    other_R = exchange(users_R, seed)
    assert np.array_equal(np.sort(other_R), np.arange(len(users)))
    if np.bincount(users_R).max() * 2 <= len(users):
        assert (users_R[other_R] != users_R).all()


def test_what_was_seen_is_found_as_item_by_item(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    store = make_store(tmp_path / "store", random_histories(random, np.full(NUM_ITEMS, 1.0)), NUM_ITEMS)
    requests = make_requests(store, "test", 5, "next")
    other_R = exchange(requests.targets.users_R, 0)
    others = rows_of(requests.targets, other_R)
    found = seen_targets(store, requests.targets.users_R, requests.history_stop_R, others)
    items = store.column("item")
    expected = [
        item in items[store.offsets[user] : store.offsets[user] + stop]
        for user, stop, item in zip(requests.targets.users_R, requests.history_stop_R, others.items_T, strict=True)
    ]
    assert found.tolist() == expected
    assert 0.02 < np.mean(expected) < 0.5


def random_histories(random: np.random.Generator, weights_N: np.ndarray, users: int = 1200) -> list[list[int]]:
    """Users who choose by popularity alone, and nothing twice."""
    chances = weights_N / weights_N.sum()
    return [random.choice(NUM_ITEMS, random.integers(5, 12), replace=False, p=chances).tolist() for _ in range(users)]


@pytest.fixture(scope="module")
def popular(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    """Some items are far more popular than others, and that is all there is to know."""
    weights_N = 1 / np.arange(1, NUM_ITEMS + 1)
    histories = random_histories(np.random.default_rng(4), weights_N)
    return make_store(tmp_path_factory.mktemp("popular") / "store", histories, NUM_ITEMS)


def evaluation_of(requests: Requests, scores_RN: np.ndarray, store: EventStore, *, filtered: bool) -> Evaluation:
    """Lists by given scores."""
    scores_RN = scores_RN.copy()
    targets = requests.targets
    if filtered:
        for row, (user, stop) in enumerate(zip(targets.users_R, requests.history_stop_R, strict=True)):
            first = store.offsets[user]
            scores_RN[row, store.column("item")[first : first + stop]] = -np.inf
    order_RN = np.argsort(-scores_RN, axis=1, kind="stable")
    items_RK = np.where(np.take_along_axis(scores_RN, order_RN, 1) > -np.inf, order_RN, -1).astype(np.int32)
    places_T = places_in(items_RK, targets, store.num_items)
    result = EngineResult(places_T, items_RK, np.zeros(items_RK.shape, np.float32))
    return Evaluation(targets, {"told": result}, NUM_ITEMS, NUM_ITEMS)


@pytest.mark.parametrize("filtered", [True, False])
def test_the_same_list_for_everybody_is_at_chance(popular: EventStore, filtered: bool) -> None:
    """However good: nothing of it is owed to knowing the user."""
    requests = make_requests(popular, "test", 5, "next")
    scores_RN = np.tile(-np.arange(NUM_ITEMS, dtype=float), (len(requests), 1))
    evaluation = evaluation_of(requests, scores_RN, popular, filtered=filtered)
    found = better_than_chance(evaluation, "told", requests, popular, filter_history=filtered, drawing=DRAWING)
    assert found.verdict == FAIL
    assert found.figures["model"] > 0.1
    assert found.figures["low"] <= 0 <= found.figures["high"]
    if filtered:  # without care for what both have seen, leaving out the own history would look like knowledge
        careless = better_than_chance(evaluation, "told", requests, popular, filter_history=False, drawing=DRAWING)
        assert careless.verdict == PASS


def test_a_little_knowledge_of_the_user_is_found(popular: EventStore) -> None:
    requests = make_requests(popular, "test", 5, "next")
    scores_RN = np.tile(-np.arange(NUM_ITEMS, dtype=float), (len(requests), 1))
    scores_RN[np.arange(len(requests)), requests.targets.items_T] += 2.0
    evaluation = evaluation_of(requests, scores_RN, popular, filtered=True)
    found = better_than_chance(evaluation, "told", requests, popular, filter_history=True, drawing=DRAWING)
    assert found.verdict == PASS
    assert found.figures["model"] > found.figures["chance"]


def test_with_many_targets_the_same_list_is_at_chance_and_knowledge_is_found(tmp_path: Path) -> None:
    from data.split import SplitConfig

    random = np.random.default_rng(1)
    histories = random_histories(random, 1 / np.arange(1, NUM_ITEMS + 1))
    times = [np.sort(random.integers(0, 10_000, len(one))).tolist() for one in histories]
    split = SplitConfig("temporal", test_seconds=4000, validation_seconds=0, gap_seconds=0)
    store = make_store(tmp_path / "store", histories, NUM_ITEMS, times, split)
    requests = make_requests(store, "test", 5, "period")
    assert requests.targets.sizes_R.max() > 2
    same_RN = np.tile(-np.arange(NUM_ITEMS, dtype=float), (len(requests), 1))
    known_RN = same_RN.copy()
    known_RN[np.arange(len(requests)), requests.targets.items_T[requests.targets.first_T]] += 3.0
    for scores_RN, verdict in ((same_RN, FAIL), (known_RN, PASS)):
        evaluation = evaluation_of(requests, scores_RN, store, filtered=True)
        found = better_than_chance(evaluation, "told", requests, store, filter_history=True, drawing=DRAWING)
        assert found.verdict == verdict, found.found


def test_one_user_cannot_be_judged(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3]], NUM_ITEMS)
    requests = make_requests(store, "test", 5, "next")
    evaluation = evaluation_of(requests, np.zeros((1, NUM_ITEMS)), store, filtered=True)
    found = better_than_chance(evaluation, "told", requests, store, filter_history=True, drawing=DRAWING)
    assert found.verdict == INFO
