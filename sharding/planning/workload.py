"""What one step asks of a rank: look-ups table by table, and the dense part's memory and operations.

Counts of look-ups come from a batch of a real store, or from sizes alone, where the number of distinct items is that
of draws by Zipf's law. The dense part is built on the CPU with one block and with two, at two short lengths, and run
forward and backward while every memory block is watched; memory is linear in blocks and in tokens, so four runs say
what the whole model needs, whichever its architecture and options.

Shapes: L tokens a rank and step · D width · C code levels · V codes a level · F features.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.config import option
from common.errors import InputError
from data.batches import Batch
from data.negatives import ALL, NegativesConfig
from model.biases import Tokens, describe_tokens
from model.config import ModelConfig, Vocabulary
from model.embeddings import ITEM_TABLE, build_embeddings, build_item_table, table_rows
from model.item_head import BLOCK_NUMBERS, ITEMS_PER_NEGATIVE, ItemHead, sampled_softmax
from model.losses import cascaded_cross_entropy
from model.recommender import Recommender, Tower
from sharding.planning.memory_watch import MemoryWatch

_MAX_HEADS = 2**28
"""Numbers of output heads that are allocated to be measured."""


@dataclass
class DataSizes:
    """The data that a model is to be trained on, where there is no store to ask."""

    items: int = option(1_000_000, "items of the catalogue", minimum=1)
    artists: int = option(100_000, "artists", minimum=0)
    event_types: int = option(1, "kinds of events", minimum=1)
    levels: int = option(8, "code levels of an item", minimum=1)
    codes: int = option(1024, "codes a level", minimum=1)
    artists_per_item: float = option(1.0, "artists of an event's item, on average", minimum=0)
    mean_history: float = option(0.0, "inputs of a user's window on average; 0: half of model.max_history", minimum=0)
    distinct_share: float = option(
        0.0, "distinct items of a batch by its tokens; 0: of draws by Zipf's law, exponent 1", minimum=0
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
class DenseUse:
    """The data-parallel part, on each rank.

    Attributes:
        parameters: their number.
        optimizer: bytes of the optimizer's states.
        activations: bytes at the fullest moment of a step, besides parameters, gradients and states.
        flops: operations of a step's products, forward and backward.
    """

    parameters: int
    optimizer: int
    activations: int
    flops: float

    def with_items(self, cfg: ModelConfig, tokens: int, items: int, negatives: int, *, shared: bool) -> DenseUse:
        """With scores of items by their rows, whose number is not known before a step's look-ups are.

        Args:
            items: rows looked up.
            negatives: of a target.
            shared: whether targets have them in common, or each its own (see `model.item_head`).
        """
        chunk = min(cfg.output.chunk_tokens, tokens)
        picked = not shared and items <= ITEMS_PER_NEGATIVE * negatives
        # Scores, their softmax and its copy; with them all scores that some are picked of, or copies of rows.
        held = 3 * chunk * (1 + negatives) + (chunk * items if picked else 0 if shared else 3 * BLOCK_NUMBERS)
        rows = items * cfg.width
        # While scores are there, rows normalised and their gradient; in the backward, gradients of both three times.
        numbers = max(3 * rows + held, 5 * rows)
        flops = 6.0 * tokens * (items if picked else 1 + negatives) * cfg.width
        return dataclasses.replace(self, activations=self.activations + 4 * numbers, flops=self.flops + flops)


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
    items = sizes.distinct_share * tokens or expected_distinct(sizes.items, tokens)
    items = min(math.ceil(items), tokens, sizes.items)
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
    inverse = features.inverse_indices_or_none()
    for index, key in enumerate(features.keys()):
        lengths = features[key].lengths()
        if inverse is not None:
            lengths = lengths.index_select(0, inverse[1][inverse[0].index(key)]).index_select(0, batch.rows_L)
        counts[key] = (bags[index], ids[index], int(lengths.sum()))
    ids, plain_ids, scored = batch.item_ids.values().numel(), int(batch.offsets[-1]), dense.at(tokens)
    if batch.target_rows_L is not None and batch.negative_rows_GM is not None:
        # Targets and negatives come once each, but would not share what the inputs ask for.
        targets_T = batch.target_rows_L[batch.target_rows_L < ids]
        plain_ids += torch.cat([targets_T, batch.negative_rows_GM.flatten()]).unique().numel()
        groups, negatives = batch.negative_rows_GM.shape
        scored = scored.with_items(cfg, tokens, ids, negatives, shared=groups < len(targets_T))
    counts[ITEM_TABLE] = (1, ids, plain_ids)
    rows = batch.item_rows_P.numel()
    return _workload(cfg, vocabulary, tokens, rows, counts, scored, distinct=True)


def _workload(
    cfg: ModelConfig,
    vocabulary: Vocabulary,
    tokens: int,
    rows: int,
    counts: dict[str, tuple[int, int, int]],
    dense: DenseUse,
    distinct: bool,
) -> Workload:
    uses = []
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
            plain_bags=tokens if pooled else 1,
            plain_ids=plain_ids,
            map_row=MAP_ROW if hashed else 0,
        )
        uses.append(use if distinct else use.plain())
    return Workload(tokens, rows if distinct else tokens, tuple(uses), dense, cfg.precision)


def on_meta(cfg: ModelConfig, vocabulary: Vocabulary) -> Recommender:
    """The whole model without a number in it: what a plan is made for."""
    meta = torch.device("meta")
    with meta:
        items = build_item_table(cfg, vocabulary, meta)
        return Recommender(cfg, build_embeddings(cfg, vocabulary, 0, meta), vocabulary, items)


# ── the dense part ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DenseModel:
    """A tower, whatever the number of tokens.

    Attributes:
        parameters: their number.
        optimizer: bytes of the optimizer's states.
        fixed, per_token: bytes of activations at the fullest moment: fixed + per_token · L.
        flops_per_token: forward and backward.
    """

    parameters: int
    optimizer: int
    fixed: float
    per_token: float
    flops_per_token: float

    def at(self, tokens: int) -> DenseUse:
        """With L tokens a step."""
        activations = max(int(self.fixed + self.per_token * tokens), 0)
        return DenseUse(self.parameters, self.optimizer, activations, self.flops_per_token * tokens)


def measure_dense(
    cfg: ModelConfig, vocabulary: Vocabulary, mean_history: float = 0.0, optimizer: str = "adamw"
) -> DenseModel:
    """Memory and operations of the tower, from four short runs on the CPU.

    Kernels for GPUs are run as the CPU's in their place: they keep the same tensors for the backward. Nothing of the
    real size is ever allocated but two blocks' and the heads' parameters.

    Raises:
        InputError: the heads, which are allocated, are beyond measure.
    """
    # Where the output are items there are no heads; `DenseUse.with_items` adds what scores take.
    outputs = vocabulary.levels * vocabulary.codes if cfg.output.kind == "codes" else 0
    heads = outputs * cfg.width
    if heads > _MAX_HEADS:
        raise InputError(
            f"{vocabulary.levels} levels × {vocabulary.codes} codes × width {cfg.width} make output heads of {heads} "
            f"numbers, more than the {_MAX_HEADS} that are planned for: give fewer codes a level"
        )
    history = min(mean_history or cfg.max_history / 2, cfg.max_history)
    one, two = (count_tower(cfg, vocabulary, blocks) for blocks in (1, 2))
    parameters = _extended(one.parameters, two.parameters, cfg.blocks)
    in_matrices = _extended(one.in_matrices, two.in_matrices, cfg.blocks)
    lengths = (_SHORT, 2 * _SHORT)
    peaks = [[_peak(cfg, vocabulary, blocks, length) for length in lengths] for blocks in (1, 2)]
    short, long = (_extended(one, two, cfg.blocks) for one, two in zip(*peaks, strict=True))
    per_token = (long - short) / (lengths[1] - lengths[0])
    # The loss holds a chunk's logits, their softmax and its copy: of a chunk of the real size.
    widest = vocabulary.codes if outputs else 0
    chunk = 3 * 4 * widest * max(cfg.output.chunk_tokens - _SHORT // 2, 0)
    states = 8 * parameters - (4 * in_matrices if optimizer == "muon" else 0)
    attention = 3 * 2 * cfg.heads * (cfg.head_dim_qk + cfg.head_dim_v) * cfg.blocks * (history + 1) / 2
    products = 6.0 * (in_matrices + heads)
    fixed = short - per_token * lengths[0] + chunk
    return DenseModel(int(parameters), int(states), fixed, per_token, attention + products)


_SHORT = 256
"""Tokens of the shorter run; users have half as many, and so has a chunk of the loss."""


@dataclass(frozen=True)
class TowerSizes:
    """Numbers of a tower: parameters, and those of them in matrices of the blocks."""

    parameters: int
    in_matrices: int


def count_tower(cfg: ModelConfig, vocabulary: Vocabulary, blocks: int) -> TowerSizes:
    """Of so many blocks, built on the meta device."""
    with torch.device("meta"):
        tower = Tower(_on_cpu(cfg, blocks), vocabulary)
    matrices = sum(
        parameter.numel()
        for name, parameter in tower.named_parameters()
        if ".blocks." in name and name.endswith("weight") and parameter.dim() == 2
    )
    return TowerSizes(sum(p.numel() for p in tower.parameters()), matrices)


def _extended(one: float, two: float, blocks: int) -> float:
    """From one block and two to `blocks`."""
    return one + (two - one) * (blocks - 1)


def _on_cpu(cfg: ModelConfig, blocks: int) -> ModelConfig:
    attention = cfg.attention
    if attention.backend in ("flex", "triton"):
        attention = dataclasses.replace(attention, backend="jagged")
    output = dataclasses.replace(cfg.output, chunk_tokens=min(cfg.output.chunk_tokens, _SHORT // 2))
    return dataclasses.replace(cfg, blocks=blocks, attention=attention, output=output)


def _peak(cfg: ModelConfig, vocabulary: Vocabulary, blocks: int, tokens: int) -> int:
    """Bytes at the fullest moment of the tower's forward and backward, parameters and their gradients apart."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        tower = Tower(_on_cpu(cfg, blocks), vocabulary).train()
        x_LD = torch.randn(tokens, cfg.width, requires_grad=True)
        codes_LC = torch.randint(0, vocabulary.codes, (tokens, vocabulary.levels))
        for parameter in tower.parameters():
            parameter.grad = torch.zeros_like(parameter)
        described = _histories(cfg, tokens)
        known = [x_LD, codes_LC, *tower.parameters(), *(p.grad for p in tower.parameters() if p.grad is not None)]
        with MemoryWatch(known) as watch:
            _loss(tower, x_LD, described, codes_LC).backward()
    peak: int = watch.peak
    return peak


