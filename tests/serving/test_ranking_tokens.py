"""Ranking models one candidate at a time behind kept histories, against their own forward over lone windows."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from common.errors import InputError
from data.batches import EventColumns
from data.examples import Tokens
from data.ranking.actions import num_actions
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import FORMS, ActionsConfig
from data.ranking.series_tokens import SeriesRows
from data.ranking.tasks import Labels
from data.sequences import Windows
from data.series.columns import SeriesColumns
from data.series.merge import SeriesMerger
from model.config import AttentionConfig, BiasConfig, HeadsConfig, ModelConfig, Vocabulary
from model.embeddings import build_embeddings
from model.recommender import Recommender
from model.task_heads import TaskHeads
from serving.checkpoints.model import build_sharded
from serving.kv_cache import CachePool, UserCache
from serving.mfalcon import MFalcon
from serving.ranking_tokens import RankingTokens
from serving.user_events import UserEvents
from serving.user_series import UserSeries
from sharding.world import open_world
from tests.serving.test_mfalcon import ARTISTS, CODES, FEATURES, ITEMS, KINDS, LEVELS, close, drawn, fill_sharded

VALUES = SeriesRows(num_actions(KINDS, 3, True), np.array([0, 0, 1, 1, 1, 2]), np.array([-1, -1, 4, 0, 8, -1]))
ACTIONS = ActionsConfig(tasks=["like: event_type is 1", "played: played_ratio / 100"], played_buckets=3)


def make(form: str, kind: str, clock: str, series: int = 0, *, has_played: bool = True) -> Recommender:
    torch.manual_seed(1)
    cfg = ModelConfig(
        width=12,
        heads=2,
        head_dim_qk=6,
        head_dim_v=4,
        qr_remainders=4,
        max_history=9,
        places=True,
        attention=AttentionConfig(kind=kind),
        biases=BiasConfig(position=True, time_reference=clock),
        output=HeadsConfig(kind="actions", actions=dataclasses.replace(ACTIONS, form=form, series=series)),
    )
    rows = num_actions(KINDS, 3, has_played) + (len(VALUES.series_V) if series else 0)
    vocabulary = Vocabulary(LEVELS, CODES, ARTISTS, rows, ITEMS)
    model = Recommender(cfg, build_embeddings(cfg, vocabulary, 0, torch.device("cpu")), vocabulary).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def falcon_of(model: Recommender, *, has_played: bool = True) -> MFalcon:
    rows = VALUES if model.tower.cfg.series else None
    return MFalcon(model, FEATURES, KINDS, tokens=RankingTokens(model, FEATURES, has_played=has_played, series=rows))


def with_played(events: UserEvents, seed: int) -> UserEvents:
    return dataclasses.replace(events, played=np.random.default_rng(seed).integers(0, 130, len(events)))


@torch.no_grad()
def lone(model: Recommender, history: UserEvents, candidate: UserEvents, series: UserSeries | None = None) -> Tensor:
    """The oracle: what `Recommender.predict` says of the last target of a window, [K].

    A store knows how much was played where the events do.
    """
    events = history + candidate
    columns = EventColumns(
        np.array([0, len(events)]), *(None if column is None else np.asarray(column) for column in events.columns)
    )
    at_n = np.arange(len(history))
    actions = model.tower.cfg.output.actions
    of_series: dict[str, Any] = {}
    if series is not None:
        stored = SeriesColumns(
            offsets=np.array([0, len(series)]),
            timestamps=series.timestamps.astype(np.uint32),
            values=series.values.astype(np.uint32),
            names=("a", "b", "c"),
            series_V=VALUES.series_V,
            artists_V=VALUES.artists_V,
            texts=pa.array([], type=pa.string()),
        )
        of_series = {"series": VALUES, "merger": SeriesMerger(stored, actions.series)}
    labels = Labels((), (), events.played is not None)
    maker = RankingBatchMaker(columns, FEATURES, actions, labels, distinct=False, **of_series)
    window = Windows(np.array([0]), np.array([0]), np.array([len(history)]), np.array([0]))
    places = Tokens(at_n, at_n + 1, None, np.array([0, len(history)]), None, windows=window)
    budget = 2 * len(events) + actions.series
    predicted, _ = model.predict(maker.make(places, np.zeros(1, np.int64), budget, 1.0))
    return predicted[-1]


@pytest.mark.parametrize("clock", ["next", "current"])
@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_predictions_of_lone_windows(form: str, kind: str, clock: str) -> None:
    """Histories of several lengths, one beyond the window, read in two pieces."""
    model, time = make(form, kind, clock), 60_000
    falcon = falcon_of(model)
    users = [with_played(drawn(length, length), length) for length in (5, 1, 14, 9)]
    caches = falcon.extend(falcon.prepare([user[:3] for user in users]), [user[3:] for user in users])
    wanted = [with_played(drawn(count, 50 + count), 0) for count in (4, 1, 0, 3)]
    got = falcon.score(caches, wanted, time, microbatch=3)
    for user, own, scores in zip(users, wanted, got, strict=True):
        assert scores.shape == (len(own), 2)
        asked = dataclasses.replace(own, timestamps=np.full(len(own), time))
        for row in range(len(own)):
            close(scores[row], lone(model, user[max(0, len(user) - 9) :], asked[row : row + 1]))


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_a_store_without_played_ratios(form: str) -> None:
    """What is told of them means nothing to it."""
    model, time = make(form, "silu", "next", has_played=False), 60_000
    falcon, user = falcon_of(model, has_played=False), drawn(6, 1)
    wanted = drawn(3, 2)
    asked = dataclasses.replace(wanted, timestamps=np.full(3, time))
    expected = torch.stack([lone(model, user, asked[row : row + 1]) for row in range(3)])
    for own in (user, with_played(user, 1)):
        close(falcon.score(falcon.prepare([own]), [wanted], time)[0], expected)


@pytest.mark.parametrize("form", FORMS[:2])
def test_candidates_of_an_empty_history_see_themselves_alone(form: str) -> None:
    model, time = make(form, "silu", "next"), 60_000
    falcon, wanted = falcon_of(model), dataclasses.replace(drawn(3, 2), timestamps=np.full(3, 60_000))
    rows = []
    with torch.no_grad():
        for row in range(3):
            x_1D, tokens = falcon.tokens.candidates([wanted[row : row + 1]])
            assert model.tower.places is not None
            out_1D = model.tower.encoder(x_1D + model.tower.places(tokens), tokens)
            heads = model.tower.heads
            assert isinstance(heads, TaskHeads)
            rows.append(heads.predictions(heads(torch.nn.functional.normalize(out_1D, dim=1))))
    expected = torch.cat(rows)
    caches = falcon.prepare([UserEvents.none(), with_played(drawn(4, 1), 1)])
    close(falcon.score(caches, [wanted, wanted], time)[0], expected)
    assert (falcon.score(caches, [wanted, wanted], time)[1] - expected).abs().amax() > 1e-3


def test_nobody_asks() -> None:
    for form in FORMS:
        falcon = falcon_of(make(form, "silu", "next"))
        assert falcon.score([], [], 1) == falcon.prepare([]) == []
        assert [tuple(one.shape) for one in falcon.score(falcon.prepare([drawn(3, 1)]), [[]], 9_999)] == [(0, 2)]


def test_tables_sharded_over_one_rank_serve() -> None:
    model, user = make("merged", "silu", "next"), with_played(drawn(6, 2), 1)
    with open_world() as world:
        built = build_sharded(model.tower.cfg, model.vocabulary, world, seed=0)
        fill_sharded(built.module, model)
        falcons = [falcon_of(model), falcon_of(built.module.eval())]
        want, got = (falcon.score(falcon.prepare([user]), [[1, 2]], 60_000)[0] for falcon in falcons)
        close(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_of_forty_years_ago_is_as_old_as_in_training(form: str) -> None:
    model, time = make(form, "silu", "next", 5), 2_000_900_000
    falcon, user = falcon_of(model), with_played(drawn(6, 2, start=2_000_000_000), 1)
    told, asked = UserSeries.of([0, 5], [0, 10]), UserEvents.of([3], time, played=0)
    (got,) = falcon.score(falcon.prepare([user], [told]), [asked], time)
    close(got[0], lone(model, user, asked, told))


def test_a_pool_whose_series_are_not_those_told_begins_anew() -> None:
    falcon, pool = falcon_of(make("merged", "silu", "next", 5)), CachePool(1 << 20)
    user, asked = with_played(drawn(6, 2), 1), [[1, 2]]
    first, second = UserSeries.of([0], [500]), UserSeries.of([1], [500])
    falcon.recall(pool, ["u"], [user], [first])
    (got,) = falcon.score(falcon.recall(pool, ["u"], [user], [second]), asked, 60_000)
    (want,) = falcon.score(falcon.prepare([user], [second]), asked, 60_000)
    assert torch.equal(got, want)


def drawn_series(random: np.random.Generator, last: int, count: int) -> UserSeries:
    """Entries between some time before the first event and some after the last; no value twice in a second."""
    drawn_s = zip(random.integers(0, last, count).tolist(), random.integers(0, 6, count).tolist(), strict=True)
    places = sorted(drawn_s)
    by_series = {(time, int(VALUES.series_V[value])): (time, value) for time, value in places}
    kept = sorted(by_series.values())
    return UserSeries.of([value for _, value in kept], [time for time, _ in kept])


@pytest.mark.parametrize("limit", [2, 30])
@pytest.mark.parametrize("clock", ["next", "current"])
@pytest.mark.parametrize("form", FORMS)
def test_series_are_read_as_in_a_lone_window(form: str, clock: str, limit: int) -> None:
    """In two pieces of events and of entries, of which some come late, or alone, or after the newest event."""
    model, random = make(form, "silu", clock, limit), np.random.default_rng(limit)
    falcon, pool = falcon_of(model), CachePool(1 << 24)
    users = [with_played(drawn(length, length), length) for length in (5, 1, 14, 9, 8, 3)]
    time = max(int(user.timestamps[-1]) for user in users) + 900
    series = [drawn_series(random, time + 300, count) for count in (7, 3, 12, 0, 20, 9)]
    told = [[own[: len(own) // 2], own[len(own) // 2 :]] for own in series]
    early = [user[: max(1, len(user) - 2)] if row % 2 else user for row, user in enumerate(users)]
    caches = falcon.prepare(early, [first for first, _ in told])
    before = falcon.score(caches, [[3, 8]] * 6, time)
    nothing = UserEvents.none()
    caches = falcon.extend(caches, [nothing] * 6, [second for _, second in told])
    caches = falcon.extend(caches, [user[len(own) :] for user, own in zip(users, early, strict=True)])
    wanted = [with_played(drawn(count, 50 + count), 0) for count in (4, 1, 0, 3, 2, 2)]
    got = falcon.score(caches, wanted, time, microbatch=3)
    falcon.recall(pool, range(6), early, [first for first, _ in told])
    recalled = falcon.recall(pool, range(6), users, series)
    again = falcon.score(recalled, wanted, time)
    for user, own, scores, same, entries in zip(users, wanted, got, again, series, strict=True):
        asked = dataclasses.replace(own, timestamps=np.full(len(own), time))
        for row in range(len(own)):
            expected = lone(model, user[max(0, len(user) - 9) :], asked[row : row + 1], entries)
            close(scores[row], expected)
            close(same[row], expected)
    for user, scores, (entries, _) in zip(early, before, told, strict=True):
        asked = UserEvents.of([3], [time], played=0)
        close(scores[0], lone(model, user[max(0, len(user) - 9) :], asked, entries))


def test_the_window_is_read_anew_only_where_what_was_read_is_not_so_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    falcon, user = falcon_of(make("merged", "silu", "next", 4)), with_played(drawn(8, 2), 1)
    times = np.arange(8) * 10 + 100
    user = dataclasses.replace(user, timestamps=times)
    read: list[tuple[int, int]] = []
    history = falcon.tokens.history

    def counted(users: Any, next_times: Any, placed: Any = None) -> Any:
        read.append((sum(map(len, users)), sum(map(len, placed))))
        return history(users, next_times, placed)

    monkeypatch.setattr(falcon.tokens, "history", counted)

    def reads(cache: UserCache, events: UserEvents, series: UserSeries) -> tuple[UserCache, list[tuple[int, int]]]:
        read.clear()
        (grown,) = falcon.extend([cache], [events], [series])
        return grown, list(read)

    (cache,) = falcon.prepare([user[:4]], [UserSeries.of([0, 5], [50, 105])])
    assert read == [(3, 2)]
    none = UserEvents.none()
    cache, found = reads(cache, none, UserSeries.of([1], [135]))  # after the newest event
    assert found == [(0, 0)]
    cache, found = reads(cache, user[4:6], UserSeries.none())
    assert found == [(2, 1)]
    late, found = reads(
        cache, none, UserSeries.of([4], [136])
    )  # in front of an event that was read; and it is one more
    assert found == [(5, 4)]
    assert late.placed.values.tolist() == [0, 5, 1, 4]
    later, found = reads(late, none, UserSeries.of([0], [155]))  # one more than there is room for
    assert found == [(0, 0)]
    falcon.score([later], [[1]], 155)
    assert read[1:] == [(1, 0)]
    assert later.placed.values.tolist() == [0, 5, 1, 4]


def test_users_of_a_batch_are_made_ready_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done once a user is done by the thousand: events are joined, and series merged, once a batch."""
    falcon, users = falcon_of(make("merged", "silu", "next", 4)), [with_played(drawn(5, row), row) for row in range(7)]
    caches, calls = falcon.prepare(users, [UserSeries.of([0, 5], [50, 1_100])] * 7), []
    for name in ("serving.user_series.SeriesMerger", "serving.ranking_tokens.joined"):
        monkeypatch.setattr(name, counting(calls, name))
    falcon.score(caches, [[1, 2]] * 7, 60_000)
    assert sorted(calls) == ["serving.ranking_tokens.joined"] * 2 + ["serving.user_series.SeriesMerger"]


