"""M-FALCON: many candidates for a user whose history is read once (HSTU paper, §3.4, Appendix H, Algorithm 1).

    falcon = MFalcon(model, features, event_types)
    caches = falcon.prepare(histories)                      # the history through all blocks, keys and values kept
    scores = falcon.score(caches, candidates, times)        # candidates alone, a microbatch at a time
    caches = falcon.extend(caches, new_events)              # the new events alone

Scores are those of a forward over the history and one candidate, for each candidate. They do not depend on the
microbatch, nor on whether a cache was prepared from all events or extended, nor on the other users and candidates, but
for the rounding of sums.

Time. With `biases.time_reference=next` a token's clock is when the next one comes: an event is read for good when its
follower is known, and the newest one anew at each request, with the request's time.

Slow series. A model that reads them (`actions.series`) is given each user's whole `UserSeries` by `prepare`, and what
is new by `extend`, with events or alone. What stands in front of events that were read is read for good, what is known
since then anew at each request. An entry that comes late stands in front of events that were read: then the window is
read anew.

Overflow. A window has `cfg.max_history` events. Beyond it the newest of them are read anew, since every state that is
kept knows of the events that have left: exactly what a window cut there gives, at the price of a `prepare`.

Threads. A request puts what it reads anew behind what a cache keeps, in the same memory: a cache, and those that it was
extended to, are asked and extended by one thread at a time. Different users' caches do not meet.

Shapes: B users · M candidates of all users · D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.errors import InputError
from data.batches import ItemFeatures
from model.incremental import Incremental, newest_waits
from model.layers import normalised
from model.past import Past
from model.recommender import Recommender
from serving.kv_cache import CachePool, UserCache, model_fingerprint
from serving.reader_checks import check_reader
from serving.request_checks import check_catalogue, check_follows, check_model, request_times, same_number
from serving.token_makers import RetrievalTokens, TokenMaker
from serving.user_events import Ints, UserEvents
from serving.user_series import PlacedSeries, UserSeries, check_series, place

MICROBATCH = 512
"""Candidates at once: many enough for matrix products, few enough that their vectors stay in the cache."""

_READ_TOGETHER = 1 << 14
"""Events of several users that are read in one forward; a longer history is read alone."""

_SAMPLED_ITEMS = 1 << 10
"""Items by which a model's tables are told from others."""


