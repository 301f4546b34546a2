"""What listeners make of what they hear: how much is played, when the next one begins, what is liked.

Structure worth learning, and its constants:
 - a listen is skipped or played: the odds (KIND_LOGITS and RECOMMENDED_LOGIT, in logits) depend on how it came about,
   on the user (USER_LOGIT_SPREAD) and on the item;
 - the played ratio has two modes: skipped within the first third, else mostly 100, a few percent above;
 - the next listen comes after what was played, and a pause now and then;
 - likes and dislikes (LIKE_RATES, DISLIKE_RATES) depend on the same things, and on how generous the user is
   (GENEROSITY_SPREAD); one of each a user and item. Some are taken back later (TAKEN_BACK), some weeks after.

U users of a block · S sessions · E listens · Q reactions of one type. Times are in ticks of 5 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.synthetic.catalogue import END_TICK, TICKS_A_DAY, Catalogue
from data.synthetic.listeners import Listens

# In the order of the kinds of data/synthetic/listeners.py: repeated, favourite, discovered, novel, explored.
KIND_LOGITS = (-1.9, -1.6, -0.9, -0.7, 0.2)
RECOMMENDED_LOGIT = 0.6
USER_LOGIT_SPREAD = 0.5
LIKE_RATES = (0.0175, 0.049, 0.0345, 0.0245, 0.01)
"""Of listens that are played, before it is seen that a user liked the item already."""
DISLIKE_RATES = (0.0005, 0.0005, 0.0038, 0.0086, 0.028)
"""Of listens that are skipped."""
GENEROSITY_SPREAD = 1.0
TAKEN_BACK = {"like": 0.08, "dislike": 0.04}
TAKEN_BACK_DAYS = 20.0
"""Mean time until a reaction is taken back."""
SESSION_PAUSE_TICKS = 120
"""Least time between the end of one session and the start of the next."""

_TABLE = 2**12


def _played_table() -> np.ndarray:
    """Percent played by evenly spread shares: uint16 [2, 4096], row 0 played, row 1 skipped."""
    shares = (np.arange(_TABLE) + 0.5) / _TABLE
    played = np.full(_TABLE, 100.0)
    early, late = shares < 0.05, shares > 0.965
    played[early] = 60 + 40 * shares[early] / 0.05
    played[late] = np.minimum(101 - 20 * np.log((1 - shares[late]) / 0.035), 200)
    skipped = 31 * shares**1.7
    return np.stack([played, skipped]).astype(np.uint16)


_PLAYED = _played_table()
_PAUSES = np.array([0] * 9 + [1, 1, 2, 2, 3, 6, 24], dtype=np.int32)
"""Ticks between two listens of a session, each as likely."""


@dataclass(frozen=True)
class Reactions:
    """Reactions of one type in order of (user, time): user, item int64 [Q], tick int64 [Q], organic uint8 [Q]."""

    user: np.ndarray
    item: np.ndarray
    tick: np.ndarray
    organic: np.ndarray


@dataclass(frozen=True)
class Heard:
    """Listens that took place, in order of (user, time).

    Attributes:
        user_E, item_E: int64. tick_E: int64, strictly ascending within a user, below `END_TICK`.
        organic_E: uint8. ratio_E: uint16, percent played. length_E: int32, ticks.
        reactions: like, dislike, unlike, undislike; empty where none were asked for.
    """

    user_E: np.ndarray
    item_E: np.ndarray
    tick_E: np.ndarray
    organic_E: np.ndarray
    ratio_E: np.ndarray
    length_E: np.ndarray
    reactions: dict[str, Reactions]


def hear(
    listens: Listens,
    users: int,
    catalogue: Catalogue,
    random: np.random.Generator,
    random_reactions: np.random.Generator | None,
) -> Heard:
    """Play the listens of a block, and react to them where there is randomness for it.

    Listens that would begin after the log's end are left out (few, if any).
    """
    skipped_E = _skips(listens, users, catalogue, random)
    bits_E = random.integers(0, 2**16, len(listens.item_E), dtype=np.uint16)
    ratio_E = _PLAYED.reshape(-1)[skipped_E * _TABLE + (bits_E & (_TABLE - 1))]
    length_E = catalogue.length_N[listens.item_E]
    # Rounded up: a listen takes a whole number of ticks, at least one.
    taken_E = (length_E * ratio_E + 99) // 100 + 1 + _PAUSES[bits_E >> 12]
    tick_E = _ticks(listens, taken_E)
    organic_E = (~listens.recommended_E).view(np.uint8)
    reactions: dict[str, Reactions] = {}
    if random_reactions is not None:
        reactions = _reactions(listens, skipped_E, tick_E, taken_E, organic_E, users, random_reactions)
    heard = Heard(listens.user_E, listens.item_E, tick_E, organic_E, ratio_E, length_E, reactions)
    in_time_E = tick_E < END_TICK
    return heard if in_time_E.all() else _only(heard, in_time_E)


def _only(heard: Heard, keep_E: np.ndarray) -> Heard:
    columns = (heard.user_E, heard.item_E, heard.tick_E, heard.organic_E, heard.ratio_E, heard.length_E)
    user_E, item_E, tick_E, organic_E, ratio_E, length_E = (column[keep_E] for column in columns)
    return Heard(user_E, item_E, tick_E, organic_E, ratio_E, length_E, heard.reactions)


def _skips(listens: Listens, users: int, catalogue: Catalogue, random: np.random.Generator) -> np.ndarray:
    """Which listens are skipped: bool [E]."""
    both = np.array(KIND_LOGITS, dtype=np.float32), np.array(KIND_LOGITS, dtype=np.float32) + RECOMMENDED_LOGIT
    user_U = (USER_LOGIT_SPREAD * random.standard_normal(users)).astype(np.float32)
    logit_E = np.concatenate(both)[listens.kind_E + len(KIND_LOGITS) * listens.recommended_E]
    logit_E += user_U[listens.user_E]
    logit_E += catalogue.quality_N[listens.item_E]
    skipped_E: np.ndarray = random.random(len(logit_E), dtype=np.float32) * (1 + np.exp(-logit_E)) < 1
    return skipped_E


def _ticks(listens: Listens, taken_E: np.ndarray) -> np.ndarray:
    """When each listen begins: int64 [E]. A session begins when it may and when the one before is over."""
    until_E = np.cumsum(taken_E, dtype=np.int64)
    before_S = until_E[listens.session_first_S] - taken_E[listens.session_first_S]
    size_S = np.diff(listens.session_first_S, append=len(taken_E))
    # With b the time that all sessions before take, start = b + running maximum of (earliest start − b).
    # Users are set so far apart that none's maximum reaches the next.
    busy_S = before_S + SESSION_PAUSE_TICKS * np.arange(len(before_S))
    apart_S = listens.session_user_S << 40
    start_S = np.maximum.accumulate(listens.session_start_S - busy_S + apart_S) - apart_S + busy_S
    tick_E: np.ndarray = np.repeat(start_S - before_S, size_S) + (until_E - taken_E)
    return tick_E


def _reactions(
    listens: Listens,
    skipped_E: np.ndarray,
    tick_E: np.ndarray,
    taken_E: np.ndarray,
    organic_E: np.ndarray,
    users: int,
    random: np.random.Generator,
) -> dict[str, Reactions]:
    """Likes and dislikes from one draw a listen, and what is taken back of each."""
    generosity_U = np.exp(GENEROSITY_SPREAD * random.standard_normal(users) - GENEROSITY_SPREAD**2 / 2)
    odds = np.array([LIKE_RATES, DISLIKE_RATES], dtype=np.float32).reshape(-1)
    odds_E = odds[listens.kind_E + len(LIKE_RATES) * skipped_E] * generosity_U.astype(np.float32)[listens.user_E]
    reacts = np.flatnonzero(random.random(len(odds_E), dtype=np.float32) < odds_E)
    found: dict[str, Reactions] = {}
    for name, of_skipped in (("like", False), ("dislike", True)):
        at = reacts[skipped_E[reacts] == of_skipped]
        pair = listens.user_E[at] * 2**32 + listens.item_E[at]
        at = np.sort(at[np.unique(pair, return_index=True)[1]])
        # Before the next listen begins.
        tick = tick_E[at] + (random.random(len(at)) * taken_E[at]).astype(np.int64)
        found[name] = _in_time(listens.user_E[at], listens.item_E[at], tick, organic_E[at])
        found[f"un{name}"] = _taken_back(found[name], TAKEN_BACK[name], random)
    return found


def _taken_back(given: Reactions, share: float, random: np.random.Generator) -> Reactions:
    back = np.flatnonzero(random.random(len(given.tick)) < share)
    wait = 1 + (random.exponential(TAKEN_BACK_DAYS * TICKS_A_DAY, len(back))).astype(np.int64)
    return _in_time(given.user[back], given.item[back], given.tick[back] + wait, np.ones(len(back), dtype=np.uint8))


def _in_time(user: np.ndarray, item: np.ndarray, tick: np.ndarray, organic: np.ndarray) -> Reactions:
    """In order of (user, time), without those after the log's end."""
    order = np.lexsort((tick, user))
    order = order[tick[order] < END_TICK]
    return Reactions(user[order], item[order], tick[order], organic[order])
