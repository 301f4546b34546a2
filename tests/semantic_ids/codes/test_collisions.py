"""Shared tuples told apart, held to what the rules say item by item.

Vectors and codebooks are whole numbers, so that distances are exact and ties are ties in both computations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.codes import collisions, reassignment
from semantic_ids.codes.collisions import COLLISIONS, resolve
from semantic_ids.quantizers.base import Quantizer, sum_of_rows
from semantic_ids.vectors.base import ItemVectors


class GreedyQuantizer(Quantizer):
    """The nearest code level by level, and the rule about the all-zero tuple."""

    name = "greedy of test_collisions"

    def __init__(self, codebooks_CVd: np.ndarray) -> None:
        self.codebooks_CVd = codebooks_CVd.astype(np.float32)

    @property
    def vector_width(self):
        return self.codebooks_CVd.shape[2]

    def encode(self, vectors_nD):
        codes_nC = np.zeros((len(vectors_nD), self.num_levels), np.uint16)
        for item, left in enumerate(vectors_nD.astype(np.float64)):
            for level, rows in enumerate(self.codebooks_CVd):
                squares = np.square(left - rows).sum(1)
                if level == self.num_levels - 1 and not codes_nC[item].any():
                    squares[0] = np.inf
                codes_nC[item, level] = squares.argmin()
                left = left - rows[codes_nC[item, level]]
        return codes_nC

    def project(self, vectors_nD):
        return vectors_nD

    def reconstruct(self, codes_nl):
        return sum_of_rows(self.codebooks_CVd, codes_nl)

    def arrays(self):
        return {"codebooks": self.codebooks_CVd}

    def settings(self):
        return {}

    @classmethod
    def load(cls, arrays, settings):
        return cls(arrays["codebooks"])


class GivenVectors(ItemVectors):
    """An array."""

    kind = "content"

    def __init__(self, vectors_nD: np.ndarray) -> None:
        self.vectors_nD, self.items_n = vectors_nD.astype(np.float32), np.arange(len(vectors_nD)) * 2

    @property
    def width(self):
        return self.vectors_nD.shape[1]

    def rows(self, places_m):
        assert (np.diff(places_m) > 0).all()
        return self.vectors_nD[places_m].copy()


@dataclass(frozen=True)
class Case:
    quantizer: GreedyQuantizer
    vectors: GivenVectors
    codes_nC: np.ndarray
    plays_n: np.ndarray
    fixed: np.ndarray
    """[f, C + 1]; where no level is added, without the last column."""

    @property
    def V(self) -> int:
        return self.quantizer.codes_per_level

    def resolve(self, how: str, seed: int = 0) -> collisions.Resolved:
        fixed = self.fixed if how.endswith("level") else self.fixed[:, :-1]
        return resolve(how, self.codes_nC, self.plays_n, self.quantizer, self.vectors, seed=seed, fixed=fixed)


def case_of(codebooks: np.ndarray, vectors: np.ndarray, plays: np.ndarray, fixed: np.ndarray | None = None) -> Case:
    quantizer, given_vectors = GreedyQuantizer(codebooks), GivenVectors(vectors)
    if fixed is None:
        fixed = np.zeros((0, len(codebooks) + 1), np.uint16)
    return Case(quantizer, given_vectors, quantizer.encode(given_vectors.vectors_nD), plays, fixed)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Groups of all sizes, more items than tuples, equal and different vectors in a group, tuples that are taken."""
    levels, codes = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    items, fixed = draw(st.integers(1, 60)), draw(st.sampled_from([0, 0, 3, 30]))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    codebooks = random.integers(-5, 6, (levels, codes, 2))
    different = draw(st.integers(1, items))
    vectors = random.integers(-6, 7, (different, 2))[random.integers(0, different, items)]
    case = case_of(codebooks, vectors, random.integers(0, 3, items))
    # Half of what is taken is what items of the case would have.
    own = case.codes_nC[random.integers(0, items, fixed)]
    other = random.integers(0, codes, (fixed, levels))
    taken = np.where(random.random((fixed, 1)) < 0.5, own, other)
    return Case(
        case.quantizer, case.vectors, case.codes_nC, case.plays_n,
        np.column_stack([taken, random.integers(0, codes, fixed)]).astype(np.uint16),
    )  # fmt: skip


@contextmanager
def small_blocks(nearest: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reassignment, "NEAREST", nearest)
        patch.setattr(reassignment, "_BLOCK_NUMBERS", 40)
        patch.setattr(reassignment, "_BLOCK_VECTORS", 7)
        yield


# ── what the rules say, item by item ─────────────────────────────────────────────────────────────────────


