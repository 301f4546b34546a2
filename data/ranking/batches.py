"""Tokens of items and actions → one batch of a fixed size, for a model that predicts what is done with an item.

A token is an item, an action, or both (data/ranking/layout.py); its bags are those of `data.batches`, of which either
kind may be missing, and the feature `event_type` holds actions (data/ranking/actions.py).

Clocks. An item is shown, and its action follows, at the time of its event: that is the time of every prediction here,
in requests too. Where a split asks at one instant for a whole period (split.kind=temporal and yambda), `request_time`
is when the period begins: a list is made then and cannot know when it will be heard. But an item is ranked when it is
about to be shown; its time is known by then, as in every example of training. So `request_times_L` is the event's own
time where its action is hidden, and the next event's where it is shown: of all that a token sees at which an action is
asked for, and of that token, no clock is later than the event. (A log that stamps an event when it ends tells by this
how long it took, in training as in requests; nothing here can know that.) A token of a slow series has the second
from which on its value holds, and of the event in front of which it stands `request_times_L` (`series_tokens`).

L token budget of the batch, padding included · l tokens in use · B windows of the batch · m events of their sequences ·
T tasks · P rows · W windows · s entries of series.
"""

from __future__ import annotations

import numpy as np
import torch

from data.bags import BagMaker, codes_of, padded
from data.batches import NO_DURATION, NO_TARGET, Batch, EventColumns, ItemFeatures, durations_of, organic_of
from data.examples import Examples, Tokens
from data.negatives import BinSeeds
from data.ranking.actions import actions_of
from data.ranking.config import INTERACTIONS, MERGED, ActionsConfig
from data.ranking.layout import Layout, insert_series, lay_out, token_lengths
from data.ranking.rows import NONE, PlacedRows, distinct_rows, plain_rows, with_artists
from data.ranking.series_tokens import SeriesRows, bounds_of, counted, merged
from data.ranking.tasks import Labels
from data.schema import MISSING_ORGANIC
from data.sequences import Windows
from data.series.merge import MergedSeries, SeriesMerger


