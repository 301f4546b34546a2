"""The statistics are of one block with a fixed seed: bounds leave room for another, none for another mechanism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.synthetic import listeners
from data.synthetic.catalogue import END_TICK, TICKS_A_DAY, make_catalogue
from data.synthetic.draws import generator
from data.synthetic.listeners import (
    DISCOVERED,
    EXPLORED,
    FAVOURITE,
    LEAST_LAG,
    NOVEL,
    REPEATED,
    RUN_KINDS,
    _Tastes,
    longest_history,
    make_listens,
    origins,
)
from tests.data.synthetic.helpers import BEGIN, USERS, catalogue, heard, lengths, listens


@given(st.lists(st.integers(0, 50), max_size=60))
def test_repeats_of_repeats_lead_to_the_first_listen(lags: list[int]) -> None:
    lags = [min(lag, place) for place, lag in enumerate(lags)]
    expected: list[int] = []
    for place, lag in enumerate(lags):
        expected.append(expected[place - lag] if lag else place)
    np.testing.assert_array_equal(origins(np.array(lags, dtype=np.int64)), expected)


def test_every_user_has_the_listens_asked_for() -> None:
    np.testing.assert_array_equal(np.bincount(listens().user_E, minlength=USERS), lengths())
    assert (np.diff(listens().user_E) >= 0).all()


def test_nothing_is_heard_before_its_release() -> None:
    made = listens()
    session_E = np.searchsorted(made.session_first_S, np.arange(len(made.item_E)), side="right") - 1
    assert (catalogue().release_N[made.item_E] <= made.session_start_S[session_E]).all()
    # … and much of what is heard was not out at the beginning, so the rule has something to forbid.
    assert (catalogue().release_N[made.item_E] > BEGIN).mean() > 0.1


def test_sessions_are_about_fifteen_listens_apart_by_hours_to_days() -> None:
    made = listens()
    sizes = np.diff(made.session_first_S, append=len(made.item_E))
    assert 13.5 < sizes.mean() < 16.5
    same = np.diff(made.session_user_S) == 0
    gaps = np.diff(made.session_start_S)[same] / TICKS_A_DAY * 24
    assert (gaps > 0).all()
    assert 6 < np.median(gaps) < 72
    assert np.quantile(gaps, 0.95) > 72
    assert (made.session_start_S >= BEGIN).all()
    assert (made.session_start_S < END_TICK).all()


def test_a_session_keeps_mostly_to_one_genre() -> None:
    made = listens()
    genre_E = catalogue().genre_A[catalogue().artist_N[made.item_E]]
    chosen = (made.kind_E != REPEATED) & (made.kind_E != EXPLORED)
    session_E = np.searchsorted(made.session_first_S, np.arange(len(made.item_E)), side="right") - 1
    pairs = np.unique(np.stack([session_E[chosen], genre_E[chosen]]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]  # one genre a session, but for repeats and explorations
    overall = [
        np.bincount(genre_E[first:last]).max()
        for first, last in zip(made.session_first_S, np.append(made.session_first_S[1:], len(genre_E)), strict=True)
    ]
    assert 0.75 < sum(overall) / len(genre_E) < 0.98


def test_genres_are_exchanged_over_time() -> None:
    made = listens()
    genre_E = catalogue().genre_A[catalogue().artist_N[made.item_E]]
    chosen = made.kind_E == DISCOVERED
    session_E = np.searchsorted(made.session_first_S, np.arange(len(made.item_E)), side="right") - 1
    month_E = made.session_start_S[session_E] // (30 * TICKS_A_DAY)

    def shared(months: int) -> float:
        """Share of a user's genres of a month that are also those `months` later."""
        held = {
            (user, month): set(genre_E[chosen & (made.user_E == user) & (month_E == month)])
            for user in np.flatnonzero(lengths() > 2_000)
            for month in range(10)
        }
        overlaps = [
            len(genres & held[user, month + months]) / len(genres)
            for (user, month), genres in held.items()
            if genres and held.get((user, month + months))
        ]
        return float(np.mean(overlaps))

    near, far = shared(1), shared(6)
    assert near > 0.6
    assert far < 0.3


def test_one_genre_of_four_is_exchanged_every_thirty_days() -> None:
    tastes = _Tastes(USERS, BEGIN, catalogue(), generator(1))
    user, slot = (axis.ravel() for axis in np.meshgrid(np.arange(USERS), np.arange(4), indexing="ij"))
    for day in (0, 17, 100, 200):
        before, after = (
            tastes.periods(user, slot, np.full(len(user), BEGIN + days * TICKS_A_DAY)) for days in (day, day + 30)
        )
        np.testing.assert_array_equal((after - before).reshape(USERS, 4).sum(axis=1), 1)
    period = tastes.periods(user, slot, np.full(len(user), BEGIN))
    assert (tastes.genres(user, slot, period) != tastes.genres(user, slot, period + 1)).mean() > 0.8
    np.testing.assert_array_equal(tastes.genres(user, slot, period), tastes.genres(user, slot, period))
    nth = np.full(len(user), 3)
    artist = tastes.favourites(user, slot, period, nth)
    np.testing.assert_array_equal(catalogue().genre_A[artist], tastes.genres(user, slot, period))
    assert (artist != tastes.favourites(user, slot, period, nth + 1)).mean() > 0.8


