"""Compact offsets against plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.codes.offsets import Offsets, faults_of


@st.composite
def sizes(draw: st.DrawFn) -> np.ndarray:
    """Entries a row: none at all, all one, few more than one, any."""
    rows = draw(st.sampled_from([0, 1, 2, 31, 32, 33, 64, 200, 1000]))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    size = np.ones(rows, np.int64)
    several = random.random(rows) < draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
    size[several] = random.integers(draw(st.sampled_from([0, 1, 2])), 6, several.sum())
    return size


@given(sizes())
@settings(max_examples=300, deadline=None)
def test_every_form_says_what_plain_offsets_say(size: np.ndarray) -> None:
    expected = np.append(0, np.cumsum(size))
    offsets = Offsets.of(expected)
    assert (offsets.rows, offsets.entries) == (len(size), size.sum())
    np.testing.assert_array_equal(offsets.expanded(), expected)
    np.testing.assert_array_equal(offsets, expected)

    begin, end = offsets.ranges(np.arange(len(size))[::-1])
    np.testing.assert_array_equal(begin, expected[:-1][::-1])
    np.testing.assert_array_equal(end, expected[1:][::-1])
    np.testing.assert_array_equal(offsets.rows_of(np.arange(size.sum())), np.repeat(np.arange(len(size)), size))

    assert offsets.num_bytes <= 4 * len(expected)
    assert faults_of(len(size), int(size.sum()), offsets.arrays()) == []


def test_the_smallest_form_is_taken() -> None:
    size = np.ones(1000, np.int64)
    assert (Offsets.of(np.append(0, np.cumsum(size))).form, Offsets(1000).num_bytes) == ("one", 0)
    size[::100] = 40
    offsets = Offsets.of(np.append(0, np.cumsum(size)))
    assert (offsets.form, offsets.num_bytes) == ("counted", 8 * 32 + 4 * 11)
    size[::100] = 0  # a row without entries has no place in the counted form
    assert Offsets.of(np.append(0, np.cumsum(size))).form == "plain"
    assert Offsets.of(np.arange(1001) * 2).form == "plain"


@pytest.mark.parametrize("form", ["plain", "counted"])
@pytest.mark.parametrize("name", ["plain", "blocks", "more"])
def test_arrays_that_do_not_fit_are_told(form: str, name: str) -> None:
    size = np.ones(100, np.int64)
    size[[3, 50]] = 2 if form == "counted" else 0
    offsets = Offsets.of(np.append(0, np.cumsum(size)))
    arrays, entries = offsets.arrays(), offsets.entries
    assert offsets.form == form
    assert faults_of(100, entries, arrays) == []
    assert faults_of(100, entries + 1, arrays)
    assert faults_of(164, entries, arrays)
    if name in arrays:
        assert faults_of(100, entries, arrays | {name: arrays[name][:-1]})
        assert faults_of(100, entries, arrays | {name: arrays[name][:0]})
        assert faults_of(100, entries, {key: array for key, array in arrays.items() if key != name})
    else:
        assert faults_of(100, entries, arrays | {name: np.zeros(3, np.uint32)})
