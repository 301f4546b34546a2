"""What a pipeline was asked, and the commands that follow from it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchx_components.stages.catalogue import STAGES, Stage
from torchx_components.stages.processes import MENDABLE, Ended
from torchx_components.stages.run_file import keys_by_stage, read_sections
from torchx_components.stages.talk import Endpoint

LAUNCHER = "torchx_components.launch"


@dataclass(frozen=True)
class Step:
    """A stage and what it is called with.

    Args:
        number: its place among those to be run, from 1.
        of: how many those are.
        arguments: of its entry point.
    """

    number: int
    of: int
    stage: Stage
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.number}/{self.of} {self.stage.name}"

    @property
    def mark(self) -> str:
        """By which two nodes see that they mean the same."""
        return hashlib.sha256(json.dumps([self.stage.name, *self.arguments]).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """The command line.

    Args:
        config: YAML file of the run.
        overrides: `SECTION.key=value`.
        chosen: names of the stages to run; empty for all that the file has.
        nodes: how many there are.
        least: with how many of them training and evaluation may go on.
        ranks: on each node.
        node: this one's number.
        endpoint: of the first node; None where there is only one.
        run_id: by which the nodes know that they belong together.
        interface: for the launcher; empty where it finds one.
        join_timeout_s: how long nodes wait for one another.
        max_restarts: for the launcher.
    """

    config: Path
    overrides: tuple[str, ...]
    chosen: tuple[str, ...]
    nodes: int
    least: int
    ranks: int
    node: int
    endpoint: Endpoint | None
    run_id: str
    interface: str
    join_timeout_s: int
    max_restarts: int

    def steps(self) -> list[Step]:
        """What is to be run, in order.

        Raises:
            Ended: what is wrong with the file, its sections, or keys over them; not what stands in a section.
        """
        sections = read_sections(self.config)
        names = [stage.name for stage in STAGES]
        keys = keys_by_stage(sections, names, self.overrides)
        missing = [name for name in self.chosen if name not in sections]
        if missing:
            raise Ended(MENDABLE, f"{self.config}: has no section `{missing[0]}`, which --stages names")
        found = [stage for stage in STAGES if stage.name in (self.chosen or sections)]
        if not found:
            raise Ended(MENDABLE, f"{self.config}: has a section of no stage; stages are {', '.join(names)}")
        if "train" in sections and not _says_where_to_begin(sections["train"], keys["train"]):
            keys["train"].append("resume=auto")
        return [
            Step(number, len(found), stage, ("--config", str(self.config), *keys[stage.name]))
            for number, stage in enumerate(found, start=1)
        ]

    def command(self, step: Step) -> list[str]:
        """What this node runs for a stage."""
        entry = ["-m", step.stage.module, *step.arguments]
        if not step.stage.on_all:
            return [sys.executable, *entry]
        flags = {
            "nnodes": f"{self.least}:{self.nodes}" if self.is_elastic else str(self.nodes),
            "nproc-per-node": str(self.ranks),
            "rdzv-backend": "c10d",
            "rdzv-endpoint": str(self.endpoint or "localhost:0"),
            "rdzv-id": f"{self.run_id}-{step.stage.name}",
            "max-restarts": str(self.max_restarts),
            "join-timeout": str(self.join_timeout_s),
            **({"interface": self.interface} if self.interface else {}),
        }
        return [sys.executable, "-m", LAUNCHER, *(f"--{name}={value}" for name, value in flags.items()), *entry]

    @property
    def is_elastic(self) -> bool:
        """Whether the job may go on with fewer nodes than there are."""
        return self.least < self.nodes

    def processes(self, stage: Stage) -> str:
        """On how many processes a stage runs, in words."""
        if not stage.on_all:
            return "1 process" if self.nodes == 1 else "1 process of node 0"
        if self.nodes == 1:
            return f"{self.ranks} process{'es' if self.ranks > 1 else ''}"
        if self.is_elastic:
            return f"{self.least} to {self.nodes} nodes × {self.ranks} processes"
        return f"{self.nodes} nodes × {self.ranks} = {self.nodes * self.ranks} processes"


def _says_where_to_begin(section: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether the user has chosen between a new training and going on with one."""
    given = {key: value for key, _, value in (text.partition("=") for text in keys)}
    overwrite = str(given.get("overwrite", section.get("overwrite", False)))
    return "resume" in section or "resume" in given or overwrite.lower() == "true"
