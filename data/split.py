"""Which events may be learnt from, and which are held out.

The leakage rule: **training sees, as an input or as a target, only events at positions below the user's
`train_end`**; what is held out lies at or after it. Whatever trains holds its plan to the rule
(`check_no_leakage`), and every prepared store is proven to keep it (data/leakage.py).

A split is a property of the store, since item vectors, training and evaluation must agree on it: the store's
manifest names its kind and seconds, and `EventStore.split()` finds the positions.

Kinds:
    leave-last-out      each user's last event is the test, the one before it the validation. A request sees all before
                        its target: a test request the validation event too, as a service would have.
    leave-last-share    each user's last events are the test, as many before them the validation: `test_share` of the
                        history each. For ranking, which needs many events to tell models apart.
    temporal            by the clock, for all users alike, from the end of the log backwards:
                            train | gap | validation | gap | test, end
                        Events in a gap are neither learnt from nor asked for. A request sees the events before the gap
                        that precedes its period.
    yambda              temporal, with the constants of Yambda's own protocol (arXiv 2505.22238, §4): end 26,000,000 s,
                        test and validation a day each, gaps of 30 minutes. Users who have no event to learn from are
                        asked nothing; held-out items absent from training stay.
    held-out-users      the users whose history ends last are not trained on at all; their last event is asked for. For
                        streams of short independent records, each a user of its own (HSTU paper, Appendix C).

Shapes: U users · W windows · E events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.config import option
from common.errors import InputError
from data.ranges import partition_points

LEAVE_LAST_OUT, LEAVE_LAST_SHARE = "leave-last-out", "leave-last-share"
TEMPORAL, YAMBDA, HELD_OUT_USERS = "temporal", "yambda", "held-out-users"
KINDS = (LEAVE_LAST_OUT, LEAVE_LAST_SHARE, TEMPORAL, YAMBDA, HELD_OUT_USERS)

DAY = 86_400
YAMBDA_END = 26_000_000


class LeakageError(AssertionError):
    """A training plan touches held-out events: a bug, never the user's fault."""


@dataclass
class SplitConfig:
    """How a store is split."""

    kind: str = option(LEAVE_LAST_OUT, "which events are held out, see data/split.py", choices=KINDS)
    test_seconds: int = option(DAY, "temporal: length of the test period", minimum=1)
    validation_seconds: int = option(DAY, "temporal: length of the validation period; 0 has none", minimum=0)
    gap_seconds: int = option(1800, "temporal: what is left out before each held-out period", minimum=0)
    end: int | None = option(
        None, "temporal: end of the test period, a timestamp; the second after the log's last event where not given"
    )
    test_share: float = option(
        0.1,
        "held-out-users: share of the users that is held out; leave-last-share: of each user's events for the test, "
        "and the same for validation",
        minimum=0,
    )

    def __post_init__(self) -> None:
        """Check that there is something to learn and something to ask for."""
        if self.kind == YAMBDA:
            fixed = {"test_seconds": DAY, "validation_seconds": DAY, "gap_seconds": 1800, "end": YAMBDA_END}
            changed = [key for key, value in fixed.items() if getattr(self, key) not in (value, None)]
            if changed:
                raise InputError(
                    *(f"`split.{key}` is {getattr(self, key)}, but split.kind=yambda fixes it at {fixed[key]}; "
                      "leave it out or use split.kind=temporal" for key in changed)
                )  # fmt: skip
            self.end = YAMBDA_END
        if not 0 < self.test_share < 1:
            raise InputError(f"`split.test_share` is {self.test_share}, must lie between 0 and 1")
        if self.kind == LEAVE_LAST_SHARE and self.test_share >= 0.5:
            raise InputError(
                f"`split.test_share` is {self.test_share}, must be below 0.5 with split.kind={LEAVE_LAST_SHARE}, which "
                f"holds out as much again for validation"
            )

    @property
    def by_the_clock(self) -> bool:
        """Whether one cut-off holds for all users."""
        return self.kind in (TEMPORAL, YAMBDA)


@dataclass(frozen=True)
class CutOffs:
    """The instants of a temporal split, seconds. A period holds the events with start ≤ t < stop.

    Attributes:
        train_stop: learnt from are the events before it.
        validation: start and stop, equal where there is none.
        test_history_stop: a test request sees the events before it.
        test_start: asked for are the events from here on.
    """

    train_stop: int
    validation: tuple[int, int]
    test_history_stop: int
    test_start: int


