from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batches import Batch
from data.loader import item_features
from data.split import DAY, SplitConfig
from evaluation.evaluator import Reader, evaluate_requests
from evaluation.metrics.ranking import per_request_metrics
from evaluation.parts import Parts
from evaluation.requests import make_requests
from evaluation.results import EngineResult, Evaluation
from sharding.world import World, open_world
from tests.evaluation.helpers import (
    CODES,
    LEVELS,
    distinct_histories,
    evaluate_each,
    evaluate_told,
    held_out_items,
    make_store,
    random_codes,
    window_states,
)
from tests.ranks import run_on_ranks
from tests.serving.engines.helpers import hidden, make_heads

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as world:
        yield world


def planted(targets_U: np.ndarray) -> Tensor:
    """Scores that put each user's held-out item first."""
    return torch.nn.functional.one_hot(torch.from_numpy(targets_U), NUM_ITEMS).float()


def told(evaluation: Evaluation | None, engine: str = "told") -> EngineResult:
    assert evaluation is not None
    return evaluation.engines[engine]


def test_a_perfect_model_is_always_right_and_its_reverse_always_last(world: World, tmp_path: Path) -> None:
    histories = distinct_histories(50, NUM_ITEMS)
    store = make_store(tmp_path / "store", histories, NUM_ITEMS)
    targets = held_out_items(store)
    result = evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), planted(targets), NUM_ITEMS)
    assert result is not None
    assert np.array_equal(result.targets.items_T, targets)
    assert np.array_equal(told(result).places_T, np.ones(50))
    unseen = [NUM_ITEMS - len(set(history[:-1])) for history in histories]
    assert np.array_equal(told(result, "reversed").places_T, unseen)
    for name, values_R in per_request_metrics(told(result), result.targets, result.depth).items():
        assert name.startswith("precision") or (values_R == 1).all(), name
    assert result.overlaps["told"] == {10: 1.0}
    assert result.overlaps["reversed"][10] == pytest.approx(0.9)  # all but the planted item tie, in one order
    assert set(result.seconds) == {"told", "reversed"}


def test_shuffled_labels_are_found_by_chance(world: World, tmp_path: Path) -> None:
    histories = distinct_histories(600, NUM_ITEMS)
    make_store(tmp_path / "store", histories, NUM_ITEMS)
    scores = torch.randn(600, NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    result = evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), scores, NUM_ITEMS, tokens=400)
    chance = np.mean([10 / (NUM_ITEMS - len(history) + 1) for history in histories])
    assert result is not None
    found = per_request_metrics(told(result), result.targets, NUM_ITEMS)
    assert found["hr@10"].mean() == pytest.approx(chance, abs=0.06)  # three standard errors


def test_ranks_are_counted_among_unseen_items(world: World, tmp_path: Path) -> None:
    """The history before the window counts as seen too: max_history is 6, and the oldest items lie before it."""
    store = make_store(tmp_path / "store", [[0, 1, 2, 3, 4, 5, 6, 7, 30], [8, 9, 1, 31]], NUM_ITEMS)
    scores = -torch.arange(NUM_ITEMS).float().repeat(2, 1)
    result = evaluate_told(world, tmp_path / "store", random_codes(NUM_ITEMS), scores, NUM_ITEMS)
    assert held_out_items(store).tolist() == [30, 31]
    assert told(result).places_T.tolist() == [31 - 8, 32 - 3]
    assert told(result).items_RK[0, :3].tolist() == [8, 9, 10]


def test_with_the_history_not_filtered_an_item_may_come_again(world: World, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1, 2, 3, 4, 5, 6, 7, 30], [8, 9, 1, 9]], NUM_ITEMS)
    scores = -torch.arange(NUM_ITEMS).float().repeat(2, 1)
    found = [
        told(evaluate_told(world, store.path, random_codes(NUM_ITEMS), scores, NUM_ITEMS, filter_history=kept))
        for kept in (False, True)
    ]
    assert found[0].places_T.tolist() == [31, 10]
    assert found[0].items_RK[0, :3].tolist() == [0, 1, 2]
    assert found[1].places_T.tolist() == [31 - 8, 0]


