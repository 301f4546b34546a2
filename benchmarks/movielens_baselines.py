"""Classical baselines tuned on validation events, asked the test events, through the evaluator of the models.

R requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.event_store import EventStore
from evaluation.baselines.build import build_baselines
from evaluation.baselines.config import BaselinesConfig
from evaluation.baselines.tuning import tune
from evaluation.evaluator import evaluate_requests
from evaluation.metrics.ranking import per_request_metrics
from evaluation.requests import NEXT, make_requests
from evaluation.results import Floats
from serving.engines.base import Engine
from sharding.world import World, open_world

DEPTH = 1000


@dataclass(frozen=True)
class TunedBaseline:
    """A baseline on the test events.

    Args:
        scores_R: NDCG@10 of each request.
        hr10, hr100: mean hit rates.
        seconds: to fit it once.
        trials: setting, NDCG@10 on the validation events, and whether it was chosen.
    """

    scores_R: Floats
    hr10: float
    hr100: float
    seconds: float
    trials: list[tuple[str, float, bool]]


def tuned_baselines(names: Sequence[str], path: Path) -> dict[str, TunedBaseline]:
    """Each baseline with the setting of its grid that validates best."""
    store = EventStore.open(path)
    with open_world() as world:
        return {name: _tuned(name, store, world) for name in names}


def _tuned(name: str, store: EventStore, world: World) -> TunedBaseline:
    tuned = tune(
        store,
        name,
        BaselinesConfig(),
        lambda engine: float(_metrics(engine, store, world, "validation")["ndcg@10"].mean()),
        world.device,
        quiet=True,
    )
    begun = time.perf_counter()
    (engine,) = build_baselines([name], tuned.config, store, None, world.device, quiet=True)
    seconds = time.perf_counter() - begun
    found = _metrics(engine, store, world, "test")
    trials = [
        (
            ", ".join(f"{key} {value}" for key, value in trial.setting.items()) or "no options",
            trial.score or 0.0,
            place == tuned.best,
        )
        for place, trial in enumerate(tuned.trials)
    ]
    return TunedBaseline(found["ndcg@10"], float(found["hr@10"].mean()), float(found["hr@100"].mean()), seconds, trials)


def _metrics(engine: Engine, store: EventStore, world: World, events: str) -> dict[str, Floats]:
    requests = make_requests(store, events, 1, NEXT)
    result = evaluate_requests(None, [engine], requests, store, world, depth=DEPTH, label=f"{engine.name}, {events}")
    assert result is not None
    return per_request_metrics(result.engines[engine.name], result.targets, result.depth)
