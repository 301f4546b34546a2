"""What each rank holds, to the byte, worked out by hand for two tables on two ranks."""

from __future__ import annotations

import dataclasses

import pytest

from sharding.planning.memory import KINDS, Shortage, exchange_buffers, memory_of_ranks, reserved_bytes, shortages
from sharding.planning.placement import Placement
from sharding.planning.policy import ShardingConfig
from sharding.planning.topology import GIB
from tests.sharding.plan_example import cluster_of, placement_of, plan_of, uneven, use_of, workload_of

SUMS = use_of("rq", 10, 4, bags=3, ids=7)
ROWS = use_of("item", 5, 4, pooled=False, ids=6)
WORKLOAD = workload_of(SUMS, ROWS)
CLUSTER = cluster_of(2)
DENSE = {"dense_parameters": 400, "dense_gradients": 400, "dense_optimizer": 800, "reserved": 1000}


def halves(kernel: str = "fused", cache: float = 0.0) -> Placement:
    return placement_of(
        CLUSTER,
        plan_of(SUMS, "row-wise", (0, 0, 5, 0, 4), (1, 5, 5, 0, 4), kernel=kernel, cache=cache),
        plan_of(ROWS, "row-wise", (0, 0, 3, 0, 4), (1, 3, 2, 0, 4)),
    )


def buffers(rank: int, device: str = "cuda") -> int:
    """Of what is on its way. Two ranks' 3 sums and ids; the owner's share of two ranks' 6 rows; both as received.

    Then the pairs' sums and the tokens' copies of them. Gloo reduces a copy of the sums that were made.
    """
    sums = (2 if device == "cpu" else 1) * 2 * 3 * 16 + 2 * 8 * (3 + 7) + 3 * 16
    share = 2 * (3, 2)[rank] / 5
    rows = round(share * 6 * 16 + share * 8 * (1 + 6)) + 6 * 16
    return sums + rows + 16 * (5 + 8)


def test_bytes_of_two_tables_on_two_ranks() -> None:
    for device, main in (("cuda", "hbm"), ("cpu", "ddr")):
        cluster = cluster_of(2, device=device)
        placement = dataclasses.replace(halves(), device=device)
        first, second = memory_of_ranks(placement, cluster, WORKLOAD, reserved=1000)
        assert getattr(first, main) == DENSE | {
            "tables": 16 * (5 + 3),
            "sparse_optimizer": 4 * (5 + 3),
            "working": buffers(0, device),
        }
        assert getattr(second, main) == DENSE | {
            "tables": 16 * (5 + 2),
            "sparse_optimizer": 4 * (5 + 2),
            "working": buffers(1, device),
        }
        assert {kind for rank in (first, second) for kind in getattr(rank, main)} <= KINDS.keys()
        assert first.ssd == {}
        assert getattr(first, {"hbm": "ddr", "ddr": "hbm"}[main]) == {}
        assert first.used(main) == 2600 + 128 + 32 + buffers(0, device)
        assert first.headroom(main) == getattr(cluster.nodes[0], main) - first.used(main)


def test_buffers_of_what_travels_packed() -> None:
    placement = halves()
    for communication, width in (("float16", 2), ("bfloat16", 2), ("int8", 1)):
        packed = exchange_buffers(dataclasses.replace(placement, communication=communication), WORKLOAD)
        plain = exchange_buffers(placement, WORKLOAD)
        rows = [1.2 * 6 * 4 * width, 0.8 * 6 * 4 * width]
        assert [more - less for more, less in zip(packed, plain, strict=True)] == [
            pytest.approx(2 * 3 * 4 * width + share, abs=1) for share in rows
        ]


def test_sums_of_whole_tables_and_of_columns_are_copied_before_they_travel() -> None:
    workload, spread, received = workload_of(SUMS), 16 * (5 + 8), 3 * 16
    ids = 2 * 8 * (3 + 7)
    whole = placement_of(CLUSTER, plan_of(SUMS, "table-wise", (1, 0, 10, 0, 4)))
    assert exchange_buffers(whole, workload) == [received + spread, 2 * (2 * 3 * 16) + ids + received + spread]
    cut = placement_of(CLUSTER, plan_of(SUMS, "column-wise", (0, 0, 10, 0, 2), (1, 0, 10, 2, 2)))
    assert exchange_buffers(cut, workload) == [2 * (2 * 3 * 8) + ids + received + spread] * 2


