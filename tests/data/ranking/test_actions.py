"""Actions as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from data.ranking.actions import actions_of, num_actions
from data.schema import MISSING_PLAYED_RATIO
from tests.data.ranking.test_tasks import columns_of


def test_actions_by_hand() -> None:
    played = [0, 24, 25, 50, 75, 99, 100, 101, 5000, MISSING_PLAYED_RATIO]
    buckets = [0, 0, 1, 2, 3, 3, 3, 4, 4, 5]
    columns, at_n = columns_of([2] * len(played), played), np.arange(len(played))
    assert actions_of(columns, at_n, 4).tolist() == [12 + bucket for bucket in buckets]
    assert actions_of(columns, at_n, 0).tolist() == [2] * len(played)
    assert actions_of(columns_of([2] * 3, None), np.arange(3), 4).tolist() == [2] * 3
    assert actions_of(columns, at_n[::-3], 4).tolist() == [17, 15, 14, 12]


@pytest.mark.parametrize("buckets", [0, 1, 3, 10, 100, 150])
@pytest.mark.parametrize("has_played", [True, False])
def test_every_action_has_a_row(buckets: int, has_played: bool) -> None:
    ratios = [*range(103), MISSING_PLAYED_RATIO - 1, MISSING_PLAYED_RATIO]
    event_types = np.repeat(np.arange(3), len(ratios)).tolist()
    columns = columns_of(event_types, ratios * 3 if has_played else None)
    found = actions_of(columns, np.arange(len(event_types)), buckets)
    rows = num_actions(3, buckets, has_played)
    assert rows == (3 * (buckets + 2) if buckets and has_played else 3)
    assert found.dtype == np.int64
    assert (found.min(), found.max()) == (0, rows - 1)
    if buckets <= 100:
        assert len(set(found.tolist())) == rows


def test_buckets_are_of_equal_width_and_the_last_has_the_whole() -> None:
    columns = columns_of([0] * 101, list(range(101)))
    counts = np.bincount(actions_of(columns, np.arange(101), 10))
    assert counts.tolist() == [10] * 9 + [11]
