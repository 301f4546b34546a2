from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.baselines.decaypop import DecayPopConfig, decaypop, log_decayed_plays
from evaluation.baselines.lists import UNSCORED
from tests.evaluation.baselines.helpers import DAY, Drawn, drawn, same


def reference(case: Drawn, days: float) -> np.ndarray:
    """Σ exp(−age / τ), event by event, of ages that floats can hold."""
    events = [
        (item, time)
        for items, times, learnt in zip(case.items, case.times, case.learnt, strict=True)
        for item, time in zip(items[:learnt], times[:learnt], strict=True)
    ]
    end = max(time for _, time in events)
    plays_N = np.zeros(case.num_items)
    for item, time in events:
        plays_N[item] += np.exp((time - end) / DAY / days)
    return plays_N


@settings(deadline=None)
@given(drawn(), st.integers(1, 12), st.sampled_from([0.25, 1.0, 30.0]))
def test_plays_fade_with_their_age(case: Drawn, k: int, days: float) -> None:
    plays_N = reference(case, days)
    with np.errstate(divide="ignore"):
        logs_N = np.log(plays_N)
    np.testing.assert_allclose(log_decayed_plays(case.log, days), logs_N, rtol=1e-12, atol=1e-12)
    scores_N = np.where(plays_N > 0, logs_N, UNSCORED).astype(np.float32)
    engine = decaypop(case.log, DecayPopConfig(days), case.catalogue)
    assert engine.name == "decaypop"
    same(engine.retrieve(case.query, k), case.lists(np.tile(scores_N, (len(case.asking), 1)), k))


def test_what_faded_below_every_float_is_still_in_order() -> None:
    times = [0, DAY, 3000 * DAY]
    case = Drawn([[0, 1, 2]], [times], [3], 4, [[]], [[]], [])
    engine = decaypop(case.log, DecayPopConfig(1.0), case.catalogue)
    items, scores = engine.retrieve(case.query, 4)
    assert items.tolist() == [[2, 1, 0, 3]]
    assert scores[0, :3].tolist() == [0, -2999, -3000]


@pytest.mark.parametrize("days", [0.0, -1.0])
def test_a_time_must_be_positive(days: float) -> None:
    with pytest.raises(InputError, match=r"`days` is .*, must be above 0"):
        DecayPopConfig(days)
