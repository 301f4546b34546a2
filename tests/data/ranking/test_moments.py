from __future__ import annotations

import numpy as np
import pytest

from data.event_store import EventStore
from data.ranking import moments
from data.ranking.moments import label_moments, target_blocks, training_blocks
from data.schema import MISSING_PLAYED_RATIO
from data.sequences import training_windows
from data.split import training_mask
from tests.conftest import Prepared

TASKS = ["like: event_type is like", "played: played_ratio / 100", "never: played_ratio >= 65000"]


def test_moments_are_those_of_the_training_events(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EventStore.open(prepared.store)
    monkeypatch.setattr(moments, "_AT_ONCE", 100)
    assert len(list(training_blocks(store))) > 3
    mean_T, deviation_T = label_moments(store, TASKS, training_blocks(store))
    learnt_E = training_mask(store.offsets, store.split())
    liked = (store.column("event_type") == store.event_types.index("like"))[learnt_E]
    played = store.column("played_ratio")[learnt_E]
    played = played[played != MISSING_PLAYED_RATIO] / 100
    np.testing.assert_allclose(mean_T, [liked.mean(), played.mean(), 0], rtol=1e-5)
    np.testing.assert_allclose(deviation_T, [liked.std(), played.std(), 0], rtol=1e-4)


def test_a_task_that_asks_nothing_has_no_moments(prepared: Prepared) -> None:
    store = EventStore.open(prepared.store)
    unknown = np.flatnonzero(store.column("played_ratio") == MISSING_PLAYED_RATIO)
    found_2T = label_moments(store, TASKS, [unknown])
    assert found_2T[:, 0].min() > 0
    assert found_2T[:, 1:].tolist() == [[0, 0], [0, 0]]
    assert label_moments(store, TASKS, []).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_targets_are_what_windows_learn_from(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EventStore.open(prepared.store)
    monkeypatch.setattr(moments, "_AT_ONCE", 30)
    windows = training_windows(store.offsets, store.split(), 7, "tiled")
    blocks = list(target_blocks(store, windows))
    may_be_E = training_mask(store.offsets, store.split())
    may_be_E[store.offsets[:-1]] = False  # a user's first event is no target
    assert np.concatenate(blocks).tolist() == np.flatnonzero(may_be_E).tolist()
    assert max(map(len, blocks)) <= 30
