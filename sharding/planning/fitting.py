"""The smallest cluster that holds a model, the largest batch that a cluster takes, what would mend a misfit.

Plans cost milliseconds, since the dense part is measured once: clusters of a few nodes are tried one by one, larger
ones and token budgets by growing steps and bisection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.errors import InputError
from data.negatives import NegativesConfig
from model.config import ModelConfig
from sharding.planning.config import PlanConfig
from sharding.planning.from_store import sizes_of_store
from sharding.planning.memory import MEMORIES, memory_of_ranks, reserved_bytes, shortages
from sharding.planning.planner import place_tables
from sharding.planning.policy import ShardingConfig
from sharding.planning.survey import Survey, survey
from sharding.planning.topology import GIB, MAX_RANKS, Cluster
from sharding.planning.workload import (
    DataSizes,
    DenseModel,
    Workload,
    measure_dense,
    on_meta,
    vocabulary_of,
    workload_of_sizes,
)

_ONE_BY_ONE = 24
"""Numbers of nodes that are each tried for the smallest cluster; beyond, growing steps and bisection."""

_TOKEN_STEP = 256
_MAX_TOKENS = 2**24
_MOST_SEARCHED = 256
"""Ranks for which policy=auto is tried as a mend: TorchRec's search takes seconds there, and minutes for thousands."""

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """What is to be placed, and where.

    Attributes:
        sizes: of the data; those of a store where one was given.
        dense: of the model, measured once.
    """

    model: ModelConfig
    sizes: DataSizes
    tokens: int
    distinct: bool
    optimizer: str
    cluster: Cluster
    sharding: ShardingConfig
    dense: DenseModel
    negatives: NegativesConfig = dataclasses.field(default_factory=NegativesConfig)

    @staticmethod
    def of(config: PlanConfig, cluster: Cluster) -> Problem:
        """From the options of a dry run, and the store if one is given."""
        sizes = sizes_of_store(config) if config.store else config.data
        dense = measure_dense(config.model, vocabulary_of(sizes), sizes.mean_history, config.optimizer)
        return Problem(
            config.model,
            sizes,
            config.tokens,
            config.distinct,
            config.optimizer,
            cluster,
            config.sharding,
            dense,
            config.negatives,
        )

    def workload(self) -> Workload:
        """One step of one rank."""
        return workload_of_sizes(
            self.model, self.sizes, self.tokens, self.dense, distinct=self.distinct, negatives=self.negatives
        )

    def survey(self) -> Survey:
        """The plan, and what follows from it."""
        return survey(
            on_meta(self.model, vocabulary_of(self.sizes)),
            self.cluster,
            self.sharding,
            self.workload(),
            reserved=reserved_bytes(self.sharding, self.cluster.device),
        )

    def fits(self) -> bool:
        """Whether every rank has room. Less work than a survey: neither traffic nor times are asked for."""
        workload, reserved = self.workload(), reserved_bytes(self.sharding, self.cluster.device)
        model = on_meta(self.model, vocabulary_of(self.sizes))
        placement = place_tables(model, self.cluster, self.sharding, workload, reserved=reserved)
        return not shortages(memory_of_ranks(placement, self.cluster, workload, reserved=reserved))

    def with_model(self, model: ModelConfig) -> Problem:
        """The same with another model, whose dense part is measured anew."""
        dense = measure_dense(model, vocabulary_of(self.sizes), self.sizes.mean_history, self.optimizer)
        return dataclasses.replace(self, model=model, dense=dense)


def reach_goal(problem: Problem, goal: str) -> Survey:
    """The plan that a goal asks for; where even the best does not fit, the one for what was given.

    Raises:
        InputError: `min_ranks` of a cluster whose nodes differ, of which there is no smaller one.
    """
    if goal == "min_ranks":
        smallest = smallest_cluster(problem)
        return dataclasses.replace(problem, cluster=smallest or problem.cluster).survey()
    if goal == "max_tokens":
        return dataclasses.replace(problem, tokens=largest_budget(problem) or problem.tokens).survey()
    return problem.survey()


