"""Options of watching over ranks at work."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from common.errors import InputError

LOGS, HEARTBEAT = "logs", "heartbeat.json"
"""In the folder of a run."""

TIMEOUT_S = 1800.0
"""Without a step; first steps compile kernels, and a rank may verify a large store while others wait."""

BEATS_TO_SILENCE = 3
"""Beats that may go missing before a rank counts as silent."""


@dataclass
class WatchConfig:
    """How closely a job is watched, and when it is given up. None of it changes what is trained."""

    heartbeat_s: float = option(10.0, "seconds between beats of a rank, and between heartbeat.json", minimum=0.1)
    timeout_s: float = option(
        TIMEOUT_S, "seconds without a step, or in a collective, after which the job ends with status 4", minimum=1
    )
    straggler_share: float = option(
        0.2, "a rank is named whose own time a step is longer than the others' median by this share", minimum=0
    )

    def __post_init__(self) -> None:
        """Refuse a time-out too short to tell silence from patience."""
        least = (BEATS_TO_SILENCE + 1) * self.heartbeat_s
        if self.timeout_s < least:
            raise InputError(
                f"`timeout_s` is {self.timeout_s:g}, less than {BEATS_TO_SILENCE + 1} × `heartbeat_s` "
                f"{self.heartbeat_s:g}: nobody could be called silent by then; give at least {least:g}, or beat faster"
            )
