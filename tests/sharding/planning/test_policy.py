"""What may be decided about tables, and what has no meaning."""

from __future__ import annotations

import dataclasses

import pytest

from common.errors import InputError
from sharding.planning.policy import KERNELS, SHARDINGS, ShardingConfig, TablePolicies, TablePolicy


def test_a_table_without_a_policy_of_its_own_has_that_of_all() -> None:
    config = ShardingConfig(tables=TablePolicies(rq=TablePolicy(sharding="table-wise", kernel="uvm")))
    assert [config.sharding_of(name) for name in ("rq", "item", "unknown")] == ["table-wise", "row-wise", "row-wise"]
    assert [config.kernel_of(name) for name in ("rq", "item", "unknown")] == ["uvm", "fused", "fused"]
    auto = ShardingConfig(policy="auto", tables=TablePolicies(rq=TablePolicy(sharding="table-wise")))
    assert [auto.sharding_of(name) for name in ("rq", "item")] == ["table-wise", "auto"]
    assert [auto.kernel_of(name) for name in ("rq", "item")] == ["auto", "auto"]


def test_names_are_ours_and_each_is_one_of_torchrecs() -> None:
    assert SHARDINGS == {
        "row-wise": "row_wise",
        "table-wise": "table_wise",
        "column-wise": "column_wise",
        "table-row-wise": "table_row_wise",
    }
    assert KERNELS == {"fused": "fused", "uvm": "fused_uvm", "uvm-caching": "fused_uvm_caching", "ssd": "key_value"}


@pytest.mark.parametrize("kernel", ["uvm-caching", "ssd", "auto"])
def test_a_cache_has_a_size_where_there_is_one(kernel: str) -> None:
    assert TablePolicy(kernel=kernel, cache_load_factor=1.0).faults("t", "row-wise") == []
    assert TablePolicy(kernel=kernel, cache_load_factor=0.01).faults("t", "row-wise") == []


@pytest.mark.parametrize(
    "decided",
    [
        ShardingConfig(policy="auto"),
        ShardingConfig(communication="float16"),
        ShardingConfig(tables=TablePolicies(rq=TablePolicy(sharding="table-wise"))),
    ],
)
def test_a_plan_to_follow_leaves_nothing_to_decide(decided: ShardingConfig) -> None:
    with pytest.raises(InputError, match="`plan` names a plan to follow, which decides"):
        dataclasses.replace(decided, plan="plan.json")
    assert dataclasses.replace(ShardingConfig(reserved_gib=1.0), plan="plan.json").plan == "plan.json"


def test_every_fault_of_every_table_at_once() -> None:
    with pytest.raises(InputError) as raised:
        ShardingConfig(
            tables=TablePolicies(
                rq=TablePolicy(kernel="uvm", cache_load_factor=0.5, columns=8),
                item=TablePolicy(sharding="column-wise", kernel="ssd", cache_load_factor=0.0, columns=-6),
                event_type=TablePolicy(cache_load_factor=1.5, columns=4),
            )
        )
    assert [fault.split(": ")[0] for fault in raised.value.faults] == [
        "`tables.rq.cache_load_factor` is 0.5, but kernel uvm has no cache",
        "`tables.rq.columns` is 8, but the table is cut row-wise",
        "`tables.event_type.cache_load_factor` is 1.5",
        "`tables.event_type.columns` is 4, but the table is cut row-wise",
        "`tables.item.cache_load_factor` is 0.0",
        "`tables.item.columns` is -6",
        "`tables.item`",
    ]
