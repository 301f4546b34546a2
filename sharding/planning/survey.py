"""A plan with all that follows from it: memory by rank, traffic by table, time by part, and the bottleneck in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sharding.planning.memory import KINDS, MEMORIES, RankMemory, Shortage, memory_of_ranks, shortages
from sharding.planning.placement import Placement
from sharding.planning.planner import place_tables
from sharding.planning.policy import ShardingConfig
from sharding.planning.topology import Cluster
from sharding.planning.traffic import PARTS, STAGES, Exchange, duration, exchanges, seconds_of_parts
from sharding.planning.workload import Workload


@dataclass(frozen=True)
class Survey:
    """Everything about one plan.

    Attributes:
        ranks: memory, by rank.
        traffic: by table.
        seconds: by part of a step.
        plain_traffic, plain_seconds: the same, were every token to ask for itself.
    """

    cluster: Cluster
    placement: Placement
    workload: Workload
    ranks: list[RankMemory]
    traffic: list[Exchange]
    seconds: dict[str, float]
    plain_traffic: list[Exchange]
    plain_seconds: dict[str, float]

    @property
    def shortages(self) -> list[Shortage]:
        """Memories that are too small; none where the plan fits."""
        return shortages(self.ranks)

    @property
    def fullest(self) -> RankMemory:
        """The rank with least room left."""
        memory = self.main_memory
        return min(self.ranks, key=lambda rank: rank.headroom(memory))

    @property
    def main_memory(self) -> str:
        """What the ranks compute in: `hbm` or `ddr`."""
        return "hbm" if self.cluster.device == "cuda" else "ddr"

    @property
    def step_seconds(self) -> float:
        """All parts, one after another."""
        return sum(self.seconds.values())

    def bottleneck(self) -> str:
        """One sentence: what a step waits for most, and which table or link it is."""
        part = max(self.seconds, key=lambda name: self.seconds[name])
        share = self.seconds[part] / self.step_seconds
        start = f"{PARTS[part].capitalize()}: {share:.0%} of a step's {duration(self.step_seconds)}"
        if part not in ("ids", "forward", "backward"):
            return f"{start}."
        heaviest = max(self.traffic, key=lambda one: getattr(one, part).total)
        sent = getattr(heaviest, part)
        where = (
            "between nodes"
            if sent.between_W.sum() / self.cluster.rates.inter > (sent.inside_W.sum() / self.cluster.rates.intra)
            else "inside nodes"
        )
        table = self.placement.table(heaviest.table)
        advice = ""
        if table.pooled and table.sharding == "row-wise" and part != "ids" and self.cluster.num_ranks > 2:
            advice = (
                f"; row-wise, each rank sends a sum for every bag of each of {self.cluster.num_ranks - 1} others; "
                f"cut table-wise or column-wise, each sum travels once"
            )
        return f"{start}, most of it `{heaviest.table}`, {where}{advice}."

    def to_plain(self) -> dict[str, Any]:
        """As plan.json holds it: the placement, and what follows from it."""
        return self.placement.to_plain() | {
            "topology": self.cluster.name,
            "cluster": self.cluster.describe(),
            "workload": {
                "tokens": self.workload.tokens,
                "dense_parameters": self.workload.dense.parameters,
                "activation_bytes": self.workload.dense.activations,
                "flops": self.workload.dense.flops,
            },
            "num_ranks": self.cluster.num_ranks,
            "main_memory": self.main_memory,
            "ranks": [_rank(rank, self.main_memory) for rank in self.ranks],
            "traffic": [
                _traffic(now, plain, self.workload) for now, plain in zip(self.traffic, self.plain_traffic, strict=True)
            ],
            "seconds_of_parts": self.seconds,
            "seconds_without_distinct": self.plain_seconds,
            "fits": not self.shortages,
            "missing": [{"memory": one.memory, "rank": one.rank, "bytes": one.missing} for one in self.shortages],
            "bottleneck": self.bottleneck(),
        }


def survey(model: nn.Module, cluster: Cluster, config: ShardingConfig, workload: Workload, *, reserved: int) -> Survey:
    """Place the tables of a model and work out what follows. Arguments as of `place_tables`."""
    placement = place_tables(model, cluster, config, workload, reserved=reserved)
    return survey_of(placement, cluster, workload, reserved=reserved)


def survey_of(placement: Placement, cluster: Cluster, workload: Workload, *, reserved: int) -> Survey:
    """What follows from a placement that is given."""
    plain = plain_workload(workload)
    traffic, plain_traffic = (exchanges(placement, cluster, step) for step in (workload, plain))
    return Survey(
        cluster,
        placement,
        workload,
        memory_of_ranks(placement, cluster, workload, reserved=reserved),
        traffic,
        seconds_of_parts(placement, cluster, workload, traffic),
        plain_traffic,
        seconds_of_parts(placement, cluster, plain, plain_traffic),
    )


def plain_workload(workload: Workload) -> Workload:
    """The same step, were every token to ask for itself."""
    tables = tuple(use.plain() for use in workload.tables)
    return Workload(workload.tokens, workload.tokens, tables, workload.dense, workload.precision)


def _rank(rank: RankMemory, main: str) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "node": rank.node,
        "hbm_bytes": rank.used("hbm"),
        "ddr_bytes": rank.used("ddr"),
        "ssd_bytes": rank.used("ssd"),
        "headroom_bytes": rank.headroom(main),
        **{
            memory: {
                "capacity": rank.capacity[memory],
                "kinds": {kind: getattr(rank, memory)[kind] for kind in KINDS if kind in getattr(rank, memory)},
            }
            for memory in MEMORIES
        },
    }


def _traffic(now: Exchange, plain: Exchange, workload: Workload) -> dict[str, Any]:
    use = workload.table(now.table)
    return {
        "table": now.table,
        "asked": {"bags": use.bags, "rows": use.ids},
        "asked_without_distinct": {"bags": use.plain_bags, "rows": use.plain_ids},
        "bytes": _bytes(now),
        "bytes_without_distinct": _bytes(plain),
    }


def _bytes(exchange: Exchange) -> dict[str, dict[str, int]]:
    """Of all ranks in a step, by stage, inside nodes and between them."""
    return {
        stage: {
            "inside": round(float(getattr(exchange, stage).inside_W.sum())),
            "between": round(float(getattr(exchange, stage).between_W.sum())),
        }
        for stage in STAGES
    }
