"""From the events of windows to the tokens of a ranking model, in three forms.

A window's sequence is the inputs that it keeps, e0 … e(n-1), and its last target, en. Asked for is the action of each
event of the sequence that the window learns from; never that of e0, which has no past. With Φ an item, a what was done
with it, and c a candidate, an item whose own action is hidden and which no other token sees:

    interleaved     Φ0 a0 Φ1 a1 … Φn                      2n + 1 tokens; an action is asked for at its own Φ
    merged          (Φ0, a0) c1 (Φ1, a1) … cn             n + t tokens, t being asked for, each at its own c
    interactions    (Φ0, a0) (Φ1, a1) … (Φn-1, an-1)      n tokens; the action of event i + 1 is asked for at event i

Under the mask of `model/mask.py` a token at which an action is asked for sees all of its user's actions before, and
none from its own on.

Entries of slow series are tokens between these, each in front of all tokens of the event that it precedes; they are
history like any other, ask for nothing, and are no candidates. With form=interactions en has no tokens: what precedes
it stands behind the last token and is seen by no prediction. `data.ranking.series_tokens` leaves out what is later than
the newest input; where Stochastic Length drops that input, what lies between it and the last one left remains.

B windows · W windows of an epoch · m events of the sequences · l tokens · s entries of series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.examples import Tokens
from data.ranking.config import INTERACTIONS, INTERLEAVED

NOTHING = -1


@dataclass(frozen=True)
class Layout:
    """Tokens, window after window.

    Attributes:
        offsets_B: int64 [B + 1], the windows' ranges.
        event_l: int64, the event of the sequences that a token is of; of an entry of a series, that it precedes.
        shows_item_l, shows_action_l: bool, what of it the token shows.
        asked_l: int64, the event whose action is asked for; NOTHING where none is.
        alone_l: bool, which tokens are candidates; None where the form has none.
        entry_l: int64, which entry of a series a token is; NOTHING of others. None where there are none.
    """

    offsets_B: np.ndarray
    event_l: np.ndarray
    shows_item_l: np.ndarray
    shows_action_l: np.ndarray
    asked_l: np.ndarray
    alone_l: np.ndarray | None
    entry_l: np.ndarray | None = None

    @property
    def next_event_l(self) -> np.ndarray:
        """The event in question after a token: what follows a shown action, and the event itself where it is hidden."""
        next_event_l: np.ndarray = self.event_l + self.shows_action_l
        return next_event_l


def token_lengths(form: str, inputs_W: np.ndarray, asked_W: np.ndarray) -> np.ndarray:
    """Tokens of windows that keep so many inputs and ask for so many actions, int64 [W]."""
    if form == INTERLEAVED:
        return 2 * inputs_W + 1
    return inputs_W.copy() if form == INTERACTIONS else inputs_W + asked_W


def lay_out(form: str, tokens: Tokens) -> Layout:
    """The tokens of some windows in one of the forms."""
    asked_m = tokens.asked_m
    inputs_B = np.diff(tokens.offsets_B)
    event_m = np.arange(len(asked_m))
    is_input_m = np.ones(len(asked_m), dtype=bool)
    is_input_m[tokens.offsets_B[1:] + np.arange(len(inputs_B))] = False
    if form == INTERACTIONS:
        event_l = event_m[is_input_m]
        all_l = np.ones(len(event_l), dtype=bool)
        asked_l = np.where(asked_m[event_l + 1], event_l + 1, NOTHING)
        return Layout(tokens.offsets_B, event_l, all_l, all_l, asked_l, None)
    # An event is up to two tokens: the item alone, in front, and then what was done.
    has_item_m = np.ones_like(is_input_m) if form == INTERLEAVED else asked_m
    event_l = np.repeat(event_m, has_item_m.astype(np.int64) + is_input_m)
    is_first_l = np.ones(len(event_l), dtype=bool)
    is_first_l[1:] = event_l[1:] != event_l[:-1]
    hides_l = is_first_l & has_item_m[event_l]
    asked_l = np.where(hides_l & asked_m[event_l], event_l, NOTHING)
    ends_m = np.cumsum(has_item_m.astype(np.int64) + is_input_m)
    offsets_B = np.concatenate([[0], ends_m[~is_input_m]])
    if form == INTERLEAVED:
        return Layout(offsets_B, event_l, hides_l, ~hides_l, asked_l, None)
    return Layout(offsets_B, event_l, np.ones_like(hides_l), ~hides_l, asked_l, hides_l)


def insert_series(layout: Layout, window_s: np.ndarray, event_s: np.ndarray) -> Layout:
    """The same tokens with entries of series between them.

    Args:
        window_s: int64, which window an entry enters, ascending.
        event_s: int64, the event of the sequences in front of which it stands, ascending; of one event as they come.
    """
    at_s = np.searchsorted(layout.event_l, event_s)
    added_B = np.bincount(window_s, minlength=len(layout.offsets_B) - 1)

    def inserted(values_l: np.ndarray, value: int | np.ndarray) -> np.ndarray:
        longer_l: np.ndarray = np.insert(values_l, at_s, value)
        return longer_l

    return Layout(
        layout.offsets_B + np.concatenate([[0], np.cumsum(added_B)]),
        inserted(layout.event_l, event_s),
        inserted(layout.shows_item_l, False),
        inserted(layout.shows_action_l, False),
        inserted(layout.asked_l, NOTHING),
        None if layout.alone_l is None else inserted(layout.alone_l, False),
        inserted(np.full(len(layout.event_l), NOTHING), np.arange(len(at_s))),
    )
