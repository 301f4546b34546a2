"""Faults that a user can mend, as opposed to bugs, which stay tracebacks."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """One or more faults in what the user gave: configuration, files, or their combination.

    Each fault says what was found, where, which rule it breaks and what to do. Entry points print all of
    them and leave with exit status 2.
    """

    def __init__(self, *faults: str) -> None:
        """Carry one fault or more."""
        assert faults, "an InputError without a fault says nothing"
        self.faults = faults
        super().__init__("\n".join(faults))


class Stopped(Exception):
    """Work was asked to stop by a signal, and has: what it had done is saved.

    Args:
        signal_number: SIGINT or SIGTERM; the exit status is 128 more.
        message: where it stopped and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        """Say how it ended."""
        self.status = 128 + signal_number
        super().__init__(message)


class Lost(Exception):
    """The job could not come together, or fell apart: a peer ended, fell silent or did not come in time.

    Starting again is sensible: what was saved is whole.

    Args:
        message: who is missing, and what each rank was at.
        aloud: whether this rank is to say it on the terminal; one does for all.
        status: that of the peer, where it ended by a fault or a bug of its own, which starting again would not mend.
    """

    status = 4

    def __init__(self, message: str, *, aloud: bool = True, status: int = status) -> None:
        """Say who is missing."""
        self.aloud, self.status = aloud, status
        super().__init__(message)


class Regression(Exception):
    """The work was done, and what it found is worse than what it was held against.

    Args:
        message: what is worse, and by how much.
        summary: what the work would have returned.
    """

    status = 3

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        """Say what is worse."""
        self.summary = summary
        super().__init__(message)
