"""Which series may be asked for of which source."""

from __future__ import annotations

from collections.abc import Sequence

from data.series import preferred_artist

FILE = "file"
"""Those that a table's series file tells of."""
ALL_DEMOGRAPHICS = "demographics"


def choices(of_source: Sequence[str]) -> tuple[str, ...]:
    """What may be asked for.

    Args:
        of_source: what the source tells of beside its events: names of demographics, FILE, or nothing.
    """
    several = (ALL_DEMOGRAPHICS,) if len(of_source) > 1 else ()
    return (*several, *of_source, preferred_artist.NAME)


def choice_faults(asked: Sequence[str], of_source: Sequence[str], source: str) -> list[str]:
    """What is wrong with the names asked for."""
    allowed = choices(of_source)
    faults = [
        f"`series` names {name!r}, which source={source} has not; choose of {', '.join(allowed)}"
        for name in dict.fromkeys(asked)
        if name not in allowed
    ]
    twice = sorted({name for name in asked if asked.count(name) > 1})
    return faults + [f"`series` names {name} more than once" for name in twice]


def resolved(asked: Sequence[str], of_source: Sequence[str]) -> tuple[str, ...]:
    """The series of the source's own that are asked for, each by its name."""
    return tuple(name for name in of_source if name in asked or ALL_DEMOGRAPHICS in asked)
