"""Ragged rows and their highest scores, against loops and sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.codes.trie_arrays import highest, in_rows


@given(
    rows=st.integers(0, 4),
    size=st.sampled_from([0, 1, 7, 32, 128, 640, 1280]),
    width=st.integers(1, 12),
    values=st.sampled_from([3, 50, 100_000]),
    none=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=300, deadline=None)
def test_highest_is_the_beginning_of_a_stable_sort(
    rows: int, size: int, width: int, values: int, none: float, seed: int
) -> None:
    """Few different values make ties; long rows are searched by groups."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, values, (rows, size)).astype(np.float32)
    scores[random.random((rows, size)) < none] = -np.inf
    places, kept = highest(torch.from_numpy(scores), width)
    for row in range(rows):
        finite = [place for place in np.argsort(-scores[row], kind="stable").tolist() if scores[row, place] > -np.inf]
        expected = sorted(finite[:width])
        assert places[row].tolist() == expected + [-1] * (width - len(expected))
        assert kept[row].tolist() == scores[row, expected].tolist() + [-np.inf] * (width - len(expected))


@pytest.mark.parametrize("counts", [[], [0, 0], [3], [0, 2, 40, 0, 1]])
def test_rows_hold_what_their_bounds_say(counts: list[int]) -> None:
    bounds = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
    values = torch.arange(sum(counts)) + 10
    found = in_rows(values, bounds, -1)
    assert found.size(0) == len(counts)
    for row, (begin, end) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:], strict=False)):
        assert found[row].tolist() == [*range(10 + begin, 10 + end), *[-1] * (found.size(1) - end + begin)]