def smallest_cluster(problem: Problem) -> Cluster | None:
    """The fewest ranks of the cluster's kind that hold it: some of one node, or whole nodes. None if 4,096 do not."""
    cluster = problem.cluster
    if len(set(cluster.nodes)) > 1:
        raise InputError(f"goal=min_ranks needs nodes that are alike; those of {cluster.name} differ: give a preset")
    node = cluster.nodes[0]
    within = [ranks for ranks in (2**power for power in range(12)) if ranks < node.ranks]
    clusters = [dataclasses.replace(cluster, nodes=(dataclasses.replace(node, ranks=ranks),)) for ranks in within]
    clusters += [dataclasses.replace(cluster, nodes=(node,) * count) for count in range(1, MAX_RANKS // node.ranks + 1)]

    def fits(one: Cluster) -> bool:
        return dataclasses.replace(problem, cluster=one).fits()

    # One by one at first: a few ranks more may be too many again, since each makes row-wise sums for all others.
    few = clusters[: len(within) + _ONE_BY_ONE]
    return next((one for one in few if fits(one)), None) or _first(clusters[len(few) :], fits)


def largest_budget(problem: Problem) -> int | None:
    """The most tokens a rank and step that fit, a multiple of 256; None if not even the longest window does."""
    least = -(-problem.model.max_tokens // _TOKEN_STEP) * _TOKEN_STEP
    budgets = range(least, _MAX_TOKENS + 1, _TOKEN_STEP)
    too_many = _first(budgets, lambda tokens: not dataclasses.replace(problem, tokens=tokens).fits())
    if too_many is None:
        return budgets[-1]
    return too_many - _TOKEN_STEP if too_many > least else None


def _first(candidates: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The first of which `holds`, if it holds of all after that; looks at growing steps, then bisects."""
    low, step = -1, 1
    while low + step < len(candidates) and not holds(candidates[low + step]):
        low, step = low + step, step * 2
    high = low + step
    if high >= len(candidates):
        if not candidates or not holds(candidates[-1]):
            return None
        high = len(candidates) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(candidates[middle]) else (middle, high)
    return candidates[high]


# ── what would mend it ───────────────────────────────────────────────────────────────────────────────────


def find_mends(problem: Problem) -> list[str]:
    """Single changes, each of which makes the model fit, as they are written on the command line, with what they do."""
    found = []
    for text, changed in _changes(problem):
        try:
            if changed.fits():
                found.append(text)
        except InputError:  # the change itself is not possible here
            continue
    budget = largest_budget(problem)
    if budget and budget < problem.tokens:
        found.append(f"tokens={budget}, instead of {problem.tokens}")
    if len(set(problem.cluster.nodes)) == 1:
        smallest = smallest_cluster(problem)
        if smallest and smallest.num_ranks != problem.cluster.num_ranks:
            found.append(
                f"nodes={len(smallest.nodes)} ranks_per_node={smallest.nodes[0].ranks}: {smallest.num_ranks} in all "
                f"instead of {problem.cluster.num_ranks}"
            )
    width = _largest_width(problem)
    if width:
        found.append(f"model.width={width}, instead of {problem.model.width}")
    return found


def _changes(problem: Problem) -> list[tuple[str, Problem]]:
    largest = max(problem.workload().tables, key=lambda use: use.bytes).name
    changes = []
    for kernel, meaning in (
        ("uvm-caching", "into host memory, with a cache of a fifth of its rows on the GPU"),
        ("uvm", "into host memory"),
        ("ssd", "onto disks, with a cache of a fifth of its rows on the GPU"),
    ):
        policy = dataclasses.replace(problem.sharding.tables.of(largest), kernel=kernel)
        tables = dataclasses.replace(problem.sharding.tables, **{largest: policy})
        sharding = dataclasses.replace(problem.sharding, tables=tables)
        text = f"sharding.tables.{largest}.kernel={kernel}: its table {meaning}"
        changes.append((text, dataclasses.replace(problem, sharding=sharding)))
    if problem.sharding.policy != "auto" and problem.cluster.num_ranks <= _MOST_SEARCHED:
        sharding = dataclasses.replace(problem.sharding, policy="auto")
        changes.append(("sharding.policy=auto", dataclasses.replace(problem, sharding=sharding)))
    if problem.model.precision == "float32":
        model = dataclasses.replace(problem.model, precision="bf16")
        changes.append(("model.precision=bf16: products in 16 bits", problem.with_model(model)))
    if problem.model.architecture == "hstu" and not problem.model.recompute:
        model = dataclasses.replace(problem.model, recompute=True)
        changes.append(("model.recompute=true: activations made again in the backward", problem.with_model(model)))
    return changes


def _largest_width(problem: Problem) -> int | None:
    """The largest smaller width that fits: a multiple of 16, an eighth of the present one at least."""
    widths = list(range(problem.model.width - 1 - (problem.model.width - 1) % 16, problem.model.width // 8, -16))
    return _first(widths, lambda width: problem.with_model(dataclasses.replace(problem.model, width=width)).fits())


def describe_mends(found: Survey, mends: list[str]) -> list[str]:
    """What is missing and what would help, as faults for people."""
    faults = []
    for shortage in found.shortages:
        rank = found.ranks[shortage.rank]
        faults.append(
            f"does not fit {found.cluster.describe()}: {MEMORIES[shortage.memory]} of rank {shortage.rank} is "
            f"short of {shortage.missing} bytes ({shortage.missing / GIB:.2f} GiB); it needs "
            f"{rank.used(shortage.memory) / GIB:.2f} GiB of {rank.capacity[shortage.memory] / GIB:.2f} GiB"
        )
    if mends:
        faults.append("any one of these changes would make it fit: " + "; or ".join(mends))
    else:
        faults.append("no single change of kernel, precision, width, tokens or ranks makes it fit")
    return faults
