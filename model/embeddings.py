"""The sparse side: tables with bags, one of plain items, and starting values that no sharding can change.

An event is the sum of its item's code rows, its artists' quotient and remainder rows (`q[id // R] + r[id % R]`), its
event type's row and, if there is a table of plain items, its item's own row.

Shapes: P rows, each of some tokens · d distinct items · D width · F features · C code levels · V codes per level · A
artists · R remainders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from common.seeding import derive_seed
from data.batches import ITEM_KEY, artist_table_rows
from model.config import ModelConfig, Vocabulary

CODE_TABLE = "rq"
ARTIST_QUOTIENT = "artist_quotient"
ARTIST_REMAINDER = "artist_remainder"
EVENT_TYPE = "event_type"
ITEM_TABLE = "item"

BLOCK_ROWS = 4096
"""Rows drawn from one generator; part of what a seed means, so never to be changed."""

INITIAL_STD = 0.02

CODEBOOK_NOISE = 0.3
"""Share of the usual random starting values that is added to those from codebooks."""


def table_rows(cfg: ModelConfig, vocabulary: Vocabulary) -> dict[str, int]:
    """Rows of each table; a table serves the feature of its own name.

    The code table comes last of those with bags: FBGEMM 1.8's CPU backward reads past its arrays when the last table of
    a kernel has no rows, as a small table has on some rank once it is sharded by rows. Without it the remainders are
    last, and there are all R of them, whether or not there are as many artists.
    """
    quotients, remainders = artist_table_rows(vocabulary.artists, cfg.qr_remainders)
    if cfg.items.only:
        rows = {
            ARTIST_QUOTIENT: quotients,
            EVENT_TYPE: vocabulary.event_types,
            ARTIST_REMAINDER: cfg.qr_remainders,
        }
    else:
        rows = {
            ARTIST_QUOTIENT: quotients,
            ARTIST_REMAINDER: remainders,
            EVENT_TYPE: vocabulary.event_types,
            CODE_TABLE: vocabulary.levels * vocabulary.codes,
        }
    if cfg.items.kind != "none":
        rows[ITEM_TABLE] = vocabulary.items if cfg.items.kind == "vocabulary" else cfg.items.hashing.rows
    return rows


def table_configs(cfg: ModelConfig, vocabulary: Vocabulary) -> list[EmbeddingBagConfig]:
    """The tables with bags, all of the model's width and summed over a bag."""
    return [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=cfg.width,
            num_embeddings=rows,
            feature_names=[name],
            pooling=PoolingType.SUM,
        )
        for name, rows in table_rows(cfg, vocabulary).items()
        if name != ITEM_TABLE
    ]


def build_embeddings(
    cfg: ModelConfig, vocabulary: Vocabulary, seed: int, device: torch.device
) -> EmbeddingBagCollection:
    """An unsharded collection with the starting values of `seed`; without values on the meta device."""
    collection = EmbeddingBagCollection(tables=table_configs(cfg, vocabulary), device=device)
    _fill({name: bag.weight for name, bag in collection.embedding_bags.items()}, seed)
    return collection


def build_item_table(
    cfg: ModelConfig, vocabulary: Vocabulary, device: torch.device, seed: int = 0
) -> EmbeddingCollection | None:
    """The table of plain items with the starting values of `seed`; None where the model has none.

    It lies outside the EmbeddingBagCollection: sharded by rows, that would send (ranks - 1) partial sums of each item,
    of which at most one is not zero, as one rank alone has the item's row. Here the row itself comes back by AlltoAll,
    once a distinct item, whatever the number of ranks.
    """
    if cfg.items.kind == "none":
        return None
    rows = table_rows(cfg, vocabulary)[ITEM_TABLE]
    assert rows, "the vocabulary says nothing of items"
    config = EmbeddingConfig(name=ITEM_TABLE, embedding_dim=cfg.width, num_embeddings=rows, feature_names=[ITEM_KEY])
    collection = EmbeddingCollection(tables=[config], device=device)
    _fill({name: table.weight for name, table in collection.embeddings.items()}, seed)
    return collection


