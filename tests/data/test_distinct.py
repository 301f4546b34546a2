from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.distinct import followed_by, in_order_of_appearance, keep_all, take_distinct


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)), max_size=60), st.integers(1, 4))
def test_numbers_come_once_in_order_of_appearance(numbers: list[int], times: int) -> None:
    array = np.array(numbers * times, dtype=np.uint32)
    found_d, place_n = in_order_of_appearance(array)
    assert found_d.tolist() == list(dict.fromkeys(numbers))
    assert found_d.dtype == np.uint32
    assert found_d[place_n].tolist() == array.tolist()


def test_numbers_whose_hashes_are_alike_are_still_told_apart() -> None:
    """Numbers that share a slot of the first round, all of them, over and over."""
    inverse = pow(0x9E3779B1, -1, 2**32)
    numbers = np.array([slot * inverse % 2**32 for slot in range(500)] * 2, dtype=np.uint32)
    assert len(set((numbers * np.uint32(0x9E3779B1) >> np.uint32(20)).tolist())) == 1
    found_d, place_n = in_order_of_appearance(numbers)
    assert np.array_equal(found_d, numbers[:500])
    assert np.array_equal(found_d[place_n], numbers)


@given(
    st.lists(st.integers(0, 40), unique=True, max_size=20),
    st.lists(st.integers(0, 40), max_size=60),
    st.sampled_from([41, 2**20]),
)
def test_items_are_followed_by_what_else_there_is(items: list[int], more: list[int], limit: int) -> None:
    """By a table of all that there can be where that is short, and by hashing."""
    longer, place_m = followed_by(np.array(items, dtype=np.uint32), np.array(more, dtype=np.uint32), limit)
    assert longer.tolist() == items + [number for number in dict.fromkeys(more) if number not in items]
    assert (longer.dtype, place_m.dtype) == (np.uint32, np.int64)
    assert longer[place_m].tolist() == more


def test_many_numbers() -> None:
    numbers = (2**32 * np.random.default_rng(0).random(200_000) ** 8).astype(np.uint32)
    found_d, place_n = in_order_of_appearance(numbers)
    assert found_d.tolist() == list(dict.fromkeys(numbers.tolist()))
    assert np.array_equal(found_d[place_n], numbers)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 255)), max_size=30))
def test_pairs_are_those_of_the_tokens(tokens: list[tuple[int, int]]) -> None:
    items = np.array([item for item, _ in tokens], dtype=np.uint32)
    event_types = np.array([kind for _, kind in tokens], dtype=np.uint8)
    for found in (take_distinct(items, event_types), keep_all(items, event_types)):
        assert found.items_d[found.item_of_n].tolist() == items.tolist()
        assert found.items_d[found.item_of_p[found.pair_of_n]].tolist() == items.tolist()
        assert found.event_types_k[found.event_type_of_p[found.pair_of_n]].tolist() == event_types.tolist()
    found = take_distinct(items, event_types)
    assert len(found.item_of_p) == len(set(tokens))
    assert found.event_types_k.tolist() == sorted(set(event_types.tolist()))