class MFalcon:
    """Scores candidates behind histories that are kept; a cache is asked by one thread at a time.

    Args:
        model: in evaluation mode: unsharded, or the module inside a DistributedModelParallel of one rank.
        features: of the items of the store.
        event_types: how many kinds of events the store has that the model was trained on.
        tokens: how this model reads events and candidates of these items: `RankingTokens` of one that predicts actions;
            where it is not given, `RetrievalTokens`.

    Raises:
        InputError: model, items, event types and tokens do not fit one another.
    """

    def __init__(
        self,
        model: Recommender,
        features: ItemFeatures,
        event_types: int,
        *,
        tokens: TokenMaker | None = None,
    ) -> None:
        """Makes the model's fingerprint, once."""
        self.cfg, self.event_types, self.num_items = model.tower.cfg, event_types, len(features.codes_NC)
        self.tokens: TokenMaker = tokens if tokens is not None else RetrievalTokens(model, features)
        check_reader(self.tokens, model, features, event_types)
        self.reader = Incremental(model.tower)
        self.fingerprint = model_fingerprint(model, features, self._sample())
        # What is known of series since the newest event stands behind it, in front of a candidate.
        self._waits = int(newest_waits(self.cfg) or self.cfg.series > 0)
        # Of any user: who continues a past without memory is given some.
        self._nothing = UserCache(self.fingerprint, UserEvents.none(), 0, self.reader.empty_past(), 0)

    def _sample(self) -> Tensor:
        """Vectors of events of some items, of every event type: what the tables say."""
        at_n = np.arange(min(_SAMPLED_ITEMS, self.num_items))
        events = UserEvents.of(at_n * self.num_items // max(len(at_n), 1), 0, at_n % self.event_types)
        x_LD: Tensor = self.tokens.history([events], np.zeros(1, dtype=np.int64))[0]
        return x_LD

    # ── caches ──────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, histories: Sequence[UserEvents], series: Sequence[UserSeries] | None = None) -> list[UserCache]:
        """Read the histories of some users, of any lengths; of those longer than a window the newest events.

        Args:
            histories: of each user, all events or the newest.
            series: of each user, all entries; needed where the model reads slow series, and only there.

        Raises:
            InputError: an item, event type or value outside of the catalogue; series not given, or given in vain.
        """
        self._check_series_given(series)
        return self.extend([self._nothing] * len(histories), histories, series)

    def extend(
        self,
        caches: Sequence[UserCache],
        events: Sequence[UserEvents],
        series: Sequence[UserSeries] | None = None,
    ) -> list[UserCache]:
        """Caches of longer histories; those given stay as they are. No events and entries give the same cache.

        Args:
            events: new ones of each user.
            series: new entries of each user; None: of nobody.

        Raises:
            InputError: a cache of another model, events or entries earlier than those of the cache, an item, event type
                or value outside of the catalogue; series given in vain.
        """
        same_number(caches, events, "events")
        check_model(caches, self.fingerprint)
        check_catalogue(events, "event", self.num_items, self.event_types)
        check_follows(caches, [own.timestamps[:1] for own in events], "its first new event")
        grown = self._with_series(caches, series)
        changed = [row for row, own in enumerate(events) if len(own) or grown[row] is not caches[row]]
        for row in changed:
            grown[row] = self._appended(grown[row], events[row])
        for row, cache in zip(changed, self._still_true([grown[row] for row in changed]), strict=True):
            grown[row] = cache
        changed = [row for row in changed if len(grown[row].events)]
        # Those of whom nothing is read go through the attention of training, together.
        unread = [row for row in changed if not grown[row].past.length]
        begun = [row for row in changed if grown[row].past.length]
        for rows in (unread, begun):
            for together in _groups(rows, [len(grown[row].events) - grown[row].read for row in rows]):
                for row, cache in zip(together, self._read([grown[row] for row in together]), strict=True):
                    grown[row] = cache
        return grown

    def recall(
        self,
        pool: CachePool,
        users: Sequence[object],
        histories: Sequence[UserEvents],
        series: Sequence[UserSeries] | None = None,
    ) -> list[UserCache]:
        """The caches of users whose whole histories, and series, are given, with as little reading as the pool allows.

        A cache that the history does not begin with, as after an event was taken back, or of another model, counts as
        a hit of the pool and is replaced.
        """
        same_number(users, histories, "histories")
        self._check_series_given(series)
        told = [UserSeries.none()] * len(users) if series is None else series
        same_number(users, told, "series")
        held = [pool.get(user) for user in users]
        fits = [
            cache is not None and cache.fingerprint == self.fingerprint and cache.belongs_before(history, own)
            for cache, history, own in zip(held, histories, told, strict=True)
        ]
        start = [cache if fit and cache else self._nothing for cache, fit in zip(held, fits, strict=True)]
        news = [history[one.dropped + len(one.events) :] for one, history in zip(start, histories, strict=True)]
        new_series = [own[len(one.series) :] for one, own in zip(start, told, strict=True)]
        caches = self.extend(start, news, None if series is None else new_series)
        for user, cache in zip(users, caches, strict=True):
            pool.put(user, cache)
        return caches

    def _appended(self, cache: UserCache, events: UserEvents) -> UserCache:
        """With events that are not read yet; begun anew where they do not fit the window."""
        surplus = len(cache.events) + len(events) - self.cfg.max_history
        if surplus <= 0:
            return dataclasses.replace(cache, events=cache.events + events)
        # Cut before they are joined: a part of the whole would hold all of it in memory.
        window = cache.events[surplus:] + events[max(0, surplus - len(cache.events)) :]
        return dataclasses.replace(self._nothing, events=window, dropped=cache.dropped + surplus, series=cache.series)

    def _with_series(self, caches: Sequence[UserCache], series: Sequence[UserSeries] | None) -> list[UserCache]:
        """With entries that are not read yet; of those who have none, the very caches."""
        if series is None:
            return list(caches)
        self._check_series_given(series)
        assert self.tokens.series is not None
        same_number(caches, series, "series")
        check_series(self.tokens.series, [cache.series for cache in caches], series)
        return [
            dataclasses.replace(cache, series=cache.series + own) if len(own) else cache
            for cache, own in zip(caches, series, strict=True)
        ]

    def _placed(self, caches: Sequence[UserCache], times_B: Ints) -> list[PlacedSeries]:
        """What of the series enters each window, if what follows it happens at its time."""
        rows = self.tokens.series
        if rows is None:
            return [cache.placed for cache in caches]
        series, times = [cache.series for cache in caches], [cache.events.timestamps for cache in caches]
        return place(series, times, times_B, rows, self.cfg.series, up_to_next=self.tokens.appends)

    def _still_true(self, caches: Sequence[UserCache]) -> list[UserCache]:
        """The caches; in the place of one that read other entries than its window has now, one that read nothing."""
        found = list(caches)
        if self.tokens.series is None:
            return found
        read = [row for row, cache in enumerate(caches) if cache.read]
        newest = np.array([caches[row].events.timestamps[-1] for row in read], dtype=np.int64)
        for row, placed in zip(read, self._placed([caches[row] for row in read], newest), strict=True):
            if not placed.between(0, caches[row].read).same(caches[row].placed):
                found[row] = dataclasses.replace(
                    self._nothing, events=caches[row].events, dropped=caches[row].dropped, series=caches[row].series
                )
        return found

    def _read(self, caches: list[UserCache]) -> list[UserCache]:
        """Read for good what of the events can be."""
        stops = [len(cache.events) - self._waits for cache in caches]
        runs = [cache.events[cache.read : stop] for cache, stop in zip(caches, stops, strict=True)]
        next_times_B = np.array([cache.events.timestamps[-1] for cache in caches], dtype=np.int64)
        placed = self._placed(caches, next_times_B)
        entries = [one.between(cache.read, stop) for one, cache, stop in zip(placed, caches, stops, strict=True)]
        wanted = 1 - self._waits
        pasts = [cache.past for cache in caches]
        embedded = self.tokens.history(runs, next_times_B, entries if self.cfg.series else None)
        out, pasts = self.reader.encode_more(*embedded, pasts, wanted=wanted)
        states: Sequence[Tensor | None] = [None] * len(caches)
        if wanted:
            states = [state_D.clone() for state_D in normalised(out)]  # none holds those of others
        return [
            dataclasses.replace(cache, past=past, read=stop, newest_D=state, placed=one.between(0, stop))
            for cache, past, stop, state, one in zip(caches, pasts, stops, states, placed, strict=True)
        ]

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    def score(
        self,
        caches: Sequence[UserCache],
        candidates: Sequence[npt.ArrayLike | UserEvents],
        times: npt.ArrayLike,
        microbatch: int = MICROBATCH,
    ) -> list[Tensor]:
        """Each user's candidates as the model scores them at the time of the request.

        Args:
            caches: of the users.
            candidates: of each user, items, or `UserEvents` where a ranking model knows more of them.
            times: seconds, when each asks; a number for all, or one each.
            microbatch: candidates that go through the model at once.

        Returns:
            Of each user float32 [m]: of retrieval, the log-probability that the item is next, -inf of an item without
            codes where the output are codes; of ranking what its tasks predict, [m, tasks].

        Raises:
            InputError: a cache of another model, a candidate outside of the catalogue, a request before the newest
                event, a microbatch below 1; a user without events, where no candidate is a token.
        """
        asked, times_B = self._checked(caches, candidates, times, microbatch)
        if self.tokens.appends:
            states_XD = self._states(caches, asked, times_B, microbatch)
        else:
            _check_not_empty(caches)
            states_XD = self._newest(caches, times_B)[0]
        found = self.tokens.scores(states_XD, asked)
        return list(found.split([len(own) for own in asked]))

    def states(
        self,
        caches: Sequence[UserCache],
        candidates: Sequence[npt.ArrayLike | UserEvents],
        times: npt.ArrayLike,
        microbatch: int = MICROBATCH,
    ) -> list[Tensor]:
        """The model's state at each candidate, were it the next token: L2-normalised float32 [m, D] of each user.

        Of a user without events a candidate sees itself alone. Arguments and errors as of `score`.
        """
        asked, times_B = self._checked(caches, candidates, times, microbatch)
        states_MD = self._states(caches, asked, times_B, microbatch)
        return list(states_MD.split([len(own) for own in asked]))

    def newest(self, caches: Sequence[UserCache], times: npt.ArrayLike) -> Tensor:
        """The state from which a retrieval model says what is next, as `serving.engines` take it: [B, D].

        Raises:
            InputError: as `score`.
        """
        _, times_B = self._checked(caches, [[]] * len(caches), times, 1)
        _check_not_empty(caches)
        return self._newest(caches, times_B)[0]

    def _states(self, caches: Sequence[UserCache], asked: list[UserEvents], times_B: Ints, microbatch: int) -> Tensor:
        pasts = self._newest(caches, times_B)[1]
        x_MD, tokens = self.tokens.candidates(asked)
        return normalised(self.reader.encode_candidates(x_MD, tokens, pasts, microbatch))

    def _newest(self, caches: Sequence[UserCache], times_B: Ints) -> tuple[Tensor, list[Past]]:
        """States [b, D] of the newest tokens of those who have any, and all pasts with those in them."""
        if not self._waits:
            states = [cache.newest_D for cache in caches if cache.newest_D is not None]
            width = self.cfg.width
            joined = torch.stack(states) if states else torch.zeros(0, width, device=self.reader.device)
            return joined, [cache.past for cache in caches]
        waiting = [cache.events[cache.read :] for cache in caches]
        entries = [
            placed.between(cache.read, len(cache.events) + 1)
            for cache, placed in zip(caches, self._placed(caches, times_B), strict=True)
        ]
        x_LD, tokens = self.tokens.history(waiting, times_B, entries if self.cfg.series else None)
        pasts = [cache.past for cache in caches]
        out_BD, pasts = self.reader.encode_more(x_LD, tokens, pasts, wanted=1, keep=False)
        return normalised(out_BD), pasts

    # ── what is refused ─────────────────────────────────────────────────────────────────────────────────────

    def _checked(
        self,
        caches: Sequence[UserCache],
        candidates: Sequence[npt.ArrayLike | UserEvents],
        times: npt.ArrayLike,
        microbatch: int,
    ) -> tuple[list[UserEvents], Ints]:
        """Candidates with the times of the requests, and these times."""
        same_number(caches, candidates, "candidates")
        if microbatch < 1:
            raise InputError(f"microbatch={microbatch}: so many candidates cannot go through at once: give 1 or more")
        check_model(caches, self.fingerprint)
        times_B = request_times(times, caches)
        asked = []
        for own, time in zip(candidates, times_B, strict=True):
            if isinstance(own, UserEvents):
                asked.append(dataclasses.replace(own, timestamps=np.full(len(own), time)))
            else:
                asked.append(UserEvents.of(own, time))
        check_catalogue(asked, "candidate", self.num_items, self.event_types)
        return asked, times_B

    def _check_series_given(self, series: Sequence[UserSeries] | None) -> None:
        if (series is not None) != (self.tokens.series is not None):
            raise InputError(
                f"the model has actions.series={self.cfg.series}, and series of the users are "
                f"{'not given' if series is None else 'given'}: give `series`, one `UserSeries` a user, to a model "
                f"that reads them, and to no other"
            )


def _check_not_empty(caches: Sequence[UserCache]) -> None:
    without = [row for row, cache in enumerate(caches) if not len(cache.events)]
    if without:
        raise InputError(
            f"user {without[0]} of the batch has no events: this model scores items by the state of the newest event; "
            f"give a history of one event at least, or use a list of what is popular"
        )


def _groups(rows: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Runs of rows that are read together."""
    group: list[int] = []
    total = 0
    for row, size in zip(rows, sizes, strict=True):
        if group and total + size > _READ_TOGETHER:
            yield group
            group, total = [], 0
        group.append(row)
        total += size
    if group:
        yield group
