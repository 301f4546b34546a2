"""Baselines by name, fitted to a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.errors import InputError
from data.event_store import EventStore
from evaluation.baselines.config import BASELINES, DECAYPOP, IALS, ITEM_KNN, MOSTPOP, BaselinesConfig
from evaluation.baselines.decaypop import decaypop
from evaluation.baselines.ials import IalsConfig, IalsEngine, factorise
from evaluation.baselines.item_knn import ItemKnnConfig, ItemKnnEngine
from evaluation.baselines.lists import FixedListEngine
from evaluation.baselines.neighbours import neighbour_table
from evaluation.baselines.training_log import training_log
from serving.engines.base import Engine, whole_catalogue


class Fitter:
    """Fits baselines to the training part of one store.

    A fit that differs from the last one of its baseline in nothing but how histories are read is not done again.

    Args:
        denied: item indices that nobody may be given.
        device: where lists are made; fitting is done on the CPU.
        quiet: show no progress (ranks other than 0).

    Raises:
        InputError: the store has no training events.
    """

    def __init__(
        self, store: EventStore, denied: npt.NDArray[np.int64] | None, device: torch.device, *, quiet: bool = False
    ) -> None:
        self.log, self.quiet = training_log(store), quiet
        self.catalogue = whole_catalogue(self.log.plays_N, device, denied)
        self._last: dict[str, tuple[Any, Any]] = {}

    def fit(self, name: str, config: BaselinesConfig) -> Engine:
        """One baseline; the same on every rank that asks for it.

        Raises:
            InputError: an unknown name, or a fit that would take too long or too much memory.
        """
        if name not in BASELINES:
            raise InputError(f"baseline {name!r} is unknown, expected one of {', '.join(BASELINES)}")
        if name == DECAYPOP:
            return decaypop(self.log, config.decaypop, self.catalogue)
        if name == ITEM_KNN:
            key = dataclasses.replace(config.item_knn, history=0, recency=1.0)
            table_NN = self._once(name, key, lambda: neighbour_table(self.log, key, config.memory_gb, quiet=self.quiet))
            return ItemKnnEngine(table_NN, config.item_knn, self.catalogue)
        if name == IALS:
            fit = dataclasses.replace(config.ials, history=0, recency=1.0)
            model = self._once(name, fit, lambda: factorise(self.log, fit, config.memory_gb, quiet=self.quiet))
            return IalsEngine(model, config.ials, self.log.plays_N, self.catalogue)
        assert name == MOSTPOP, name
        return FixedListEngine(MOSTPOP, torch.from_numpy(self.log.plays_N).float(), self.catalogue)

    def _once(self, name: str, key: ItemKnnConfig | IalsConfig, work: Callable[[], Any]) -> Any:
        if name not in self._last or self._last[name][0] != key:
            self._last.pop(name, None)  # before the work: of two, memory may hold one
            self._last[name] = key, work()
        return self._last[name][1]


def build_baselines(
    names: Sequence[str],
    config: BaselinesConfig,
    store: EventStore,
    denied: npt.NDArray[np.int64] | None,
    device: torch.device,
    *,
    quiet: bool = False,
) -> list[Engine]:
    """Fit baselines on the training part of a store, in the order of their names; see `Fitter`.

    Raises:
        InputError: unknown names, a store without training events, or a fit that would take too long or too much
            memory.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise InputError(*(f"baseline {name!r} is unknown, expected one of {', '.join(BASELINES)}" for name in unknown))
    if not names:
        return []
    fitter = Fitter(store, denied, device, quiet=quiet)
    return [fitter.fit(name, config) for name in names]
