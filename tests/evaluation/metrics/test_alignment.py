from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.metrics.alignment import align
from tests.evaluation.metrics.helpers import targets_of


def test_by_hand() -> None:
    before = targets_of([[1], [2, 3], [4], [5, 6]], users=[0, 1, 1, 2], times=[10, 10, 20, 10])
    after = targets_of([[7], [6, 5], [3, 2], [4, 8]], users=[9, 2, 1, 1], times=[10, 10, 10, 20])
    both = align(before, after)
    assert both.before_P.tolist() == [1, 3]
    assert both.after_P.tolist() == [2, 1]
    assert both.only_before.tolist() == [0]
    assert both.only_after.tolist() == [0]
    assert both.otherwise_before.tolist() == [2]
    assert both.note == (
        "1 only in the first evaluation: user 0 at 10 s; 1 only in the second: user 9 at 10 s; "
        "1 in both, but with other targets: user 1 at 20 s"
    )


def test_targets_played_more_often_are_other_targets() -> None:
    before = targets_of([[1, 2], [3]], counts=[[1, 2], [1]])
    both = align(before, targets_of([[2, 1], [3]], counts=[[1, 2], [1]]))
    assert both.before_P.tolist() == [1]
    both = align(before, targets_of([[2, 1], [3]], counts=[[2, 1], [1]]))
    assert both.before_P.tolist() == [0, 1]
    assert both.note == ""


def test_nothing_in_common_is_a_fault() -> None:
    one, later = targets_of([[1]] * 5), targets_of([[1]], times=[60])
    with pytest.raises(InputError, match=r"no request in common \(5 only in the first .*user 2 at 0 s, …; 1 only"):
        align(one, later)
    with pytest.raises(InputError, match=r"\(1 in both, but with other targets: user 0 at 60 s\)"):
        align(later, targets_of([[2]], times=[60]))


Request = tuple[int, int, tuple[int, ...]]
requests = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)),
    max_size=12,
    unique_by=lambda request: request[:2],
)


@settings(max_examples=100, deadline=None)
@given(requests, requests)
def test_against_dictionaries(before: list[Request], after: list[Request]) -> None:
    one, other = ({(user, time): frozenset(items) for user, time, items in some} for some in (before, after))
    made = [
        targets_of([items for _, _, items in some], [user for user, _, _ in some], [time for _, time, _ in some])
        for some in (before, after)
    ]
    same = [key for key, items in one.items() if other.get(key) == items]
    if not same:
        with pytest.raises(InputError):
            align(*made)
        return
    both = align(*made)
    keys = [list(zip(some.users_R.tolist(), some.times_R.tolist(), strict=True)) for some in made]
    assert [keys[0][at] for at in both.before_P] == same
    assert [keys[1][at] for at in both.after_P] == same
    assert {keys[0][at] for at in both.only_before} == one.keys() - other.keys()
    assert {keys[1][at] for at in both.only_after} == other.keys() - one.keys()
    assert {keys[0][at] for at in both.otherwise_before} == (one.keys() & other.keys()) - set(same)
    counted = len(both.before_P) + len(both.only_before) + len(both.otherwise_before)
    assert counted == len(one)
    assert np.array_equal(np.sort(both.before_P), both.before_P)