def groups_of(case: Case) -> dict[tuple[int, ...], list[int]]:
    """Items by tuple, the more played first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for item in sorted(range(len(case.codes_nC)), key=lambda item: (-case.plays_n[item], item)):
        groups.setdefault(tuple(case.codes_nC[item].tolist()), []).append(item)
    return groups


def numbered(case: Case, order_of: Callable[[int], list[int]]) -> np.ndarray:
    """`order_of` tells in which order the g-th group, in order of tuples, gives its numbers."""
    numbers = np.full(len(case.codes_nC), -1)
    for group, (codes, items) in enumerate(sorted(groups_of(case).items())):
        taken = {row[-1] for row in case.fixed.tolist() if tuple(row[:-1]) == codes}
        free = [number for number in order_of(group) if number not in taken]
        for rank, item in enumerate(items):
            numbers[item] = free[rank] if rank < len(free) else order_of(group)[rank % case.V]
    return numbers


def candidates(case: Case, item: int, nearest: int) -> list[tuple[int, ...]]:
    """Tuples that the item may ask for, in the order of its liking."""
    own, books = tuple(case.codes_nC[item].tolist()), case.quantizer.codebooks_CVd.astype(np.float64)
    split = max(len(own) - 2, 0)
    wanted = case.vectors.vectors_nD[item] - sum((books[level, own[level]] for level in range(split)), np.zeros(2))
    if len(own) == 1:
        liked = [(float(np.square(wanted - row).sum()), (code,)) for code, row in enumerate(books[0])]
        return [codes for _, codes in sorted(liked)]
    near = sorted(range(case.V), key=lambda code: (float(np.square(wanted - books[-2, code]).sum()), code))[:nearest]
    liked = [
        (float(np.square(wanted - books[-2, code] - row).sum()), (*own[:split], code, last))
        for code in near
        for last, row in enumerate(books[-1])
    ]
    return [codes for _, codes in sorted(liked)]


def reassigned(case: Case, nearest: int) -> np.ndarray:
    groups, codes = groups_of(case), case.codes_nC.copy()
    fixed = {tuple(row[:-1]) for row in case.fixed.tolist()}
    taken = fixed | set(groups) | {(0,) * codes.shape[1]}
    pending = [item for own, items in groups.items() for item in (items if own in fixed else items[1:])]
    while pending:
        asked: dict[tuple[int, ...], list[int]] = {}
        for item in pending:
            free = [other for other in candidates(case, item, nearest) if other not in taken]
            if free:
                asked.setdefault(free[0], []).append(item)
        for wanted, items in asked.items():
            codes[min(items, key=lambda item: (-case.plays_n[item], item))] = wanted
        taken |= set(asked)
        winners = {min(items, key=lambda item: (-case.plays_n[item], item)) for items in asked.values()}
        pending = [item for items in asked.values() for item in items if item not in winners]
    return codes


# ── whole arrays against them ────────────────────────────────────────────────────────────────────────────


@given(cases())
@settings(max_examples=30, deadline=None)
def test_none_changes_nothing(case: Case) -> None:
    resolved = case.resolve("none")
    np.testing.assert_array_equal(resolved.codes_nC, case.codes_nC)
    np.testing.assert_array_equal(resolved.codebooks_CVd, case.quantizer.codebooks_CVd)
    assert resolved.moved == 0


@given(cases())
@settings(max_examples=150, deadline=None)
def test_extra_level_numbers_each_group(case: Case) -> None:
    resolved = case.resolve("extra-level")
    expected = np.column_stack([case.codes_nC, numbered(case, lambda _: list(range(case.V)))])
    np.testing.assert_array_equal(resolved.codes_nC, expected)
    assert resolved.codes_nC.dtype == np.uint16
    np.testing.assert_array_equal(resolved.codebooks_CVd[:-1], case.quantizer.codebooks_CVd)
    assert resolved.codebooks_CVd.shape[0] == case.quantizer.num_levels + 1
    assert not resolved.codebooks_CVd[-1].any()
    assert resolved.codebooks_CVd.dtype == np.float32
    assert resolved.moved == 0


@given(cases(), st.integers(0, 100))
@settings(max_examples=150, deadline=None)
def test_random_level_numbers_each_group_in_an_order_of_its_own(case: Case, seed: int) -> None:
    walk = collisions._Walk.of(len(groups_of(case)), case.V, seed)

    def order_of(group: int) -> list[int]:
        order = [(int(walk.start_G[group]) + place * int(walk.step_G[group])) % case.V for place in range(case.V)]
        assert sorted(order) == list(range(case.V))
        return order

    resolved = case.resolve("random-level", seed)
    np.testing.assert_array_equal(resolved.codes_nC, np.column_stack([case.codes_nC, numbered(case, order_of)]))
    assert not resolved.codebooks_CVd[-1].any()


@given(cases(), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_reassign_gives_the_nearest_free_tuples(case: Case, nearest: int) -> None:
    with small_blocks(nearest):
        resolved = case.resolve("reassign")
    np.testing.assert_array_equal(resolved.codes_nC, reassigned(case, nearest))
    assert resolved.codes_nC.dtype == np.uint16
    np.testing.assert_array_equal(resolved.codebooks_CVd, case.quantizer.codebooks_CVd)
    assert resolved.moved == (resolved.codes_nC != case.codes_nC).any(1).sum()


@given(cases())
@settings(max_examples=100, deadline=None)
def test_after_reassign_tuples_are_shared_only_where_no_room_remains(case: Case) -> None:
    codes = [tuple(row) for row in case.resolve("reassign").codes_nC.tolist()]
    held = [*codes, *(tuple(row[:-1]) for row in case.fixed.tolist())]
    taken = {*held, (0,) * len(codes[0])}
    for item, own in enumerate(codes):
        assert any(own)
        if held.count(own) > 1 and own == tuple(case.codes_nC[item].tolist()):
            rivals = [other for other in range(len(codes)) if codes[other] == own]
            keeps = min(rivals, key=lambda other: (-case.plays_n[other], other))
            assert item == keeps or taken.issuperset(candidates(case, item, 32))


@given(cases())
@settings(max_examples=30, deadline=None)
def test_the_given_codes_are_left_as_they_were(case: Case) -> None:
    before = case.codes_nC.copy()
    for how in COLLISIONS:
        case.resolve(how)
    np.testing.assert_array_equal(case.codes_nC, before)


# ── cases that hurt ──────────────────────────────────────────────────────────────────────────────────────


def copies(count: int, codes: int, levels: int = 2, width: int = 8) -> Case:
    """So many items of one vector, played 0 … count - 1 times."""
    random = np.random.default_rng(4)
    codebooks = random.standard_normal((levels, codes, width)) * 0.5 ** np.arange(levels)[:, None, None]
    return case_of(codebooks, np.broadcast_to(random.standard_normal(width), (count, width)), np.arange(count))


def test_a_thousand_copies_go_apart_the_more_played_nearer():
    case = copies(1000, 64)
    resolved = case.resolve("reassign")
    assert len(np.unique(resolved.codes_nC, axis=0)) == 1000
    assert resolved.moved == 999
    np.testing.assert_array_equal(resolved.codes_nC[999], case.codes_nC[999])
    errors = np.square(case.quantizer.reconstruct(resolved.codes_nC) - case.vectors.vectors_nD).sum(1)[:999]
    assert (np.diff(errors) < 1e-4).all()
    assert errors[-1] < errors[0] / 2


def test_more_copies_than_tuples():
    resolved = copies(100, 4).resolve("reassign")
    own = resolved.codes_nC[99]
    tuples, sizes = np.unique(resolved.codes_nC, axis=0, return_counts=True)
    assert len(tuples) == 4 * 4 - 1  # all but that of unknown items
    assert sorted(sizes.tolist()) == [1] * 14 + [86]
    assert (resolved.codes_nC[:85] == own).all()  # the most played keeps it, those least played could find no other


@pytest.mark.parametrize("how", ["extra-level", "random-level"])
def test_groups_larger_than_a_level_share_its_codes_alike(how):
    numbers = copies(1000, 256).resolve(how, seed=3).codes_nC[:, -1]
    np.testing.assert_array_equal(np.sort(numbers[-256:]), np.arange(256))  # the most played are told apart
    assert set(np.bincount(numbers, minlength=256).tolist()) == {3, 4}


def test_random_level_uses_its_codes_alike_and_knows_the_seed():
    random = np.random.default_rng(0)
    codebooks = random.standard_normal((2, 50, 4))
    case = case_of(codebooks, random.standard_normal((6000, 4)), np.zeros(6000, np.int64))
    numbers, again, other = (case.resolve("random-level", seed).codes_nC[:, -1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(numbers, again)
    assert (numbers != other).mean() > 0.9
    counts = np.bincount(numbers, minlength=50)
    assert np.square(counts - 120).sum() / 120 < 100  # χ² of 49 degrees of freedom: 85 once in a thousand
    _, sizes = np.unique(case.codes_nC, axis=0, return_counts=True)
    told_apart = len(np.unique(case.resolve("random-level", 1).codes_nC, axis=0))
    assert told_apart == np.minimum(sizes, 50).sum() > 5900


def test_fewer_items_than_codes():
    case = case_of(np.random.default_rng(1).standard_normal((2, 16, 3)), np.ones((1, 3)), np.zeros(1, np.int64))
    for how in COLLISIONS:
        np.testing.assert_array_equal(case.resolve(how).codes_nC[:, :2], case.codes_nC)


def test_numbers_go_on_after_those_of_earlier_items():
    case = copies(4, 8)
    own = case.codes_nC[0].tolist()
    fixed = np.array([[*own, 0], [*own, 1], [*own, 2], [own[0], own[1] ^ 1, 3], [0, 0, 0]], np.uint16)
    later = Case(case.quantizer, case.vectors, case.codes_nC, case.plays_n, fixed)
    assert later.resolve("extra-level").codes_nC[:, -1].tolist() == [6, 5, 4, 3]
    drawn = later.resolve("random-level").codes_nC[:, -1].tolist()
    assert len({*drawn, 0, 1, 2}) == 7