def test_runs_begin_as_their_shares_say() -> None:
    made = listens()
    ends = np.flatnonzero((np.diff(made.item_E) != 1) | (np.diff(made.user_E) != 0))
    assert len(ends) < 0.75 * len(made.item_E)  # over a quarter go on with the next track
    # Recommended runs are short, so that kinds of runs and of listens have nearly the same shares there.
    recommended = made.recommended_E
    assert 0.38 < recommended.mean() < 0.53
    for name, mask in (("organic", ~recommended), ("recommended", recommended)):
        shares = np.bincount(made.kind_E[mask], minlength=5) / mask.sum()
        np.testing.assert_allclose(shares, RUN_KINDS[name], atol=0.03)


def test_about_a_quarter_repeats_what_the_user_heard_the_more_recent_the_more() -> None:
    made = listens()
    repeats = np.flatnonzero(made.kind_E == REPEATED)
    assert 0.2 < len(repeats) / len(made.item_E) < 0.33
    first_of_user = np.searchsorted(made.user_E, np.arange(USERS))
    backs = []
    for repeat in repeats[::50]:
        earlier = made.item_E[first_of_user[made.user_E[repeat]] : repeat]
        found = np.flatnonzero(earlier == made.item_E[repeat])
        assert len(found), "a repeat of something never heard"
        backs.append(len(earlier) - found[-1])
    backs_array = np.array(backs)
    assert (backs_array < 100).mean() > 0.3
    assert (backs_array >= 300).mean() > 0.1
    pairs = np.stack([made.user_E, made.item_E])
    heard_before = 1 - np.unique(pairs, axis=1).shape[1] / pairs.shape[1]
    assert 0.28 < heard_before < 0.55


def test_a_repeat_is_of_something_some_listens_back() -> None:
    made = listens()
    first_of_user = np.searchsorted(made.user_E, np.arange(USERS))
    early = np.arange(len(made.item_E)) - first_of_user[made.user_E] < LEAST_LAG
    begins = np.append(True, (np.diff(made.kind_E) != 0) | (np.diff(made.user_E) != 0))
    assert not (made.kind_E[early & begins] == REPEATED).any()


def test_recommended_items_are_newer_and_more_popular_than_those_that_users_find() -> None:
    made = listens()
    session_E = np.searchsorted(made.session_first_S, np.arange(len(made.item_E)), side="right") - 1
    age_E = made.session_start_S[session_E] - catalogue().release_N[made.item_E]
    popularity_N = np.bincount(made.item_E, minlength=len(catalogue().artist_N))
    organic, recommended = ~made.recommended_E, made.recommended_E
    assert np.median(age_E[recommended]) < 0.5 * np.median(age_E[organic])
    fresh = made.kind_E != REPEATED
    assert (
        popularity_N[made.item_E[fresh & recommended]].mean() > 1.1 * popularity_N[made.item_E[fresh & organic]].mean()
    )


def test_favourites_are_few() -> None:
    made = listens()
    user = int(np.argmax(lengths()))
    mine = made.user_E == user
    artists = {
        kind: catalogue().artist_N[made.item_E[mine & (made.kind_E == kind)]] for kind in (FAVOURITE, DISCOVERED)
    }
    for kind, found in artists.items():
        assert len(found) > 100, kind
    per_artist = {kind: len(found) / len(np.unique(found)) for kind, found in artists.items()}
    assert per_artist[FAVOURITE] > 1.5 * per_artist[DISCOVERED]


def test_some_join_late_and_most_are_there_on_the_last_day() -> None:
    first = np.array([heard().tick_E[heard().user_E == user].min() for user in range(USERS)])
    last = np.array([heard().tick_E[heard().user_E == user].max() for user in range(USERS)])
    days = (END_TICK - BEGIN) / TICKS_A_DAY
    assert 0.1 < (first > 0.1 * days * TICKS_A_DAY).mean() < 0.5
    assert 0.02 < (last < 0.9 * days * TICKS_A_DAY).mean() < 0.35
    assert (last >= END_TICK - TICKS_A_DAY).mean() > 0.3


@pytest.mark.parametrize("lengths_U", [[1], [1, 1, 1], [7, 1, 300], [longest_history(END_TICK - 40 * TICKS_A_DAY)]])
def test_small_and_full_histories(lengths_U: list[int]) -> None:
    begin = END_TICK - 40 * TICKS_A_DAY
    made = make_listens(np.array(lengths_U), begin, make_catalogue(50, 7, begin, seed=1), generator(2))
    np.testing.assert_array_equal(np.bincount(made.user_E), lengths_U)
    assert made.item_E.min() >= 0
    assert made.item_E.max() < 50
    assert made.session_start_S.min() >= begin
    assert {REPEATED, FAVOURITE, DISCOVERED, NOVEL, EXPLORED} >= set(made.kind_E.tolist())


def test_shares_add_up() -> None:
    for shares in (*RUN_KINDS.values(), listeners.GENRE_SHARES):
        assert sum(shares) == pytest.approx(1)
