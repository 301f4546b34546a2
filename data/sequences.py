"""From histories to windows: which runs of inputs the model sees, and what it is to predict.

A window is one user's contiguous run of input positions [start, stop). After input p the model predicts event p + 1. In
training every input from `learn_from` on has a target; in a request only the last input has one: the event asked for.

Which windows an epoch of training has is a plan:

    newest      each user's newest `max_history` inputs
    tiled       the whole training history, cut into windows
    sampled     generative training (HSTU paper, §2.3): of a user's n prefixes, each a possible example, every one is
                taken with probability 1/n, anew in each epoch: cost per user grows with n², not with n³
    stream      one pass in global time order: epoch k holds the k-th period of the log, and a user's new events in it
                form the next example, with the events before them as context

Shapes: U users · W windows · E events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.seeding import derive_seed
from data.split import HeldOut, Split, check_no_leakage, events_before

NEWEST, TILED, SAMPLED, STREAM = "newest", "tiled", "sampled", "stream"
PLANS = (NEWEST, TILED, SAMPLED, STREAM)


@dataclass(frozen=True)
class Windows:
    """Runs of inputs; all int64 [W].

    Attributes:
        user: user index.
        start, stop: input positions [start, stop) within the user's history, oldest event 0; never empty.
        learn_from: first input position that has a target, start ≤ learn_from < stop.
        asked: None in training, where the target of input p is event p + 1. In requests the position of the one target,
            which the last input has; at or after `stop`, as there may be a gap.
        request_time: None in training, where input p + 1 is predicted for its own time. In requests when the request is
            made, seconds.
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    learn_from: np.ndarray
    asked: np.ndarray | None = None
    request_time: np.ndarray | None = None

    def __len__(self) -> int:
        """W."""
        return len(self.user)

    def take(self, index_B: np.ndarray) -> Windows:
        """Some of them."""
        asked = None if self.asked is None else self.asked[index_B]
        request_time = None if self.request_time is None else self.request_time[index_B]
        return Windows(
            self.user[index_B], self.start[index_B], self.stop[index_B], self.learn_from[index_B], asked, request_time
        )

    @property
    def lengths(self) -> np.ndarray:
        """Inputs per window, int64 [W], each at least 1."""
        lengths: np.ndarray = self.stop - self.start
        return lengths

    @property
    def are_requests(self) -> bool:
        """Whether these are requests, not training examples."""
        return self.asked is not None


class Plan(Protocol):
    """Which windows each epoch has."""

    @property
    def num_epochs(self) -> int | None:
        """How many epochs there are, None where there is no end."""

    @property
    def in_time_order(self) -> bool:
        """Whether windows must be used in the order in which they come."""

    def windows(self, epoch: int) -> Windows:
        """The windows of an epoch, a function of `epoch` alone, held to the leakage rule."""


@dataclass(frozen=True)
class SameEveryEpoch:
    """A plan of one set of windows."""

    fixed: Windows
    num_epochs: int | None = None
    in_time_order: bool = False

    def windows(self, epoch: int) -> Windows:  # noqa: ARG002
        """The windows."""
        return self.fixed


def make_plan(
    kind: str,
    offsets: np.ndarray,
    timestamps_E: np.ndarray,
    split: Split,
    max_history: int,
    *,
    seed: int,
    period_seconds: int,
) -> Plan:
    """The plan of a training run.

    Args:
        kind: one of PLANS.
        offsets, timestamps_E: of the store.
        max_history: the most inputs a window may have, at least 1.
        seed: of what is drawn anew in each epoch.
        period_seconds: stream: length of a period.
    """
    if kind == SAMPLED:
        return SampledPrefixes(split, max_history, seed)
    if kind == STREAM:
        return TimeStream(offsets, timestamps_E, split, max_history, period_seconds)
    return SameEveryEpoch(training_windows(offsets, split, max_history, kind))


