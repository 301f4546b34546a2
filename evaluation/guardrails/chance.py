"""Are lists worth more than chance?

The chance that counts is not that of a random list, but that of the same lists in other hands: each request's list held
against what another user asked for. A model that knows nothing of its users gets as much there as with its own,
however much it knows of what is popular.

Where histories are filtered, a list is already a little its user's own, since it leaves out what the user has seen.
For an exchange to be fair, two requests are held only to those of their targets that neither of the two histories has:
drawn without regard to the user, those could as well have been the other's.

R requests, S of them drawn · T targets · K places of a list · N items · h events of some histories.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.seeding import derive_seed
from data.event_store import EventStore
from data.ranges import positions_of
from evaluation.guardrails.base import FAIL, PASS, Guardrail, not_judged
from evaluation.guardrails.differences import DEPTH, Drawing, difference, in_words, is_above, ndcg, plain
from evaluation.metrics.comparison import SIGNIFICANT
from evaluation.metrics.intervals import Ratio
from evaluation.requests import Requests, seen_targets
from evaluation.results import Evaluation, Floats, Ints, Targets

CHANCE = "better than chance"

EXCHANGES = 5
"""Ways of giving each request another's targets; together they are less a matter of luck than one."""

MOST_REQUESTS = 20_000
"""Requests that are looked at: differences that these do not show are of no account."""

Bools = npt.NDArray[np.bool_]


def better_than_chance(
    evaluation: Evaluation,
    engine: str,
    requests: Requests,
    store: EventStore,
    *,
    filter_history: bool,
    drawing: Drawing | None = None,
) -> Guardrail:
    """Hold an engine's lists against the requests' own targets and against those of other users.

    Args:
        requests: those of the evaluation.
        filter_history: whether lists are without what the request may see.
    """
    rule = (
        f"NDCG@10 lies above that of the same lists held against other users' targets, p below {SIGNIFICANT} and the "
        "95% interval above 0."
    )
    drawing = drawing or Drawing()
    if len(np.unique(evaluation.targets.users_R)) == 1:
        return not_judged(CHANCE, "there is one user only, and nobody to exchange with", rule)
    rows_S = _drawn_requests(len(requests), drawing.seed)
    items_SK = evaluation.engines[engine].items_RK[rows_S, :DEPTH]
    own = _Side.of(requests, rows_S)
    chance, model = exchanged(items_SK, own, store, filter_history=filter_history, seed=drawing.seed)
    if not model.bottom_R.any():
        return not_judged(CHANCE, "no two users have targets that neither has in the history", rule)
    one = difference(chance, model, own.targets.users_R, drawing)
    told = f"NDCG@10 {one.after:.4f} with their own users, {one.before:.4f} with others: {in_words(one)}."
    figures = plain(one, "chance", "model")
    if is_above(one):
        return Guardrail(CHANCE, PASS, told, rule, figures=figures)
    return Guardrail(
        CHANCE,
        FAIL,
        f"{told} The lists are worth no more to their users than to anybody else: NDCG@10 is at chance.",
        rule,
        "nothing was learnt of users, or there is nothing to learn: see that events belong to their histories, then "
        "how it was trained",
        figures,
    )


class _Side:
    """Requests, and what each of them may see."""

    def __init__(self, users_S: Ints, stop_S: Ints, targets: Targets) -> None:
        self.users_S, self.stop_S, self.targets = users_S, stop_S, targets

    @classmethod
    def of(cls, requests: Requests, rows_S: Ints) -> _Side:
        targets = rows_of(requests.targets, rows_S)
        return cls(targets.users_R, requests.history_stop_R[rows_S], targets)

    def seeing(self, other_S: Ints) -> tuple[Ints, Ints]:
        """User and end of the history of each request's other."""
        return self.users_S[other_S], self.stop_S[other_S]


