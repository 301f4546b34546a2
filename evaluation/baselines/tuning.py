"""A small budget of trials for every baseline, the same for all: what a model is held against must have been tuned.

A trial is judged by a figure that the caller computes on validation events, never on test events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.errors import InputError
from data.event_store import EventStore
from evaluation.baselines.build import Fitter
from evaluation.baselines.config import BASELINES, DECAYPOP, IALS, ITEM_KNN, MOSTPOP, BaselinesConfig
from serving.engines.base import Engine

MOST_TRIALS = 8

Setting = Mapping[str, Any]

GRIDS: dict[str, tuple[Setting, ...]] = {
    MOSTPOP: ({},),
    DECAYPOP: tuple({"days": days} for days in (0.25, 1.0, 3.0, 7.0, 14.0, 30.0, 60.0, 120.0)),
    ITEM_KNN: (
        {"window": 0, "newest": 500, "weighting": "tfidf", "shrinkage": 0.0, "history": 10, "recency": 0.7},
        {"window": 0, "newest": 500, "weighting": "bm25", "shrinkage": 0.0, "history": 10, "recency": 0.7},
        {"window": 5, "weighting": "cosine", "shrinkage": 10.0, "history": 20, "recency": 0.8},
        {"window": 10, "weighting": "cosine", "shrinkage": 10.0, "history": 10, "recency": 0.7},
        {"window": 10, "weighting": "cosine", "shrinkage": 10.0, "history": 20, "recency": 0.8},
        {"window": 10, "weighting": "cosine", "shrinkage": 10.0, "history": 50, "recency": 0.9},
        {"window": 10, "weighting": "tfidf", "shrinkage": 10.0, "history": 20, "recency": 0.8},
        {"window": 20, "weighting": "cosine", "shrinkage": 10.0, "history": 20, "recency": 0.8},
    ),
    IALS: (
        {"factors": 32, "alpha": 4.0, "regularisation": 10.0, "recency": 1.0},
        {"factors": 32, "alpha": 4.0, "regularisation": 10.0, "recency": 0.9},
        {"factors": 32, "alpha": 4.0, "regularisation": 10.0, "recency": 0.8},
        {"factors": 32, "alpha": 10.0, "regularisation": 30.0, "recency": 0.8},
        {"factors": 64, "alpha": 4.0, "regularisation": 10.0, "recency": 0.8},
        {"factors": 64, "alpha": 10.0, "regularisation": 30.0, "recency": 0.8},
        {"factors": 128, "alpha": 10.0, "regularisation": 30.0, "recency": 0.9},
        {"factors": 128, "alpha": 10.0, "regularisation": 30.0, "recency": 0.8},
    ),
}
"""What is tried of each baseline, the same on every store; what a setting leaves out stays as configured. Settings that
share a fit stand together. Whole histories are cut to 500 events, since their pairs grow with the square."""


@dataclass(frozen=True)
class Trial:
    """A setting, and how it did; without a score where the fit was refused, and why."""

    setting: Setting
    score: float | None
    fault: str = ""


@dataclass(frozen=True)
class Tuned:
    """The outcome of tuning one baseline.

    Args:
        baseline: its name.
        config: all options, the best setting filled in.
        trials: all of them, in the order of the grid.
        best: the place of the best one, of equal ones the first.
        engine: fitted with the best setting.
    """

    baseline: str
    config: BaselinesConfig
    trials: tuple[Trial, ...]
    best: int
    engine: Engine

    def table(self) -> list[dict[str, Any]]:
        """The trials as rows: the setting, `score`, whether it was the `best`, and the `fault` of a refused fit."""
        return [
            {
                **trial.setting,
                "score": trial.score,
                "best": place == self.best,
                **({"fault": trial.fault} if trial.fault else {}),
            }
            for place, trial in enumerate(self.trials)
        ]


def tune(
    store: EventStore,
    baseline: str,
    config: BaselinesConfig,
    score: Callable[[Engine], float],
    device: torch.device,
    *,
    denied: npt.NDArray[np.int64] | None = None,
    grid: Sequence[Setting] | None = None,
    quiet: bool = False,
) -> Tuned:
    """Fit a baseline with every setting of its grid, and keep the one with the highest score.

    A setting whose fit is refused on this store, for its time or its memory, is a trial without a score.

    Args:
        config: options that the grid leaves alone.
        score: of an engine on validation events, higher is better: by convention NDCG@10.
        device, denied, quiet: see `Fitter`.
        grid: settings; those of `GRIDS` where not given.

    Raises:
        InputError: an unknown baseline or option, no setting, more than `MOST_TRIALS`, a score that is not a number,
            or no setting whose fit is not refused.
    """
    if baseline not in BASELINES:
        raise InputError(f"baseline {baseline!r} is unknown, expected one of {', '.join(BASELINES)}")
    settings = GRIDS[baseline] if grid is None else tuple(grid)
    if not 1 <= len(settings) <= MOST_TRIALS:
        raise InputError(
            f"the grid of {baseline} has {len(settings)} settings, must have 1 … {MOST_TRIALS}: every baseline gets the"
            " same small budget"
        )
    configs = [_with_setting(config, baseline, setting) for setting in settings]  # all faults before any work
    trials: list[Trial] = []
    best: tuple[int, Engine] | None = None
    best_score = -np.inf
    fitter = Fitter(store, denied, device, quiet=quiet)
    for place, (setting, tried) in enumerate(zip(settings, configs, strict=True)):
        try:
            engine = fitter.fit(baseline, tried)
        except InputError as error:
            trials.append(Trial(setting, None, "; ".join(error.faults)))
            continue
        found = score(engine)
        if np.isnan(found):
            raise InputError(f"{baseline} with {dict(setting)} scored nan; there is nothing to compare it by")
        trials.append(Trial(setting, found))
        if best is None or found > best_score:
            best, best_score = (place, engine), found  # the others' engines go: each may take gigabytes
    if best is None:
        raise InputError(*dict.fromkeys(trial.fault for trial in trials))
    return Tuned(baseline, configs[best[0]], tuple(trials), *best)


def _with_setting(config: BaselinesConfig, baseline: str, setting: Setting) -> BaselinesConfig:
    options = getattr(config, baseline, None)
    known = () if options is None else tuple(leaf.name for leaf in dataclasses.fields(options))
    unknown = [name for name in setting if name not in known]
    if unknown:
        raise InputError(
            *(f"{baseline} has no option `{name}`, expected one of {', '.join(known) or 'none'}" for name in unknown)
        )
    if options is None:
        return config
    return dataclasses.replace(config, **{baseline: dataclasses.replace(options, **setting)})
