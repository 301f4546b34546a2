"""Sizes and repetition of a real store, for a plan of a training on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.event_store import EventStore
from data.loader import Loader, item_features
from data.schema import TIMESTAMP
from data.sequences import make_plan
from data.store_columns import event_type_rows
from semantic_ids.codes.code_table import CodeTable
from sharding.planning.config import PlanConfig
from sharding.planning.workload import DataSizes

_BATCHES = 4


def sizes_of_store(config: PlanConfig) -> DataSizes:
    """What `PlanConfig.data` says by hand: counts from manifests, repetition from a few batches of newest windows.

    Raises:
        InputError: store or codes are not whole, or do not belong together, or the store lacks series.
    """
    store = EventStore.open(Path(config.store), verify=False)
    codes = CodeTable.open(Path(config.codes), store)
    plan = make_plan(
        "newest",
        store.offsets,
        store.column(TIMESTAMP),
        store.split(),
        config.model.max_history,
        seed=0,
        period_seconds=86_400,
    )
    loader = Loader(
        store,
        item_features(store, codes.codes_NC, codes.codes_per_level, config.model.qr_remainders),
        plan,
        tokens=config.tokens,
        bins=1,
        rank=0,
        world_size=1,
        seed=0,
        shuffle=True,
    )
    steps = range(min(_BATCHES, loader.steps_per_epoch(0)))
    batches = [loader.batch(0, step) for step in steps]
    tokens = sum(int(batch.offsets[-1]) for batch in batches)
    items = sum(batch.item_ids.values().numel() for batch in batches)
    artists = sum(batch.features.length_per_key()[batch.features.keys().index("artist_quotient")] for batch in batches)
    lengths = loader.lengths(0)
    event_types = event_type_rows(store, config.model.output.ranking)
    return DataSizes(
        items=store.num_items,
        artists=store.num_artists,
        event_types=event_types,
        levels=codes.num_levels,
        codes=codes.codes_per_level,
        artists_per_item=artists / max(items, 1),
        mean_history=float(np.mean(lengths)) if len(lengths) else 0.0,
        distinct_share=items / max(tokens, 1),
    )
