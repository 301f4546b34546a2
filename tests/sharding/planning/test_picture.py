"""What the page draws: every rank of few, every node of many, what is missing, and nothing as markup by accident."""

from __future__ import annotations

import re
from typing import Any

from sharding.planning.picture import plan_page
from sharding.planning.placement import Placement
from sharding.planning.survey import survey_of
from sharding.planning.topology import GIB, Cluster
from tests.sharding.plan_example import cluster_of, placement_of, plan_of, uneven, use_of, workload_of

USE = use_of("rq", 2**22, 64)  # a GiB


def whole_on(rank: int, cluster: Cluster, kernel: str = "fused") -> Placement:
    return placement_of(cluster, plan_of(USE, "table-wise", (rank, 0, 2**22, 0, 64), kernel=kernel))


def plain(cluster: Cluster, rank: int = 0, kernel: str = "fused") -> dict[str, Any]:
    return survey_of(whole_on(rank, cluster, kernel), cluster, workload_of(USE), reserved=0).to_plain()


def labels(page: str, kind: str) -> list[int]:
    return [int(number) for number in re.findall(rf'text-anchor="end">{kind} (\d+)</text>', page)]


def test_a_bar_a_rank_of_few_and_a_node_of_many() -> None:
    assert labels(plan_page(plain(cluster_of(8, 8))), "rank") == list(range(16))
    page = plan_page(plain(cluster_of(*[8] * 10)))
    assert labels(page, "rank") == []
    assert labels(page, "node") == list(range(10))
    # Of many, neighbours that look alike are one; the last but one holds the table.
    page = plan_page(plain(cluster_of(*[2] * 100), rank=197))
    assert "nodes 0–97<" in page
    assert labels(page, "node") == [98, 99]
    # Of too many that differ the fullest.
    page = plan_page(plain(uneven(cluster_of(*[2] * 100), *((2 + node) * GIB for node in range(100))), rank=197))
    assert labels(page, "node") == list(range(64))
    assert "the 64 fullest of 100" in page


def test_what_is_missing_stands_beyond_a_line() -> None:
    cluster = uneven(cluster_of(1, 1), GIB // 2, 4 * GIB)
    page = plan_page(plain(cluster), ["mend <one>"])
    assert "It does not fit" in page
    assert page.count('stroke="var(--ink)"') == 1
    assert "<li>mend &lt;one&gt;</li>" in page
    fits = plan_page(plain(cluster, rank=1))
    assert "It fits" in fits
    assert 'stroke="var(--ink)"' not in fits


def test_each_memory_that_is_used_has_a_figure() -> None:
    assert "Host memory, rank by rank" not in plan_page(plain(cluster_of(2)))
    page = plan_page(plain(cluster_of(2), kernel="uvm"))
    assert "GPU memory, rank by rank" in page
    assert "Host memory, rank by rank" in page


def test_one_rank_sends_nothing() -> None:
    assert "Nothing: there is one rank." in plan_page(plain(cluster_of(1)))


def test_names_are_text() -> None:
    content = plain(cluster_of(2)) | {"topology": "<b>x</b>", "cluster": "<i>y</i>"}
    page = plan_page(content)
    assert "<b>x</b>" not in page
    assert "<i>y</i>" not in page
    assert "&lt;i&gt;y&lt;/i&gt;" in page
