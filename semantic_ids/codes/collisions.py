"""What is done about items that share a tuple: nothing, a level that tells them apart, or another tuple near by.

- `none`: items that share a tuple are retrieved together, the more played first.
- `extra-level`: one level more (TIGER, arXiv 2305.05065): the items of a group are numbered, the more played first.
- `random-level`: the same, but a group's numbers are not 0, 1, 2 …: they come in a random order of all V codes, so that
  the level's codes are used alike and say nothing of popularity. A walk from a random code in random steps.
- `reassign`: as many levels as before. The most played item of a group keeps the tuple; each other takes the free
  tuple nearest to its vector among those that share its first C - 2 codes.

None of them ever gives the all-zero tuple, which means unknown. Where a group is larger than there are codes for it,
what is left over goes on sharing: the numbers of an added level begin again, and who finds no free tuple keeps its own.

Tuples that earlier items hold (`fixed`) are taken: new items are numbered with what they leave free.

n items · f items coded earlier · C code levels of the quantiser · V codes per level · d codebook width · G tuples in
use · t numbers taken in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.seeding import derive_seed
from semantic_ids.codes.reassignment import reassign
from semantic_ids.codes.tuples import find, order_items, pack
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer
from semantic_ids.vectors.base import ItemVectors

COLLISIONS = ("none", "extra-level", "random-level", "reassign")

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Resolved:
    """Tuples as the code table holds them."""

    codes_nC: Codes
    """One level more than the quantiser's where one was added."""
    codebooks_CVd: Codebooks
    """Of these levels; rows of zeros for an added one."""
    moved: int
    """Items whose codes in the quantiser's levels are not those that the quantiser gave."""


def resolve(
    how: str,
    codes_nC: Codes,
    plays_n: npt.NDArray[np.int64],
    quantizer: Quantizer,
    vectors: ItemVectors,
    *,
    seed: int,
    fixed: Codes | None = None,
) -> Resolved:
    """Give items that share a tuple what `how`, one of COLLISIONS, says.

    Args:
        codes_nC: what the quantiser gave the items of `vectors`, in their order; never all zero.
        plays_n: training plays: the more played has the first choice, then the lower index.
        fixed: tuples [f, C or C + 1] of items that were coded earlier and keep theirs, as in their code table; all-zero
            ones are unknown items and say nothing.
    """
    assert how in COLLISIONS, how
    codebooks_CVd, codes = quantizer.codebooks_CVd, quantizer.codes_per_level
    added = how in ("extra-level", "random-level")
    if fixed is None:
        fixed = np.zeros((0, quantizer.num_levels + added), np.uint16)
    assert fixed.shape[1] == quantizer.num_levels + added, (how, fixed.shape, quantizer.num_levels)
    if how == "none":
        return Resolved(codes_nC, codebooks_CVd, 0)
    if how == "reassign":
        moved_nC = reassign(codes_nC, plays_n, quantizer, vectors, fixed)
        return Resolved(moved_nC, codebooks_CVd, int((moved_nC != codes_nC).any(axis=1).sum()))
    numbers_n = number_groups(codes_nC, plays_n, codes, fixed, seed=seed if how == "random-level" else None)
    added_1Vd = np.zeros((1, *codebooks_CVd.shape[1:]), np.float32)
    longer_nC = np.concatenate([codes_nC, numbers_n[:, None]], axis=1)
    return Resolved(longer_nC, np.concatenate([codebooks_CVd, added_1Vd]), 0)


def number_groups(
    codes_nC: Codes, plays_n: npt.NDArray[np.int64], codes: int, fixed: Codes, *, seed: int | None
) -> npt.NDArray[np.uint16]:
    """Numbers [n] below `codes` that tell the items of a group apart, by more plays, then lower index.

    Args:
        fixed: [f, C + 1]: numbers that are taken stand in the last column.
        seed: of the order of numbers; None: 0, 1, 2 …
    """
    order_n, offsets = order_items(codes_nC, plays_n, codes)
    assert len(order_n) == len(codes_nC), "an item carries the all-zero tuple"
    sizes_G = np.diff(offsets)
    group_n = np.repeat(np.arange(len(sizes_G)), sizes_G)
    rank_n = np.arange(len(order_n)) - offsets[group_n]
    walk = _Walk.of(len(sizes_G), codes, seed)
    group_t, number_t = _taken(codes_nC[order_n[offsets[:-1]]], fixed, codes)
    place_n = _free_places(group_n, rank_n, group_t, walk.places(group_t, number_t), codes)
    numbers_n = np.empty(len(order_n), np.uint16)
    numbers_n[order_n] = walk.numbers(group_n, place_n)
    return numbers_n


@dataclass(frozen=True, eq=False)
class _Walk:
    """The order in which each group's numbers are given: start, start + step, start + 2 step … modulo V.

    A step that shares no divisor with V comes round to every number before it comes to one again.
    """

    codes: int
    start_G: Indices
    step_G: Indices
    back_G: Indices
    """Undoes the step: step · back = 1 modulo V."""

    @staticmethod
    def of(groups: int, codes: int, seed: int | None) -> _Walk:
        if seed is None:
            one_G = np.broadcast_to(np.int64(1), groups)
            return _Walk(codes, np.broadcast_to(np.int64(0), groups), one_G, one_G)
        generator = np.random.default_rng(derive_seed(seed, "random level"))
        steps = np.flatnonzero(np.gcd(np.arange(codes), codes) == 1)
        backs = np.array([pow(step, -1, codes) for step in steps.tolist()])
        drawn_G = generator.integers(len(steps), size=groups)
        return _Walk(codes, generator.integers(codes, size=groups), steps[drawn_G], backs[drawn_G])

    def numbers(self, group_m: Indices, place_m: Indices) -> Indices:
        """Numbers at these places of these groups' walks."""
        return (self.start_G[group_m] + place_m * self.step_G[group_m]) % self.codes

    def places(self, group_m: Indices, number_m: Indices) -> Indices:
        """Places at which these groups' walks come to these numbers."""
        return (number_m - self.start_G[group_m]) * self.back_G[group_m] % self.codes


def _taken(tuples_GC: Codes, fixed: Codes, codes: int) -> tuple[Indices, Indices]:
    """Groups and numbers [t] that earlier items hold; `tuples_GC` ascend."""
    group_f, end_f = find(pack(tuples_GC, codes), pack(fixed[:, :-1], codes))
    met = np.flatnonzero(group_f < end_f)
    return group_f[met], fixed[met, -1].astype(np.int64)


def _free_places(group_n: Indices, rank_n: Indices, group_t: Indices, place_t: Indices, codes: int) -> Indices:
    """For the item of rank r of each group, the r-th place that is not taken; r modulo V where none is left.

    Before a group's j-th taken place p lie p - j free ones, so the r-th free place is r + the number of taken places
    before which lie no more than r free ones.
    """
    taken_t = np.unique(group_t * codes + place_t)
    group_t = taken_t // codes
    # Number of taken places before each group's first: where its own begin.
    first_n, end_n = np.searchsorted(group_t, group_n), np.searchsorted(group_t, group_n, side="right")
    free_before_t = taken_t % codes - (np.arange(len(taken_t)) - np.searchsorted(group_t, group_t))
    at_most_r_n = np.searchsorted(
        group_t * codes + free_before_t, group_n * codes + rank_n.clip(max=codes - 1), "right"
    )
    is_left_n = rank_n < codes - (end_n - first_n)
    return np.where(is_left_n, rank_n + at_most_r_n - first_n, rank_n % codes)