def test_items_out_of_reach_are_misses(world: World, tmp_path: Path) -> None:
    """User 0's item is unknown to the codes, user 1's stands below the depth, user 2's was in the history."""
    make_store(tmp_path / "store", [[0, 1, 5], [1, 2, 6], [7, 2, 7], [3, 4, 8], [9, 9]], NUM_ITEMS)
    codes = random_codes(NUM_ITEMS)
    codes[5] = 0
    scores = planted(np.array([5, 30, 7, 8]))
    scores[0, 5] = -torch.inf  # what an engine does with an item that it cannot tell apart
    scores[1, 6] = -1.0
    result = evaluate_told(world, tmp_path / "store", codes, scores, depth=4)
    assert result.targets.items_T.tolist() == [5, 6, 7, 8]  # the fifth user has too short a history
    assert told(result).places_T.tolist() == [0, 0, 0, 1]
    assert told(result).items_RK.shape == (4, 4)
    assert per_request_metrics(told(result), result.targets, 4)["hr@1"].mean() == 0.25


def test_every_target_of_a_request_has_its_place(world: World, tmp_path: Path) -> None:
    """Against a loop over requests, on a store whose requests have many targets and users many requests."""
    random = np.random.default_rng(4)
    histories, times = [], []
    for _ in range(40):
        length = int(random.integers(2, 30))
        histories.append(random.integers(0, NUM_ITEMS, length).tolist())
        times.append(np.sort(random.integers(0, 20 * DAY, length)).tolist())
    split = SplitConfig("temporal", test_seconds=5 * DAY, validation_seconds=0, gap_seconds=0, end=20 * DAY)
    store = make_store(tmp_path / "store", histories, NUM_ITEMS, times, split)
    scores = torch.randn(200, NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    result = evaluate_told(
        world, store.path, random_codes(NUM_ITEMS), scores, 15, filter_history=False, protocol="daily"
    )
    assert result is not None
    targets = result.targets
    assert len(targets) > len(np.unique(targets.users_R))
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :15]
    expected = []
    for row in range(len(targets)):
        ranked = order[row].tolist()
        for item in targets.items_T[targets.offsets_R1[row] : targets.offsets_R1[row + 1]].tolist():
            expected.append(ranked.index(item) + 1 if item in ranked else 0)
    assert told(result).places_T.tolist() == expected
    assert told(result).items_RK.tolist() == order[: len(targets)].tolist()
    assert told(result).scores_RK.tolist() == scores[: len(targets)].gather(1, order[: len(targets)]).tolist()


