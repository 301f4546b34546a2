"""The synthetic stream of the HSTU paper (Zhai et al. 2024, Appendix C): a Dirichlet process over a growing catalogue.

20,000 items lie at random in exactly one of 100 categories each. 1,000,000 records of 128 items follow one another;
the first 90% are for training. Item ids come into use as the stream goes on: at record r of R those up to
(0.4 + 0.6·r/R)·20,000, where r counts from 0, so ids 0 … ⌊that⌋ − 1 may be drawn. Each record has

 - 1 to 5 categories out of the 100, the number uniform, which ones uniform without repeats;
 - H_c, a prior over these: Dirichlet(1, …, 1), that is, uniform over all priors;
 - α, uniform in (1, 500).

At position n = 1, 2, … a category is drawn: from H_c with probability α/(α + n − 1), category c with probability
n_c/(α + n − 1), where n_c of the record's earlier items are of c. Then an item of that category is drawn uniformly
from those in use.

Two readings are ours. The paper says "up to 5 categories" and "sample a prior" without naming distributions: see
above. And categories without an item in use cannot be drawn, so a record chooses among the others; with 8,000 items in
use at first and 100 categories none is without, so this matters for small configurations only. The number of a
record's categories is drawn from 1 … min(5, categories with an item).

Files: `log.parquet` with `user`, `item`, `timestamp`, all uint32. Record number is user and timestamp, so order of
time is order of records; within a record the order of rows counts. `items.parquet` with `item`, `artist`, the
category: what other sources call an artist.

R records of a block · L record length · N items · C categories · M most categories of a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.progress import Progress
from common.seeding import derive_seed
from data.synthetic.config import SynthesizeConfig
from data.synthetic.draws import generator

MOST_CATEGORIES = 5
ALPHA_RANGE = (1.0, 500.0)
BLOCK_RECORDS = 8_192
"""Records drawn at once; another number is another stream."""

_COLUMNS = ("user", "item", "timestamp")


def write_dirichlet(config: SynthesizeConfig, folder: Path) -> dict[str, int]:
    """Write `log.parquet` and `items.parquet` under `folder`. Returns counts."""
    category_N = draw_categories(config)
    items = np.arange(config.num_items, dtype=np.uint32)
    pq.write_table(pa.table({"item": items, "artist": category_N.astype(np.uint32)}), folder / "items.parquet")
    schema = pa.schema([(name, pa.uint32()) for name in _COLUMNS])
    events = config.records * config.record_length
    with (
        pq.ParquetWriter(
            folder / "log.parquet", schema, compression="zstd", use_dictionary=["user", "timestamp"]
        ) as log,
        Progress("records", config.records, "records") as progress,
    ):
        for first, items_RL in record_blocks(config, category_N):
            records = np.arange(first, first + len(items_RL), dtype=np.uint32)
            user = np.repeat(records, config.record_length)
            log.write_table(pa.table([user, items_RL.reshape(-1), user], schema=schema), row_group_size=2**20)
            progress.advance(len(items_RL))
    return {
        "records": config.records,
        "events": events,
        "items": config.num_items,
        "categories": len(np.unique(category_N)),
    }


def draw_categories(config: SynthesizeConfig) -> np.ndarray:
    """The category of each item: int64 [N], uniform and independent."""
    random = generator(derive_seed(config.seed, "categories"))
    return random.integers(0, config.categories, config.num_items)


def items_in_use(config: SynthesizeConfig, record_R: np.ndarray) -> np.ndarray:
    """How many item ids may be drawn at each record, from id 0 on: int64 [R].

    Whole numbers throughout, but for the share itself, so that the paper's example is exact: 14,000 at record 500,000.
    """
    initial = round(config.initial_share * config.num_items, 6)
    later = (config.num_items - initial) * record_R / config.records
    used_R: np.ndarray = np.floor(np.round(initial + later, 6)).astype(np.int64)
    return used_R


def record_blocks(config: SynthesizeConfig, category_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first record and items uint32 [R, L], block after block."""
    for block, first in enumerate(range(0, config.records, BLOCK_RECORDS)):
        records_R = np.arange(first, min(first + BLOCK_RECORDS, config.records))
        random = generator(derive_seed(config.seed, "records", block))
        yield first, draw_records(category_N, config, records_R, random)


def draw_records(
    category_N: np.ndarray, config: SynthesizeConfig, record_R: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Items of the given records, in ascending order of `record_R`: uint32 [R, L]."""
    by_category = np.argsort(category_N, kind="stable")  # within a category ids ascend, so those in use are a prefix
    first_C = np.searchsorted(category_N[by_category], np.arange(config.categories))
    key_N = category_N[by_category] * config.num_items + by_category
    in_use_R = items_in_use(config, record_R)
    limit_RC = np.arange(config.categories) * config.num_items + in_use_R[:, None]
    out_RC = np.searchsorted(key_N, limit_RC.reshape(-1)).reshape(limit_RC.shape) - first_C

    chosen_RM, prior_RM = draw_priors(out_RC > 0, random)
    slot_RL = draw_slots(prior_RM, random.uniform(*ALPHA_RANGE, len(record_R)), config.record_length, random)
    chosen_RL = np.take_along_axis(chosen_RM, slot_RL, axis=1)
    out_RL = np.take_along_axis(out_RC, chosen_RL, axis=1)
    place_RL = (random.random(out_RL.shape) * out_RL).astype(np.int64)
    items_RL: np.ndarray = by_category[first_C[chosen_RL] + place_RL]
    return items_RL.astype(np.uint32)


def draw_priors(usable_RC: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Categories of each record int64 [R, M] and the prior over them float64 [R, M], 0 where there are fewer."""
    most = min(MOST_CATEGORIES, usable_RC.shape[1])
    # The least of independent uniforms are a uniform choice without repeats; 2 is above them all.
    lot_RC = np.where(usable_RC, random.random(usable_RC.shape), 2.0)
    chosen_RM = np.argpartition(lot_RC, most - 1, axis=1)[:, :most]
    # `argpartition` leaves an order that depends on the lots; sorted, the first k are a uniform choice of k.
    order_RM = np.argsort(np.take_along_axis(lot_RC, chosen_RM, axis=1), axis=1)
    chosen_RM = np.take_along_axis(chosen_RM, order_RM, axis=1)
    most_R = np.minimum(usable_RC.sum(axis=1), most)
    number_R = 1 + (random.random(len(most_R)) * most_R).astype(np.int64)
    weight_RM = random.standard_exponential(chosen_RM.shape)  # normalised, they are Dirichlet(1, …, 1)
    weight_RM[np.arange(most) >= number_R[:, None]] = 0
    return chosen_RM, weight_RM / weight_RM.sum(axis=1, keepdims=True)


def draw_slots(prior_RM: np.ndarray, alpha_R: np.ndarray, length: int, random: np.random.Generator) -> np.ndarray:
    """The process itself: which of a record's categories each position has, int64 [R, L].

    At each position the weights α·H_c + n_c, whose sum is α + n − 1, are drawn from at once: the mixture of the two
    cases, drawing from H_c and repeating.
    """
    weight_RM = alpha_R[:, None] * prior_RM
    records = np.arange(len(weight_RM))
    slot_RL = np.empty((len(weight_RM), length), dtype=np.int64)
    for position in range(length):
        sums_RM = np.cumsum(weight_RM, axis=1)
        point_R = random.random(len(sums_RM)) * sums_RM[:, -1]
        slot_R = (point_R[:, None] >= sums_RM[:, :-1]).sum(axis=1)
        slot_RL[:, position] = slot_R
        weight_RM[records, slot_R] += 1
    return slot_RL
