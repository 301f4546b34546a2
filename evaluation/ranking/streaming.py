"""Predict, then train: in a single pass over time, each period's actions are predicted before they are learnt from.

What was predicted of a period is kept as a file, so that a resumed run goes on with all that came before, and figures
over the whole stream are computed from these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel

from common.files import write_json_atomically
from data.batches import ItemFeatures
from data.event_store import EventStore
from data.ranking.tasks import parse_tasks
from data.sequences import Plan
from evaluation.ranking.files import read_predictions, write_predictions
from evaluation.ranking.intervals import summarise
from evaluation.ranking.predictions import joined, predict_events
from evaluation.ranking.report import summary_of_tasks
from evaluation.ranking.validation import figures_of, one_bin_loader
from sharding.world import World

FOLDER, FIGURES = "stream", "stream.json"


class PredictFirst:
    """Predicts the periods of a plan. Collective: on every rank, each time.

    Args:
        model: as it is trained; left in the mode it has.
        plan: its windows are what is learnt from, and what is predicted.
        run: where files go.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        features: ItemFeatures,
        store: EventStore,
        world: World,
        plan: Plan,
        run: Path,
        *,
        tokens: int,
        distinct: bool,
    ) -> None:
        self.model, self.store, self.world, self.run = model, store, world, run
        cfg = model.module.tower.cfg
        self.actions = cfg.output.actions
        self.loader = one_bin_loader(store, features, plan, cfg, tokens=tokens, distinct=distinct)
        if world.is_main:
            (run / FOLDER).mkdir(exist_ok=True)

    def __call__(self, period: int) -> dict[str, float]:
        """Predict a period's actions by the model as it is; figures of them on every rank, none of an empty period."""
        if not self.loader.steps_per_epoch(period):
            return {}
        was_training = self.model.training
        self.model.eval()
        found = predict_events(self.model.module.predict, self.loader, self.store, self.world, epoch=period)
        self.model.train(was_training)
        told: list[dict[str, float] | None] = [None]
        if found is not None:
            about = {"store_fingerprint": self.store.fingerprint, "period": period}
            write_predictions(self.run / FOLDER / f"period-{period:05d}.parquet", found, self.actions.tasks, about)
            told = [{"predictions": len(found)} | figures_of(found, self.actions.tasks, self.actions.loss_weights)]
        dist.broadcast_object_list(told, src=0)
        assert told[0] is not None
        return told[0]

    def finish(self, periods: int) -> None:
        """Write the figures of the whole stream so far, with intervals over users."""
        if not self.world.is_main:
            return
        paths = [self.run / FOLDER / f"period-{period:05d}.parquet" for period in range(periods)]
        files = [read_predictions(path) for path in paths if path.exists()]
        if not files:
            return
        whole = joined([one.predictions for one in files])
        tasks = parse_tasks(self.actions.tasks)
        summaries = summarise(tasks, whole.predicted_nT, whole.labels_nT, whole.users_n)
        content: dict[str, Any] = {
            "periods": len(files),
            "predictions": len(whole),
            "gain": figures_of(whole, self.actions.tasks, self.actions.loss_weights)["gain"],
            "tasks": summary_of_tasks(summaries),
        }
        write_json_atomically(self.run / FIGURES, content)
