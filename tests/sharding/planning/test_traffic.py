"""Bytes that travel in a step, worked out by hand on two nodes of two ranks.

A table of 8 rows × 8 numbers, 32 bytes a vector. Each rank asks for 12 rows, 96 bytes of ids, in 5 bags, 40 bytes of
lengths and 160 of sums.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sharding.planning.placement import TablePlan
from sharding.planning.topology import Cluster
from sharding.planning.traffic import Exchange, Sent, exchange_of, exchanges, seconds_of_parts
from tests.sharding.plan_example import cluster_of, placement_of, plan_of, use_of, workload_of

CLUSTER = cluster_of(2, 2)
SUMS, ROWS = use_of("rq", 8, 8), use_of("item", 8, 8, pooled=False)


def quarters(use: object) -> TablePlan:
    return plan_of(use, "row-wise", *((rank, 2 * rank, 2, 0, 8) for rank in range(4)))  # type: ignore[arg-type]


def by_rank(sent: Sent) -> list[tuple[float, float]]:
    return list(zip(sent.inside_W.tolist(), sent.between_W.tolist(), strict=True))


def test_row_wise_sums_go_from_every_rank_to_every_rank() -> None:
    found = exchange_of(quarters(SUMS), SUMS, CLUSTER, "float32")
    # To each owner a quarter of the ids and all lengths: 24 + 40.
    assert by_rank(found.ids) == [(64, 128)] * 4
    assert by_rank(found.forward) == by_rank(found.backward) == [(160, 320)] * 4
    assert found.total == 4 * (192 + 480 + 480)


def test_table_wise_one_rank_makes_all_sums() -> None:
    found = exchange_of(plan_of(SUMS, "table-wise", (1, 0, 8, 0, 8)), SUMS, CLUSTER, "float32")
    assert by_rank(found.ids) == [(136, 0), (0, 0), (0, 136), (0, 136)]
    assert by_rank(found.forward) == [(0, 0), (160, 320), (0, 0), (0, 0)]
    assert by_rank(found.backward) == [(160, 0), (0, 0), (0, 160), (0, 160)]


def test_column_wise_each_number_travels_once() -> None:
    table = plan_of(SUMS, "column-wise", (0, 0, 8, 0, 4), (3, 0, 8, 4, 4))
    found = exchange_of(table, SUMS, CLUSTER, "float32")
    assert by_rank(found.ids) == [(0, 136), (136, 136), (136, 136), (0, 136)]
    assert by_rank(found.forward) == [(80, 160), (0, 0), (0, 0), (80, 160)]
    assert by_rank(found.backward) == [(0, 80), (80, 80), (80, 80), (0, 80)]


def test_table_row_wise_sums_are_brought_together_within_the_node() -> None:
    table = plan_of(SUMS, "table-row-wise", (0, 0, 4, 0, 8), (1, 4, 4, 0, 8))
    found = exchange_of(table, SUMS, CLUSTER, "float32")
    # To each of two owners half of the ids and all lengths: 48 + 40.
    assert by_rank(found.ids) == [(88, 0), (88, 0), (0, 176), (0, 176)]
    # For each of four ranks a sum in two halves, of which each owner keeps one; then a rank of the other node each.
    assert by_rank(found.forward) == [(320, 160), (320, 160), (0, 0), (0, 0)]
    assert by_rank(found.backward) == [(320, 0), (320, 0), (0, 160), (0, 160)]


def test_rows_by_themselves_travel_once_from_their_owner() -> None:
    found = exchange_of(quarters(ROWS), ROWS, CLUSTER, "float32")
    # A quarter of the ids and the length of one bag: 24 + 8. A quarter of the rows: 3 · 32.
    assert by_rank(found.ids) == [(32, 64)] * 4
    assert by_rank(found.forward) == by_rank(found.backward) == [(96, 192)] * 4


@pytest.mark.parametrize(("communication", "width"), [("float16", 2), ("bfloat16", 2), ("int8", 1)])
def test_vectors_travel_in_fewer_bytes_and_ids_do_not(communication: str, width: int) -> None:
    for use in (SUMS, ROWS):
        full = exchange_of(quarters(use), use, CLUSTER, "float32")
        less = exchange_of(quarters(use), use, CLUSTER, communication)
        assert less.ids.total == full.ids.total
        assert less.forward.total * 4 == full.forward.total * width
        assert less.backward.total * 4 == full.backward.total * width


CUTS: dict[str, Callable[[], TablePlan]] = {
    "row-wise": lambda: plan_of(SUMS, "row-wise", (0, 0, 8, 0, 8)),
    "rows alone": lambda: plan_of(ROWS, "row-wise", (0, 0, 8, 0, 8)),
    "table-wise": lambda: plan_of(SUMS, "table-wise", (0, 0, 8, 0, 8)),
    "column-wise": lambda: plan_of(SUMS, "column-wise", (0, 0, 8, 0, 4), (0, 0, 8, 4, 4)),
    "table-row-wise": lambda: plan_of(SUMS, "table-row-wise", (0, 0, 8, 0, 8)),
}


@pytest.mark.parametrize("cut", CUTS)
def test_on_one_rank_nothing_travels(cut: str) -> None:
    table, cluster = CUTS[cut](), cluster_of(1)
    workload = workload_of(SUMS, ROWS)
    placement = placement_of(cluster, table)
    (found,) = exchanges(placement, cluster, workload)
    assert found.total == 0
    seconds = seconds_of_parts(placement, cluster, workload, exchanges(placement, cluster, workload))
    assert {part for part, time in seconds.items() if not time} == {"ids", "forward", "all_reduce", "backward"}


def skewed(*rows: int) -> Exchange:
    starts = np.cumsum([0, *rows]).tolist()
    pieces = [(rank, starts[rank], count, 0, 8) for rank, count in enumerate(rows)]
    return exchange_of(plan_of(ROWS, "row-wise", *pieces), ROWS, CLUSTER, "float32")


def test_sums_over_ranks_are_the_same_however_unequal_shares_are() -> None:
    even, odd, extreme = skewed(2, 2, 2, 2), skewed(1, 1, 1, 5), skewed(0, 0, 8, 0)
    for stage in ("ids", "forward", "backward"):
        for found in (odd, extreme):
            sent, expected = getattr(found, stage), getattr(even, stage)
            assert sent.total == pytest.approx(expected.total)
            assert sent.inside_W.sum() == pytest.approx(expected.inside_W.sum())
            assert sent.between_W.sum() == pytest.approx(expected.between_W.sum())
    assert by_rank(odd.forward) != by_rank(even.forward)


def test_an_exchange_takes_as_long_as_its_slowest_rank_on_its_slowest_link() -> None:
    rates = CLUSTER.rates
    sent = Sent(np.array([9e9, 0, 0, 0]), np.array([0, 0, 5e9, 4e9]))
    assert sent.seconds(CLUSTER) == pytest.approx(rates.latency + max(9e9 / rates.intra, 5e9 / rates.inter))
    both = sent + Sent(np.zeros(4), np.full(4, 1e9))
    assert both.seconds(CLUSTER) == pytest.approx(rates.latency + 6e9 / rates.inter)


def test_seconds_of_a_step_by_hand() -> None:
    cluster: Cluster = CLUSTER
    workload = workload_of(SUMS, ROWS)
    placement = placement_of(cluster, quarters(SUMS), quarters(ROWS))
    seconds = seconds_of_parts(placement, cluster, workload, exchanges(placement, cluster, workload))
    rates = cluster.rates
    assert seconds["ids"] == pytest.approx(rates.latency + (128 + 64) / rates.inter)
    assert seconds["forward"] == pytest.approx(rates.latency + (320 + 192) / rates.inter)
    # Each rank reads a quarter of what four ranks ask: 12 rows; of sums it makes four ranks' 5, of rows the 12.
    assert seconds["look_up"] == pytest.approx((2 * 12 * 32 + 20 * 32 + 12 * 32) / rates.hbm)
    assert seconds["update"] == pytest.approx((2 * 12 * (64 + 8) + 20 * 32 + 12 * 32) / rates.hbm)
    assert seconds["dense"] == pytest.approx(1e9 / (0.4 * rates.float32))
    assert seconds["all_reduce"] == pytest.approx(2 * 3 / 4 * 400 / rates.inter + rates.latency)
    assert seconds["optimizer"] == pytest.approx((3 * 400 + 2 * 800) / rates.hbm)
