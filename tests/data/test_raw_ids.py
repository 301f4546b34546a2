from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources import raw_ids
from data.sources.raw_ids import ABSENT, RawIds


@pytest.fixture(autouse=True, scope="module")
def small_table() -> Iterator[None]:
    raw_ids.FLAT_LIMIT, before = 50, raw_ids.FLAT_LIMIT
    yield
    raw_ids.FLAT_LIMIT = before


IDS = st.integers(-60, 120) | st.sampled_from([-(2**63), 2**63 - 1, 2**32])


@given(st.lists(st.lists(IDS, max_size=9), max_size=6), st.lists(IDS, max_size=20))
def test_indices_follow_the_ids_ascending(blocks: list[list[int]], asked: list[int]) -> None:
    ids = RawIds()
    for block in blocks:
        ids.add(np.array(block, dtype=np.int64))
    expected = sorted({raw for block in blocks for raw in block})
    np.testing.assert_array_equal(ids.seal(), expected)
    found = ids.find(np.array(asked, dtype=np.int64))
    assert found.dtype == np.uint32
    assert found.tolist() == [expected.index(raw) if raw in expected else int(ABSENT) for raw in asked]


@given(st.lists(st.integers(0, 200), min_size=1))
def test_unsigned_ids_are_taken_as_they_are(block: list[int]) -> None:
    ids = RawIds()
    ids.add(np.array(block, dtype=np.uint32))
    assert ids.seal().tolist() == sorted(set(block))
    assert ids.find(np.array(block, dtype=np.uint32)).tolist() == [sorted(set(block)).index(raw) for raw in block]


def test_many_scattered_ids_are_merged_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_ids, "MERGE_AT", 2500)
    blocks = np.random.default_rng(0).integers(100, 2**40, size=(12, 1000))
    blocks[6:] = blocks[:6]
    ids = RawIds()
    for block in blocks:
        ids.add(block)
    np.testing.assert_array_equal(ids.seal(), np.unique(blocks))
    np.testing.assert_array_equal(ids.ids[ids.find(blocks[3])], blocks[3])
