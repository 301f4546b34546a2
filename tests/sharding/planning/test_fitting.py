"""The fewest ranks and the most tokens against trying all; mends that mend."""

from __future__ import annotations

import dataclasses

import pytest

from common.config import resolve
from common.errors import InputError
from model.config import ModelConfig
from sharding.planning import fitting
from sharding.planning.config import PlanConfig
from sharding.planning.dense_part import Line
from sharding.planning.fitting import Problem, describe_mends, find_mends, largest_budget, reach_goal, smallest_cluster
from sharding.planning.policy import ShardingConfig
from sharding.planning.topology import GIB, Cluster
from sharding.planning.workload import DataSizes, DenseModel
from tests.sharding.plan_example import cluster_of, uneven

DENSE = DenseModel(
    parameters=1000,
    optimizer=8000,
    forward=Line(0.0, 20_000.0),
    backward=Line(0.0, 0.0),
    chunk=0,
    per_row=0,
    flops_per_token=1.0,
)


def problem(cluster: Cluster, *, items: int = 0, tokens: int = 512, reserved: float = 0.0) -> Problem:
    kind = {"kind": "vocabulary"} if items else {}
    model = resolve(PlanConfig, "plan", None, [f"model.items.{key}={value}" for key, value in kind.items()]).model
    model = dataclasses.replace(model, width=32, max_history=200)
    sizes = DataSizes(items=items or 1000, artists=100, levels=2, codes=64)
    return Problem(model, sizes, tokens, True, "adamw", cluster, ShardingConfig(reserved_gib=reserved), DENSE)


def with_ranks(one: Problem, *ranks: int) -> Problem:
    node = one.cluster.nodes[0]
    nodes = tuple(dataclasses.replace(node, ranks=count) for count in ranks)
    return dataclasses.replace(one, cluster=dataclasses.replace(one.cluster, nodes=nodes))


@pytest.mark.parametrize("gib", [0.4, 1, 3, 7, 12, 13, 30])
def test_the_fewest_ranks_are_those_found_by_trying_all(gib: float) -> None:
    one = problem(cluster_of(4, hbm=GIB), items=round(gib * GIB / (32 * 4 + 4)))
    tried = [(1,), (2,), *((4,) * count for count in range(1, 12))]
    fitting_ranks = [ranks for ranks in tried if with_ranks(one, *ranks).fits()]
    assert len(fitting_ranks) < len(tried) or fitting_ranks[0] == (1,)
    smallest = smallest_cluster(one)
    assert smallest is not None
    assert tuple(node.ranks for node in smallest.nodes) == fitting_ranks[0]
    found = reach_goal(one, "min_ranks")
    assert found.cluster == smallest
    assert not found.shortages


def test_no_number_of_ranks_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_RANKS", 16)
    one = problem(cluster_of(4, hbm=GIB), items=32 * GIB // 128)
    assert not with_ranks(one, 4, 4, 4, 4).fits()
    assert smallest_cluster(one) is None
    assert reach_goal(one, "min_ranks").cluster == one.cluster
    with pytest.raises(InputError, match="needs nodes that are alike"):
        smallest_cluster(dataclasses.replace(one, cluster=uneven(cluster_of(1, 1), GIB, 2 * GIB)))


@pytest.mark.parametrize("hbm", [6_000_000, 7_300_000, 20_000_000, 50_000_000])
def test_the_most_tokens_are_those_found_by_trying_all(hbm: int) -> None:
    one = problem(cluster_of(2, hbm=hbm))
    tried = [tokens for tokens in range(256, 4096, 256) if dataclasses.replace(one, tokens=tokens).fits()]
    assert len(tried) < 15
    assert largest_budget(one) == (tried[-1] if tried else None)
    assert reach_goal(one, "max_tokens").workload.tokens == (tried[-1] if tried else one.tokens)


def applied(one: Problem, mend: str) -> Problem:
    """A problem with a mend as it is told, read as the command line reads it."""
    keys = [word for word in mend.split(":")[0].replace(",", "").split() if "=" in word]
    base = [f"model.width={one.model.width}", f"model.max_history={one.model.max_history}"]
    options = resolve(PlanConfig, "plan", None, [*base, f"model.items.kind={one.model.items.kind}", *keys])
    sharding = dataclasses.replace(options.sharding, reserved_gib=one.sharding.reserved_gib)
    changed = dataclasses.replace(one, sharding=sharding)
    if any(key.startswith("tokens=") for key in keys):
        changed = dataclasses.replace(changed, tokens=options.tokens)
    if options.nodes:
        changed = with_ranks(changed, *[options.ranks_per_node] * options.nodes)
    return changed.with_model(options.model) if options.model != one.model else changed


def check_mends(one: Problem, *beginnings: str) -> None:
    found = one.survey()
    assert found.shortages
    mends = find_mends(one)
    for beginning in beginnings:
        assert any(mend.startswith(beginning) for mend in mends), (beginning, mends)
    for mend in mends:
        assert applied(one, mend).fits(), mend
    faults = describe_mends(found, mends)
    assert len(faults) == len(found.shortages) + 1
    assert f"short of {found.shortages[0].missing} bytes" in faults[0]
    assert all(mend in faults[-1] for mend in mends)


def test_each_mend_of_too_large_a_table_really_mends() -> None:
    one = problem(cluster_of(2, hbm=GIB), items=20_000_000)
    check_mends(
        one,
        "sharding.tables.item.kernel=uvm-caching",
        "sharding.tables.item.kernel=uvm:",
        "sharding.tables.item.kernel=ssd",
        "sharding.policy=auto",
        "nodes=",
        "model.width=16",
    )


def test_each_mend_of_too_many_tokens_really_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_RANKS", 8)
    check_mends(problem(cluster_of(2, hbm=30_000_000), tokens=4096), "tokens=")


def test_what_no_single_change_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_RANKS", 8)
    one = problem(cluster_of(2, hbm=GIB), reserved=5.0)
    assert find_mends(one) == []
    faults = describe_mends(one.survey(), [])
    assert faults[-1] == "no single change of kernel, precision, width, tokens or ranks makes it fit"


def test_a_problem_is_read_from_the_options() -> None:
    config = PlanConfig(model=ModelConfig(width=16, blocks=1), data=DataSizes(codes=32), tokens=300, distinct=False)
    cluster = cluster_of(1)
    one = Problem.of(config, cluster)
    assert (one.tokens, one.distinct, one.sizes, one.cluster) == (300, False, config.data, cluster)
    assert one.workload().rows == 300
    assert one.fits() is (not one.survey().shortages) is True
