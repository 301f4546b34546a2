"""What nodes are called: this one, and those that the scheduler says a job has."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping


def own_name(environment: Mapping[str, str]) -> str:
    """This node's name: Slurm's where there is one (which need not be the machine's), else the host's."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def expected_names(environment: Mapping[str, str]) -> list[str]:
    """The nodes of the job, as far as its scheduler names them in the environment; otherwise an empty list.

    Slurm: `SLURM_JOB_NODELIST`, or one list for each component of a heterogeneous job, which is how TorchX submits
    replicas. Volcano on Kubernetes: `VC_<TASK>_HOSTS`, a task a replica. AWS Batch gives no more than the number.
    """
    if "SLURM_HET_SIZE" in environment:
        lists = [
            environment.get(f"SLURM_JOB_NODELIST_HET_GROUP_{component}", "")
            for component in range(int(environment["SLURM_HET_SIZE"]))
        ]
        return [name for nodes in lists for name in expand(nodes)]
    if "SLURM_JOB_NODELIST" in environment:
        return expand(environment["SLURM_JOB_NODELIST"])
    hosts = [environment[key] for key in sorted(environment) if re.fullmatch(r"VC_\w+_HOSTS", key)]
    return [name for several in hosts for name in several.split(",") if name]


def expand(nodes: str) -> list[str]:
    """The names in a list as Slurm writes it: `n[1-2,05],gpu` → n1, n2, n05, gpu."""
    return [name for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes) for name in _expand_one(part)]


def _expand_one(name: str) -> list[str]:
    bracket = re.search(r"\[([^\]]*)\]", name)
    if bracket is None:
        return [name]
    numbers: list[str] = []
    for piece in bracket[1].split(","):
        first, _, last = piece.partition("-")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return [
        rest for number in numbers for rest in _expand_one(name[: bracket.start()] + number + name[bracket.end() :])
    ]


def missing(expected: list[str], came: list[str]) -> list[str]:
    """Those expected that did not come; `n1` and `n1.cluster` are one node."""
    there = {_short(name) for name in came}
    return [name for name in expected if _short(name) not in there]


def _short(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.partition(".")[0].lower()