def counting(calls: list[str], name: str) -> Callable[..., Any]:
    """What stands there, noting each call."""
    module, attribute = name.rsplit(".", 1)
    counted = getattr(importlib.import_module(module), attribute)

    def call(*args: Any) -> Any:
        calls.append(name)
        return counted(*args)

    return call


def test_what_is_known_later_is_not_seen_and_nothing_is_forgotten() -> None:
    model = make("merged", "silu", "next", 5)
    falcon, user = falcon_of(model), with_played(drawn(6, 2), 1)
    last = int(user.timestamps[-1])
    asked = [[1, 2]]
    without = falcon.score(falcon.prepare([user], [UserSeries.none()]), asked, last + 50)
    later = falcon.prepare([user], [UserSeries.of([2], [last + 51])])
    assert torch.equal(falcon.score(later, asked, last + 50)[0], without[0])
    assert not torch.allclose(falcon.score(later, asked, last + 51)[0], without[0])


def test_faults_of_series() -> None:
    reads, plain, user = make("merged", "silu", "next", 5), make("merged", "silu", "next"), drawn(4, 1)
    with pytest.raises(InputError, match=r"actions\.series=5, and rows of the values of slow series are not given"):
        RankingTokens(reads, FEATURES, has_played=True)
    with pytest.raises(InputError, match=r"actions\.series=0, and rows of the values of slow series are given"):
        RankingTokens(plain, FEATURES, has_played=True, series=VALUES)
    with pytest.raises(InputError, match=r"actions\.series=5, and series of the users are not given"):
        falcon_of(reads).prepare([user])
    with pytest.raises(InputError, match=r"actions\.series=0, and series of the users are given"):
        falcon_of(plain).prepare([user], [UserSeries.none()])
    with pytest.raises(InputError, match=r"actions\.series=0, and series of the users are given"):
        falcon_of(plain).extend(falcon_of(plain).prepare([user]), [user[:0]], [UserSeries.of([1], [1])])
    falcon = falcon_of(reads)
    caches = falcon.prepare([user, user], [UserSeries.of([1], [70]), UserSeries.none()])
    with pytest.raises(InputError, match="value 6 is none of the 6") as error:
        falcon.extend(caches, [user[:0]] * 2, [UserSeries.of([1], [69]), UserSeries.of([6], [1])])
    assert "at 69 s, before the newest known one at 70 s" in error.value.faults[0]
    for news in (UserSeries.of([0, 1], [90, 90]), UserSeries.of([0], [70])):
        with pytest.raises(InputError, match=f"series 0 has the values 0 and 1 at {news.timestamps[0]} s"):
            falcon.extend(caches[:1], [user[:0]], [news])
    falcon.extend(caches[:1], [user[:0]], [UserSeries.of([2, 5], [70, 70])])  # of other series
    for values, times, told in (
        ([1.5], [1], "`values` are of type"),
        ([1, 2], [1], "2 values and 1"),
        ([1, 2], [2, 1], "order of time"),
    ):
        with pytest.raises(InputError, match=told):
            UserSeries.of(values, times)


def test_what_a_form_does_not_have_is_told() -> None:
    model = make("interactions", "silu", "next")
    falcon = falcon_of(model)
    caches = falcon.prepare([drawn(4, 1)])
    with pytest.raises(InputError, match="no token of this model"):
        falcon.states(caches, [[1]], 60_000)
    with pytest.raises(InputError, match="has no events"):
        falcon.score(falcon.prepare([UserEvents.none()]), [[1]], 60_000)