def exchanged(
    items_SK: npt.NDArray[np.integer], own: _Side, store: EventStore, *, filter_history: bool, seed: int
) -> tuple[Ratio, Ratio]:
    """NDCG@10 of each list against others' targets and against its own, over the exchanges that are fair.

    Args:
        items_SK: the lists' first places.
        own: the requests.
    """
    sums_S = np.zeros((3, len(items_SK)))  # with others, with their own, exchanges
    seen_own_T = seen_targets(store, own.users_S, own.stop_S, own.targets) if filter_history else None
    for number in range(EXCHANGES):
        other_S = exchange(own.targets.users_R, derive_seed(seed, "exchange of targets", number))
        others = rows_of(own.targets, other_S)
        fair_T, fair_others_T = np.ones(len(own.targets.items_T), bool), np.ones(len(others.items_T), bool)
        if seen_own_T is not None:
            fair_T = ~seen_own_T & ~seen_targets(store, *own.seeing(other_S), own.targets)
            fair_others_T = ~seen_targets(store, own.users_S, own.stop_S, others)
            fair_others_T &= ~seen_targets(store, *own.seeing(other_S), others)
        with_others_S, any_others_S = _fair_ndcg(items_SK, others, fair_others_T, store.num_items)
        with_own_S, any_own_S = _fair_ndcg(items_SK, own.targets, fair_T, store.num_items)
        sums_S += np.stack([with_others_S, with_own_S, np.ones(len(items_SK))]) * (any_others_S & any_own_S)
    return Ratio(sums_S[0], sums_S[2]), Ratio(sums_S[1], sums_S[2])


def exchange(users_R: Ints, seed: int) -> Ints:
    """For each request another, each once; of another user, unless one user makes more than half of all requests."""
    generator = np.random.default_rng(seed)
    _, user_R, counts_U = np.unique(users_R, return_inverse=True, return_counts=True)
    # In a ring of users in random order, each with all requests, nobody is his own neighbour at that distance.
    place_U = generator.permutation(len(counts_U))
    ring = np.lexsort((generator.permutation(len(users_R)), place_U[user_R]))
    other_R = np.empty(len(users_R), np.int64)
    other_R[ring] = np.roll(ring, -int(counts_U.max()))
    return other_R


def rows_of(targets: Targets, rows_S: Ints) -> Targets:
    """Some requests, in a given order."""
    sizes_S = targets.sizes_R[rows_S]
    at_T = positions_of(targets.offsets_R1[rows_S], sizes_S)
    return Targets(
        targets.users_R[rows_S],
        targets.times_R[rows_S],
        np.concatenate([[0], np.cumsum(sizes_S)]),
        targets.items_T[at_T],
        targets.counts_T[at_T],
    )


def places_in(items_RK: npt.NDArray[np.integer], targets: Targets, num_items: int) -> Ints:
    """1-based place [T] of each target among the first items of its request's list, 0 where it is not among them."""
    wanted_T = targets.requests_T * num_items + targets.items_T
    row_X, column_X = np.nonzero(items_RK >= 0)
    listed_X = row_X * num_items + items_RK[row_X, column_X].astype(np.int64)
    if not len(listed_X):
        return np.zeros(len(wanted_T), np.int64)
    order_X = np.argsort(listed_X, kind="stable")
    at_T = order_X[np.searchsorted(listed_X, wanted_T, sorter=order_X).clip(max=len(listed_X) - 1)]
    places_T: Ints = np.where(listed_X[at_T] == wanted_T, column_X[at_T] + 1, 0)
    return places_T


def _fair_ndcg(
    items_SK: npt.NDArray[np.integer], targets: Targets, fair_T: Bools, num_items: int
) -> tuple[Floats, Bools]:
    """NDCG@10 [S] against the fair targets alone, 0 where there is none, and whether there is one."""
    sizes_S = np.add.reduceat(fair_T.astype(np.int64), targets.offsets_R1[:-1])
    any_S = sizes_S > 0
    ndcg_S = np.zeros(len(targets))
    if any_S.any():
        offsets = np.concatenate([[0], np.cumsum(sizes_S[any_S])])
        ndcg_S[any_S] = ndcg(places_in(items_SK, targets, num_items)[fair_T], offsets)
    return ndcg_S, any_S


def _drawn_requests(num_requests: int, seed: int) -> Ints:
    if num_requests <= MOST_REQUESTS:
        return np.arange(num_requests)
    generator = np.random.default_rng(derive_seed(seed, "requests that are exchanged"))
    return np.sort(generator.choice(num_requests, MOST_REQUESTS, replace=False)).astype(np.int64)