def test_activations_and_buffers_are_never_at_their_largest_together() -> None:
    roomy = workload_of(SUMS, ROWS, activations=5000)
    for rank in memory_of_ranks(halves(), CLUSTER, roomy, reserved=0):
        # What the tower was given is there as long as its activations: 5 rows' sums, 6 items' rows.
        assert rank.hbm["working"] == 5000 + 16 * (5 + 6)


@pytest.mark.parametrize(("kernel", "below"), [("uvm", "ddr"), ("uvm-caching", "ddr"), ("ssd", "ssd")])
def test_a_tier_below_holds_the_table_and_a_cache_stays(kernel: str, below: str) -> None:
    cache = 0.0 if kernel == "uvm" else 0.5
    first, second = memory_of_ranks(halves(kernel, cache), CLUSTER, WORKLOAD, reserved=0)
    for rank, rows in ((first, 3), (second, 2)):
        assert getattr(rank, below) == {"tables": 80, "sparse_optimizer": 20}
        assert rank.hbm["tables"] == 16 * rows
        assert rank.hbm["sparse_optimizer"] == 4 * rows
        assert rank.hbm.get("cache", 0) == (0 if kernel == "uvm" else 40 + 12 * 5)
        assert getattr(rank, {"ddr": "ssd", "ssd": "ddr"}[below]) == {}


def test_pieces_by_columns_have_an_accumulator_each() -> None:
    table = plan_of(SUMS, "column-wise", (0, 0, 10, 0, 2), (1, 0, 10, 2, 2))
    for rank in memory_of_ranks(placement_of(CLUSTER, table), CLUSTER, workload_of(SUMS), reserved=0):
        assert rank.hbm["tables"] == 80
        assert rank.hbm["sparse_optimizer"] == 40


def test_a_memory_is_short_by_so_many_bytes_on_the_rank_where_most_is_missing() -> None:
    used = [rank.used("hbm") for rank in memory_of_ranks(halves(), CLUSTER, WORKLOAD, reserved=1000)]
    assert used[0] > used[1]
    for missing in (-1, 0, 1, 77):
        cluster = cluster_of(2, hbm=used[0] - missing)
        found = shortages(memory_of_ranks(halves(), cluster, WORKLOAD, reserved=1000))
        assert found == ([Shortage("hbm", 0, missing)] if missing > 0 else [])
    apart = uneven(cluster_of(1, 1), used[0], used[1] - 5)
    assert shortages(memory_of_ranks(halves(), apart, WORKLOAD, reserved=1000)) == [Shortage("hbm", 1, 5)]


def test_each_memory_is_looked_at() -> None:
    cluster = cluster_of(2)
    small = dataclasses.replace(cluster.nodes[0], hbm=1, ddr=99, ssd=0)
    cluster = dataclasses.replace(cluster, nodes=(small,))
    found = shortages(memory_of_ranks(halves("uvm"), cluster, WORKLOAD, reserved=0))
    assert [(one.memory, one.missing) for one in found if one.memory != "hbm"] == [("ddr", 1)]
    found = shortages(memory_of_ranks(halves("ssd", 0.5), cluster, WORKLOAD, reserved=0))
    assert [(one.memory, one.missing) for one in found if one.memory != "hbm"] == [("ssd", 100)]


def test_what_is_left_to_the_runtime() -> None:
    assert reserved_bytes(ShardingConfig(), "cuda") == 2 * GIB
    assert reserved_bytes(ShardingConfig(), "cpu") == GIB // 2
    assert reserved_bytes(ShardingConfig(reserved_gib=0.0), "cuda") == 0
    assert reserved_bytes(ShardingConfig(reserved_gib=1.5), "cpu") == 3 * GIB // 2