class RankingBatchMaker:
    """Cuts batches out of a store's columns; beside `data.batches.BatchMaker`.

    Args:
        columns: the store's.
        features: codes and artists of its items.
        actions: in what form items and actions are read.
        labels: what is asked of an action.
        distinct: bags of distinct items and actions; False: a bag a token, the plain way, to compare with.
        series: rows of the values of slow series, where `actions.series` asks for any.
        merger: of the store's series, with `actions.series` as its limit; None where `make` is given the entries.
    """

    def __init__(
        self,
        columns: EventColumns,
        features: ItemFeatures,
        actions: ActionsConfig,
        labels: Labels,
        *,
        distinct: bool = True,
        series: SeriesRows | None = None,
        merger: SeriesMerger | None = None,
    ) -> None:
        """Prepare what every batch needs: the records of every item."""
        assert bool(actions.series) == (series is not None), "series are read with their rows alone"
        self.columns, self.actions, self.labels, self.distinct = columns, actions, labels, distinct
        self._series, self._merger = series, merger
        self._bags = BagMaker(features, distinct=distinct)

    def token_lengths(self, of: Examples | Windows) -> np.ndarray:
        """Tokens of each window, int64 [W]: of the inputs that are left, where `of` says which."""
        form, windows = self.actions.form, of if isinstance(of, Windows) else of.windows
        if isinstance(of, Windows):
            lengths_W = token_lengths(form, of.lengths, of.stop - of.learn_from)
        else:
            # Only there does it matter how many are asked for, and it takes long to know.
            asked_W = of.actions(np.arange(len(windows))) if form == MERGED else np.zeros_like(of.kept_W)
            lengths_W = token_lengths(form, of.kept_W, asked_W)
        if self._merger is None:
            return lengths_W
        longer_W: np.ndarray = lengths_W + counted(self._merger, bounds_of(windows, self.columns, form))
        return longer_W

    def make(
        self,
        tokens: Tokens,
        window_index_B: np.ndarray,
        budget: int,
        loss_weight: float,
        bins: BinSeeds | None = None,
        *,
        entries: MergedSeries | None = None,
    ) -> Batch:
        """The batch of some windows in a buffer of `budget` tokens.

        Args:
            tokens: the inputs of windows, none of them empty, and what is asked for.
            window_index_B: which windows they are.
            loss_weight: see `Batch`.
            bins: means nothing here.
            entries: of series, in the windows' sequences; where not given, those of the store, if series are read.

        Returns:
            With `labels_LT`; `target_items_L` is the item whose action is asked for at a token, and its codes are none:
            `target_codes_LC` is [L, 0].
        """
        assert bins is None, "actions are held against no negatives"
        columns, layout = self.columns, lay_out(self.actions.form, tokens)
        if entries is None and self._merger is not None:
            entries = merged(self._merger, tokens, columns, self.actions.form)
        if entries is not None:
            first_B = tokens.offsets_B[:-1] + np.arange(len(tokens.offsets_B) - 1)
            layout = insert_series(layout, entries.window, first_B[entries.window] + entries.before)
        event_at_m, used = tokens.event_at_m, len(layout.event_l)
        assert used <= budget, f"{used} tokens do not fit a budget of {budget}"
        at_l, asked_l = event_at_m[layout.event_l], np.flatnonzero(layout.asked_l >= 0)
        asked_at_t = event_at_m[layout.asked_l[asked_l]]
        placed, candidate_rows_L = self._rows(layout, entries, at_l, asked_l, asked_at_t, budget)
        records_d = self._bags.records(placed.rows.items_d)
        target_items_L = np.full(budget, NO_TARGET, dtype=np.int64)
        target_items_L[asked_l] = columns.items[asked_at_t]
        labels_LT = np.full((budget, len(self.labels.tasks)), np.nan, dtype=np.float32)
        labels_LT[asked_l] = self.labels.of(columns, asked_at_t)
        shown_l = layout.shows_item_l
        padding_row = len(placed.rows.item_rows_P) - 1
        return Batch(
            features=self._bags.features(placed.rows, records_d, codes_of(records_d)),
            rows_L=padded(placed.row_of_r[:used], budget, padding_row) if self.distinct else torch.arange(budget),
            item_ids=self._bags.item_ids(placed.rows.items_d),
            item_rows_P=placed.rows.item_rows_P,
            offsets=torch.from_numpy(layout.offsets_B),
            timestamps_L=padded(_times(layout, entries, columns.timestamps[at_l]), budget, 0),
            request_times_L=padded(columns.timestamps[event_at_m[layout.next_event_l]], budget, 0),
            durations_L=padded(np.where(shown_l, durations_of(columns, at_l), NO_DURATION), budget, NO_DURATION),
            organic_L=padded(np.where(shown_l, organic_of(columns, at_l), MISSING_ORGANIC), budget, MISSING_ORGANIC),
            target_items_L=torch.from_numpy(target_items_L),
            target_codes_LC=torch.empty(budget, 0, dtype=torch.int64),
            loss_weight=torch.tensor(loss_weight, dtype=torch.float32),
            window_index_B=torch.from_numpy(window_index_B.astype(np.int64)),
            labels_LT=torch.from_numpy(labels_LT),
            alone_L=None if layout.alone_l is None else padded(layout.alone_l, budget, False).bool(),
            candidate_rows_L=candidate_rows_L,
        )

    def _rows(
        self,
        layout: Layout,
        entries: MergedSeries | None,
        at_l: np.ndarray,
        asked_l: np.ndarray,
        asked_at_t: np.ndarray,
        budget: int,
    ) -> tuple[PlacedRows, torch.Tensor | None]:
        """The tokens' rows, behind them those of candidates that are no tokens; and where these lie, [L]."""
        columns, used = self.columns, len(at_l)
        items_r = np.where(layout.shows_item_l, columns.items[at_l].astype(np.int64), NONE)
        done_l = actions_of(columns, at_l, self.actions.played_buckets)
        actions_r = np.where(layout.shows_action_l, done_l, NONE)
        if entries is not None:
            assert self._series is not None, "entries of series have rows"
            assert layout.entry_l is not None
            at_entries = np.flatnonzero(layout.entry_l >= 0)
            actions_r[at_entries] = self._series.first + entries.value[layout.entry_l[at_entries]]
        beside = self.actions.form == INTERACTIONS
        if beside:
            items_r = np.concatenate([items_r, columns.items[asked_at_t]])
            actions_r = np.concatenate([actions_r, np.full(len(asked_l), NONE)])
        if self.distinct:
            placed = distinct_rows(items_r, actions_r)
        else:
            row_of_r = np.concatenate([np.arange(used), budget + asked_l]) if beside else np.arange(used)
            placed = plain_rows(items_r, actions_r, row_of_r, 2 * budget + 1 if beside else budget)
        if self._series is not None:
            artist_k = self._series.artists_of(placed.rows.event_types_k)
            placed = with_artists(placed, artist_k, distinct=self.distinct)
        if not beside:
            return placed, None
        candidate_rows_L = np.full(budget, len(placed.rows.item_rows_P) - 1)
        candidate_rows_L[asked_l] = placed.row_of_r[used:]
        return placed, torch.from_numpy(candidate_rows_L)


def _times(layout: Layout, entries: MergedSeries | None, times_l: np.ndarray) -> np.ndarray:
    """Seconds of tokens, of which those of entries have their own."""
    if entries is None:
        return times_l
    assert layout.entry_l is not None
    return np.where(layout.entry_l >= 0, np.append(entries.time, 0)[layout.entry_l], times_l)