def training_windows(offsets: np.ndarray, split: Split, max_history: int, windows: str = NEWEST) -> Windows:
    """Windows over the training part of every history, checked against the leakage rule.

    Args:
        offsets: int64 [U + 1], the store's.
        max_history: the most inputs a window may have, at least 1.
        windows: "newest", each user's newest `max_history` inputs; or "tiled", the whole training history cut into
            windows of at most `max_history` inputs, cut from the newest backwards: the oldest is the short one.

    A user with fewer than two training events has no window: nothing could be a target.
    """
    assert max_history >= 1
    assert windows in (NEWEST, TILED), windows
    assert len(split.train_end_U) == len(offsets) - 1
    inputs_U = np.maximum(split.train_end_U - 1, 0)  # the last training event is a target only
    tiles_U = -(-inputs_U // max_history) if windows == TILED else (inputs_U > 0).astype(np.int64)
    user_W = np.repeat(np.arange(len(inputs_U)), tiles_U)
    first_W = np.repeat(np.cumsum(tiles_U) - tiles_U, tiles_U)
    newer_W = np.repeat(tiles_U, tiles_U) - 1 - (np.arange(len(user_W)) - first_W)  # windows of the user after this one
    stop_W = inputs_U[user_W] - newer_W * max_history
    return _checked(split, user_W, stop_W, max_history)


def request_windows(held: HeldOut, max_history: int) -> Windows:
    """One window for each user who is asked something: the newest `max_history` events that the request may see.

    The target is the first event asked for.
    """
    assert max_history >= 1
    user_W = np.flatnonzero(held.asked_U)
    stop_W = held.history_stop_U[user_W]
    assert (stop_W > 0).all(), "an event without a past cannot be predicted from it"
    return Windows(
        user_W,
        np.maximum(stop_W - max_history, 0),
        stop_W,
        learn_from=stop_W - 1,
        asked=held.start_U[user_W],
        request_time=held.request_time_U[user_W],
    )


def covering_windows(first_U: np.ndarray, stop_U: np.ndarray, max_history: int) -> Windows:
    """Windows in which each of the users' events [first, stop) is a target once, with those before it as context.

    A user's form one window, or several if they are more than half of `max_history`: so that the first of them, too,
    has a past in its window. Held to no rule about what may be learnt from.

    Args:
        first_U: int64, at least 1 where there are any: a user's first event has no past to predict it.
        stop_U: int64, not below `first_U`.
    """
    users = np.flatnonzero(stop_U > first_U)
    assert (first_U[users] > 0).all(), "an event without a past cannot be predicted from it"
    share = max(max_history // 2, 1)
    parts = -(-(stop_U - first_U)[users] // share)
    user_W = np.repeat(users, parts)
    part_W = np.arange(len(user_W)) - np.repeat(np.cumsum(parts) - parts, parts)
    first_W = first_U[user_W] + part_W * share
    last_W = np.minimum(first_W + share, stop_U[user_W]) - 1
    return Windows(user_W, np.maximum(last_W - max_history, 0), last_W, first_W - 1)


def _checked(
    split: Split, user_W: np.ndarray, stop_W: np.ndarray, max_history: int, learn_from_W: np.ndarray | None = None
) -> Windows:
    """Windows of the newest inputs before `stop`, held to the rule; all inputs are learnt from unless told."""
    start_W = np.maximum(stop_W - max_history, 0)
    check_no_leakage(split, user_W, start_W, stop_W)
    return Windows(user_W, start_W, stop_W, start_W if learn_from_W is None else learn_from_W)


class SampledPrefixes:
    """Generative training: each prefix of a user with n inputs is an example with probability 1/n (s_u = 1/n, §2.3)."""

    num_epochs: int | None = None
    in_time_order = False

    def __init__(self, split: Split, max_history: int, seed: int) -> None:
        """Remember how many prefixes each user has."""
        self.split, self.max_history, self.seed = split, max_history, seed
        self._inputs_U = np.maximum(split.train_end_U - 1, 0)

    def windows(self, epoch: int) -> Windows:
        """The prefixes drawn for an epoch: one a user on average, sometimes none, sometimes several."""
        random = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "prefixes", epoch)))
        users = np.flatnonzero(self._inputs_U)
        # Independent draws with probability 1/n each: a binomial count, then that many different prefixes.
        counts = random.binomial(self._inputs_U[users], 1.0 / self._inputs_U[users])
        user_W = np.repeat(users, counts)
        stop_W = 1 + random.integers(0, self._inputs_U[user_W])
        while True:
            order = np.lexsort((stop_W, user_W))
            user_W, stop_W = user_W[order], stop_W[order]
            again = np.flatnonzero((user_W[1:] == user_W[:-1]) & (stop_W[1:] == stop_W[:-1]))
            if not len(again):
                return _checked(self.split, user_W, stop_W, self.max_history)
            stop_W[again] = 1 + random.integers(0, self._inputs_U[user_W[again]])


class TimeStream:
    """Single-pass training in global time order; epoch k is the k-th period of the training part.

    Every training event but a user's first is a target exactly once. A user's new events of a period form one example,
    or several if they are more than half of `max_history`: so that the first of them, too, has a past in its window.
    Examples of a period come by the time of their last event.
    """

    in_time_order = True

    def __init__(
        self, offsets: np.ndarray, timestamps_E: np.ndarray, split: Split, max_history: int, period_seconds: int
    ) -> None:
        """Find the first and the last period."""
        assert period_seconds >= 1
        self.offsets, self.timestamps_E, self.split = offsets, timestamps_E, split
        self.max_history, self.period_seconds = max_history, period_seconds
        trained_U = np.flatnonzero(split.train_end_U)
        ends = offsets[:-1][trained_U] + split.train_end_U[trained_U] - 1
        self._origin = int(timestamps_E[offsets[:-1][trained_U]].min()) if len(trained_U) else 0
        last = int(timestamps_E[ends].max()) if len(trained_U) else -1
        self.num_epochs = (last - self._origin) // period_seconds + 1 if len(trained_U) else 0

    def windows(self, epoch: int) -> Windows:
        """The examples of a period."""
        opens = self._origin + epoch * self.period_seconds
        first_U = np.maximum(self._training_events_before(opens), 1)  # a user's first event has no past to predict it
        new_U = self._training_events_before(opens + self.period_seconds) - first_U
        windows = covering_windows(first_U, first_U + np.maximum(new_U, 0), self.max_history)
        order = np.argsort(self.timestamps_E[self.offsets[windows.user] + windows.stop], kind="stable")
        user_W, stop_W, learn_from_W = windows.user[order], windows.stop[order], windows.learn_from[order]
        return _checked(self.split, user_W, stop_W, self.max_history, learn_from_W)

    def _training_events_before(self, time: int) -> np.ndarray:
        counts_U: np.ndarray = np.minimum(events_before(self.timestamps_E, self.offsets, time), self.split.train_end_U)
        return counts_U
