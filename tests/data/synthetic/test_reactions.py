"""The statistics are of one block with a fixed seed: bounds leave room for another, none for another mechanism."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.synthetic.catalogue import END_TICK, TICKS_A_DAY
from data.synthetic.draws import generator
from data.synthetic.listeners import DISCOVERED, EXPLORED, FAVOURITE, NOVEL, REPEATED, Listens
from data.synthetic.reactions import SESSION_PAUSE_TICKS, Reactions, _ticks, hear
from tests.data.synthetic.helpers import USERS, catalogue, heard, listens


def _timed(sessions: list[tuple[int, int, list[int]]]) -> tuple[Listens, np.ndarray]:
    """Listens of sessions of (user, earliest start, ticks that each listen takes)."""
    sizes = [len(taken) for _, _, taken in sessions]
    first_S = np.cumsum([0, *sizes[:-1]])
    user_S, start_S = (np.array([session[part] for session in sessions], dtype=np.int64) for part in (0, 1))
    nothing = np.zeros(sum(sizes), dtype=np.int64)
    made = Listens(np.repeat(user_S, sizes), nothing, nothing, nothing, first_S, user_S, start_S)
    return made, np.array([ticks for _, _, taken in sessions for ticks in taken], dtype=np.int32)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2_000), st.lists(st.integers(1, 90), min_size=1, max_size=5)),
        min_size=1,
        max_size=12,
    )
)
def test_a_session_begins_when_it_may_and_the_one_before_is_over(sessions: list[tuple[int, int, list[int]]]) -> None:
    sessions.sort(key=lambda session: session[:2])
    expected, free = [], {user: 0 for user, _, _ in sessions}
    for user, earliest, taken in sessions:
        now = max(earliest, free[user])
        for ticks in taken:
            expected.append(now)
            now += ticks
        free[user] = now + SESSION_PAUSE_TICKS
    np.testing.assert_array_equal(_ticks(*_timed(sessions)), expected)


def test_the_next_listen_comes_after_what_was_played() -> None:
    made = heard()
    same = np.diff(made.user_E) == 0
    played_E = made.length_E * made.ratio_E / 100
    assert (np.diff(made.tick_E)[same] > played_E[:-1][same]).all()
    assert made.tick_E.min() >= 0
    assert made.tick_E.max() < END_TICK
    assert len(made.tick_E) > 0.999 * len(listens().item_E)  # hardly any fall after the end


def test_lengths_are_the_items_own() -> None:
    np.testing.assert_array_equal(heard().length_E, catalogue().length_N[heard().item_E])


def test_played_ratios_have_two_modes_and_a_tail_of_rewinds() -> None:
    ratio_E = heard().ratio_E
    skipped = (ratio_E <= 30).mean()
    assert 0.25 < skipped < 0.42
    assert (ratio_E == 100).mean() > 0.9 * (1 - skipped)
    assert 0.01 < (ratio_E > 100).mean() < 0.05
    assert ratio_E.max() <= 200
    assert not ((ratio_E > 30) & (ratio_E < 60)).any()
    assert (ratio_E[ratio_E <= 30] < 10).mean() > 0.4


def test_skips_depend_on_how_the_listen_came_about_on_user_and_item() -> None:
    made = heard()
    kind_E = listens().kind_E[: len(made.ratio_E)]
    assert len(kind_E) == len(listens().kind_E)
    skipped_E = made.ratio_E <= 30
    organic = made.organic_E == 1
    assert skipped_E[~organic].mean() > 1.4 * skipped_E[organic].mean()
    of_kind = [skipped_E[organic & (kind_E == kind)].mean() for kind in (REPEATED, FAVOURITE, DISCOVERED, NOVEL)]
    assert (np.diff(of_kind) > 0.01).all()
    assert skipped_E[kind_E == EXPLORED].mean() > 0.5
    quality_E = catalogue().quality_N[made.item_E]
    assert skipped_E[quality_E > 0.5].mean() > 1.3 * skipped_E[quality_E < -0.5].mean()
    of_user = np.bincount(made.user_E, skipped_E) / np.bincount(made.user_E)
    assert of_user.std() > 0.05


def test_reactions_are_as_frequent_as_in_yambda() -> None:
    count = len(heard().item_E)
    shares = {name: len(reactions.item) / count for name, reactions in heard().reactions.items()}
    assert 0.012 < shares["like"] < 0.028
    assert 0.0012 < shares["dislike"] < 0.0040
    assert 0.03 < shares["unlike"] / shares["like"] < 0.10
    assert 0.0 < shares["undislike"] / shares["dislike"] < 0.12


@pytest.mark.parametrize("name", ["like", "dislike"])
def test_a_user_reacts_to_an_item_once_while_hearing_it(name: str) -> None:
    made, given = heard(), heard().reactions[name]
    assert len({*zip(given.user, given.item, strict=True)}) == len(given.item)
    at = np.searchsorted(made.user_E * END_TICK + made.tick_E, given.user * END_TICK + given.tick, side="right") - 1
    np.testing.assert_array_equal(made.user_E[at], given.user)
    np.testing.assert_array_equal(made.item_E[at], given.item)
    np.testing.assert_array_equal(made.organic_E[at], given.organic)
    assert ((made.ratio_E[at] <= 30) == (name == "dislike")).all()


@pytest.mark.parametrize("name", ["like", "dislike"])
def test_what_is_taken_back_was_given_before(name: str) -> None:
    reactions = heard().reactions
    given = {
        (user, item): tick
        for user, item, tick in zip(reactions[name].user, reactions[name].item, reactions[name].tick, strict=True)
    }
    back = reactions[f"un{name}"]
    assert len({*zip(back.user, back.item, strict=True)}) == len(back.item) > 0
    assert all(tick > given[user, item] for user, item, tick in zip(back.user, back.item, back.tick, strict=True))


def test_reactions_are_in_order_and_within_the_log() -> None:
    for reactions in heard().reactions.values():
        assert (np.diff(reactions.user * END_TICK + reactions.tick) >= 0).all()
        assert reactions.tick.max() < END_TICK


def test_likes_are_drawn_apart_from_listens() -> None:
    alone = hear(listens(), USERS, catalogue(), generator(6), None)
    assert alone.reactions == {}
    for leaf in dataclasses.fields(alone):
        if leaf.name != "reactions":
            np.testing.assert_array_equal(getattr(alone, leaf.name), getattr(heard(), leaf.name))


def test_what_would_begin_after_the_end_is_left_out() -> None:
    late = dataclasses.replace(listens(), session_start_S=listens().session_start_S + 2 * TICKS_A_DAY)
    made, whole = hear(late, USERS, catalogue(), generator(6), generator(7)), heard()
    kept = whole.tick_E + 2 * TICKS_A_DAY < END_TICK
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(made.tick_E, whole.tick_E[kept] + 2 * TICKS_A_DAY)
    np.testing.assert_array_equal(made.item_E, whole.item_E[kept])
    np.testing.assert_array_equal(made.ratio_E, whole.ratio_E[kept])
    for reactions in made.reactions.values():
        assert isinstance(reactions, Reactions)
        assert reactions.tick.max() < END_TICK
