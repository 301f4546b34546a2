"""A table by itself on the ranks of `benchmarks.sharding`, and the bags of ids that are asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from model.hashing_config import HashingConfig
from sharding.apply import shard_model
from sharding.planning.placement import row_wise
from sharding.world import World

WIDTH, BAG = 64, 8
KEY = "tracks"
RATE, EPSILON = 0.02, 1e-8


@dataclass(frozen=True)
class Size:
    """Of what is measured.

    Attributes:
        rows: of the table.
        bags: that a rank asks for in a step.
        repeats: how often a step is timed.
        catalogues: items behind the tokens of a batch; the fewer, the more they repeat.
    """

    rows: int
    bags: int
    repeats: int
    catalogues: tuple[int, int] = (1_000_000, 10_000)


class OneTable(nn.Module):
    """A table, summed by bags or not, and the dense parameter that DistributedDataParallel wants."""

    def __init__(self, rows: int, width: int = WIDTH, *, pooled: bool = True) -> None:
        super().__init__()
        meta = torch.device("meta")
        if pooled:
            bags = EmbeddingBagConfig(name=KEY, embedding_dim=width, num_embeddings=rows, feature_names=[KEY])
            self.table: nn.Module = EmbeddingBagCollection(tables=[bags], device=meta)
        else:
            plain = EmbeddingConfig(name=KEY, embedding_dim=width, num_embeddings=rows, feature_names=[KEY])
            self.table = EmbeddingCollection(tables=[plain], device=meta)
        self.scale = nn.Parameter(torch.ones(()))


def shard(
    world: World,
    rows: int,
    *,
    communication: str = "float32",
    pooled: bool = True,
    rate: float = RATE,
    epsilon: float = EPSILON,
    draw: Callable[[str, int, int, int], Tensor] | None = None,
    hashing: HashingConfig | None = None,
) -> DistributedModelParallel:
    """A table by rows over the ranks."""
    model = OneTable(rows, pooled=pooled)
    placement = dataclasses.replace(row_wise(model, world), communication=communication)
    return shard_model(
        model,
        placement,
        world,
        learning_rate=rate,
        epsilon=epsilon,
        draw_rows=draw or _uniform,
        hashing=hashing,
    )


def _uniform(_table: str, start: int, stop: int, width: int) -> Tensor:
    return torch.empty(stop - start, width).uniform_(-0.1, 0.1)


def look_up(model: DistributedModelParallel, ids: KeyedJaggedTensor) -> Tensor:
    """Sums of bags [B, D], or rows [d, D], past what DistributedDataParallel adds."""
    table = model.module.table
    found = table(ids)
    values: Tensor = found.values() if isinstance(table, ShardedEmbeddingBagCollection) else found[KEY].values()
    return values


def zipf(random: np.random.Generator, below: int, count: int) -> np.ndarray:
    """Numbers below `below`, the i-th with probability ∝ 1 / i, spread over the range."""
    places = (below ** random.random(count)).astype(np.int64) - 1
    return places * 2_654_435_761 % below


def bags_of(ids: np.ndarray) -> KeyedJaggedTensor:
    """Bags of `BAG` ids, one after the other."""
    return KeyedJaggedTensor(
        keys=[KEY], values=torch.from_numpy(ids), lengths=torch.full((len(ids) // BAG,), BAG), stride=len(ids) // BAG
    )


def bags_of_items(items_L: np.ndarray, rows: int, *, distinct: bool) -> KeyedJaggedTensor:
    """The bag of each token's item, or of each item once and which of them a token's is."""
    items_d, item_of_L = np.unique(items_L, return_inverse=True) if distinct else (items_L, None)
    plain = bags_of((items_d[:, None] * 7919 + np.arange(BAG) * 1_000_003).ravel() % rows)
    if item_of_L is None:
        return plain
    return KeyedJaggedTensor(
        keys=[KEY],
        values=plain.values(),
        lengths=plain.lengths(),
        stride_per_key_per_rank=[[len(items_d)]],
        inverse_indices=([KEY], torch.from_numpy(item_of_L.reshape(1, -1))),
    )


def one_bag(ids: np.ndarray) -> KeyedJaggedTensor:
    """Ids that are no bags."""
    return KeyedJaggedTensor(keys=[KEY], values=torch.from_numpy(ids), lengths=torch.tensor([len(ids)]), stride=1)
