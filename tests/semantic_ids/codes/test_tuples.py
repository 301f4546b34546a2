"""Packed tuples against tuples of Python."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.codes.tuples import contains, find, find_within, order_items, pack

CODES = (2, 3, 8, 1000, 1024, 65536)


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes, plays and V: few different codes, so that tuples share long prefixes; some rows all zero."""
    levels, codes = draw(st.integers(1, 9)), draw(st.sampled_from(CODES))
    items, kinds = draw(st.integers(0, 60)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    codes_NC = random.choice(np.append(random.integers(0, codes, kinds), codes - 1), (items, levels))
    codes_NC[random.random(items) < draw(st.sampled_from([0.0, 0.3]))] = 0
    return codes_NC.astype(np.uint16), random.integers(0, 3, items), codes


@given(catalogues())
@settings(max_examples=300, deadline=None)
def test_order_is_that_of_lexsort_and_groups_are_equal_tuples(catalogue) -> None:
    codes_NC, plays_N, codes = catalogue
    known = np.flatnonzero(codes_NC.any(axis=1))
    expected = known[np.lexsort([known, -plays_N[known], *codes_NC[known].T[::-1]])]
    rows = codes_NC[expected].tolist()
    starts = [place for place in range(len(rows)) if place == 0 or rows[place] != rows[place - 1]]

    order, offsets = order_items(codes_NC, plays_N, codes)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(offsets, [*starts, len(rows)])
    assert order.dtype == offsets.dtype == np.int64


def test_order_of_many_items_that_part_in_the_second_word_only() -> None:
    random = np.random.default_rng(0)
    codes_NC = np.zeros((50_000, 8), np.uint16)
    codes_NC[:, 0] = random.integers(1, 4, len(codes_NC))
    codes_NC[:, 6:] = random.integers(0, 100, (len(codes_NC), 2))
    plays_N = random.integers(0, 3, len(codes_NC))
    order, offsets = order_items(codes_NC, plays_N, 1024)
    np.testing.assert_array_equal(order, np.lexsort([-plays_N, *codes_NC.T[::-1]]))
    assert len(offsets) - 1 == len(np.unique(codes_NC, axis=0))


def test_order_leaves_what_it_was_given_as_it_was() -> None:
    codes_NC = np.array([[1, 2], [0, 0], [1, 2], [0, 1]], np.uint16)
    plays_N = np.array([1, 9, 2, 0])
    before = codes_NC.copy(), plays_N.copy()
    order, offsets = order_items(codes_NC, plays_N, 3)
    assert (order.tolist(), offsets.tolist()) == ([3, 2, 0], [0, 1, 3])
    np.testing.assert_array_equal(codes_NC, before[0])
    np.testing.assert_array_equal(plays_N, before[1])


@given(catalogues())
@settings(max_examples=200, deadline=None)
def test_words_compare_as_tuples_do(catalogue) -> None:
    codes_NC, _, codes = catalogue
    words = pack(codes_NC, codes)
    assert len(words) == -(-codes_NC.shape[1] // (64 // (codes - 1).bit_length()))
    assert all(word.dtype == np.uint64 for word in words)
    numbers = list(zip(*(word.tolist() for word in words), strict=True))
    tuples = [tuple(row) for row in codes_NC.tolist()]
    for one, other in product(range(min(len(tuples), 12)), repeat=2):
        assert (numbers[one] < numbers[other]) == (tuples[one] < tuples[other])
        assert (numbers[one] == numbers[other]) == (tuples[one] == tuples[other])


def test_the_greatest_codes_fill_a_word() -> None:
    codes_nC = np.full((1, 5), 65535, np.uint16)
    assert [word.tolist() for word in pack(codes_nC, 65536)] == [[2**64 - 1], [65535]]


@given(catalogues(), st.integers(0, 2**31))
@settings(max_examples=300, deadline=None)
def test_found_are_those_in_a_set(catalogue, seed) -> None:
    codes_NC, plays_N, codes = catalogue
    random = np.random.default_rng(seed)
    order, _ = order_items(codes_NC, plays_N, codes)
    held = codes_NC[order]  # with repeats
    asked = np.concatenate([codes_NC, random.permuted(codes_NC, axis=0), random.integers(0, codes, (5, held.shape[1]))])
    sorted_words, words = pack(held, codes), pack(asked.astype(np.uint16), codes)

    rows = [tuple(row) for row in held.tolist()]
    expected = [tuple(row) in set(rows) for row in asked.tolist()]
    np.testing.assert_array_equal(contains(sorted_words, words), expected)
    begin, end = find(sorted_words, words)
    before = [sum(row < tuple(one) for row in rows) for one in asked.tolist()]
    np.testing.assert_array_equal(begin, before)
    np.testing.assert_array_equal(end - begin, [rows.count(tuple(one)) for one in asked.tolist()])


@pytest.mark.parametrize("size", [0, 1, 7, 64])
def test_find_within_ranges(size: int) -> None:
    random = np.random.default_rng(size)
    values = np.concatenate([np.sort(random.integers(0, 9, size)) for _ in range(3)]).astype(np.uint16)
    begin_m = np.repeat(np.arange(3) * size, 12)
    wanted_m = np.tile(np.arange(12), 3).astype(np.uint16)
    begin, end = find_within(values, wanted_m, begin_m, begin_m + size)
    for place, wanted in enumerate(wanted_m):
        own = values[begin_m[place] : begin_m[place] + size]
        assert begin[place] - begin_m[place] == np.searchsorted(own, wanted, "left")
        assert end[place] - begin_m[place] == np.searchsorted(own, wanted, "right")
