"""How ranking models read events and candidates one by one: the seam of `serving.token_makers` for `data.ranking`.

The batches of training have windows of inputs and a last target, whose action is hidden. A run of events is such a
window, and what follows it its target, of which nothing but the time is read. A candidate is the target of a window of
one event, of which nothing is read. Entries of slow series are given with the run that they stand in.

Shapes: B users · L tokens of all users · M candidates of all users · K tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from data.batches import Batch, EventColumns, ItemFeatures
from data.examples import Tokens as TokenPlaces
from data.ranking.actions import num_actions
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import INTERACTIONS, INTERLEAVED
from data.ranking.series_tokens import SeriesRows
from data.ranking.tasks import Labels
from data.schema import MISSING_PLAYED_RATIO
from data.series.merge import MergedSeries
from model.biases import Tokens
from model.incremental import embed
from model.recommender import Recommender
from model.task_heads import TaskHeads
from serving.token_makers import Embedded
from serving.user_events import Ints, UserEvents, joined, with_followers
from serving.user_series import PlacedSeries, as_merged


class RankingTokens:
    """For models whose output are actions; a score is what each task predicts, [M, K].

    A candidate is a token behind the history, but with form=interactions, where it meets the newest state afterwards.

    Args:
        model: in evaluation mode; its tables may be sharded over one rank.
        features: of the items.
        has_played: whether the store that the model was trained on knows how much of an item was played,
            `store.has_column("played_ratio")`.
        series: rows of that store's values of slow series (`data.store_columns.series_rows`), where the model reads
            any.

    Raises:
        InputError: the model predicts no actions; it reads series and their rows are not given, or the other way round.
    """

    def __init__(
        self, model: Recommender, features: ItemFeatures, *, has_played: bool, series: SeriesRows | None = None
    ) -> None:
        """Prepares the items' records."""
        heads = model.tower.heads
        if not isinstance(heads, TaskHeads):
            raise InputError(
                f"the model has output.kind={model.tower.cfg.output.kind}, and `RankingTokens` read for models that "
                f"predict actions: leave `tokens` out"
            )
        self.model, self.features, self._heads, self._has_played = model, features, heads, has_played
        self._actions, self.series = model.tower.cfg.output.actions, series
        if bool(self._actions.series) != (series is not None):
            raise InputError(
                f"the model has actions.series={self._actions.series}, and rows of the values of slow series are "
                f"{'not given' if series is None else 'given'}: give data.store_columns.series_rows of the store and "
                f"the actions of the model that was trained on it"
            )
        self.appends = self._actions.form != INTERACTIONS
        nothing = _columns(UserEvents.none(), np.zeros(1, dtype=np.int64), has_played)
        self._maker = RankingBatchMaker(nothing, features, self._actions, Labels((), (), has_played), series=series)
        self._device = next(model.tower.parameters()).device

    def event_types_faults(self, event_types: int) -> list[str]:
        """See `serving.token_makers.TokenMaker.event_types_faults`."""
        trained, values = self.model.vocabulary.event_types, 0 if self.series is None else len(self.series.series_V)
        actions = num_actions(event_types, self._actions.played_buckets, self._has_played)
        given = f"event_types={event_types}, has_played={self._has_played} and {values} values of series"
        if actions + values != trained:
            return [
                f"{given} make {actions + values} rows of the table `event_type`, and the model was trained with "
                f"{trained}: give what its store has, has_played=store.has_column('played_ratio')"
            ]
        if self.series is not None and self.series.first != actions:
            return [
                f"{given} make {actions} actions, and the rows of series begin at {self.series.first}: give "
                f"data.store_columns.series_rows of the store that the model was trained on"
            ]
        return []

    def history(
        self, users: Sequence[UserEvents], next_times_B: Ints, placed: Sequence[PlacedSeries] | None = None
    ) -> Embedded:
        """See `serving.token_makers.TokenMaker.history`."""
        if placed is None:
            placed = [PlacedSeries.none()] * len(users)
        lengths_B = np.array([len(own) for own in users], dtype=np.int64)
        asked = np.flatnonzero(lengths_B)
        ends = np.cumsum(lengths_B[asked])
        windows = with_followers(joined(users), ends, next_times_B[asked])
        bounds = np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])
        entries = as_merged([placed[int(row)] for row in asked])
        batch = self._batch(windows, bounds, learn=False, entries=entries if len(entries) else None)
        read_L = torch.arange(len(batch.rows_L), device=self._device) < batch.offsets[-1]
        if self._actions.form == INTERLEAVED:
            read_L[batch.offsets[1:] - 1] = False  # the item of what follows
        per_event = 2 if self._actions.form == INTERLEAVED else 1
        tokens_B = per_event * lengths_B + np.array([len(one) for one in placed], dtype=np.int64)
        return _picked(
            embed(self.model, batch), read_L.nonzero().flatten(), torch.from_numpy(tokens_B).to(self._device)
        )

    def candidates(self, users: Sequence[UserEvents]) -> Embedded:
        """See `serving.token_makers.TokenMaker.candidates`.

        Raises:
            InputError: with form=interactions a candidate is no token.
        """
        if not self.appends:
            raise InputError(
                f"actions.form={INTERACTIONS}: a candidate is no token of this model and has no state: ask for scores, "
                f"or train with form=interleaved or form=merged"
            )
        batch = self._alone(users)
        lengths_B = torch.tensor([len(own) for own in users], dtype=torch.int64, device=self._device)
        return _picked(embed(self.model, batch), batch.offsets[1:] - 1, lengths_B)

    @torch.no_grad()
    def scores(self, states_XD: Tensor, candidates: Sequence[UserEvents]) -> Tensor:
        """Probabilities of binary tasks and values of regressions, float32 [M, K]."""
        if self.appends:
            return self._heads.predictions(self._heads(states_XD))
        batch, model = self._alone(candidates), self.model
        assert batch.candidate_rows_L is not None
        x_PD = model.tower.summed(*model.looked_up(batch), batch)
        beside_MD = model.tower.picked(x_PD, batch.candidate_rows_L[: len(batch.offsets) - 1])
        counts_B = torch.tensor([len(own) for own in candidates], dtype=torch.int64, device=self._device)
        states_MD = states_XD.repeat_interleave(counts_B, dim=0)
        return self._heads.predictions(self._heads(states_MD, beside_MD))

    def _alone(self, users: Sequence[UserEvents]) -> Batch:
        """Each candidate as the target of a window of its own."""
        # In front of each stands an event that is left out again: any will do.
        columns = joined(users).columns
        twice = UserEvents(*(None if column is None else np.repeat(column, 2) for column in columns))  # type: ignore[arg-type]
        return self._batch(twice, np.arange(0, len(twice) + 1, 2), learn=True)

    def _batch(self, events: UserEvents, bounds_B1: Ints, *, learn: bool, entries: MergedSeries | None = None) -> Batch:
        """Windows of inputs and a last target each, which lie between the bounds."""
        maker = copy.copy(self._maker)  # the records of all items are made once
        maker.columns = _columns(events, bounds_B1, self._has_played)
        at_n = np.delete(np.arange(bounds_B1[-1]), bounds_B1[1:] - 1)
        learn_n = np.full(len(at_n), learn)
        places = TokenPlaces(at_n, at_n + 1, learn_n, bounds_B1 - np.arange(len(bounds_B1)), None)
        budget = 2 * len(at_n) + len(bounds_B1) - 1  # of the longest form; the rest is padding
        budget += 0 if entries is None else len(entries)
        return maker.make(places, np.arange(len(bounds_B1) - 1), budget, 0.0, entries=entries).to(self._device)


def _columns(events: UserEvents, offsets: Ints, has_played: bool) -> EventColumns:
    played = events.played
    if has_played and played is None:
        played = np.full(len(events), MISSING_PLAYED_RATIO)
    return EventColumns(
        offsets,
        events.items.astype(np.uint32),
        events.timestamps,
        events.event_types,
        events.durations,
        events.organic,
        played if has_played else None,
    )


def _picked(embedded: Embedded, rows_l: Tensor, lengths_B: Tensor) -> Embedded:
    """Some of the tokens, as runs of these lengths."""
    x_LD, tokens = embedded
    offsets = torch.cat((lengths_B.new_zeros(1), lengths_B.cumsum(0)))
    picked = Tokens(
        offsets=offsets,
        positions_L=torch.arange(len(rows_l), device=x_LD.device)
        - offsets[:-1].repeat_interleave(lengths_B, output_size=len(rows_l)),
        query_times_L=tokens.query_times_L[rows_l],
        key_times_L=tokens.key_times_L[rows_l],
        duration_buckets_L=tokens.duration_buckets_L[rows_l],
        organic_L=tokens.organic_L[rows_l],
    )
    return x_LD.index_select(0, rows_l), picked
