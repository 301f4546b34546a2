"""Popularity that fades: what is played now counts more than what was played once (Yambda's DecayPop).

N items · E training events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from common.config import option
from common.errors import InputError
from data.split import DAY
from evaluation.baselines.lists import UNSCORED, FixedListEngine
from evaluation.baselines.training_log import TrainingLog
from serving.engines.base import RankedCatalogue


@dataclass
class DecayPopConfig:
    """How fast a play fades."""

    days: float = option(7.0, "a play so many days before the end of the training part weighs 1/e of one at its end")

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        if not self.days > 0:
            raise InputError(f"`days` is {self.days}, must be above 0: ages are divided by it")


def decaypop(log: TrainingLog, config: DecayPopConfig, catalogue: RankedCatalogue) -> FixedListEngine:
    """Items by the log of their decayed plays, log Σ exp(−age / τ); those never played in training come last.

    The age is that at the last training event. Logs, since a play fades below the smallest float in a few hundred τ.
    """
    scores_N = np.maximum(log_decayed_plays(log, config.days), UNSCORED).astype(np.float32)
    return FixedListEngine("decaypop", torch.from_numpy(scores_N), catalogue)


def log_decayed_plays(log: TrainingLog, days: float) -> npt.NDArray[np.float64]:
    """[N] log Σ exp(−age / τ) over the training events of each item; −inf where there is none."""
    latest_N = np.full(log.num_items, -1, np.int64)
    for block in log.blocks():
        np.maximum.at(latest_N, block.items_E, log.times_S[block.at_E].astype(np.int64))
    sums_N = np.zeros(log.num_items)
    for block in log.blocks():
        # Relative to the item's latest play, whose term is 1: no sum is lost in the smallest floats.
        ages_E = latest_N[block.items_E] - log.times_S[block.at_E].astype(np.int64)
        fading_E = np.exp(-ages_E / (days * DAY))
        sums_N += np.bincount(block.items_E, fading_E, log.num_items)
    with np.errstate(divide="ignore"):
        scores_N: npt.NDArray[np.float64] = np.log(sums_N) + (latest_N - log.end) / (days * DAY)
    return scores_N
