"""Which requests two evaluations have in common, and which they do not.

R requests · T targets · P requests in both · Q requests of the same user at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from data.ranges import positions_of
from evaluation.results import Ints, Targets

_NAMED = 3
"""Requests that a message names, of those it counts."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which requests of two evaluations are the same: same user, same time, same targets.

    Args:
        before_P, after_P: their positions in each, in one order.
        only_before, only_after: positions of those that the other lacks.
        otherwise_before: positions in the first of those that both have, held against different targets.
        note: what is left out, in words; empty where nothing is.
    """

    before_P: Ints
    after_P: Ints
    only_before: Ints
    only_after: Ints
    otherwise_before: Ints
    note: str


def align(before: Targets, after: Targets) -> Alignment:
    """Find the requests that two evaluations have in common.

    Raises:
        InputError: there is none.
    """
    times = np.unique(np.concatenate([before.times_R, after.times_R]))
    keys_before, keys_after = (
        one.users_R * len(times) + np.searchsorted(times, one.times_R) for one in (before, after)
    )
    assert all(len(np.unique(keys)) == len(keys) for keys in (keys_before, keys_after)), "a request comes twice"
    _, before_Q, after_Q = np.intersect1d(keys_before, keys_after, assume_unique=True, return_indices=True)
    order_Q = np.argsort(before_Q)
    before_Q, after_Q = before_Q[order_Q], after_Q[order_Q]
    same_Q = _same_targets(before, after, before_Q, after_Q)
    only_before = np.setdiff1d(np.arange(len(before)), before_Q)
    only_after = np.setdiff1d(np.arange(len(after)), after_Q)
    otherwise = before_Q[~same_Q]
    parts = [
        _named("only in the first evaluation", before, only_before),
        _named("only in the second", after, only_after),
        _named("in both, but with other targets", before, otherwise),
    ]
    note = "; ".join(part for part in parts if part)
    if not same_Q.any():
        raise InputError(
            f"the evaluations have no request in common ({note}): they can be compared where user, time and targets "
            "are the same; evaluate both on one store, with one split, protocol and kind of events"
        )
    return Alignment(before_Q[same_Q], after_Q[same_Q], only_before, only_after, otherwise, note)


def _same_targets(before: Targets, after: Targets, before_Q: Ints, after_Q: Ints) -> npt.NDArray[np.bool_]:
    """Whether each pair of requests is held against the same items, as often."""
    same_Q: npt.NDArray[np.bool_] = before.sizes_R[before_Q] == after.sizes_R[after_Q]
    pairs, sizes = np.flatnonzero(same_Q), before.sizes_R[before_Q[same_Q]]
    pairs_T = np.repeat(pairs, sizes)
    columns = []
    for targets, rows in ((before, before_Q[same_Q]), (after, after_Q[same_Q])):
        at_T = positions_of(targets.offsets_R1[rows], sizes)
        at_T = at_T[np.lexsort((targets.items_T[at_T], pairs_T))]
        columns.append((targets.items_T[at_T], targets.counts_T[at_T]))
    differ_T = (columns[0][0] != columns[1][0]) | (columns[0][1] != columns[1][1])
    same_Q[pairs_T[differ_T]] = False
    return same_Q


def _named(where: str, targets: Targets, requests: Ints) -> str:
    """How many requests there are, and the first of them."""
    if not len(requests):
        return ""
    some = [f"user {targets.users_R[at]} at {targets.times_R[at]} s" for at in requests[:_NAMED]]
    more = ", …" if len(requests) > _NAMED else ""
    return f"{len(requests):,} {where}: {', '.join(some)}{more}"
