"""Which piece of which table lies on which rank: TorchRec's planner under our policy.

Policy says what may be done with each table, the cluster what room there is, the workload what is asked of a table.
Room is what a rank has less all that is no table (`sharding.planning.memory`), computed, not guessed. Where nothing
fits, the tables are laid out as if there were room, so that it can be said how much is missing and where.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import CustomTopologyData, PlannerError, StorageReservation
from torchrec.distributed.sharding_plan import ParameterSharding
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from common.errors import InputError
from sharding.planning.memory import overhead
from sharding.planning.placement import Piece, Placement, TablePlan, check_last_tables, even_rows, table_modules
from sharding.planning.policy import CACHED, KERNELS, SHARDINGS, ShardingConfig
from sharding.planning.topology import Cluster
from sharding.planning.workload import TableUse, Workload

_MS = 1e-3
_PLENTY = 2**56
"""Bytes of memory of a rank that has room for anything."""

_MIN_COLUMNS = 32
"""Fewest columns of a piece that the planner may cut by itself."""


class BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's, which also offers row-wise sharding on the CPU, where it runs but is not offered (issue 1252)."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """All that our policy can name."""
        return list(SHARDINGS.values())


class RowSharder(EmbeddingCollectionSharder):
    """The same for tables whose rows are not summed."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """All that our policy can name."""
        return list(SHARDINGS.values())


def place_tables(
    model: nn.Module, cluster: Cluster, config: ShardingConfig, workload: Workload, *, reserved: int
) -> Placement:
    """Where each table of `model` lies.

    Args:
        model: its collections of tables on the meta device or any other.
        cluster: the ranks. A row-wise table has as many rows on each, however much memory one has: the smallest counts.
        config: what may be done.
        workload: what a step looks up.
        reserved: bytes of every rank's memory left to the runtime.

    Raises:
        InputError: the policy asks for what this cluster or model has not, all faults at once.
    """
    modules = table_modules(model)
    _check_policy(modules, cluster, config, workload)
    if all(
        config.sharding_of(use.name) == "row-wise" and config.kernel_of(use.name) != "auto" for use in workload.tables
    ):
        tables = [_by_rows(use, modules[use.name][0], cluster, config) for use in workload.tables]
    else:
        tables = _searched(model, modules, cluster, config, workload, reserved)
    placement = Placement(
        tuple(node.ranks for node in cluster.nodes), cluster.device, config.communication, tuple(tables)
    )
    check_last_tables(placement)
    return placement


def _by_rows(use: TableUse, path: str, cluster: Cluster, config: ShardingConfig) -> TablePlan:
    """A table of which nothing is left to choose: what the planner gives too, after seconds where ranks are many."""
    kernel = config.kernel_of(use.name)
    cache = config.tables.of(use.name).cache_load_factor if kernel in CACHED else 0.0
    pieces = tuple(
        Piece(rank, first, count, 0, use.width) for rank, first, count in even_rows(use.rows, cluster.num_ranks)
    )
    return TablePlan(use.name, path, use.rows, use.width, use.pooled, "row-wise", kernel, cache, pieces)


def _searched(
    model: nn.Module,
    modules: dict[str, tuple[str, nn.Module]],
    cluster: Cluster,
    config: ShardingConfig,
    workload: Workload,
    reserved: int,
) -> list[TablePlan]:
    """What TorchRec's planner finds best of what the policy leaves open."""
    taken = overhead(cluster, config, workload, reserved)
    # Memory of a GPU's own first: other tiers are slower by far, and make the planner's search long.
    attempts = [(False, taken)] + ([(True, taken)] if _has_choice(cluster, config, workload) else []) + [(False, None)]
    plan = None
    for tiers, amounts in attempts:
        constraints = {use.name: _constraints(use, config, tiers=tiers) for use in workload.tables}
        try:
            plan = _run(model, cluster, constraints, workload, amounts)
            break
        except PlannerError:
            continue
    assert plan is not None, "nothing fits even memory without end"
    tables = []
    for use in workload.tables:
        path, _ = modules[use.name]
        sharding = cast(dict[str, ParameterSharding], plan.plan[path])[use.name]
        tables.append(_table(use, path, sharding, config))
    return tables


