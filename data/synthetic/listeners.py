"""Who listens when, and to what: users, their sessions, and runs of tracks within these.

Structure worth learning, and its constants:
 - most users are there from the first day to the last; some join late, some leave early (LATE_SHARE, EARLY_SHARE);
 - listens come in sessions of about 15 (SESSION_LISTENS), with gaps of hours to days between them (GAP_SPREAD);
 - a user holds four genres (GENRE_SHARES), one of which is exchanged about every 30 days (EXCHANGE_DAYS), and has
   some favourite artists in each (FAVOURITES); a session stays in one genre but for what is repeated or explored;
 - a session is mostly organic or mostly recommended (RECOMMENDED_SHARE, CONTRARY_SHARE);
 - a session is made of runs: successive tracks of one artist, long in organic sessions, short in recommended
   ones (RUN_END). A run begins as RUN_KINDS say: with a repeat, a favourite artist, what the user found, what
   is new, or what is new in another genre;
 - a repeat replays a stretch of the user's own listens, n listens back with a probability that falls as 1/n; about a
   quarter of all listens come about so, and another fifth happens to have been heard before.

U users of a block · S sessions · R runs · E listens · K genres held (slots) · G genres · Q queries.
Times are in ticks of 5 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.synthetic.catalogue import END_TICK, GENRE_SKEW, TICKS_A_DAY, Catalogue
from data.synthetic.draws import choice, hashed_uniform

LATE_SHARE, EARLY_SHARE = 0.3, 0.1
ABSENCE = 0.7
"""Who joins late or leaves early misses up to this share of the log."""
SESSION_LISTENS = 15
GAP_SPREAD = 1.3
"""Standard deviation of the logarithm of a gap."""
NOMINAL_TICKS = 36
"""Time set aside for a listen when sessions are laid out; what a session takes beyond it delays the next."""
CROWDING = 1.25
"""The time that a user is there is at least so many times what all listens nominally take."""
GENRE_SHARES = (0.5, 0.25, 0.15, 0.1)
EXCHANGE_DAYS = 30
FAVOURITES = 16
RECOMMENDED_SHARE = 0.45
CONTRARY_SHARE = 0.08
"""Runs that are recommended in an organic session, or the other way round."""
RUN_END = {"organic": 0.3, "recommended": 0.8}
"""Probability that a listen is the last of its run."""

REPEATED, FAVOURITE, DISCOVERED, NOVEL, EXPLORED = range(5)
RUN_KINDS = {"organic": (0.33, 0.18, 0.39, 0.1, 0.0), "recommended": (0.15, 0.1, 0.19, 0.48, 0.08)}
"""How a run begins: shares of the five kinds above."""
LEAST_LAG = 8
"""A repeat is of something so many listens back, or further."""


@dataclass(frozen=True)
class Listens:
    """The listens of a block of users, in order of (user, time), before it is known how much of each was played.

    Attributes:
        user_E: int64, index within the block. item_E: int64, index into the catalogue.
        kind_E: int8, `REPEATED` … `EXPLORED`. recommended_E: bool.
        session_first_S: int64, first listen of each session. session_user_S, session_start_S: int64; earliest start.
    """

    user_E: np.ndarray
    item_E: np.ndarray
    kind_E: np.ndarray
    recommended_E: np.ndarray
    session_first_S: np.ndarray
    session_user_S: np.ndarray
    session_start_S: np.ndarray


_PERIOD = len(GENRE_SHARES) * EXCHANGE_DAYS * TICKS_A_DAY
"""One genre of four is exchanged each 30 days, so a genre is held for 120."""


def longest_history(begin: int) -> int:
    """Most listens of one user that fit into a log that begins at tick `begin`."""
    return int((END_TICK - begin) / (NOMINAL_TICKS * CROWDING))


def make_listens(lengths_U: np.ndarray, begin: int, catalogue: Catalogue, random: np.random.Generator) -> Listens:
    """The listens of users with `lengths_U` listens each, none above `longest_history`."""
    first_U = np.cumsum(lengths_U) - lengths_U
    events = int(lengths_U.sum())
    begins_E = random.random(events, dtype=np.float32) < 1 / SESSION_LISTENS
    begins_E[first_U] = True
    first_S = np.flatnonzero(begins_E)
    user_S = np.searchsorted(first_U, first_S, side="right") - 1
    size_S = np.diff(first_S, append=events)
    start_S = _session_starts(lengths_U, first_U, first_S, user_S, begin, random)
    recommended_S = random.random(len(first_S)) < RECOMMENDED_SHARE

    end_S = np.where(recommended_S, RUN_END["recommended"], RUN_END["organic"]).astype(np.float32)
    begins_E |= random.random(events, dtype=np.float32) < np.repeat(end_S, size_S)
    first_R = np.flatnonzero(begins_E)
    session_R = np.searchsorted(first_S, first_R, side="right") - 1
    size_R = np.diff(first_R, append=events)
    recommended_R = recommended_S[session_R] ^ (random.random(len(first_R)) < CONTRARY_SHARE)
    kind_R = _run_kinds(recommended_R, random)
    back_R = first_R - first_U[user_S[session_R]]
    kind_R[(kind_R == REPEATED) & (back_R < LEAST_LAG)] = DISCOVERED

    tastes = _Tastes(len(lengths_U), begin, catalogue, random)
    seed_R = _run_seeds(kind_R, session_R, user_S, start_S, tastes, catalogue, random)
    item_E = _following(seed_R, first_R, size_R, start_S[session_R], catalogue)
    lag_R = np.zeros(len(first_R), dtype=np.int64)
    repeats = np.flatnonzero(kind_R == REPEATED)
    lag_R[repeats] = LEAST_LAG * (back_R[repeats] / LEAST_LAG) ** random.random(len(repeats))
    return Listens(
        user_E=np.repeat(np.arange(len(lengths_U)), lengths_U),
        item_E=item_E[origins(np.repeat(lag_R, size_R))],
        kind_E=np.repeat(kind_R, size_R),
        recommended_E=np.repeat(recommended_R, size_R),
        session_first_S=first_S,
        session_user_S=user_S,
        session_start_S=start_S,
    )


def origins(lag_E: np.ndarray) -> np.ndarray:
    """Follow repeats back to a listen that is none: int64 [E]. Listen e repeats listen e − lag; lag 0 is no repeat.

    A repeat may be of a repeat. Each round doubles the steps taken, so chains of n take about log2(n) rounds.
    """
    origin_E: np.ndarray = np.arange(len(lag_E)) - lag_E
    while True:
        further_E = origin_E[origin_E]
        if np.array_equal(further_E, origin_E):
            return origin_E
        origin_E = further_E


def _session_starts(
    lengths_U: np.ndarray,
    first_U: np.ndarray,
    first_S: np.ndarray,
    user_S: np.ndarray,
    begin: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Earliest start of each session: a user's time there, less what listens take, is shared out among gaps."""
    users = len(lengths_U)
    away_U = random.random(users) * ABSENCE * (END_TICK - begin)
    join_U = begin + np.where(random.random(users) < LATE_SHARE, away_U, 0)
    away_U = random.random(users) * ABSENCE * (END_TICK - begin)
    leave_U = END_TICK - np.where(random.random(users) < EARLY_SHARE, away_U, 0)
    least_U = lengths_U * (NOMINAL_TICKS * CROWDING)
    leave_U = np.minimum(np.maximum(leave_U, join_U + least_U), END_TICK)
    join_U = np.maximum(np.minimum(join_U, leave_U - least_U), begin)

    # Each session has a gap before it, each user one more at the end.
    gap_S = np.exp(GAP_SPREAD * random.standard_normal(len(first_S)))
    until_S = np.cumsum(gap_S)
    first_session_U = np.searchsorted(first_S, first_U)
    before_U = until_S[first_session_U] - gap_S[first_session_U]
    last_gap_U = np.exp(GAP_SPREAD * random.standard_normal(users))
    total_U = np.append(before_U[1:], until_S[-1]) - before_U + last_gap_U
    free_U = leave_U - join_U - lengths_U * NOMINAL_TICKS
    waited_S = (until_S - before_U[user_S]) / total_U[user_S] * free_U[user_S]
    start_S = join_U[user_S] + waited_S + (first_S - first_U[user_S]) * NOMINAL_TICKS
    whole_S: np.ndarray = start_S.astype(np.int64)
    return whole_S


