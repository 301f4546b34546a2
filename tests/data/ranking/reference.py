"""Tokens of ranking models, event by event, straight from the definition: the oracle of `data.ranking.batches`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data import schema
from data.batches import FEATURE_KEYS, Batch, EventColumns
from data.event_store import EventStore
from data.examples import Examples
from data.item_records import ItemFeatures
from data.loader import event_columns
from data.ranking import series_tokens
from data.ranking.actions import num_actions
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import ActionsConfig
from data.ranking.series_tokens import SeriesRows
from data.ranking.tasks import Labels, parse_tasks
from data.series.columns import SeriesColumns
from data.series.merge import SeriesMerger
from tests.data.helpers import CODES, token_bags, token_items

PLAYED_TASKS = ["half: played_ratio >= 50", "liked: event_type is like, dislike", "share: played_ratio / 100"]
TYPE_TASKS = ["liked: event_type is like, dislike"]


@dataclass
class Token:
    """One token; the defaults are padding."""

    item: int | None = None
    action: int | None = None
    time: int = 0
    request_time: int = 0
    duration: int = -1
    organic: int = 2
    target: int = -1
    labels: Any = None
    alone: bool = False
    candidate: int | None = None
    asked_event: int | None = None
    value: int | None = None


@dataclass
class World:
    """A store's columns, and what is asked of them."""

    columns: EventColumns
    features: ItemFeatures
    cfg: ActionsConfig
    num_artists: int
    series: SeriesColumns | None = None

    @property
    def has_played(self) -> bool:
        return self.columns.played is not None

    def maker(self, distinct: bool = True) -> RankingBatchMaker:
        labels = Labels(parse_tasks(self.cfg.tasks), ("listen", "like", "dislike"), self.has_played)
        return RankingBatchMaker(self.columns, self.features, self.cfg, labels, distinct=distinct, **self._of_series())

    def _of_series(self) -> dict[str, Any]:
        if self.series is None:
            return {}
        return {
            "series": SeriesRows.of(self.series, self.num_actions),
            "merger": SeriesMerger(self.series, self.cfg.series),
        }

    @property
    def num_actions(self) -> int:
        return num_actions(3, self.cfg.played_buckets, self.has_played)


def world_of(
    store: EventStore,
    features: ItemFeatures,
    form: str,
    played_buckets: int,
    seed: int,
    series: SeriesColumns | None = None,
    limit: int = 0,
) -> World:
    """A store with played ratios of every kind, where it has any."""
    columns = event_columns(store)
    if columns.played is not None:
        ratios = np.array([0, 1, 33, 34, 49, 50, 99, 100, 101, 400, schema.MISSING_PLAYED_RATIO], dtype=np.uint16)
        columns = dataclasses.replace(columns, played=np.random.default_rng(seed).choice(ratios, len(columns.items)))
    tasks = PLAYED_TASKS if columns.played is not None else TYPE_TASKS
    cfg = ActionsConfig(form=form, tasks=list(tasks), played_buckets=played_buckets, series=limit)
    return World(columns, features, cfg, store.num_artists, series)


def played_of(columns: EventColumns, event: int) -> int | None:
    """Percent; None where it is not known."""
    if columns.played is None or columns.played[event] == schema.MISSING_PLAYED_RATIO:
        return None
    return int(columns.played[event])


def action_of(world: World, event: int) -> int:
    """Event type and bucket, counted out."""
    event_type, buckets = int(world.columns.event_types[event]), world.cfg.played_buckets
    if not world.has_played or buckets == 0:
        return event_type
    played = played_of(world.columns, event)
    if played is None:
        bucket = buckets + 1
    elif played > 100:
        bucket = buckets
    else:
        bucket = next(edge for edge in range(buckets) if played * buckets < 100 * (edge + 1) or edge == buckets - 1)
    return event_type * (buckets + 2) + bucket


def labels_of(world: World, event: int) -> list[float]:
    liked = float(world.columns.event_types[event] in (1, 2))
    if not world.has_played:
        return [liked]
    played = played_of(world.columns, event)
    return [math.nan if played is None else float(played >= 50), liked, math.nan if played is None else played / 100]


def sequence_of(examples: Examples, window: int) -> tuple[list[int], set[int]]:
    """The events of a window, its last target included, and those whose action is asked for."""
    index = np.array([window])
    whole = dataclasses.replace(examples, kept_W=examples.windows.lengths).tokens(index)
    skipped = int(examples.windows.learn_from[window] - examples.windows.start[window])
    kept = examples.tokens(index).at_n.tolist()
    last = int(whole.next_at_n[-1])
    asked = {event for place, event in enumerate(whole.at_n.tolist()) if place > skipped and event in kept[1:]}
    return [*kept, last], asked | {last}


def entries_of(world: World, examples: Examples, window: int) -> list[list[tuple[int, int]]]:
    """(time, value) of what stands in front of each event of a window's sequence, key times included."""
    events, _ = sequence_of(examples, window)
    series, windows, times = world.series, examples.windows, world.columns.timestamps
    placed: list[list[tuple[int, int]]] = [[] for _ in events]
    if series is None:
        return placed
    user = int(windows.user[window])
    at = range(series.offsets[user], series.offsets[user + 1])
    entries = [(int(series.timestamps[place]), int(series.values[place])) for place in at]
    begin = int(world.columns.offsets[user])
    first, last = int(times[begin + windows.start[window]]), int(times[events[-1]])
    if windows.are_requests or world.cfg.form == "interactions":
        last = int(times[begin + windows.stop[window] - 1])
    carried = {int(series.series_V[value]): (time, value) for time, value in entries if time <= first}
    entering = [entry for entry in entries if entry in carried.values() or first < entry[0] <= last]
    for time, value in entering[: world.cfg.series]:
        place = next(place for place, event in enumerate(events) if times[event] >= time)
        placed[place].append((max(time, first - series_tokens.OLDEST), value))
    return placed


