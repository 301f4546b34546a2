"""By what numbers guardrails judge."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from common.errors import InputError


@dataclass
class GuardrailsConfig:
    """Thresholds. Each is a choice of what a service can live with; what chance can explain is worked out instead."""

    unknown_share: float = option(
        0.05,
        "share of held-out events on items without codes, which no engine can find, beyond which is warned",
        minimum=0,
    )
    unknown_ratio: float = option(
        3.0,
        "how many times the average the share of unknown items in one segment may be: gaps should lie evenly",
        minimum=1,
    )
    probed: int = option(256, "requests whose held-out events are changed to see whether the model notices", minimum=1)
    request_time_share: float = option(
        0.1, "share of NDCG@10 that may come from knowing when the event asked for happens", minimum=0
    )
    calibration_error: float = option(
        0.05, "expected calibration error beyond chance, as a probability, that is not worth a warning", minimum=0
    )
    overlap: float = option(
        0.95, "share of the exact engine's first 100 that an engine with the same scores must return", minimum=0
    )
    vector_overlap: float = option(
        0.5,
        "the same for engines that search vectors by an index; below it is warned, as they rank by other scores",
        minimum=0,
    )
    quantised_loss: float = option(
        0.05, "share of the NDCG@10 of plain item ids that a model of codes may lose", minimum=0
    )

    def __post_init__(self) -> None:
        """Shares are shares."""
        shares = (
            "unknown_share",
            "request_time_share",
            "calibration_error",
            "overlap",
            "vector_overlap",
            "quantised_loss",
        )
        faults = [
            f"`guardrails.{name}` is {getattr(self, name)}, but it is a share: give 0 to 1"
            for name in shares
            if getattr(self, name) > 1
        ]
        if faults:
            raise InputError(*faults)