@torch.no_grad()
def _fill(tables: Mapping[str, Tensor], seed: int) -> None:
    for name, weight_RD in tables.items():
        if weight_RD.device.type != "meta":
            rows, width = weight_RD.shape
            weight_RD.copy_(draw_rows(seed, name, 0, rows, width, INITIAL_STD))


def draw_rows(seed: int, table_name: str, start: int, stop: int, width: int, scale: float) -> Tensor:
    """Starting values of the rows start … stop-1 of a table: normal with standard deviation `scale`.

    They depend on the seed, the table's name and the row, not on who asks for which rows: any shard of any plan
    starts from the same numbers. Beyond the result, memory is that of one block.

    Returns:
        float32 [stop - start, width] on the CPU.
    """
    assert 0 <= start <= stop, (start, stop)
    rows = torch.empty(stop - start, width)
    for block in range(start // BLOCK_ROWS, math.ceil(stop / BLOCK_ROWS)):
        generator = torch.Generator().manual_seed(derive_seed(seed, table_name, block))
        first = block * BLOCK_ROWS
        drawn = torch.randn(BLOCK_ROWS, width, generator=generator).mul_(scale)
        begin, end = max(start, first), min(stop, first + BLOCK_ROWS)
        rows[begin - start : end - start] = drawn[begin - first : end - first]
    return rows


def rows_from_codebooks(codebooks_CVd: Tensor, width: int, noise_RD: Tensor) -> Tensor:
    """Starting values of the code table that already know which codes mean similar things.

    The codebook rows on their `width` principal directions (fewer where d is smaller), brought to the standard
    deviation of other starting values level by level, plus some noise, so that no column starts dead. A level whose
    rows are all zeros, which only tells items apart, knows nothing of likeness: it starts from noise of the usual size.

    Args:
        codebooks_CVd: the code table's.
        noise_RD: R = C · V rows of `draw_rows`.

    Returns:
        float32 [R, width], level l's codes from row l · V on.
    """
    levels, codes, dimensions = codebooks_CVd.shape
    directions_kd = torch.linalg.svd(codebooks_CVd.reshape(-1, dimensions).double(), full_matrices=False).Vh[:width]
    # A singular vector's sign is the library's whim; fixed, it is the same on machines that differ.
    largest_k1 = directions_kd.abs().argmax(dim=1, keepdim=True)
    directions_kd = directions_kd * directions_kd.gather(1, largest_k1).sign()
    projected_CVk = (codebooks_CVd.double() @ directions_kd.T).float()
    deviation_C11 = projected_CVk.std(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    is_added_C = codebooks_CVd.flatten(1).eq(0).all(dim=1)
    noise_share_R = torch.where(is_added_C, 1.0, CODEBOOK_NOISE).repeat_interleave(codes)
    rows_RD = noise_RD * noise_share_R[:, None]
    rows_RD[:, : projected_CVk.shape[2]] += (projected_CVk * (INITIAL_STD / deviation_C11)).reshape(levels * codes, -1)
    return rows_RD


def sum_features(pooled: KeyedTensor, width: int) -> Tensor:
    """[P, F·D] with one column block a feature → x_PD, their sum: once a row, however many tokens share it."""
    values: Tensor = pooled.values()
    return values.view(values.shape[0], -1, width).sum(dim=1)


def add_items(x_PD: Tensor, items: Mapping[str, JaggedTensor], item_rows_P: Tensor) -> Tensor:
    """x_PD with the rows [d, D] of the distinct items added: row p gets that of place `item_rows_P[p]`, padding's none.

    Args:
        items: what a table of items gave for `Batch.item_ids`.
        item_rows_P: int64; d, one past the end, is padding's.
    """
    own_dD: Tensor = items[ITEM_KEY].values()
    nothing_1D = own_dD.new_zeros(1, x_PD.shape[1])
    return x_PD + torch.cat((own_dD, nothing_1D)).index_select(0, item_rows_P)
