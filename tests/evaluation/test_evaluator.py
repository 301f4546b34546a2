from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import old_metrics as metrics
from evaluation.evaluator import Evaluation
from sharding.world import World, open_world
from tests.evaluation.helpers import (
    WindowModel,
    distinct_histories,
    evaluate_each,
    evaluate_told,
    held_out_items,
    make_store,
    random_codes,
)
from tests.ranks import run_on_ranks

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as world:
        yield world


def planted(targets_U: np.ndarray) -> Tensor:
    """Scores that put each user's held-out item first."""
    return torch.nn.functional.one_hot(torch.from_numpy(targets_U), NUM_ITEMS).float()


def test_a_perfect_model_is_always_right_and_its_reverse_always_last(world: World, tmp_path: Path) -> None:
    histories = distinct_histories(50, NUM_ITEMS)
    store = make_store(tmp_path / "store", histories, NUM_ITEMS)
    targets = held_out_items(store)
    result = evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), planted(targets), NUM_ITEMS)
    assert np.array_equal(result.target_items_U, targets)
    assert np.array_equal(result.engines["told"].rank_U, np.ones(50))
    unseen = [NUM_ITEMS - len(set(history[:-1])) for history in histories]
    assert np.array_equal(result.engines["reversed"].rank_U, unseen)
    summary = result.summary("told", NUM_ITEMS)
    assert list(summary) == list(metrics.NAMES)
    assert {summary[name] for name in metrics.NAMES if not name.startswith("coverage")} == {1.0}
    assert result.level_accuracy_C == [1.0, 0.5]


def test_shuffled_labels_are_found_by_chance(world: World, tmp_path: Path) -> None:
    histories = distinct_histories(600, NUM_ITEMS)
    make_store(tmp_path / "store", histories, NUM_ITEMS)
    scores = torch.randn(600, NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    result = evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), scores, NUM_ITEMS, tokens=400)
    chance = np.mean([10 / (NUM_ITEMS - len(history) + 1) for history in histories])
    assert result.summary("told", NUM_ITEMS)["hr@10"] == pytest.approx(chance, abs=0.06)  # three standard errors


def test_ranks_are_counted_among_unseen_items(world: World, tmp_path: Path) -> None:
    """The history before the window counts as seen too: max_history is 6, and the oldest items lie before it."""
    store = make_store(tmp_path / "store", [[0, 1, 2, 3, 4, 5, 6, 7, 30], [8, 9, 1, 31]], NUM_ITEMS)
    scores = -torch.arange(NUM_ITEMS).float().repeat(2, 1)
    result = evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), scores, NUM_ITEMS)
    assert held_out_items(store).tolist() == [30, 31]
    assert result.engines["told"].rank_U.tolist() == [31 - 8, 32 - 3]
    assert result.engines["told"].items_UK[0, :3].tolist() == [8, 9, 10]


def test_with_the_history_not_filtered_an_item_may_come_again(world: World, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3, 4, 5, 6, 7, 30], [8, 9, 1, 9]], NUM_ITEMS)
    scores = -torch.arange(NUM_ITEMS).float().repeat(2, 1)
    told = [
        evaluate_told(world, store.path, random_codes(NUM_ITEMS), scores, NUM_ITEMS, filter_history=kept).engines[
            "told"
        ]
        for kept in (False, True)
    ]
    assert told[0].rank_U.tolist() == [31, 10]
    assert told[0].items_UK[0, :3].tolist() == [0, 1, 2]
    assert told[1].rank_U.tolist() == [31 - 8, 0]


def test_items_out_of_reach_are_misses(world: World, tmp_path: Path) -> None:
    """User 0's item is unknown to the codes, user 1's stands below the depth, user 2's was in the history."""
    make_store(tmp_path / "store", [[0, 1, 5], [1, 2, 6], [7, 2, 7], [3, 4, 8], [9, 9]], NUM_ITEMS)
    codes = random_codes(NUM_ITEMS)
    codes[5] = 0
    scores = planted(np.array([5, 30, 7, 8]))
    scores[0, 5] = -torch.inf  # what an engine does with an item that it cannot tell apart
    scores[1, 6] = -1.0
    result = evaluate_told(world, tmp_path / "store", codes, scores, depth=4)
    assert result.target_items_U.tolist() == [5, 6, 7, 8]  # the fifth user has too short a history
    assert result.engines["told"].rank_U.tolist() == [0, 0, 0, 1]
    assert result.engines["told"].items_UK.shape == (4, 4)
    assert result.summary("told", NUM_ITEMS)["hr@1"] == 0.25


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_had(world: World, tmp_path: Path, training: bool) -> None:
    make_store(tmp_path / "store", distinct_histories(5, NUM_ITEMS), NUM_ITEMS)
    model = WindowModel().train(training)
    scores = torch.zeros(5, NUM_ITEMS)
    evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), scores, NUM_ITEMS, model=model)
    assert set(model.modes) == {False}
    assert model.training == training


def test_two_ranks_give_the_result_of_one(world: World, tmp_path: Path) -> None:
    """With many users, and with one user only, so that a rank has none."""
    cases = []
    for users, depth in ((31, NUM_ITEMS), (1, 5)):
        path = tmp_path / f"{users}"
        make_store(path, distinct_histories(users, NUM_ITEMS), NUM_ITEMS)
        scores = torch.randn(users, NUM_ITEMS, generator=torch.Generator().manual_seed(1))
        cases.append((path, random_codes(NUM_ITEMS, unknown=0.2), scores, depth))
    alone = evaluate_each(world, cases)
    for spread in run_on_ranks(2, evaluate_each, cases):
        for one, other in zip(spread, alone, strict=True):
            assert_same(one, other)


def assert_same(one: Evaluation, other: Evaluation) -> None:
    assert np.array_equal(one.target_items_U, other.target_items_U)
    assert one.depth == other.depth
    assert one.engines.keys() == other.engines.keys()
    for name, result in one.engines.items():
        assert np.array_equal(result.rank_U, other.engines[name].rank_U)
        assert np.array_equal(result.items_UK, other.engines[name].items_UK)
    assert one.level_accuracy_C == other.level_accuracy_C
