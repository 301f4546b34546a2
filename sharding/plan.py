"""Plan before paying: `python -m sharding.plan --config FILE topology=h100 nodes=16 ranks_per_node=8 …`

Lays the tables of a model out on a cluster that need not exist and says what every rank would hold, what would travel
in a step and how long each part would take. Nothing of a table is allocated, no GPU and no other process is needed.
"""

from __future__ import annotations

import common.startup  # noqa: F401  # isort: skip

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import run_entry, to_plain
from common.errors import InputError
from common.memory import peak_bytes
from common.noise import quiet_known_warnings
from sharding.planning.cluster_file import find_cluster
from sharding.planning.config import PlanConfig
from sharding.planning.fitting import Problem, describe_mends, find_mends, reach_goal
from sharding.planning.plan_files import PLAN, PLAN_PAGE, write_plan
from sharding.planning.report import describe


def plan(config: PlanConfig) -> dict[str, Any]:
    """Work a plan out, print it, and write it where asked; returns its summary.

    Raises:
        InputError: it does not fit, with how much is missing and what would mend it.
    """
    quiet_known_warnings()
    begin = time.perf_counter()
    cluster = find_cluster(config.topology, config.nodes, config.ranks_per_node)
    problem = Problem.of(config, cluster)
    found = reach_goal(problem, config.goal)
    print(describe(found))
    mends = find_mends(dataclasses.replace(problem, cluster=found.cluster)) if found.shortages else []
    content = found.to_plain() | {
        "config": to_plain(config),
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_gb": round(peak_bytes() / 1e9, 3),
    }
    if config.out:
        write_plan(Path(config.out), content, mends)
        print(f"\n{config.out}/{PLAN}, {config.out}/{PLAN_PAGE}")
    if found.shortages:
        raise InputError(*describe_mends(found, mends))
    # `--json` prints the plan without its thousands of pieces.
    content["tables"] = [{key: value for key, value in table.items() if key != "pieces"} for table in content["tables"]]
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_entry("sharding.plan", "plan", PlanConfig, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
