"""Faults that a user can mend, as opposed to bugs, which stay tracebacks."""

from __future__ import annotations


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