def cut_offs(config: SplitConfig, time_range: tuple[int, int]) -> CutOffs:
    """The instants of a temporal split of a log with the given first and last timestamp.

    Raises:
        InputError: the periods leave nothing to learn from, or hold no event.
    """
    end = config.end if config.end is not None else time_range[1] + 1
    test_start = end - config.test_seconds
    test_history_stop = test_start - config.gap_seconds
    validation_start = test_history_stop - config.validation_seconds
    train_stop = validation_start - config.gap_seconds if config.validation_seconds else test_history_stop
    what = (
        f"split.kind={config.kind} trains on events before {train_stop} and tests on those from {test_start} on, but "
        f"the log runs from {time_range[0]} to {time_range[1]}"
    )
    if train_stop <= time_range[0]:
        raise InputError(f"{what}: nothing is left to learn from; shorten the periods or change `split.end`")
    if test_start > time_range[1]:
        raise InputError(f"{what}: nothing is left to test on; change `split.end` or split.kind")
    return CutOffs(train_stop, (validation_start, test_history_stop), test_history_stop, test_start)


@dataclass(frozen=True)
class HeldOut:
    """What is asked of each user; all int64 [U], positions counted within a user's history, oldest event 0.

    Attributes:
        history_stop_U: a request sees events [0, history_stop).
        start_U, stop_U: asked for are events [start, stop); start = stop where the user is asked nothing.
        request_time_U: when the request is made, seconds.
    """

    history_stop_U: np.ndarray
    start_U: np.ndarray
    stop_U: np.ndarray
    request_time_U: np.ndarray

    @property
    def asked_U(self) -> np.ndarray:
        """Bool: which users are asked something."""
        asked_U: np.ndarray = self.stop_U > self.start_U
        return asked_U


@dataclass(frozen=True)
class Split:
    """A split of a store's users.

    Attributes:
        train_end_U: int64; events [0, train_end) of a user may be seen in training.
    """

    train_end_U: np.ndarray
    validation: HeldOut
    test: HeldOut


def make_split(
    config: SplitConfig, offsets: np.ndarray, timestamps_E: np.ndarray, time_range: tuple[int, int] | None = None
) -> Split:
    """Find the positions of a split.

    Args:
        offsets: int64 [U + 1], where each user's events begin and end.
        timestamps_E: seconds, ascending within a user; a few per user are read.
        time_range: first and last timestamp of the whole log, where these users are only a part of it.

    Raises:
        InputError: by the clock, the periods leave nothing to learn from or hold no event; of users held out, nobody
            is left to learn from. That nobody is asked, as where all histories are short, is no fault of a store to
            learn from: `data.prepare` says so, and evaluation refuses it.
    """
    lengths_U = np.diff(offsets)
    if config.kind == LEAVE_LAST_OUT:
        return leave_last_out(offsets, timestamps_E)
    if config.kind == LEAVE_LAST_SHARE:
        return leave_last_share(config.test_share, offsets, timestamps_E)
    if config.kind == HELD_OUT_USERS:
        return held_out_users(config.test_share, lengths_U, timestamps_E[offsets[1:] - 1])
    if time_range is None:
        time_range = int(timestamps_E[offsets[:-1]].min()), int(timestamps_E[offsets[1:] - 1].max())
    return _temporal(cut_offs(config, time_range), offsets, lengths_U, timestamps_E)


def leave_last_out(offsets: np.ndarray, timestamps_E: np.ndarray) -> Split:
    """Hold out each user's last event for the test and the one before it for validation.

    Histories of fewer than 3 events are all training: nothing would be left to predict from.
    """
    lengths_U = np.diff(offsets)
    enough_U = lengths_U >= 3

    def last_but(events: int) -> HeldOut:
        at_U = np.where(enough_U, lengths_U - 1 - events, 0)
        return HeldOut(at_U, at_U, at_U + enough_U, _times(timestamps_E, offsets, at_U))

    return Split(np.where(enough_U, lengths_U - 2, lengths_U), last_but(1), last_but(0))


