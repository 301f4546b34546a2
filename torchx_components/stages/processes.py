"""Commands that a pipeline runs: how they end, and what makes them end early."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

TICK_S = 0.1
"""Between two looks at a running command."""

MENDABLE, WORSE, INTERRUPTED, TERMINATED, LOST = 2, 3, 130, 143, 4
_STRONGEST_FIRST = (MENDABLE, WORSE, INTERRUPTED, TERMINATED)


class Ended(Exception):
    """A pipeline that cannot go on.

    Args:
        status: the exit status.
        messages: what to tell the user; none where another has told it.
    """

    def __init__(self, status: int, *messages: str) -> None:
        """Carry the status and what is to be said."""
        self.status = status
        self.messages = messages
        super().__init__("\n".join(messages))


def combined(statuses: Iterable[int]) -> int:
    """One status for what ended on several nodes: the cause before its consequences.

    A node whose peer met a fault loses that peer, so a loss (4) explains least.
    """
    found = set(statuses) - {0}
    if len(found) == 1:
        return found.pop()
    return next((status for status in _STRONGEST_FIRST if status in found), 1 if found else 0)


def exit_status(returncode: int) -> int:
    """That of a process; one ended by SIGINT or SIGTERM counts as stopped, by another signal as a bug."""
    if returncode >= 0:
        return returncode
    return 128 - returncode if -returncode in (signal.SIGINT, signal.SIGTERM) else 1


class Stops:
    """What has asked for an end: signals to this process while the block runs, and other nodes.

    Attributes:
        asked: in order, the signal that a running command is to get, and the status that the pipeline ends with.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.asked.append((number, 128 + number))

    def ask(self, status: int) -> None:
        """Ask for an end with `status`, once: what has been asked already stands."""
        if not self.asked:
            number = signal.SIGINT if status == INTERRUPTED else signal.SIGTERM
            self.asked.append((number, status))

    @property
    def status(self) -> int:
        """What the first to ask for an end makes the exit status; 0 where nobody has."""
        return self.asked[0][1] if self.asked else 0

    def check(self) -> None:
        """Leave if somebody asked for it.

        Raises:
            Ended: somebody has.
        """
        if self.asked:
            raise Ended(self.status)


def run(command: Sequence[str], environment: dict[str, str], stops: Stops, watch: Callable[[], None]) -> int:
    """Run a command to its end, pass on to it whatever asks for a stop, and wait until it has stopped.

    It stands in a process group of its own: a Ctrl-C at the terminal reaches it through us, once.

    Args:
        watch: called while it runs.

    Returns:
        Its exit status, but where it was stopped (or fell apart because of that), the status that `stops` tells.
    """
    passed = 0  # what was asked on the way here too
    with subprocess.Popen(command, env=environment, process_group=0) as child:
        while child.poll() is None:
            watch()
            for number, _ in stops.asked[passed:]:
                child.send_signal(number)
                passed += 1
            time.sleep(TICK_S)
    own = exit_status(child.returncode)
    if stops.asked and own in (INTERRUPTED, TERMINATED):
        return stops.status
    return combined([stops.status, own]) if own else 0


def read(command: Sequence[str], environment: dict[str, str], stops: Stops) -> tuple[int, str, str]:
    """Run a command to its end; returns exit status, standard output and standard error.

    Raises:
        Ended: somebody asked for an end.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, process_group=0, stdout=pipe, stderr=pipe, text=True) as child:
        while True:
            try:
                stops.check()
                told, complained = child.communicate(timeout=TICK_S)
                return exit_status(child.returncode), told, complained
            except subprocess.TimeoutExpired:
                continue
            except Ended:
                child.kill()
                raise