def test_confidence_is_that_of_the_heads(world: World, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", distinct_histories(30, NUM_ITEMS), NUM_ITEMS)
    codes = random_codes(NUM_ITEMS, unknown=0.3)
    heads = make_heads(LEVELS, CODES)
    states_WD = hidden(30)

    def encode(batch: Batch) -> Tensor:
        return states_WD[window_states(batch)[:, 0].long()]

    requests = make_requests(store, "test", 6, "next")
    reader = Reader(encode, item_features(store, codes, CODES), 50, heads=heads)
    result = evaluate_requests(reader, [], requests, store, world, depth=3, label="test")
    assert result is not None
    assert result.levels is not None
    for row, item in enumerate(requests.targets.items_T):
        confidence, correct = result.levels.confidence_RC[row], result.levels.correct_RC[row]
        if not codes[item].any():
            assert np.isnan(confidence).all()
            assert not correct.any()
            continue
        for level in range(LEVELS):
            prefix = torch.from_numpy(codes[None, item, :level])
            p_V = torch.softmax(heads.level_logits(states_WD[row : row + 1], prefix, level)[0], 0).detach()
            assert confidence[level] == pytest.approx(float(p_V.max()), abs=1e-6)
            assert correct[level] == (int(p_V.argmax()) == codes[item, level])


class Ending:
    """Scores that are gone after some reads."""

    def __init__(self, scores_UN: Tensor, after: int) -> None:
        self.scores_UN, self.left = scores_UN, after

    def __neg__(self) -> Tensor:
        return -self.scores_UN

    def size(self, dim: int) -> int:
        return self.scores_UN.size(dim)

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return self.scores_UN[rows]


def test_what_was_found_before_an_end_is_not_looked_for_again(world: World, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", distinct_histories(60, NUM_ITEMS), NUM_ITEMS)
    codes = random_codes(NUM_ITEMS)
    scores = torch.randn(60, NUM_ITEMS, generator=torch.Generator().manual_seed(2))
    whole = evaluate_told(world, store.path, codes, scores, NUM_ITEMS)
    folder = tmp_path / "parts"
    with pytest.raises(InterruptedError):
        evaluate_told(world, store.path, codes, Ending(scores, after=5), NUM_ITEMS, folder=folder)
    assert len(Parts(folder, "key", 0).read()) == 5
    assert Parts(folder, "another key", 0).read() == set()
    shutil.copytree(folder, tmp_path / "copy")
    # What is kept is used: with other scores, only what is left comes out otherwise.
    mixed = evaluate_told(world, store.path, codes, -scores, NUM_ITEMS, folder=folder)
    changed = told(mixed).places_T != told(whole).places_T
    assert changed.any()
    assert not changed.all()
    assert_same(whole, evaluate_told(world, store.path, codes, scores, NUM_ITEMS, folder=tmp_path / "copy"))


def test_damaged_parts_are_passed_over(world: World, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", distinct_histories(30, NUM_ITEMS), NUM_ITEMS)
    scores = torch.randn(30, NUM_ITEMS, generator=torch.Generator().manual_seed(2))
    folder = tmp_path / "parts"
    whole = evaluate_told(world, store.path, random_codes(NUM_ITEMS), scores, NUM_ITEMS, folder=folder)
    (part,) = folder.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.warns(UserWarning, match="passed over, it cannot be read"):
        again = evaluate_told(world, store.path, random_codes(NUM_ITEMS), scores, NUM_ITEMS, folder=folder)
    assert_same(whole, again)


def test_two_ranks_give_the_result_of_one(world: World, tmp_path: Path) -> None:
    """With many users, and with one user only, so that a rank has none; and with what one rank left to two."""
    cases = []
    for users, depth in ((31, NUM_ITEMS), (1, 12)):
        path = tmp_path / f"{users}"
        make_store(path, distinct_histories(users, NUM_ITEMS), NUM_ITEMS)
        scores = torch.randn(users, NUM_ITEMS, generator=torch.Generator().manual_seed(1))
        cases.append((path, random_codes(NUM_ITEMS, unknown=0.2), scores, depth))
    alone = evaluate_each(world, cases)
    path, codes, scores, depth = cases[0]
    with pytest.raises(InterruptedError):
        evaluate_told(world, path, codes, Ending(scores, 3), depth, folder=tmp_path / "parts")
    cases.append((*cases[0], 20, True, "next", tmp_path / "parts"))
    first, second = run_on_ranks(2, evaluate_each, cases)
    assert second == [None] * 3
    for spread, one in zip(first, [*alone, alone[0]], strict=True):
        assert_same(spread, one)


def assert_same(one: Evaluation | None, other: Evaluation | None) -> None:
    assert one is not None
    assert other is not None
    for name in ("users_R", "times_R", "offsets_R1", "items_T", "counts_T"):
        assert np.array_equal(getattr(one.targets, name), getattr(other.targets, name))
    assert one.depth == other.depth
    assert one.engines.keys() == other.engines.keys()
    for engine, result in one.engines.items():
        for name in ("places_T", "items_RK", "scores_RK"):
            assert np.array_equal(getattr(result, name), getattr(other.engines[engine], name))
    assert one.overlaps == other.overlaps
