"""Small models, clusters and steps whose plans can be worked out by hand."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig

from sharding.planning.placement import Piece, Placement, TablePlan
from sharding.planning.topology import GIB, PRESETS, Cluster, Node
from sharding.planning.workload import DenseUse, TableUse, Workload


class Tables(nn.Module):
    """Tables of the uses given, without a number in them: sums in `ebc`, single rows in `item_table`."""

    def __init__(self, *uses: TableUse) -> None:
        super().__init__()
        pooled, single = ([use for use in uses if use.pooled is wanted] for wanted in (True, False))
        meta = torch.device("meta")
        if pooled:
            self.ebc = EmbeddingBagCollection(
                device=meta,
                tables=[
                    EmbeddingBagConfig(
                        name=use.name, num_embeddings=use.rows, embedding_dim=use.width, feature_names=[use.name]
                    )
                    for use in pooled
                ],
            )
        if single:
            self.item_table = EmbeddingCollection(
                device=meta,
                tables=[
                    EmbeddingConfig(
                        name=use.name, num_embeddings=use.rows, embedding_dim=use.width, feature_names=[use.name]
                    )
                    for use in single
                ],
            )


def use_of(name: str, rows: int, width: int, *, pooled: bool = True, bags: int = 5, ids: int = 12) -> TableUse:
    return TableUse(name, rows, width, pooled, bags if pooled else 1, ids, 8, 8 if pooled else 1, 2 * ids)


def workload_of(*uses: TableUse, activations: int = 0) -> Workload:
    """8 tokens, 5 rows that they share, 100 dense parameters."""
    return Workload(8, 5, uses, DenseUse(100, 800, activations, 1e9), "float32")


def cluster_of(*ranks: int, hbm: int = 80 * GIB, device: str = "cuda") -> Cluster:
    """Nodes of so many ranks, with memory and rates of a preset."""
    preset = PRESETS["h100" if device == "cuda" else "cpu"]
    node = dataclasses.replace(preset.node, hbm=hbm if device == "cuda" else 0)
    return Cluster("test", device, tuple(dataclasses.replace(node, ranks=count) for count in ranks), preset.rates)


def uneven(cluster: Cluster, *hbm: int) -> Cluster:
    """The same cluster, its nodes with so many bytes a rank."""
    nodes = [Node(node.ranks, room, node.ddr, node.ssd) for node, room in zip(cluster.nodes, hbm, strict=True)]
    return dataclasses.replace(cluster, nodes=tuple(nodes))


def plan_of(
    use: TableUse, sharding: str, *pieces: tuple[int, ...], kernel: str = "fused", cache: float = 0.0
) -> TablePlan:
    module = "ebc" if use.pooled else "item_table"
    made = tuple(Piece(*piece) for piece in pieces)
    return TablePlan(use.name, module, use.rows, use.width, use.pooled, sharding, kernel, cache, made)


def placement_of(cluster: Cluster, *tables: TablePlan, communication: str = "float32") -> Placement:
    return Placement(tuple(node.ranks for node in cluster.nodes), cluster.device, communication, tables)
