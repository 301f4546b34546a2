from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.raw_ids import ABSENT
from data.sources.table_ids import Ids, NameIds, NumberIds, TextIds

NUMBER = (st.integers(-20, 150) | st.sampled_from([2**63 - 1, 10**18, -(10**17), 2**40])).map(str)
ODD = st.sampled_from(["007", "+7", "-0", "1.0", "a", "ä", "", "1e3", str(10**25), "7 ", " 7", "７"])


@given(
    st.lists(st.lists(NUMBER, max_size=8), min_size=1, max_size=4)
    | st.lists(st.lists(NUMBER | ODD, max_size=8), min_size=1, max_size=4),
    st.lists(NUMBER | ODD, max_size=10),
)
@pytest.mark.parametrize("kind", [TextIds, NameIds])
def test_text_ascends_as_numbers_only_if_all_are(kind: type[Ids], blocks: list[list[str]], asked: list[str]) -> None:
    ids = kind()
    for block in blocks:
        ids.add(pa.array(block, type=pa.string()))
    occurring = {name for block in blocks for name in block}
    whole = all(re.fullmatch("0|-?[1-9][0-9]*", name) for name in occurring)
    expected = sorted(occurring, key=int if whole else str)
    assert ids.seal().to_pylist() == expected
    indices = [expected.index(name) if name in expected else int(ABSENT) for name in asked]
    assert ids.find(pa.array(asked, type=pa.string())).tolist() == indices
    assert ids.find(pa.array([None, *asked], type=pa.string())).tolist() == [int(ABSENT), *indices]


@pytest.mark.parametrize("kind", [TextIds, NameIds, NumberIds])
def test_numbers_and_their_text_are_one_id(kind: type[Ids]) -> None:
    ids = kind()
    numbers = pa.array([30, 4, -2, 30])
    ids.add(numbers if kind is NumberIds else numbers.cast(pa.string()))
    assert ids.seal().to_pylist() == ["-2", "4", "30"]
    for asked in (pa.array([4, 5, 30]), pa.array(["4", "04", "30"])):
        np.testing.assert_array_equal(ids.find(asked), np.array([1, ABSENT, 2], dtype=np.uint32))
