"""Any node of a pipeline but the first: it waits for the first node's word and runs its own ranks."""

from __future__ import annotations

import os
import time
from typing import Any

from torchx_components.stages.job import Job, Step
from torchx_components.stages.leading import GRACE_S
from torchx_components.stages.processes import LOST, MENDABLE, TICK_S, Ended, Stops, run
from torchx_components.stages.talk import Talk


class Follow:
    """Runs what the first node says."""

    def __init__(self, job: Job, talk: Talk, stops: Stops) -> None:
        self._job = job
        self._talk = talk
        self._stops = stops
        self._at = "the first stage"
        self._number = 0  # of the word heard last
        self._late_since: float | None = None

    def run(self, steps: list[Step]) -> int:
        """Take part until the first node says that it is over; returns the status that it says.

        Raises:
            Ended: it is lost, or means another command line, or somebody asked for an end.
        """
        status, by_name = 0, {step.stage.name: step for step in steps}
        while True:
            word = self._next_word(patience_s=GRACE_S if status and self._job.is_elastic else None)
            if status and not (word and word["over"]):
                return status  # the others go on without this node
            assert word is not None
            self._number = word["number"]
            self._talk.say(heard=self._number)
            if word["over"]:
                return self._last_word(word["status"] or status)
            step = by_name.get(word["stage"])
            if step is None or step.mark != word["mark"]:
                raise Ended(
                    MENDABLE,
                    f"node {self._job.node} and node 0 do not mean the same by {word['stage']}: file, keys and "
                    "--stages must be the same on all nodes",
                )
            self._at = str(step)
            self._say(f"{step}, {'its part' if step.stage.on_all else 'waits for node 0'}")
            if step.stage.on_all:
                self._late_since = None
                status = run(self._job.command(step), dict(os.environ), self._stops, self._watch)
                self._talk.say(ended=[self._number, status])

    def _last_word(self, status: int) -> int:
        self._say("over" if status == 0 else f"over, with status {status}; node 0 says why")
        return status

    def _next_word(self, patience_s: float | None) -> dict[str, Any] | None:
        """What the first node says next; None where it has not after `patience_s`.

        Raises:
            Ended: the first node is lost; or this one was asked to stop, and the first has not ended all.
        """
        until = None if patience_s is None else time.monotonic() + patience_s
        while True:
            self._pass_on_stop()
            word = self._word()
            if word is not None:
                return word
            if not self._talk.is_here(0):
                raise Ended(LOST, self._lost())
            if self._stops.asked:
                until = until or time.monotonic() + (0 if self._job.is_elastic else GRACE_S)
            if until is not None and time.monotonic() > until:
                self._stops.check()
                return None
            time.sleep(TICK_S)

    def _word(self) -> dict[str, Any] | None:
        """One that has not been heard yet."""
        word: dict[str, Any] | None = self._talk.told(0).get("word")
        return word if word and word["number"] > self._number else None

    def _watch(self) -> None:
        """Look at the first node while ranks run here."""
        self._pass_on_stop()
        word = self._word()
        if word is None:
            if not self._talk.is_here(0):
                self._stops.ask(LOST)
            return
        self._late_since = self._late_since or time.monotonic()
        if time.monotonic() > self._late_since + GRACE_S:
            self._stops.ask(word.get("status") or LOST)

    def _pass_on_stop(self) -> None:
        """Let the first node end all; an elastic job goes on without a node that is taken away."""
        if self._stops.asked and not self._job.is_elastic:
            self._talk.say(stop=self._stops.status)

    def _lost(self) -> str:
        return (
            f"{self._talk.name(0)} at {self._job.endpoint} is lost while node {self._job.node} was at {self._at}: "
            f"{self._talk.lost(0)}"
        )

    def _say(self, text: str) -> None:
        print(f"pipeline (node {self._job.node}): {text}", flush=True)
