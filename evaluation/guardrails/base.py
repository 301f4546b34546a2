"""What a guardrail says, and how several are put in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PASS, WARN, FAIL, INFO = "pass", "warn", "fail", "info"

ORDER = (FAIL, WARN, INFO, PASS)
"""What to look at first."""


@dataclass(frozen=True)
class Guardrail:
    """One thing that was looked at.

    Args:
        name: what it is about.
        verdict: pass; warn: to be weighed by a person; fail: not to be shipped as it is, or not to be believed; info:
            told, but not judged, with the reason in `found`.
        found: what was found, with its figures.
        rule: by what it was judged.
        advice: what to do; empty where nothing is to be done.
        figures: the numbers behind it, JSON-like.
    """

    name: str
    verdict: str
    found: str
    rule: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """There are four verdicts, and one that asks for something says what."""
        assert self.verdict in ORDER, self.verdict
        assert self.advice or self.verdict in (PASS, INFO), f"{self.name}: {self.verdict} without advice"

    def to_plain(self) -> dict[str, Any]:
        """As `metrics.json` holds it."""
        return dataclasses.asdict(self)


def in_order(guardrails: Iterable[Guardrail]) -> list[Guardrail]:
    """Failures first, then warnings; otherwise as they come."""
    return sorted(guardrails, key=lambda one: ORDER.index(one.verdict))


def not_judged(name: str, why: str, rule: str) -> Guardrail:
    """What cannot be judged says so: silence would read as a pass."""
    return Guardrail(name, INFO, f"Not judged: {why}.", rule)


def percent(share: float) -> str:
    """A share as text; what is there, but less than 0.01%, is not called nothing."""
    return "<0.01%" if 0 < share < 0.0001 else f"{share:.2%}" if share < 0.1 else f"{share:.1%}"
