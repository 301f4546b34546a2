"""What one step asks of a rank: look-ups table by table, and the dense part (`dense_part.py`).

Counts of look-ups come from a batch of a real store, or from sizes alone, where the number of distinct items is that
of draws by Zipf's law.

Shapes: L tokens a rank and step · P rows of pooled embeddings · F features.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from common.config import option
from common.errors import InputError
from data.batches import Batch
from data.negatives import ALL, NegativesConfig
from model.config import ModelConfig, Vocabulary
from model.embeddings import ITEM_TABLE, build_embeddings, build_item_table, table_rows
from model.recommender import Recommender
from sharding.planning.action_look_ups import action_look_ups
from sharding.planning.dense_part import DenseModel as DenseModel
from sharding.planning.dense_part import DenseUse as DenseUse
from sharding.planning.dense_part import measure_dense as measure_dense


@dataclass
class DataSizes:
    """The data that a model is to be trained on, where there is no store to ask."""

    items: int = option(1_000_000, "items of the catalogue", minimum=1)
    artists: int = option(100_000, "artists", minimum=0)
    event_types: int = option(
        1,
        "kinds of events; with model.output.kind=actions, of actions: times the buckets of the played ratio, if there "
        "are any, and two; and of values of slow series, if the model reads them",
        minimum=1,
    )
    levels: int = option(8, "code levels of an item", minimum=1)
    codes: int = option(1024, "codes a level", minimum=1)
    artists_per_item: float = option(1.0, "artists of an event's item, on average", minimum=0)
    mean_history: float = option(0.0, "events of a user's window on average; 0: half of model.max_history", minimum=0)
    distinct_share: float = option(
        0.0, "distinct items of a batch by its events; 0: of draws by Zipf's law, exponent 1", minimum=0
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.distinct_share > 1:
            raise InputError(f"`distinct_share` is {self.distinct_share}, must be at most 1: tokens have no more items")


MAP_ROW = 28
"""Bytes a row of a hashed table that say who owns it and who asked since the last round (`sharding.hashing.id_map`)."""


@dataclass(frozen=True)
class TableUse:
    """What a rank looks up of one table in one step.

    Attributes:
        name: of the table.
        rows, width: its size.
        pooled: whether a bag's rows come back as one sum, from an EmbeddingBagCollection, or each by itself.
        bags: bags asked for, the padding's included; without sums, 1.
        ids: rows asked for.
        tokens: tokens they are for.
        plain_bags, plain_ids: the same, were each token to ask for itself.
        map_row: bytes beside each row that say which id owns it, 0 where rows have no owners.
    """

    name: str
    rows: int
    width: int
    pooled: bool
    bags: int
    ids: int
    tokens: int
    plain_bags: int
    plain_ids: int
    map_row: int = 0

    @property
    def bytes(self) -> int:
        """Of the table, float32."""
        return 4 * self.rows * self.width

    def plain(self) -> TableUse:
        """As if each token asked for itself."""
        return dataclasses.replace(self, bags=self.plain_bags, ids=self.plain_ids)


@dataclass(frozen=True)
class Workload:
    """One step of one rank.

    Attributes:
        tokens: L.
        rows: P, summed vectors that the tokens share, the padding's included.
        tables: what is looked up.
        dense: the rest.
        precision: of products.
    """

    tokens: int
    rows: int
    tables: tuple[TableUse, ...]
    dense: DenseUse
    precision: str

    def table(self, name: str) -> TableUse:
        """Of one table."""
        return next(use for use in self.tables if use.name == name)


def expected_distinct(items: int, draws: float) -> float:
    """How many different items so many draws find, where the i-th is drawn with probability ∝ 1 / i: Σ 1 − (1 − pᵢ)ⁿ.

    Items are taken together in runs in which 1 / i changes by less than 1%.
    """
    edges = np.unique(np.concatenate([np.arange(1, 201), np.geomspace(200, items + 1, 20_000)]).astype(np.int64))
    edges = edges[edges <= items + 1]
    if edges[-1] != items + 1:
        edges = np.append(edges, items + 1)
    counts, middle = np.diff(edges).astype(np.float64), (edges[:-1] + edges[1:] - 1) / 2.0
    share = (1 / middle) / (counts / middle).sum()
    return float((counts * -np.expm1(draws * np.log1p(-np.minimum(share, 1 - 1e-12)))).sum())


def workload_of_sizes(
    cfg: ModelConfig,
    sizes: DataSizes,
    tokens: int,
    dense: DenseModel,
    *,
    distinct: bool = True,
    negatives: NegativesConfig | None = None,
) -> Workload:
    """A step of so many tokens over data of such sizes.

    Args:
        negatives: what targets are held against, where the output are items. Those of a bin are taken to be for all of
            the rank's tokens.
    """
    if cfg.output.kind == "actions":
        return _workload_of_actions(cfg, sizes, tokens, dense.at(tokens), distinct)
    items = _distinct_items(sizes, tokens)
    events = min(tokens, items * sizes.event_types)
    rows, plain_rows, scored = items, tokens, dense.at(tokens)
    if cfg.output.kind == "items":
        how = negatives or NegativesConfig()
        rows, plain_rows = _rows_of_items(cfg, sizes, how, tokens, items)
        shared = how.groups(tokens, bins=1) < tokens
        scored = scored.with_items(cfg, tokens, rows, how.size(sizes.items), shared=shared)
    counts = {
        "rq": (items + 1, items * sizes.levels, tokens * sizes.levels),
        "artist_quotient": (items + 1, round(items * sizes.artists_per_item), round(tokens * sizes.artists_per_item)),
        "artist_remainder": (items + 1, round(items * sizes.artists_per_item), round(tokens * sizes.artists_per_item)),
        "event_type": (sizes.event_types + 1, sizes.event_types, tokens),
        ITEM_TABLE: (1, rows, plain_rows),
    }
    return _workload(cfg, vocabulary_of(sizes), tokens, events + 1, counts, scored, distinct)


def _workload_of_actions(cfg: ModelConfig, sizes: DataSizes, tokens: int, dense: DenseUse, distinct: bool) -> Workload:
    """Where tokens are items, actions or both; see `action_look_ups` for what is assumed."""
    history, actions = sizes.mean_history or cfg.max_history / 2, sizes.event_types
    asked = action_look_ups(cfg, tokens, history, actions, lambda draws: _distinct_items(sizes, draws))
    done = min(actions, asked.done)
    artists = round(asked.items * sizes.artists_per_item), round(asked.shown * sizes.artists_per_item)
    counts = {
        "rq": (asked.items + 1, asked.items * sizes.levels, asked.shown * sizes.levels),
        "artist_quotient": (asked.items + 1, *artists),
        "artist_remainder": (asked.items + 1, *artists),
        "event_type": (done + 1, done, asked.done),
        ITEM_TABLE: (1, asked.items, asked.shown),
    }
    return _workload(
        cfg, vocabulary_of(sizes), tokens, asked.rows, counts, dense, distinct, plain_rows=asked.plain_rows
    )


def _distinct_items(sizes: DataSizes, draws: int) -> int:
    """Items of so many events."""
    items = sizes.distinct_share * draws or expected_distinct(sizes.items, draws)
    return min(math.ceil(items), draws, sizes.items)


def _rows_of_items(
    cfg: ModelConfig, sizes: DataSizes, negatives: NegativesConfig, tokens: int, items: int
) -> tuple[int, int]:
    """Rows of the table of items that inputs, targets and negatives ask for, together and each of the inputs alone.

    Most targets are the next input; a window's last one is not, and counts as another item. Negatives from the bin are
    targets, others are drawn alike from all items.
    """
    windows = math.ceil(tokens / (sizes.mean_history or cfg.max_history / 2))
    known = min(items + windows, sizes.items)
    groups = negatives.groups(tokens, bins=1)
    if negatives.kind == ALL:
        return sizes.items, tokens + sizes.items
    uniform = groups * (negatives.count - negatives.num_in_batch)
    missed = math.exp(uniform * math.log1p(-1 / sizes.items)) if sizes.items > 1 else 0.0
    rows = math.ceil(sizes.items - (sizes.items - known) * missed)
    return rows, tokens + rows


def vocabulary_of(sizes: DataSizes) -> Vocabulary:
    """What a model must know of such data."""
    return Vocabulary(sizes.levels, sizes.codes, sizes.artists, sizes.event_types, sizes.items)


def workload_of_batch(cfg: ModelConfig, vocabulary: Vocabulary, batch: Batch, dense: DenseModel) -> Workload:
    """A step like one that was made."""
    features, tokens = batch.features, batch.timestamps_L.numel()
    bags, ids = features.stride_per_key(), features.length_per_key()
    # What each token would ask for by itself: the lengths of its bags, read through the rows that tokens share.
    counts: dict[str, tuple[int, int, int]] = {}
    asked, plain_rows = batch.rows_L, tokens
    if batch.candidate_rows_L is not None:
        asked, plain_rows = torch.cat([asked, batch.candidate_rows_L]), 2 * tokens + 1
    inverse = features.inverse_indices_or_none()
    for index, key in enumerate(features.keys()):
        lengths = features[key].lengths()
        if inverse is not None:
            lengths = lengths.index_select(0, inverse[1][inverse[0].index(key)]).index_select(0, asked)
        counts[key] = (bags[index], ids[index], int(lengths.sum()))
    ids, scored = batch.item_ids.values().numel(), dense.at(tokens)
    plain_ids = int((batch.item_rows_P.index_select(0, asked) < ids).sum())  # padding, and an action alone, have none
    if batch.target_rows_L is not None and batch.negative_rows_GM is not None:
        # Targets and negatives come once each, but would not share what the inputs ask for.
        targets_T = batch.target_rows_L[batch.target_rows_L < ids]
        plain_ids += torch.cat([targets_T, batch.negative_rows_GM.flatten()]).unique().numel()
        groups, negatives = batch.negative_rows_GM.shape
        scored = scored.with_items(cfg, tokens, ids, negatives, shared=groups < len(targets_T))
    counts[ITEM_TABLE] = (1, ids, plain_ids)
    rows = batch.item_rows_P.numel()
    return _workload(cfg, vocabulary, tokens, rows, counts, scored, distinct=True, plain_rows=plain_rows)


def _workload(
    cfg: ModelConfig,
    vocabulary: Vocabulary,
    tokens: int,
    rows: int,
    counts: dict[str, tuple[int, int, int]],
    dense: DenseUse,
    distinct: bool,
    *,
    plain_rows: int = 0,
) -> Workload:
    """Args: `plain_rows` is P, and a pooled table's bags, were each token to ask for itself; 0: L."""
    uses, plain_rows = [], plain_rows or tokens
    for name, size in table_rows(cfg, vocabulary).items():
        bags, ids, plain_ids = counts[name]
        pooled = name != ITEM_TABLE
        hashed = name == ITEM_TABLE and cfg.items.kind == "hashed"
        use = TableUse(
            name,
            size,
            cfg.width,
            pooled,
            bags,
            ids,
            tokens,
            plain_bags=plain_rows if pooled else 1,
            plain_ids=plain_ids,
            map_row=MAP_ROW if hashed else 0,
        )
        uses.append(use if distinct else use.plain())
    return Workload(tokens, rows if distinct else plain_rows, tuple(uses), dense, cfg.precision)


def on_meta(cfg: ModelConfig, vocabulary: Vocabulary) -> Recommender:
    """The whole model without a number in it: what a plan is made for."""
    meta = torch.device("meta")
    with meta:
        items = build_item_table(cfg, vocabulary, meta)
        return Recommender(cfg, build_embeddings(cfg, vocabulary, 0, meta), vocabulary, items)
