"""The first node of a pipeline: it decides what is run, runs it, and tells the others."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import yaml

from torchx_components.stages.finished import Finished, value_at
from torchx_components.stages.job import Job, Step
from torchx_components.stages.processes import LOST, MENDABLE, TICK_S, Ended, Stops, combined, read, run
from torchx_components.stages.talk import Talk

PRINTER = "torchx_components.stages.print_configs"

GRACE_S = 90.0
"""How long the ranks of a node may take to end by themselves after those of another have: launchers hear of one
another, wait for one another, and end alike."""

FAREWELL_S = 10.0
"""How long the others may take to hear that it is over."""


class Lead:
    """Runs all stages.

    Args:
        talk: the talk with the other nodes, where there are any.
    """

    def __init__(self, job: Job, talk: Talk | None, stops: Stops) -> None:
        self._job = job
        self._talk = talk
        self._stops = stops
        self._environment = dict(os.environ)
        self._number = 0  # of the word said last
        self._failed_since: float | None = None
        self._missed: set[int] = set()

    def run(self, steps: list[Step]) -> int:
        """Run them, one after the other; returns the status of the first that fails.

        Raises:
            Ended: faults of any key, before any work; nodes do not come; somebody asked for an end.
        """
        records = [Finished(step.stage, config) for step, config in zip(steps, self._configs(steps), strict=True)]
        self._gather("to begin")
        for step, record in zip(steps, records, strict=True):
            self._stops.check()
            why = record.why_not()
            if not why:
                _say(f"{step}: skipped, done before with the same keys and inputs, as {record.file} says")
                continue
            status = self._run(step, why, record)
            if status:
                return status
        return 0

    def end(self, status: int) -> None:
        """Tell the others that it is over, and how."""
        if self._talk is None:
            return
        self._word(over=True, status=status)
        until = time.monotonic() + FAREWELL_S
        while time.monotonic() < until and any(map(self._is_owed, self._others())):
            time.sleep(TICK_S)
        self._talk.close()

    def _is_owed(self, other: int) -> bool:
        """Whether a node has yet to hear the last word; where that is the first one, it may still be on its way."""
        assert self._talk is not None
        if not self._talk.told(other):
            return self._number == 1
        return self._talk.is_here(other) and self._talk.told(other).get("heard") != self._number

    def _configs(self, steps: list[Step]) -> list[dict[str, Any]]:
        """The resolved configuration of each stage, by the stage's own check of it."""
        configs: list[dict[str, Any]] = []
        faults: list[str] = []
        bugs: list[str] = []
        for step, (status, told, complained) in zip(steps, self._printed(steps), strict=True):
            if status:
                (faults if status == MENDABLE else bugs).append(complained.strip() or f"{step} ended with {status}")
                continue
            configs.append(yaml.safe_load(told))
            faults += self._indivisible(step, configs[-1])
        if faults or bugs:
            raise Ended(1 if bugs else MENDABLE, *bugs, *faults)
        return configs

    def _printed(self, steps: list[Step]) -> list[tuple[int, str, str]]:
        """What each stage's `--print-config` ends with and says."""
        asked = json.dumps([[step.stage.module, step.arguments] for step in steps])
        command = [sys.executable, "-m", PRINTER, asked]
        status, told, complained = read(command, self._environment, self._stops)
        if status:
            raise Ended(1, f"the configurations could not be read:\n{complained.strip()}")
        printed: list[tuple[int, str, str]] = json.loads(told.splitlines()[-1])
        return printed

    def _indivisible(self, step: Step, config: dict[str, Any]) -> Iterator[str]:
        """What training would find only when the stages before it are done."""
        bins, job = value_at(config, "batch.bins"), self._job
        for nodes in range(job.least, job.nodes + 1) if step.stage.name == "train" else ():
            if bins % (nodes * job.ranks):
                yield (
                    f"{step.stage.module}: `batch.bins` is {bins}, which {nodes * job.ranks} ranks do not divide "
                    f"({nodes} nodes × {job.ranks}); the bins of a global step must be a multiple of the ranks"
                )

    def _run(self, step: Step, why: str, record: Finished) -> int:
        if step.stage.on_all:
            self._gather(f"for {step}")
        _say(f"{step}, on {self._job.processes(step.stage)}: {why}")
        self._word(stage=step.stage.name, mark=step.mark)
        self._failed_since = None
        start = time.monotonic()
        status = run(self._job.command(step), self._environment, self._stops, lambda: self._watch(step))
        if step.stage.on_all:
            status = self._outcome(status)
        seconds = time.monotonic() - start
        if status:
            print(f"pipeline: {step}: ended with status {status} after {seconds:.1f} s", file=sys.stderr, flush=True)
            return status
        record.keep()
        _say(f"{step}: done in {seconds:.1f} s")
        return 0

    # ── the other nodes ──────────────────────────────────────────────────────────────────────────────────

    def _word(self, **values: Any) -> None:
        self._number += 1
        if self._talk is not None:
            self._talk.say(word={"number": self._number, "over": False, **values})

    def _others(self) -> range:
        return range(1, self._job.nodes)

    def _told(self) -> list[dict[str, Any]]:
        """What each of those said last that have ever come."""
        return [self._talk.told(other) for other in self._others()] if self._talk is not None else []

    def _present(self) -> list[dict[str, Any]]:
        """What those say that are here."""
        if self._talk is None:
            return []
        return [self._talk.told(other) for other in self._others() if self._talk.is_here(other)]

    def _ended(self, told: dict[str, Any]) -> int | None:
        """How a node's ranks have ended in this stage; None where they have not."""
        number, status = told.get("ended", (0, 0))
        return status if number == self._number else None

    def _gather(self, what_for: str) -> None:
        """Wait until there are nodes enough.

        Raises:
            Ended: there are not in time, or somebody asked for an end.
        """
        until = time.monotonic() + self._job.join_timeout_s
        if 1 + len(self._present()) < self._job.least:
            _say(f"waits {what_for} until {self._job.least} nodes are here, {self._job.join_timeout_s} s at most")
        while 1 + len(self._present()) < self._job.least:
            self._stops.check()
            self._watch_stops()
            if time.monotonic() > until:
                raise Ended(LOST, self._who_is_missing(what_for))
            time.sleep(TICK_S)

    def _who_is_missing(self, what_for: str) -> str:
        assert self._talk is not None
        came = [self._talk.name(other) for other in self._others() if self._talk.is_here(other)]
        missing = [
            f"{self._talk.name(other)} {'fell silent' if self._talk.told(other) else 'never came'}"
            for other in self._others()
            if not self._talk.is_here(other)
        ]
        assert self._job.endpoint is not None
        return (
            f"node 0 waited {self._job.join_timeout_s} s {what_for}: {'; '.join(missing)}; here: "
            f"{', '.join(['node 0', *came])}; it waits at {self._job.endpoint.above}: do the others run, and reach it?"
        )

    def _watch(self, step: Step) -> None:
        """Look at the others while a stage runs here."""
        self._watch_stops()
        if not step.stage.on_all:
            self._miss(step)
        elif not self._job.is_elastic:
            failed = combined(self._ended(told) or 0 for told in self._told())
            if failed and self._failed_since is None:
                self._failed_since = time.monotonic()
            if self._failed_since is not None and time.monotonic() > self._failed_since + GRACE_S:
                self._stops.ask(failed)

    def _watch_stops(self) -> None:
        for told in self._told():
            if told.get("stop"):
                self._stops.ask(told["stop"])

    def _miss(self, step: Step) -> None:
        """Say who has fallen silent: what one process makes is kept for the next start, so it may end first."""
        if self._talk is None:
            return
        for other in self._others():
            if self._talk.is_here(other):
                self._missed.discard(other)
            elif self._talk.told(other) and other not in self._missed:
                self._missed.add(other)
                print(
                    f"pipeline: {self._talk.name(other)} is lost, {self._talk.lost(other)}; {step} goes on, the "
                    "next stage on all nodes will wait for it",
                    file=sys.stderr,
                    flush=True,
                )

    def _outcome(self, own: int) -> int:
        """How a stage on all nodes has ended: one status for all of them."""
        until = time.monotonic() + GRACE_S
        while any(self._ended(told) is None for told in self._present()):
            patient = own == 0 and not self._job.is_elastic and not self._stops.asked
            if not patient and time.monotonic() > until:
                break
            time.sleep(TICK_S)
        if own == 0 and self._job.is_elastic:
            return 0  # done by those who stayed
        return combined([own, *(self._ended(told) or 0 for told in self._told())])


def _say(text: str) -> None:
    print(f"pipeline: {text}", flush=True)
