from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from data.event_store import EventStore
from evaluation.baselines import build, neighbours
from evaluation.baselines.config import BASELINES, BaselinesConfig
from evaluation.baselines.item_knn import ItemKnnConfig
from evaluation.baselines.tuning import GRIDS, MOST_TRIALS, Setting, Tuned, tune
from serving.engines.base import Engine
from tests.data.helpers import MemorySource, make_store
from tests.evaluation.baselines.helpers import CPU, query_of


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    return make_store(tmp_path, MemorySource([9, 9, 5, 7], [[]] * 8, seed=4))


def tuned(store: EventStore, scores: Sequence[float], grid: Sequence[Setting], baseline: str = "item_knn") -> Tuned:
    """Tune by scores that are told, in the order of the trials."""
    told, seen = iter(scores), []

    def score(engine: Engine) -> float:
        seen.append(engine)
        return next(told)

    found = tune(store, baseline, BaselinesConfig(memory_gb=1.0), score, CPU, grid=grid, quiet=True)
    scored = [trial for trial in found.trials if trial.score is not None]
    assert found.engine is seen[scored.index(found.trials[found.best])]
    return found


def test_the_best_trial_is_kept_of_equal_ones_the_first(store: EventStore) -> None:
    grid: list[dict[str, Any]] = [{"window": 1}, {"window": 2, "recency": 0.5}, {"window": 3}, {"window": 4}]
    found = tuned(store, [0.1, 0.3, 0.3, 0.2], grid)
    assert (found.baseline, found.best) == ("item_knn", 1)
    assert (found.config.item_knn.window, found.config.item_knn.recency, found.config.memory_gb) == (2, 0.5, 1.0)
    assert found.config.item_knn.history == BaselinesConfig().item_knn.history
    assert found.table() == [
        {"window": 1, "score": 0.1, "best": False},
        {"window": 2, "recency": 0.5, "score": 0.3, "best": True},
        {"window": 3, "score": 0.3, "best": False},
        {"window": 4, "score": 0.2, "best": False},
    ]


def test_the_engine_is_that_of_the_best_setting(store: EventStore) -> None:
    found = tuned(store, [0.5, 0.1], [{"history": 1, "window": 0}, {"history": 5, "window": 0}])
    assert found.engine.config.history == 1  # type: ignore[attr-defined]
    items, _ = found.engine.retrieve(query_of([[1, 2]], [[1, 2]]), 6)
    assert sorted(items[0].tolist()) == [0, 3, 4, 5, 6, 7]


def test_every_baseline_has_a_budget_and_a_grid_that_can_be_configured(store: EventStore) -> None:
    assert tuple(GRIDS) == BASELINES
    for baseline, grid in GRIDS.items():
        assert 1 <= len(grid) <= MOST_TRIALS
        assert len({str(setting) for setting in grid}) == len(grid)
        found = tune(store, baseline, BaselinesConfig(), lambda _: 1.0, CPU, quiet=True)
        assert (found.best, len(found.trials)) == (0, len(grid))
        assert found.engine.name == baseline


@pytest.mark.parametrize(
    ("baseline", "grid", "rule"),
    [
        ("bm25", [{}], "baseline 'bm25' is unknown"),
        ("ials", [], r"the grid of ials has 0 settings, must have 1 … 8"),
        ("ials", [{}] * 9, r"the grid of ials has 9 settings, must have 1 … 8"),
        ("ials", [{"alpha": 2.0}, {"lambda": 1}], "ials has no option `lambda`, expected one of factors, alpha, "),
        ("mostpop", [{"days": 1}], "mostpop has no option `days`, expected one of none"),
        ("item_knn", [{"recency": 3.0}], "`recency` is 3.0"),
    ],
)
def test_faults_are_told_before_any_work(store: EventStore, baseline: str, grid: list[Setting], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        tuned(store, [], grid, baseline)


def test_a_score_must_be_a_number(store: EventStore) -> None:
    with pytest.raises(InputError, match=r"decaypop with {'days': 1.0} scored nan"):
        tuned(store, [float("nan")], [{"days": 1.0}], "decaypop")


def test_a_fit_is_done_once_for_settings_that_differ_in_how_histories_are_read(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    table = build.neighbour_table
    monkeypatch.setattr(
        build,
        "neighbour_table",
        lambda log, config, *rest, **more: counted.append(config.window) or table(log, config, *rest, **more),
    )
    grid = [{"window": 1, "recency": 1.0}, {"window": 1, "recency": 0.01}, {"window": 2}, {"window": 1}]
    lists: list[tuple[list[int], list[float]]] = []

    def score(engine: Engine) -> float:
        items, scores = engine.retrieve(query_of([[1, 2, 3]], [[]]), 8)
        lists.append((items[0].tolist(), scores[0].tolist()))
        return 0.0

    tune(store, "item_knn", BaselinesConfig(), score, CPU, grid=grid, quiet=True)
    assert counted == [1, 2, 1]
    monkeypatch.undo()
    for setting, found in zip(grid, lists, strict=True):
        config = BaselinesConfig(item_knn=ItemKnnConfig(**setting))
        (engine,) = build.build_baselines(["item_knn"], config, store, None, CPU, quiet=True)
        items, scores = engine.retrieve(query_of([[1, 2, 3]], [[]]), 8)
        assert found == (items[0].tolist(), scores[0].tolist())
    assert lists[0] != lists[1]


def test_a_setting_that_is_refused_is_told_and_the_others_are_tried(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 50)
    found = tuned(store, [0.2, 0.1], [{"window": 0}, {"window": 1}, {"window": 1, "history": 3}])
    assert (found.best, found.trials[0].score) == (1, None)
    assert "the training events hold" in found.table()[0]["fault"]
    with pytest.raises(InputError, match="the training events hold"):
        tuned(store, [], [{"window": 0}, {"window": 0, "history": 1}])
