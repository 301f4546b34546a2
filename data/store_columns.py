"""What batches are made of, as a store has it.

N items.
"""

from __future__ import annotations

import numpy as np
import torch

from common.errors import InputError
from data import schema
from data.batches import EventColumns, ItemFeatures, code_dtype
from data.event_store import EventStore
from data.item_keys import item_keys
from data.ranking.actions import num_actions
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import ActionsConfig
from data.ranking.series_tokens import SeriesRows
from data.ranking.tasks import Labels, parse_tasks
from data.series.merge import SeriesMerger


def event_columns(store: EventStore) -> EventColumns:
    """The columns of a store that batches are made of."""
    return EventColumns(
        offsets=store.offsets,
        items=store.column(schema.ITEM),
        timestamps=store.column(schema.TIMESTAMP),
        event_types=store.column(schema.EVENT_TYPE),
        durations=store.column(schema.DURATION) if store.has_column(schema.DURATION) else None,
        organic=store.column(schema.ORGANIC) if store.has_column(schema.ORGANIC) else None,
        played=store.column(schema.PLAYED_RATIO) if store.has_column(schema.PLAYED_RATIO) else None,
    )


def item_features(
    store: EventStore,
    codes_NC: np.ndarray,
    codes_per_level: int,
    qr_remainders: int = schema.QR_REMAINDERS,
    *,
    keys: bool = False,
) -> ItemFeatures:
    """The items of a store with their codes, unsigned as tables hold them (all zero where unknown).

    With `keys`, they also have what a hashed table knows them by.
    """
    assert len(codes_NC) == store.num_items, f"{len(codes_NC)} codes for {store.num_items} items"
    # Converted by NumPy: of unsigned 16 bits torch knows little.
    dtype = np.int16 if code_dtype(codes_per_level) == torch.int16 else np.int32
    return ItemFeatures(
        codes_NC=torch.from_numpy(codes_NC.astype(dtype)),
        codes_per_level=codes_per_level,
        artist_offsets=torch.from_numpy(store.artist_offsets.astype(np.int64)),
        artist_values=torch.from_numpy(store.artist_values.astype(np.int32)),
        num_artists=store.num_artists,
        qr_remainders=qr_remainders,
        keys_N=torch.from_numpy(item_keys(store.item_ids)) if keys else None,
    )


def ranking_maker(
    store: EventStore, features: ItemFeatures, ranking: ActionsConfig, *, distinct: bool = True
) -> RankingBatchMaker:
    """What makes batches of a store for a model that predicts actions.

    Raises:
        InputError: the store lacks what the tasks ask for, or series.
    """
    faults = lacking_series(store, ranking)
    try:
        labels = Labels(parse_tasks(ranking.tasks), store.event_types, store.has_column(schema.PLAYED_RATIO))
    except InputError as error:
        faults = [*error.faults, *faults]
    if faults:
        raise InputError(*faults)
    rows = series_rows(store, ranking)
    merger = SeriesMerger(store.series, ranking.series) if ranking.series else None
    columns = event_columns(store)
    return RankingBatchMaker(columns, features, ranking, labels, distinct=distinct, series=rows, merger=merger)


def lacking_series(store: EventStore, ranking: ActionsConfig) -> list[str]:
    """Whether series are asked for that the store does not have."""
    if not ranking.series or store.has_series:
        return []
    return [
        f"{store.path}: has no slow series, but actions.series={ranking.series} asks for tokens of them; prepare it "
        f"again with some, as with prepare.series=[preferred_artist], or set actions.series=0"
    ]


def series_rows(store: EventStore, ranking: ActionsConfig) -> SeriesRows | None:
    """Rows of the values of a store's series in the table `event_type`; None where the model reads none."""
    if not ranking.series:
        return None
    return SeriesRows.of(store.series, _num_actions(store, ranking))


def event_type_rows(store: EventStore, ranking: ActionsConfig | None) -> int:
    """Rows of the table `event_type`: event types or, where `ranking` is given, actions and values of series.

    Raises:
        InputError: series are asked for, and the store has none.
    """
    if ranking is None:
        return len(store.event_types)
    faults = lacking_series(store, ranking)
    if faults:
        raise InputError(*faults)
    return _num_actions(store, ranking) + (store.series.num_values if ranking.series else 0)


def _num_actions(store: EventStore, ranking: ActionsConfig) -> int:
    return num_actions(len(store.event_types), ranking.played_buckets, store.has_column(schema.PLAYED_RATIO))
