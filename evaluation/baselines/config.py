"""Options of the baselines, by their names."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import group, option
from common.errors import InputError
from evaluation.baselines.decaypop import DecayPopConfig
from evaluation.baselines.ials import IalsConfig
from evaluation.baselines.item_knn import ItemKnnConfig

MOSTPOP, DECAYPOP, ITEM_KNN, IALS = "mostpop", "decaypop", "item_knn", "ials"
BASELINES = (MOSTPOP, DECAYPOP, ITEM_KNN, IALS)


@dataclass
class BaselinesConfig:
    """Options of the baselines; mostpop has none."""

    memory_gb: float = option(8.0, "the most that fitting one baseline may take, in 10⁹ bytes")
    decaypop: DecayPopConfig = group(DecayPopConfig, "plays that fade")
    item_knn: ItemKnnConfig = group(ItemKnnConfig, "neighbours of what was played last")
    ials: IalsConfig = group(IalsConfig, "matrix factorisation")

    def __post_init__(self) -> None:
        """Refuse no memory at all."""
        if not self.memory_gb > 0:
            raise InputError(f"`memory_gb` is {self.memory_gb}, must be above 0")
