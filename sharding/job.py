"""The plan of a job that is about to run: made on rank 0 by the code of the dry run, followed by all ranks.

The cluster is the one at hand: its ranks, and the memory that is free on each. The least of all ranks counts for each,
so that memory that happens to be free does not move rows from one start to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from common.errors import InputError
from sharding.planning.memory import reserved_bytes
from sharding.planning.placement import Placement
from sharding.planning.placement_file import check_matches, read_placement
from sharding.planning.planner import place_tables
from sharding.planning.policy import ShardingConfig
from sharding.planning.report import size
from sharding.planning.survey import Survey, survey_of
from sharding.planning.topology import Cluster, host_memory, this_machine
from sharding.planning.workload import Workload
from sharding.world import World

T = TypeVar("T")

_EXACT = ("tables", "sparse_optimizer", "dense_parameters", "dense_gradients", "dense_optimizer")
"""Kinds of memory that are known to the byte; the others are estimates."""


def plan_job(model: nn.Module, world: World, config: ShardingConfig, make_workload: Callable[[], Workload]) -> Survey:
    """Where the tables of `model` lie in this job, and what follows from it. Called by all ranks, the same for all.

    Args:
        model: its tables on the meta device.
        make_workload: what a step asks of a rank; called on rank 0.

    Raises:
        InputError: the policy cannot be, a given plan is not for this job, or the tables and the dense part, which
            are known to the byte, need more memory than is free. On all ranks alike.
    """
    cluster = cluster_at_hand(world)
    ranks_per_node = [node.ranks for node in cluster.nodes]
    reserved = reserved_bytes(config, cluster.device)

    def on_main() -> tuple[Placement, Workload]:
        workload = make_workload()
        if not config.plan:
            placement = place_tables(model, cluster, config, workload, reserved=reserved)
        else:
            placement = read_placement(Path(config.plan))
            check_matches(placement, model, ranks_per_node, cluster.device, config.plan)
        _check_room(survey_of(placement, cluster, workload, reserved=reserved))
        return placement, workload

    placement, workload = _from_main(on_main, world)
    return survey_of(placement, cluster, workload, reserved=reserved)


def cluster_at_hand(world: World) -> Cluster:
    """Nodes of this job, and on each rank the memory that is free on the fullest of all."""
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
    else:
        free = host_memory() // world.local_size
    found: list[tuple[int, int]] = [(0, 0)] * world.size
    dist.all_gather_object(found, (world.local_size, free))
    ranks_per_node, at = [], 0
    while at < world.size:
        ranks_per_node.append(found[at][0])
        at += found[at][0]
    least = min(memory for _, memory in found)
    return this_machine(world.device.type, ranks_per_node, [least] * world.size)


def describe_plan(found: Survey) -> str:
    """The plan in a few lines, for the log of a run."""
    tables = ", ".join(
        f"{table.name} {table.rows:,} × {table.width} {table.sharding}"
        + ("" if table.kernel == "fused" else f" {table.kernel}")
        for table in found.placement.tables
    )
    rank, memory = found.fullest, found.main_memory
    sent = sum(one.total for one in found.traffic) / found.cluster.num_ranks
    room = rank.headroom(memory)
    lines = [
        f"tables: {tables}",
        f"a rank needs {size(rank.used(memory))} of {size(rank.capacity[memory])} free, and sends {size(sent)} a step",
    ]
    if room < 0:
        lines.append(f"warning: by estimate {size(-room)} of memory are missing on a rank")
    return "\n".join(lines)


def _check_room(found: Survey) -> None:
    """Refuse what cannot fit by what is known to the byte; where only the estimate says so, the job may try."""
    memory, rank = found.main_memory, found.fullest
    known = sum(getattr(rank, memory).get(kind, 0) for kind in _EXACT)
    if known > rank.capacity[memory]:
        raise InputError(
            f"tables, dense parameters and their optimizers need {size(known)} on rank {rank.rank}, where "
            f"{size(rank.capacity[memory])} are free; `python -m sharding.plan … goal=min_ranks` says how many ranks "
            f"hold them"
        )


def _from_main(work: Callable[[], T], world: World) -> T:
    """What `work` gives on rank 0, on all ranks; its InputError too."""
    told: list[tuple[T | None, tuple[str, ...]]] = [(None, ())]
    if world.is_main:
        try:
            told = [(work(), ())]
        except InputError as error:
            told = [(None, tuple(error.faults))]
    dist.broadcast_object_list(told, src=0)
    result, faults = told[0]
    if faults:
        raise InputError(*faults)
    assert result is not None
    return result
