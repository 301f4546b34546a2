"""What travels between ranks in a step, table by table, and how long each part of a step takes by arithmetic.

Ids go from each rank to those that own their rows, with the lengths of their bags; sums or rows come back; gradients go
the same way as ids. An owner of pooled rows sends a vector for every bag, whatever it holds of the bag: row-wise over W
ranks, W − 1 of W sums that are made travel, and a rank sends (W − 1) · bags · width numbers. That is the price of
row-wise sums, and grows with the number of ranks; a table cut by columns, or whole on one rank, sends each number once.

Look-ups are taken to hit rows evenly. Summed over ranks, what leaves them does not depend on that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sharding.planning.placement import Placement, TablePlan
from sharding.planning.policy import PRECISIONS
from sharding.planning.topology import Cluster
from sharding.planning.workload import TableUse, Workload

_ID = 8
_LENGTH = 8
_EFFICIENCY = 0.4
"""Share of a device's matrix-product rate that a model's blocks reach; a working figure, not a measurement."""

PARTS = {
    "ids": "ids to owners",
    "look_up": "look-ups",
    "forward": "vectors back",
    "dense": "dense forward and backward",
    "all_reduce": "all-reduce of dense gradients",
    "backward": "gradients to owners",
    "update": "update of rows",
    "optimizer": "dense optimizer",
}
"""Parts of a step, and what people call them."""


STAGES = {"ids": PARTS["ids"], "forward": PARTS["forward"], "backward": PARTS["backward"]}
"""Exchanges between ranks for a table."""


def duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


@dataclass(frozen=True)
class Sent:
    """Bytes that each of W ranks sends to others in one exchange: within its node, and to other nodes."""

    inside_W: np.ndarray
    between_W: np.ndarray

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.inside_W + other.inside_W, self.between_W + other.between_W)

    @property
    def total(self) -> float:
        """Of all ranks."""
        return float(self.inside_W.sum() + self.between_W.sum())

    def seconds(self, cluster: Cluster) -> float:
        """Until the slowest rank has sent its own; both networks work at once."""
        if self.total == 0:
            return 0.0
        slowest = np.maximum(self.inside_W / cluster.rates.intra, self.between_W / cluster.rates.inter).max()
        return cluster.rates.latency + float(slowest)


@dataclass(frozen=True)
class Exchange:
    """Of one table in one step."""

    table: str
    ids: Sent
    forward: Sent
    backward: Sent

    @property
    def total(self) -> float:
        """Bytes, all ranks, there and back."""
        return self.ids.total + self.forward.total + self.backward.total


def exchange_of(table: TablePlan, use: TableUse, cluster: Cluster, communication: str) -> Exchange:
    """What one table sends in a step."""
    ranks, node_W = cluster.num_ranks, np.array(cluster.node_of_rank)
    peers_W = np.array([node.ranks for node in cluster.nodes])[node_W] - 1
    others_W = ranks - 1 - peers_W
    share_W, columns_W, asked_W = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    for piece in table.pieces:
        if piece.rows:
            share_W[piece.rank] += piece.rows / table.rows
            columns_W[piece.rank] += piece.columns
            asked_W[piece.rank] += 1  # ids and lengths go once for each piece, to a rank with two of them twice
    if table.sharding == "row-wise":  # lengths of its bags go to every rank, whether it has rows or not
        asked_W[:] = 1
    width = PRECISIONS[communication]
    ids = _to_owners(use.ids * _ID * share_W + use.bags * _LENGTH * asked_W, node_W)
    if not table.pooled:  # an owner sends the rows asked of it, and no others
        rows = Sent(*(use.ids * table.width * width * share_W * count_W for count_W in (peers_W, others_W)))
        return Exchange(table.name, ids, rows, _to_owners(use.ids * table.width * width * share_W, node_W))
    vector_W = use.bags * columns_W * width
    if table.sharding == "row-wise":
        vector_W = np.full(ranks, use.bags * table.width * width, dtype=float)
        forward = Sent(vector_W * peers_W, vector_W * others_W)
        return Exchange(table.name, ids, forward, forward)  # the gradient is gathered: to every rank alike
    if table.sharding == "table-row-wise":
        return _within_a_node(table, use, cluster, ids, width)
    forward = Sent(vector_W * peers_W, vector_W * others_W)
    return Exchange(table.name, ids, forward, _to_owners(vector_W, node_W))


def _to_owners(asked_W: np.ndarray, node_W: np.ndarray) -> Sent:
    """Every rank sends `asked_W[o]` bytes to each owner o, keeping what is its own."""
    in_node_N = np.bincount(node_W, weights=asked_W)
    inside_W = in_node_N[node_W] - asked_W
    return Sent(inside_W, asked_W.sum() - in_node_N[node_W])


def _within_a_node(table: TablePlan, use: TableUse, cluster: Cluster, ids: Sent, width: int) -> Exchange:
    """Rows over the ranks of one node: sums are brought together there, then each travels once."""
    owners = np.array(sorted({piece.rank for piece in table.pieces}))
    local, nodes = len(owners), len(cluster.nodes)
    vectors = float(use.bags * table.width * width)
    inside_W, between_W = np.zeros(cluster.num_ranks), np.zeros(cluster.num_ranks)
    inside_W[owners] = (local - 1) * cluster.num_ranks / local * vectors
    between_W[owners] = (nodes - 1) * vectors
    back_inside_W, back_between_W = inside_W.copy(), np.full(cluster.num_ranks, vectors)
    back_between_W[owners] = 0
    return Exchange(table.name, ids, Sent(inside_W, between_W), Sent(back_inside_W, back_between_W))


def exchanges(placement: Placement, cluster: Cluster, workload: Workload) -> list[Exchange]:
    """Of all tables."""
    return [
        exchange_of(table, workload.table(table.name), cluster, placement.communication) for table in placement.tables
    ]


def seconds_of_parts(
    placement: Placement, cluster: Cluster, workload: Workload, tables: list[Exchange]
) -> dict[str, float]:
    """Seconds of each of `PARTS`, one after another; a trainer hides some behind others.

    Args:
        tables: what they send, by `exchanges`.
    """
    rates, dense = cluster.rates, workload.dense
    look_up, update = _memory_seconds(placement, cluster, workload)
    ring = 2 * (cluster.num_ranks - 1) / cluster.num_ranks * 4 * dense.parameters
    link = rates.inter if len(cluster.nodes) > 1 else rates.intra
    products = rates.bf16 if workload.precision == "bf16" else rates.float32
    main = rates.hbm if cluster.device == "cuda" else rates.ddr
    return {
        "ids": sum((one.ids for one in tables[1:]), start=tables[0].ids).seconds(cluster),
        "look_up": look_up,
        "forward": sum((one.forward for one in tables[1:]), start=tables[0].forward).seconds(cluster),
        "dense": dense.flops / (_EFFICIENCY * products),
        "all_reduce": ring / link + rates.latency if ring else 0.0,
        "backward": sum((one.backward for one in tables[1:]), start=tables[0].backward).seconds(cluster),
        "update": update,
        # Gradient, parameter and states are read, the last two written.
        "optimizer": (3 * 4 * dense.parameters + 2 * dense.optimizer) / main,
    }


def _memory_seconds(placement: Placement, cluster: Cluster, workload: Workload) -> tuple[float, float]:
    """Of reading rows and of updating them, on the rank with most of either."""
    rates = cluster.rates
    main = rates.hbm if cluster.device == "cuda" else rates.ddr
    read_W, updated_W = np.zeros(cluster.num_ranks), np.zeros(cluster.num_ranks)
    for table in placement.tables:
        use = workload.table(table.name)
        below = {"fused": main, "uvm": rates.host_link, "uvm-caching": rates.host_link, "ssd": rates.ssd}[table.kernel]
        hits = table.cache_load_factor**0.5  # of skewed look-ups; a cache of a fifth of the rows serves near a half
        rate = 1 / (hits / main + (1 - hits) / below)
        for piece in table.pieces:
            if not piece.rows:
                continue
            rows = cluster.num_ranks * use.ids * piece.rows / table.rows
            made = cluster.num_ranks * use.bags if table.pooled else rows
            vectors = 4 * made * piece.columns / main
            read_W[piece.rank] += 4 * rows * piece.columns / rate + vectors
            # A row is read and written, and so is its accumulator.
            updated_W[piece.rank] += rows * (8 * piece.columns + 8) / rate + vectors
    return float(read_W.max()), float(updated_W.max())