def _loss(tower: Tower, x_LD: Tensor, tokens: Tokens, codes_LC: Tensor) -> Tensor:
    cfg = tower.cfg
    x_LD = nn.functional.dropout(x_LD * 1.0, cfg.input_dropout)
    if tower.places is not None:
        x_LD = x_LD + tower.places(tokens)
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
        x_LD = tower.encoder(x_LD, tokens)
    x_LD = nn.functional.normalize(x_LD.float(), dim=1, eps=1e-6)
    every_L = torch.arange(len(x_LD))  # the real model leaves out padding: a copy, as here
    x_TD = x_LD.index_select(0, every_L)
    if isinstance(tower.heads, ItemHead):
        return _item_loss(x_TD, cfg)
    return cascaded_cross_entropy(tower.heads, x_TD, codes_LC, cfg.output.chunk_tokens).loss_sum


def _item_loss(x_TD: Tensor, cfg: ModelConfig) -> Tensor:
    """Targets and negatives that are one item: what more of them takes is `DenseUse.with_items`."""
    nought_T = torch.zeros(len(x_TD), dtype=torch.int64)
    one_1D = torch.ones(1, cfg.width, requires_grad=True)
    found = sampled_softmax(
        x_TD, one_1D, nought_T, nought_T[:1, None], nought_T, temperature=1.0, chunk_tokens=cfg.output.chunk_tokens
    )
    return found.loss_sum


def _histories(cfg: ModelConfig, tokens: int) -> Tokens:
    """Users of equal histories, minutes apart; as long in a short run as in a long one, or it would not be linear."""
    length = min(cfg.max_history, _SHORT // 2)
    offsets = torch.tensor([*range(0, tokens, length), tokens])
    times_L = torch.arange(tokens) * 60
    return describe_tokens(cfg.biases, offsets, times_L, times_L + 60, times_L % 300, times_L % 3)
