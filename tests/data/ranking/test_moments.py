from __future__ import annotations

import numpy as np
import pytest

from data.event_store import EventStore
from data.ranking import moments
from data.ranking.moments import label_moments
from data.schema import MISSING_PLAYED_RATIO
from data.split import training_events
from tests.conftest import Prepared


def test_moments_are_those_of_the_training_events(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EventStore.open(prepared.store)
    split = store.split()
    monkeypatch.setattr(moments, "_AT_ONCE", 100)
    tasks = ["like: event_type is like", "played: played_ratio / 100", "never: played_ratio >= 65000"]
    mean_T, deviation_T = label_moments(store, tasks, split)
    learnt_E = training_events(store.offsets, split)
    liked = (store.column("event_type") == store.event_types.index("like"))[learnt_E]
    played = store.column("played_ratio")[learnt_E]
    played = played[played != MISSING_PLAYED_RATIO] / 100
    np.testing.assert_allclose(mean_T, [liked.mean(), played.mean(), 0], rtol=1e-5)
    np.testing.assert_allclose(deviation_T, [liked.std(), played.std(), 0], rtol=1e-4)
