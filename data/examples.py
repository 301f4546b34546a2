"""Windows as positions in the flat columns: which event each token is, and which event it is to predict.

Two things may be drawn anew in each epoch, both a function of (seed, position) alone, so that any rank or worker finds
the same: the order of events that share a second (`shuffle_ties`), and which inputs Stochastic Length leaves.

B windows of a batch · n tokens · m events of their sequences, the inputs of a window and its last target · U users ·
E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.hashing import uniform_from
from data.leakage import user_blocks
from data.ranges import partition_points, positions_of
from data.sequences import Windows
from data.stochastic_length import StochasticLength

_BLOCK_INPUTS = 2**21


@dataclass(frozen=True)
class Tokens:
    """The tokens of some windows, window after window.

    Attributes:
        at_n: int64, flat position of each input event.
        next_at_n: int64, flat position of the event that follows it, or that a request asks for.
        learn_n: bool, whether the token has a target; None where all have.
        offsets_B: int64 [B + 1], the windows' ranges.
        request_times_B: int64 [B], seconds, in requests; None in training.
        last_at_B: int64 [B], flat position of the last target of each window; None where it is what follows the last
            of its inputs here, as thinning has not taken the newest.
        answers_n: bool, whether the input's own event is the target of an input, left here or not; None where it is so
            if the input before it here has one, as nothing lies between the two.
        windows: B of them, whose tokens these are, as they were before thinning; None of tokens that were made up.
    """

    at_n: np.ndarray
    next_at_n: np.ndarray
    learn_n: np.ndarray | None
    offsets_B: np.ndarray
    request_times_B: np.ndarray | None
    last_at_B: np.ndarray | None = None
    answers_n: np.ndarray | None = None
    windows: Windows | None = None

    @property
    def event_at_m(self) -> np.ndarray:
        """Sequences as an action model reads them: flat positions of each window's inputs, then of its last target.

        Input i of window b is number i + b; no window is empty.
        """
        ends_B = self.offsets_B[1:]
        last_at_B = self.next_at_n[ends_B - 1] if self.last_at_B is None else self.last_at_B
        event_at_m: np.ndarray = np.insert(self.at_n, ends_B, last_at_B)
        return event_at_m

    @property
    def asked_m(self) -> np.ndarray:
        """Which events of the sequences have their action asked for, bool: never the first, which has no past."""
        ends_B = self.offsets_B[1:]
        if self.answers_n is not None:
            asked_m = np.insert(self.answers_n, ends_B, True)
        elif self.learn_n is not None:
            asked_m = np.insert(self.learn_n, self.offsets_B[:-1], False)
        else:
            asked_m = np.ones(len(self.at_n) + len(ends_B), dtype=bool)
        asked_m[self.offsets_B[:-1] + np.arange(len(ends_B))] = False
        return asked_m


@dataclass(frozen=True)
class Examples:
    """The windows of an epoch and what is drawn for them.

    Attributes:
        offsets: int64 [U + 1], the store's.
        timestamps_E: the store's.
        windows: of the epoch.
        kept_W: int64 [W], inputs that Stochastic Length leaves of each window.
        thinning: by what rule.
        tie_limit_U: int64 [U] or None. Events of one second are put in a random order, those of a user before this
            position; None leaves the log's order.
        seed: of the epoch's draws.
    """

    offsets: np.ndarray
    timestamps_E: np.ndarray
    windows: Windows
    kept_W: np.ndarray
    thinning: StochasticLength
    tie_limit_U: np.ndarray | None
    seed: int

    def predictions(self, index_B: np.ndarray) -> np.ndarray:
        """How many of its inputs each window asks a prediction of, int64 [B]."""
        asked_B = self.windows.stop[index_B] - self.windows.learn_from[index_B]
        predictions_B: np.ndarray = np.minimum(asked_B, self.kept_W[index_B])
        return predictions_B

    def actions(self, index_B: np.ndarray) -> np.ndarray:
        """How many events of each window have their action asked for, int64 [B].

        As many as `predictions`, but where a window is thinned of which the first inputs are context alone: there it
        depends on which inputs are left.
        """
        actions_B = self.predictions(index_B)
        windows = self.windows
        thinned_B = self.kept_W[index_B] < windows.lengths[index_B]
        unsure = np.flatnonzero(thinned_B & (windows.learn_from[index_B] > windows.start[index_B]))
        inputs = np.cumsum(np.append(0, windows.lengths[index_B[unsure]]))
        for first, last in user_blocks(inputs, _BLOCK_INPUTS):
            some = unsure[first:last]
            tokens = self.tokens(index_B[some])
            actions_B[some] = np.add.reduceat(
                tokens.asked_m.astype(np.int64), tokens.offsets_B[:-1] + np.arange(len(some))
            )
        return actions_B

    def tokens(self, index_B: np.ndarray) -> Tokens:
        """The tokens of windows `index_B`."""
        windows = self.windows.take(index_B)
        user_B = windows.user
        first_B, lengths_B, kept_B = self.offsets[user_B] + windows.start, windows.lengths, self.kept_W[index_B]
        if self.tie_limit_U is None:
            at_n = positions_of(first_B, lengths_B)
            next_at_n = at_n + 1
        else:
            at_n, next_at_n = self._in_tie_order(user_B, first_B, lengths_B)
        learn_n = self._learnt(index_B, lengths_B)
        if windows.asked is not None:
            next_at_n[np.cumsum(lengths_B) - 1] = self.offsets[user_B] + windows.asked
        last_at_B, answers_n = None, None
        if (kept_B < lengths_B).any():
            chosen_n = self._thinned(at_n, first_B, lengths_B, kept_B)
            last_at_B = next_at_n[np.cumsum(lengths_B) - 1]
            if learn_n is not None:
                answers_n = np.concatenate([[False], learn_n[:-1]])[chosen_n]
                learn_n = learn_n[chosen_n]
            at_n, next_at_n = at_n[chosen_n], next_at_n[chosen_n]
        offsets_B = np.concatenate([[0], np.cumsum(kept_B)])
        return Tokens(at_n, next_at_n, learn_n, offsets_B, windows.request_time, last_at_B, answers_n, windows)

    def _learnt(self, index_B: np.ndarray, lengths_B: np.ndarray) -> np.ndarray | None:
        """Which inputs have a target, bool [n]; None where all have."""
        skipped_B = self.windows.learn_from[index_B] - self.windows.start[index_B]
        if not skipped_B.any():
            return None
        starts_B = np.cumsum(lengths_B) - lengths_B
        return np.arange(lengths_B.sum()) >= np.repeat(starts_B + skipped_B, lengths_B)

    def _thinned(self, at_n: np.ndarray, first_B: np.ndarray, lengths_B: np.ndarray, kept_B: np.ndarray) -> np.ndarray:
        newest_B = self.timestamps_E[first_B + lengths_B - 1].astype(np.int64)
        ages_n = np.repeat(newest_B, lengths_B) - self.timestamps_E[at_n]
        return self.thinning.chosen(lengths_B, kept_B, ages_n, at_n, self.seed)

    def _in_tie_order(
        self, user_B: np.ndarray, first_B: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and the events after them, where events of one second come in random order.

        A second may reach beyond the window at either end, so the window is widened to whole seconds, ordered, and cut
        to its length again: windows of one user then still share out the user's events.
        """
        assert self.tie_limit_U is not None
        limit_B = self.offsets[user_B] + self.tie_limit_U[user_B]
        times_E, last_B = self.timestamps_E, first_B + lengths_B
        from_B = partition_points(self.offsets[user_B], first_B, lambda at, row: times_E[at] < times_E[first_B[row]])
        to_B = partition_points(last_B, self.offsets[user_B + 1], lambda at, row: times_E[at] == times_E[last_B[row]])
        widened_B = to_B - from_B
        at_m = positions_of(from_B, widened_B)
        row_m = np.repeat(np.arange(len(user_B)), widened_B)
        # Beyond the limit the log's order holds.
        draws_m = np.where(at_m < limit_B[row_m], uniform_from(at_m, self.seed), 1.0 + at_m)
        ordered_m = at_m[np.lexsort((draws_m, self.timestamps_E[at_m], row_m))]
        inputs_n = positions_of(np.cumsum(widened_B) - widened_B + first_B - from_B, lengths_B)
        return ordered_m[inputs_n], ordered_m[inputs_n + 1]