def _check_policy(
    modules: dict[str, tuple[str, nn.Module]], cluster: Cluster, config: ShardingConfig, workload: Workload
) -> None:
    faults = []
    for field in dataclasses.fields(config.tables):
        policy = config.tables.of(field.name)
        if field.name not in modules and policy != type(policy)():
            faults.append(f"`sharding.tables.{field.name}` is given, but the model has no table `{field.name}`")
    for use in workload.tables:
        sharding, kernel = config.sharding_of(use.name), config.kernel_of(use.name)
        key = f"sharding.tables.{use.name}"
        if cluster.device != "cuda" and kernel not in ("fused", "auto"):
            faults.append(f"`{key}.kernel` is {kernel}, which needs GPUs; the ranks are on the {cluster.device}")
        columns = config.tables.of(use.name).columns
        if columns and use.width % columns:
            faults.append(f"`{key}.columns` is {columns}, which does not divide the width {use.width}")
        if config.communication == "int8" and use.pooled and sharding in ("row-wise", "table-row-wise", "auto"):
            faults.append(
                f"`sharding.communication` is int8, but the vectors of `{use.name}`, cut {sharding}, are summed on "
                f"their way, which int8 cannot do: give float16 or bfloat16, or `{key}.sharding=column-wise`"
            )
        if sharding == "table-row-wise" and len({node.ranks for node in cluster.nodes}) > 1:
            faults.append(
                f"`{key}.sharding` is table-row-wise, which needs as many ranks on each node as on the others"
            )
        if kernel == "ssd" and not min(node.ssd for node in cluster.nodes):
            faults.append(f"`{key}.kernel` is ssd, but some node of {cluster.name} has no disk (ssd_gib)")
    if faults:
        raise InputError(*faults)


def _has_choice(cluster: Cluster, config: ShardingConfig, workload: Workload) -> bool:
    """Whether some table may go to a tier below."""
    return cluster.device == "cuda" and any(config.kernel_of(use.name) == "auto" for use in workload.tables)


def _constraints(use: TableUse, config: ShardingConfig, *, tiers: bool) -> ParameterConstraints:
    policy, sharding, kernel = config.tables.of(use.name), config.sharding_of(use.name), config.kernel_of(use.name)
    kernels = [KERNELS["fused" if kernel == "auto" else kernel]]
    if tiers and kernel == "auto":
        kernels += [KERNELS["uvm-caching"], KERNELS["uvm"]]
    return ParameterConstraints(
        sharding_types=list(SHARDINGS.values()) if sharding == "auto" else [SHARDINGS[sharding]],
        compute_kernels=kernels,
        min_partition=policy.columns or min(use.width, _MIN_COLUMNS),
        pooling_factors=[use.ids / use.bags],
        batch_sizes=[use.bags],
        cache_params=CacheParams(load_factor=policy.cache_load_factor)
        if set(kernels) & {KERNELS[name] for name in CACHED}
        else None,
    )


def _run(
    model: nn.Module,
    cluster: Cluster,
    constraints: dict[str, ParameterConstraints],
    workload: Workload,
    taken: list[int] | None,
) -> ShardingPlan:
    """TorchRec's planner; `taken` is what is no table, by rank, None for memory without end."""
    with _quiet():
        topology = _topology(cluster, plenty=taken is None)
        batch_size = max(use.bags for use in workload.tables)
        enumerator = EmbeddingEnumerator(topology, batch_size, constraints)
        # Rows in proportion to memory would be read wrongly: TorchRec 1.8 sends ids to owners by even blocks of rows.
        enumerator._device_memory_sizes = None
        planner = EmbeddingShardingPlanner(
            topology=topology,
            enumerator=enumerator,
            constraints=constraints,
            batch_size=batch_size,
            storage_reservation=_Taken(taken or [0] * cluster.num_ranks),
        )
        return planner.plan(model, [BagSharder(), RowSharder()])


