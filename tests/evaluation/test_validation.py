"""What training looks at, with a model that knows nothing and an engine that was told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from data.event_store import EventStore
from data.loader import item_features
from data.split import DAY, YAMBDA_END, SplitConfig
from evaluation.validation import Validation
from sharding.world import open_world
from tests.evaluation.helpers import CODES, ToldEngine, make_store, random_codes, window_states

NUM_ITEMS = 12


class Model(nn.Module):
    """As much of a sharded recommender as validation touches."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []
        self.module: Any = SimpleNamespace(
            encode=self.encode, tower=SimpleNamespace(heads=None, cfg=SimpleNamespace(max_history=5))
        )

    def encode(self, batch: Any) -> torch.Tensor:
        self.modes.append(self.training)
        return window_states(batch)


def validate(store: EventStore, model: Any, scores: torch.Tensor) -> dict[str, float]:
    features = item_features(store, random_codes(NUM_ITEMS), CODES)
    with open_world() as world:
        validation = Validation(model, features, store, world, tokens=20, distinct=True)
        return validation(ToldEngine(scores), NUM_ITEMS)


@pytest.mark.parametrize("training", [True, False])
def test_the_validation_events_are_asked_and_the_model_keeps_its_mode(tmp_path: Path, training: bool) -> None:
    scores = torch.zeros(2, NUM_ITEMS)
    scores[0, 2], scores[1, 7] = 1.0, 1.0  # user 0's validation item, and user 1's test item
    model = Model().train(training)
    store = make_store(tmp_path / "store", [[0, 1, 2, 3], [4, 5, 6, 7]], NUM_ITEMS)
    found = validate(store, model, scores)
    assert found["hr@1"] == 0.5
    assert set(model.modes) == {False}
    assert model.training == training


def test_where_people_return_their_history_is_not_filtered(tmp_path: Path) -> None:
    """As Yambda's protocol has it: the item asked for was played before."""
    validation_day = YAMBDA_END - 2 * DAY + 3600
    times = [[DAY, 2 * DAY, validation_day, YAMBDA_END - 5], [DAY, 3 * DAY]]
    store = make_store(tmp_path / "store", [[3, 4, 3, 5], [1, 2]], NUM_ITEMS, times, SplitConfig("yambda"))
    scores = torch.zeros(1, NUM_ITEMS)
    scores[0, 3] = 1.0
    assert validate(store, Model(), scores)["hr@1"] == 1.0


def test_nothing_held_out_gives_no_figures(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[0, 1], [4, 5]], NUM_ITEMS)
    assert validate(store, Model(), torch.zeros(1, NUM_ITEMS)) == {}