def leave_last_share(share: float, offsets: np.ndarray, timestamps_E: np.ndarray) -> Split:
    """Hold out the last events of each user, at least one, for the test, and as many before them for validation.

    At least one event stays for training: of a short history less than the share may be held out. A request is made at
    the time of the first event asked for. Histories of fewer than 3 events are all training.
    """
    lengths_U = np.diff(offsets)
    held_U = np.maximum(np.round(lengths_U * share).astype(np.int64), 1)
    held_U = np.where(lengths_U >= 3, np.minimum(held_U, (lengths_U - 1) // 2), 0)

    def last_but(times: int) -> HeldOut:
        stop_U = lengths_U - times * held_U
        start_U = stop_U - held_U
        at_U = np.minimum(start_U, np.maximum(lengths_U - 1, 0))
        return HeldOut(start_U, start_U, stop_U, _times(timestamps_E, offsets, at_U))

    return Split(lengths_U - 2 * held_U, last_but(1), last_but(0))


def held_out_users(share: float, lengths_U: np.ndarray, last_times_U: np.ndarray) -> Split:
    """Hold out the share of users whose histories end last, of equal ends the later in the store.

    Args:
        last_times_U: when each user's last event was, seconds.

    Raises:
        InputError: nobody is left to learn from.
    """
    users = len(lengths_U)
    held_U = np.zeros(users, dtype=bool)
    held_U[np.argsort(last_times_U, kind="stable")[users - max(round(users * share), 1) :]] = True
    if held_U.all():
        raise InputError(f"split.kind=held-out-users holds out all {users} users of the store; lower split.test_share")
    at_U = np.where(held_U & (lengths_U >= 2), lengths_U - 1, 0)
    test = HeldOut(at_U, at_U, at_U + (at_U > 0), last_times_U.astype(np.int64))
    none_U = np.zeros(users, dtype=np.int64)
    return Split(np.where(held_U, 0, lengths_U), HeldOut(none_U, none_U, none_U, none_U), test)


def _temporal(cuts: CutOffs, offsets: np.ndarray, lengths_U: np.ndarray, timestamps_E: np.ndarray) -> Split:
    def before(time: int) -> np.ndarray:
        return events_before(timestamps_E, offsets, time)

    train_end_U = before(cuts.train_stop)

    def held_out(history_stop: int, start: int, stop_U: np.ndarray) -> HeldOut:
        asked_U = train_end_U > 0  # the official protocol drops users whom training has not seen
        start_U = before(start)
        return HeldOut(
            before(history_stop), start_U, np.where(asked_U, stop_U, start_U), np.full(len(offsets) - 1, start)
        )

    validation_start, validation_stop = cuts.validation
    validation = held_out(cuts.train_stop, validation_start, before(validation_stop))
    return Split(train_end_U, validation, held_out(cuts.test_history_stop, cuts.test_start, lengths_U))


def events_before(timestamps_E: np.ndarray, offsets: np.ndarray, time: int) -> np.ndarray:
    """How many events of each user lie before `time`, int64 [U]: a binary search in all histories at once."""
    ends = partition_points(offsets[:-1], offsets[1:], lambda places, _: timestamps_E[places] < time)
    counts: np.ndarray = ends - offsets[:-1]
    return counts


def _times(timestamps_E: np.ndarray, offsets: np.ndarray, at_U: np.ndarray) -> np.ndarray:
    times_U: np.ndarray = timestamps_E[offsets[:-1] + at_U].astype(np.int64)
    return times_U


def training_mask(offsets: np.ndarray, split: Split) -> np.ndarray:
    """Bool [E]: which flat events training may see. For whatever is derived from data: counts, item embeddings."""
    lengths_U = np.diff(offsets)
    position_E = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths_U)
    allowed_E: np.ndarray = position_E < np.repeat(split.train_end_U, lengths_U)
    return allowed_E


def check_no_leakage(split: Split, user_W: np.ndarray, start_W: np.ndarray, stop_W: np.ndarray) -> None:
    """Hold training windows to the rule: inputs are [start, stop) and targets start + 1 … stop, all below `train_end`.

    Raises:
        LeakageError: naming the first window that breaks it.
    """
    end_W = split.train_end_U[user_W]
    _raise_first(
        (start_W < 0) | (start_W >= stop_W) | (stop_W >= end_W),
        lambda window: (
            f"training window {window} of user {user_W[window]} has inputs [{start_W[window]}, {stop_W[window]}) and "
            f"targets up to {stop_W[window]}, but training may see [0, {end_W[window]}) only"
        ),
    )
    # Held-out events must themselves lie beyond the end, or the end would guard nothing.
    for name, held in (("validation", split.validation), ("test", split.test)):
        _raise_first(
            held.asked_U & ((held.start_U < split.train_end_U) | (held.history_stop_U > held.start_U)),
            lambda user, name=name, held=held: (  # type: ignore[misc]
                f"user {user} is asked for {name} events [{held.start_U[user]}, {held.stop_U[user]}) after seeing "
                f"[0, {held.history_stop_U[user]}), but training may see [0, {split.train_end_U[user]})"
            ),
        )


def _raise_first(broken: np.ndarray, describe: Callable[[int], str]) -> None:
    if broken.any():
        raise LeakageError(describe(int(np.argmax(broken))))