class _Taken(StorageReservation):
    """Takes from each rank's memory the bytes that are known to be used otherwise."""

    def __init__(self, taken: list[int]) -> None:
        self._taken = taken
        self._reserved: Topology | None = None
        self._percentage = 0.0  # the planner speaks of it where nothing fits

    def reserve(
        self,
        topology: Topology,
        batch_size: int,  # noqa: ARG002
        module: nn.Module,  # noqa: ARG002
        sharders: list[ModuleSharder[nn.Module]],  # noqa: ARG002
        constraints: dict[str, ParameterConstraints] | None = None,  # noqa: ARG002
    ) -> Topology:
        """The topology with what is left."""
        reserved = copy.deepcopy(topology)
        for device, taken in zip(reserved.devices, self._taken, strict=True):
            if reserved.compute_device == "cpu":
                device.storage.ddr -= taken
            else:
                device.storage.hbm -= taken
        self._reserved = reserved
        return reserved

    @property
    def last_reserved_topology(self) -> Topology | None:
        """What `reserve` gave."""
        return copy.deepcopy(self._reserved)


def _topology(cluster: Cluster, *, plenty: bool) -> Topology:
    nodes = [cluster.nodes[node] for node in cluster.node_of_rank]
    factor = _PLENTY // max(max(node.hbm, node.ddr) for node in nodes) if plenty else 1
    memory: dict[str, list[int]] = {
        "hbm_cap": [node.hbm * factor for node in nodes],
        "ddr_cap": [node.ddr * factor for node in nodes],
        "ssd_cap": [node.ssd * factor for node in nodes],
    }
    even = len({(node.hbm, node.ddr) for node in nodes}) == 1
    rates = cluster.rates
    return Topology(
        world_size=cluster.num_ranks,
        compute_device=cluster.device,
        local_world_size=cluster.ranks_per_node,
        hbm_cap=memory["hbm_cap"][0],
        ddr_cap=memory["ddr_cap"][0],
        ssd_cap=memory["ssd_cap"][0],
        custom_topology_data=None if even else CustomTopologyData(memory, cluster.num_ranks),
        hbm_mem_bw=rates.hbm * _MS,
        ddr_mem_bw=rates.ddr * _MS,
        ssd_mem_bw=rates.ssd * _MS,
        hbm_to_ddr_mem_bw=rates.host_link * _MS,
        intra_host_bw=rates.intra * _MS,
        inter_host_bw=rates.inter * _MS,
    )


def _table(use: TableUse, path: str, sharding: ParameterSharding, config: ShardingConfig) -> TablePlan:
    kernel = next(ours for ours, theirs in KERNELS.items() if theirs == sharding.compute_kernel)
    shards = cast(Any, sharding.sharding_spec).shards
    ranks = sharding.ranks
    assert ranks is not None
    assert len(ranks) == len(shards)
    return TablePlan(
        name=use.name,
        module=path,
        rows=use.rows,
        width=use.width,
        pooled=use.pooled,
        sharding=next(ours for ours, theirs in SHARDINGS.items() if theirs == sharding.sharding_type),
        kernel=kernel,
        cache_load_factor=config.tables.of(use.name).cache_load_factor if kernel in CACHED else 0.0,
        pieces=tuple(
            Piece(
                rank,
                shard.shard_offsets[0],
                shard.shard_sizes[0],
                shard.shard_offsets[1],
                shard.shard_sizes[1],
            )
            for rank, shard in zip(ranks, shards, strict=True)
        ),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TorchRec's advice on planning, which is about what we do on purpose."""
    loggers = [logging.getLogger(name) for name in ("torchrec.distributed.planner", "torchrec.distributed.logger")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
