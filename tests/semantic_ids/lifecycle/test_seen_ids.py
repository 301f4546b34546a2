from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.lifecycle.seen_ids import SeenIds, first_repeat, names_of


@given(st.lists(st.text(max_size=3) | st.sampled_from(["a", "b", "c", "d"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_first_repeat_is_that_of_a_walk(texts: list[str]) -> None:
    ids = pa.array(texts, pa.string())
    expected = next(((at, texts.index(text)) for at, text in enumerate(texts) if text in texts[:at]), None)
    found = first_repeat(names_of(ids), ids)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found[0] == expected[0]
        assert texts[found[1]] == texts[found[0]]
        assert found[1] < found[0]
    assert first_repeat(np.arange(len(texts), dtype=np.uint64), ids) is None  # nobody is suspected


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=6))
@settings(max_examples=60, deadline=None)
def test_suspects_are_those_of_a_set(parts: list[list[int]]) -> None:
    seen, before = SeenIds(), set[int]()
    for part in parts:
        names = np.array(part, np.uint64)
        assert seen.suspects(names).tolist() == [at for at, name in enumerate(part) if name in before]
        seen.add(names)
        before |= set(part)


def test_ids_are_remembered_as_far_as_there_is_room() -> None:
    seen = SeenIds(most=5)
    seen.add(np.array([9, 1, 5], np.uint64))
    seen.add(np.array([8, 2, 7, 3], np.uint64))
    assert seen.suspects(np.arange(10, dtype=np.uint64)).tolist() == [1, 2, 5, 8, 9]


def test_names_of_texts_are_those_of_the_definition() -> None:
    texts = ["", "a", "foobar", "é", "x" * 40]

    def fnv(text: str) -> int:
        name = 0xCBF29CE484222325
        for byte in text.encode():
            name = (name ^ byte) * 0x100000001B3 % 2**64
        return name

    assert names_of(pa.array(["skipped", *texts])[1:]).tolist() == [fnv(text) for text in texts]
    assert names_of(pa.array(texts, pa.large_string())).tolist() == [fnv(text) for text in texts]
    assert names_of(pa.array([-1, 2], pa.int8())).tolist() == [2**64 - 1, 2]
