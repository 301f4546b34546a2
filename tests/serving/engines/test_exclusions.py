from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.engines.exclusions
from serving.engines.base import RankedCatalogue
from serving.engines.exclusions import DistinctVectors, Exclusions, best_columns, excluded_columns
from tests.serving.engines.helpers import hidden, query_of

INF = float("inf")


def repeating(seed: int, columns: int, values: int, width: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(values, width)).astype(np.float32)[random.integers(0, values, columns)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 30), st.integers(1, 8), st.booleans())
def test_every_column_is_found_under_its_vector(seed: int, columns: int, values: int, alike: bool) -> None:
    vectors_nD = repeating(seed, columns, values)
    with pytest.MonkeyPatch.context() as patch:
        if alike:  # names that tell nothing: the vectors themselves must be compared
            patch.setattr(serving.engines.exclusions, "_row_names", lambda each: np.zeros(len(each), np.uint64))
        distinct = DistinctVectors(vectors_nD)
    expected = list(dict.fromkeys(map(tuple, vectors_nD.tolist())))  # in the order in which they first come
    assert list(map(tuple, distinct.vectors_GD.tolist())) == expected
    members = [[at for at, own in enumerate(vectors_nD.tolist()) if tuple(own) == each] for each in expected]
    groups = np.arange(len(expected))
    assert distinct.sizes(groups).tolist() == [len(own) for own in members]
    assert [expected[group] for group in distinct.groups(np.arange(columns))] == list(map(tuple, vectors_nD.tolist()))
    for most in (1, 2, 100):
        position, column = distinct.columns(groups, np.full(len(groups), most))
        assert [column[position == group].tolist() for group in groups] == [own[:most] for own in members]


def test_zeros_of_either_sign_are_one_vector() -> None:
    distinct = DistinctVectors(np.array([[0.0, 1], [-0.0, 1], [0, -1]], np.float32))
    assert distinct.groups(np.arange(3)).tolist() == [0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 6), st.integers(0, 30))
def test_exclusions_are_a_set_of_pairs(seed: int, columns: int, values: int, pairs: int) -> None:
    random = np.random.default_rng(seed)
    vectors_nD = repeating(seed, columns, values)
    distinct = DistinctVectors(vectors_nD)
    users, excluded = random.integers(0, 4, pairs), random.integers(0, columns, pairs)
    exclusions = Exclusions(users, excluded, distinct)
    expected = set(zip(users.tolist(), excluded.tolist(), strict=True))
    everyone, every_column = np.divmod(np.arange(6 * columns), columns)  # of two users nothing is excluded at all
    found = exclusions.contain(everyone, every_column)
    assert found.tolist() == [pair in expected for pair in zip(everyone.tolist(), every_column.tolist(), strict=True)]
    assert exclusions.per_user(np.arange(6)).tolist() == found.reshape(6, columns).sum(1).tolist()
    group = distinct.groups(np.arange(columns))
    counts = np.stack([np.bincount(group, row, len(distinct)) for row in found.reshape(6, columns)])
    asked, groups = np.divmod(np.arange(6 * len(distinct)), len(distinct))
    np.testing.assert_array_equal(exclusions.per_group(asked, groups), counts.ravel())
    used_up = counts == np.bincount(group, minlength=len(distinct))
    rows, which = exclusions.used_up(np.arange(6), 1, len(distinct))
    expected_rows, expected_groups = np.nonzero(used_up[:, 1:])
    np.testing.assert_array_equal(np.stack([rows, which]), [expected_rows, expected_groups + 1])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 15), st.integers(1, 6), st.integers(1, 8), st.integers(0, 30))
def test_best_columns_are_those_of_a_sorted_list(seed: int, columns: int, values: int, k: int, pairs: int) -> None:
    random = np.random.default_rng(seed)
    distinct = DistinctVectors(repeating(seed, columns, values))
    users = np.array([2, 0, 2])
    excluded_users, excluded = random.integers(0, 3, pairs), random.integers(0, columns, pairs)
    exclusions = Exclusions(excluded_users, excluded, distinct)
    groups = np.stack([random.permutation(len(distinct)) for _ in users])
    groups[random.random(groups.shape) < 0.2] = -1
    costs = random.integers(0, 3, groups.shape).astype(np.float32)
    found_costs, found_columns, numbers = best_columns(costs, groups, k, distinct, exclusions, users)
    forbidden = set(zip(excluded_users.tolist(), excluded.tolist(), strict=True))
    group_of = distinct.groups(np.arange(columns)).tolist()
    for row, user in enumerate(users.tolist()):
        cost_of = dict(zip(groups[row].tolist(), costs[row].tolist(), strict=True))
        left = [
            (cost_of[group], column)
            for column, group in enumerate(group_of)
            if group in cost_of and (user, column) not in forbidden
        ]
        assert numbers[row] == len(left)
        expected = (sorted(left) + [(INF, -1)] * k)[:k]
        assert list(zip(found_costs[row].tolist(), found_columns[row].tolist(), strict=True)) == expected


def test_items_outside_the_catalogue_are_excluded_by_being_there() -> None:
    catalogue = RankedCatalogue(torch.tensor([3, 0]), 4)
    rows, columns = excluded_columns(query_of(hidden(3), [[1, 3], [], [0, 2]]), catalogue)
    assert (rows.tolist(), columns.tolist()) == ([0, 2], [0, 1])