def reference_tokens(world: World, examples: Examples, window: int) -> list[Token]:
    """The tokens of one window."""
    columns = world.columns
    events, asked = sequence_of(examples, window)

    def shown(event: int) -> dict[str, Any]:
        context = {"item": int(columns.items[event]), "time": int(columns.timestamps[event])}
        if columns.durations is not None and columns.durations[event] != schema.MISSING_DURATION:
            context["duration"] = int(columns.durations[event])
        if columns.organic is not None:
            context["organic"] = int(columns.organic[event])
        return context

    def answer(event: int) -> dict[str, Any]:
        if event not in asked:
            return {}
        return {"target": int(columns.items[event]), "labels": labels_of(world, event), "asked_event": event}

    tokens = []
    placed = entries_of(world, examples, window)
    for place, event in enumerate(events):
        time = int(columns.timestamps[event])
        tokens += [Token(time=known, request_time=time, value=value) for known, value in placed[place]]
        following = events[place + 1] if place + 1 < len(events) else None
        done = {} if following is None else {"action": action_of(world, event)}
        later = {} if following is None else {"request_time": int(columns.timestamps[following])}
        if world.cfg.form == "interleaved":
            tokens.append(Token(**shown(event), request_time=time, **answer(event)))
            if following is not None:
                tokens.append(Token(time=time, **done, **later))
        elif world.cfg.form == "merged":
            if event in asked:
                tokens.append(Token(**shown(event), request_time=time, alone=True, **answer(event)))
            if following is not None:
                tokens.append(Token(**shown(event), **done, **later))
        elif following is not None:
            token = Token(**shown(event), **done, **later, **answer(following))
            if following in asked:
                token.candidate = int(columns.items[following])
            tokens.append(token)
    return tokens


def bags_of_item(world: World, item: int | None) -> list[list[int]]:
    """`rq`, artist quotients, artist remainders."""
    if item is None:
        return [[], [], []]
    features, remainders = world.features, world.features.qr_remainders
    codes = features.codes_NC[item].tolist()
    artists = features.artist_values[features.artist_offsets[item] : features.artist_offsets[item + 1]].tolist()
    return [
        [level * CODES + code for level, code in enumerate(codes)],
        [artist // remainders for artist in artists] or [-(-world.num_artists // remainders)],
        [artist % remainders for artist in artists],
    ]


def bags_of(world: World, token: Token) -> list[list[int]]:
    """Of the four features."""
    if token.value is not None:
        assert world.series is not None
        artist, remainders = int(world.series.artists_V[token.value]), world.features.qr_remainders
        of_artist = [[artist // remainders], [artist % remainders]] if artist >= 0 else [[], []]
        return [[], *of_artist, [world.num_actions + token.value]]
    return [*bags_of_item(world, token.item), [] if token.action is None else [token.action]]


def found_bags(batch: Batch) -> list[list[list[int]]]:
    """The bags of each token of a batch, in the order of FEATURE_KEYS."""
    by_key = [token_bags(batch, key) for key in FEATURE_KEYS]
    return [list(bags) for bags in zip(*by_key, strict=True)]


def check_batch(world: World, batch: Batch, tokens: list[Token], budget: int) -> None:
    """Whole tensors against the reference's tokens."""
    tasks = len(world.cfg.tasks)
    tokens = tokens + [Token()] * (budget - len(tokens))
    assert found_bags(batch) == [bags_of(world, token) for token in tokens]
    assert token_items(batch) == [token.item for token in tokens]
    columns = {
        "timestamps_L": [token.time for token in tokens],
        "request_times_L": [token.request_time for token in tokens],
        "durations_L": [token.duration for token in tokens],
        "organic_L": [token.organic for token in tokens],
        "target_items_L": [token.target for token in tokens],
    }
    for name, values in columns.items():
        found = getattr(batch, name)
        assert (found.dtype, found.tolist()) == (torch.int64, values), name
    assert (batch.target_codes_LC.shape, batch.target_codes_LC.dtype) == ((budget, 0), torch.int64)
    labels = torch.tensor([token.labels or [math.nan] * tasks for token in tokens], dtype=torch.float32)
    assert batch.labels_LT is not None
    assert batch.labels_LT.dtype == torch.float32
    assert torch.equal(batch.labels_LT.nan_to_num(-1), labels.nan_to_num(-1))
    if world.cfg.form == "merged":
        assert batch.alone_L is not None
        assert (batch.alone_L.dtype, batch.alone_L.tolist()) == (torch.bool, [token.alone for token in tokens])
    else:
        assert batch.alone_L is None
    if world.cfg.form == "interactions":
        assert batch.candidate_rows_L is not None
        candidates = dataclasses.replace(batch, rows_L=batch.candidate_rows_L)
        wanted = [Token(item=token.candidate) for token in tokens]
        assert found_bags(candidates) == [bags_of(world, token) for token in wanted]
        assert token_items(candidates) == [token.candidate for token in tokens]
        nothing = [
            rows for rows, token in zip(batch.candidate_rows_L.tolist(), tokens, strict=True) if not token.labels
        ]
        assert set(nothing) <= {len(batch.item_rows_P) - 1}
    else:
        assert batch.candidate_rows_L is None