def _run_kinds(recommended_R: np.ndarray, random: np.random.Generator) -> np.ndarray:
    uniform_R = random.random(len(recommended_R))
    organic, recommended = (np.cumsum(RUN_KINDS[name]) for name in ("organic", "recommended"))
    kind_R: np.ndarray = np.where(recommended_R, choice(recommended, uniform_R), choice(organic, uniform_R))
    return kind_R


class _Tastes:
    """Which genres and artists the users of a block favour at a time.

    Both are functions of user, slot and period by a hash, so that nothing is drawn that no listen asks for: users
    with short histories far outnumber their listens of favourites.
    """

    def __init__(self, users: int, begin: int, catalogue: Catalogue, random: np.random.Generator) -> None:
        slots = len(GENRE_SHARES)
        self._begin, self._catalogue = begin, catalogue
        self._salt = int(random.integers(2**62))
        # Staggered, so that one genre is exchanged at a time.
        phase_UK = (np.arange(slots) + random.random((users, 1))) * EXCHANGE_DAYS * TICKS_A_DAY
        self._phase_UK = phase_UK.astype(np.int64) % _PERIOD
        share_G = np.arange(1.0, catalogue.num_genres + 1) ** -GENRE_SKEW
        self._sums_G = np.cumsum(share_G / share_G.sum())

    def periods(self, user_Q: np.ndarray, slot_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        """Which period of each slot a time falls in: int64 [Q]."""
        period_Q: np.ndarray = (time_Q - self._begin + self._phase_UK[user_Q, slot_Q]) // _PERIOD
        return period_Q

    def genres(self, user_Q: np.ndarray, slot_Q: np.ndarray, period_Q: np.ndarray) -> np.ndarray:
        """The genre held in a slot for a period: int64 [Q]."""
        point_Q = hashed_uniform(self._salt, user_Q, slot_Q, period_Q)
        return np.minimum(np.searchsorted(self._sums_G, point_Q, side="right"), len(self._sums_G) - 1)

    def favourites(self, user_Q: np.ndarray, slot_Q: np.ndarray, period_Q: np.ndarray, nth_Q: np.ndarray) -> np.ndarray:
        """The n-th favourite artist of that genre: int32 [Q]; one that was there when the period began."""
        genre_Q = self.genres(user_Q, slot_Q, period_Q)
        opens_Q = np.maximum(self._begin + period_Q * _PERIOD - self._phase_UK[user_Q, slot_Q], self._begin)
        end_Q = self._catalogue.by_genre.ends(genre_Q, opens_Q)
        point_Q = hashed_uniform(self._salt + 1, user_Q, slot_Q, period_Q, nth_Q)
        artist_Q: np.ndarray = self._catalogue.artist_N[self._catalogue.discovered.draw(genre_Q, end_Q, point_Q)]
        return artist_Q


def _run_seeds(
    kind_R: np.ndarray,
    session_R: np.ndarray,
    user_S: np.ndarray,
    start_S: np.ndarray,
    tastes: _Tastes,
    catalogue: Catalogue,
    random: np.random.Generator,
) -> np.ndarray:
    """The first item of each run: int64 [R], 0 for repeats."""
    slot_S = choice(np.cumsum(GENRE_SHARES), random.random(len(user_S)))
    period_S = tastes.periods(user_S, slot_S, start_S)
    genre_S = tastes.genres(user_S, slot_S, period_S)
    end_S = catalogue.by_genre.ends(genre_S, start_S)
    seed_R = np.zeros(len(kind_R), dtype=np.int64)

    runs = np.flatnonzero(kind_R == FAVOURITE)
    at = session_R[runs]
    nth = random.integers(0, FAVOURITES, len(runs))
    artist = tastes.favourites(user_S[at], slot_S[at], period_S[at], nth)
    end = catalogue.by_artist.ends(artist, start_S[at])
    seed_R[runs] = catalogue.of_artist.draw(artist, end, random.random(len(runs)))

    for kind, weighted in ((DISCOVERED, catalogue.discovered), (NOVEL, catalogue.novel)):
        runs = np.flatnonzero(kind_R == kind)
        at = session_R[runs]
        seed_R[runs] = weighted.draw(genre_S[at], end_S[at], random.random(len(runs)))

    runs = np.flatnonzero(kind_R == EXPLORED)
    other = random.integers(0, catalogue.num_genres, len(runs))
    end = catalogue.by_genre.ends(other, start_S[session_R[runs]])
    seed_R[runs] = catalogue.novel.draw(other, end, random.random(len(runs)))
    return seed_R


def _following(
    seed_R: np.ndarray, first_R: np.ndarray, size_R: np.ndarray, time_R: np.ndarray, catalogue: Catalogue
) -> np.ndarray:
    """Items of all listens, int64 [E]: a run goes on with the artist's next tracks, and from the last to the first.

    Only tracks that are out by `time_R` count. Repeats are left to be overwritten.
    """
    item_E = np.repeat(seed_R, size_R)
    runs = np.flatnonzero(size_R > 1)
    size = size_R[runs]
    artist = catalogue.artist_N[seed_R[runs]]
    first = catalogue.first_A[artist]
    out = catalogue.by_artist.ends(artist, time_R[runs]) - first
    step = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    place = np.repeat(seed_R[runs] - first, size) + step
    # A repeat's seed is item 0, which need not be out by then.
    item_E[np.repeat(first_R[runs], size) + step] = np.repeat(first, size) + place % np.repeat(np.maximum(out, 1), size)
    return item_E
