"""Pieces of any policy make up their tables; those by rows are what every reader takes them to be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from sharding.planning.placement import Piece, Placement, TablePlan, even_rows, row_wise
from sharding.planning.planner import _constraints, _run, _table, place_tables
from sharding.planning.policy import ShardingConfig, TablePolicies, TablePolicy
from sharding.planning.topology import GIB, Cluster
from sharding.planning.workload import TableUse, Workload
from sharding.world import World
from tests.sharding.plan_example import Tables, cluster_of, uneven, use_of, workload_of

CUTS = ("row-wise", "table-wise", "column-wise", "table-row-wise", "auto")


def placed(cluster: Cluster, config: ShardingConfig, *uses: TableUse, workload: Workload | None = None) -> Placement:
    return place_tables(Tables(*uses), cluster, config, workload or workload_of(*uses), reserved=0)


def policies(**tables: TablePolicy) -> ShardingConfig:
    return ShardingConfig(tables=TablePolicies(**tables))


def check_tiles(table: TablePlan, num_ranks: int) -> None:
    """Every number has one owner."""
    owners = np.zeros((table.rows, table.width), dtype=int)
    for piece in table.pieces:
        assert 0 <= piece.rank < num_ranks
        rows, columns = piece.first_row + piece.rows, piece.first_column + piece.columns
        assert rows <= table.rows
        assert columns <= table.width
        owners[piece.first_row : rows, piece.first_column : columns] += 1
    assert (owners == 1).all(), table


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pieces_of_any_policy_make_up_the_table(data: st.DataObject) -> None:
    nodes = [data.draw(st.integers(1, 4), "ranks")] * data.draw(st.integers(1, 3), "nodes")
    cuts = {name: data.draw(st.sampled_from(CUTS), name) for name in ("rq", "item", "event_type")}
    cluster = cluster_of(*nodes)
    if data.draw(st.booleans(), "uneven"):
        cluster = uneven(cluster, *(data.draw(st.sampled_from([40, 80, 10]), "GiB") * GIB for _ in nodes))
    rows, widths = st.integers(1, 70), st.sampled_from([4, 32, 64, 96, 128])
    uses = [
        use_of("event_type", data.draw(rows, "rows"), width := data.draw(widths, "width")),
        use_of("rq", data.draw(rows, "rows"), width),
        use_of("item", data.draw(rows, "rows"), data.draw(widths, "width"), pooled=False),
    ]
    found = placed(cluster, policies(**{name: TablePolicy(sharding=cut) for name, cut in cuts.items()}), *uses)
    assert [table.name for table in found.tables] == [use.name for use in uses]
    for table, use in zip(found.tables, uses, strict=True):
        assert (table.rows, table.width, table.pooled, table.kernel) == (use.rows, use.width, use.pooled, "fused")
        assert cuts[table.name] in (table.sharding, "auto")
        check_tiles(table, cluster.num_ranks)
        if table.sharding == "row-wise":
            assert [(p.rank, p.first_row, p.rows) for p in table.pieces] == even_rows(table.rows, cluster.num_ranks)
        if table.sharding == "table-row-wise":
            assert len({cluster.node_of_rank[piece.rank] for piece in table.pieces}) == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_tables_by_rows_lie_where_torchrecs_planner_puts_them(ranks: int) -> None:
    uses = (use_of("event_type", 2, 32), use_of("rq", 101, 32), use_of("item", 14, 32, pooled=False))
    model, cluster, config, workload = Tables(*uses), cluster_of(ranks), ShardingConfig(), workload_of(*uses)
    found = placed(cluster, config, *uses)
    assert found == row_wise(model, World(0, ranks, ranks, torch.device("cuda")))
    constraints = {use.name: _constraints(use, config, tiers=False) for use in uses}
    plan: Any = _run(model, cluster, constraints, workload, [0] * ranks).plan
    paths = ("ebc", "ebc", "item_table")
    searched = [_table(use, path, plan[path][use.name], config) for use, path in zip(uses, paths, strict=True)]
    assert list(found.tables) == searched


def test_columns_of_a_piece_are_as_asked() -> None:
    use = use_of("rq", 10, 64)
    found = placed(cluster_of(4), policies(rq=TablePolicy(sharding="column-wise", columns=16)), use)
    (table,) = found.tables
    assert sorted((p.first_row, p.rows, p.first_column, p.columns) for p in table.pieces) == [
        (0, 10, column, 16) for column in (0, 16, 32, 48)
    ]
    assert sorted(piece.rank for piece in table.pieces) == [0, 1, 2, 3]


def test_whole_tables_go_where_there_is_room() -> None:
    rows = 2**20  # a GiB
    uses = [use_of(name, rows, 256) for name in ("rq", "event_type")]
    whole = policies(**{use.name: TablePolicy(sharding="table-wise") for use in uses})
    cluster = uneven(cluster_of(1, 1, 1), GIB // 2, 8 * GIB, GIB // 2)
    assert [table.ranks for table in placed(cluster, whole, *uses).tables] == [[1], [1]]


def test_where_nothing_fits_tables_are_laid_out_all_the_same() -> None:
    use = use_of("rq", 2**20, 256)
    for cut in ("row-wise", "table-wise", "column-wise"):
        found = placed(cluster_of(2, hbm=2**20), policies(rq=TablePolicy(sharding=cut)), use)
        assert sum(piece.rows * piece.columns for piece in found.tables[0].pieces) == use.rows * use.width


def test_auto_takes_host_memory_only_where_a_gpus_is_too_small() -> None:
    use = use_of("rq", 2**22, 256)  # 4 GiB
    auto = ShardingConfig(policy="auto")
    assert placed(cluster_of(2), auto, use).tables[0].kernel == "fused"
    (table,) = placed(cluster_of(2, hbm=GIB + 2**27), auto, use).tables
    assert table.kernel in ("uvm-caching", "uvm")
    assert table.cache_load_factor == (0.2 if table.kernel == "uvm-caching" else 0.0)
    # What is kept free for others is no room for tables.
    roomy = cluster_of(2, hbm=8 * GIB)
    kernels = [
        place_tables(Tables(use), roomy, auto, workload_of(use), reserved=kept * GIB).tables[0].kernel
        for kept in (1, 7)
    ]
    assert kernels[0] == "fused"
    assert kernels[1] in ("uvm-caching", "uvm")


def test_a_policy_that_the_cluster_or_the_model_has_not() -> None:
    uses = (use_of("event_type", 5, 12), use_of("rq", 9, 12))
    config = dataclasses.replace(
        policies(
            rq=TablePolicy(sharding="column-wise", columns=8, kernel="uvm"),
            event_type=TablePolicy(sharding="table-row-wise"),
            item=TablePolicy(kernel="uvm"),
        ),
        communication="int8",
    )
    with pytest.raises(InputError) as raised:
        placed(cluster_of(2, 1, device="cpu"), config, *uses)
    said = [
        "`sharding.tables.item` is given, but the model has no table `item`",
        "`sharding.communication` is int8, but the vectors of `event_type`, cut table-row-wise",
        "`sharding.tables.event_type.sharding` is table-row-wise, which needs as many ranks",
        "`sharding.tables.rq.kernel` is uvm, which needs GPUs",
        "`sharding.tables.rq.columns` is 8, which does not divide the width 12",
    ]
    assert len(raised.value.faults) == len(said)
    for fault, beginning in zip(raised.value.faults, said, strict=True):
        assert fault.startswith(beginning)
    node = dataclasses.replace(cluster_of(1).nodes[0], ssd=0)
    diskless = dataclasses.replace(cluster_of(1), nodes=(node,))
    with pytest.raises(InputError, match="has no disk"):
        placed(diskless, policies(rq=TablePolicy(kernel="ssd")), uses[1])


def test_a_last_table_too_small_for_the_ranks_of_a_cpu() -> None:
    use = use_of("rq", 3, 8)
    with pytest.raises(InputError, match="`rq` has 3 rows, too few for each of 4 ranks"):
        placed(cluster_of(4, device="cpu"), ShardingConfig(), use)
    assert placed(cluster_of(4), ShardingConfig(), use).tables[0].pieces[-1] == Piece(3, 3, 0, 0, 8)
