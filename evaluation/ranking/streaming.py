"""Predict, then train: in a single pass over time, each period's actions are predicted before they are learnt from.

What was predicted of a period is kept as a file, so that a resumed run goes on with all that came before, and figures
over the whole stream are computed from these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import write_json_atomically
from data.ranking.tasks import parse_tasks
from evaluation.ranking.files import read_predictions, write_predictions
from evaluation.ranking.intervals import summarise
from evaluation.ranking.metrics import gain_of
from evaluation.ranking.predictions import joined
from evaluation.ranking.predictor import Predictor
from evaluation.ranking.report import summary_of_tasks

FOLDER, FIGURES = "stream", "stream.json"

_REMEDY = "what was predicted then cannot be made again: train again, with overwrite=true"


class PredictFirst:
    """Predicts the periods of a plan, whose windows are what is learnt from. Collective: on every rank, each time.

    Args:
        run: where files go.
        after_first: is called with the first period that is predicted here, before it is learnt from.
    """

    def __init__(self, predictor: Predictor, run: Path, after_first: Callable[[int], None] | None = None) -> None:
        self.predictor, self.run, self._after_first = predictor, run, after_first
        if predictor.world.is_main:
            (run / FOLDER).mkdir(exist_ok=True)

    def _file(self, period: int) -> Path:
        return self.run / FOLDER / f"period-{period:05d}.parquet"

    def __call__(self, period: int) -> dict[str, float]:
        """Predict a period's actions by the model as it is; figures of them on every rank, none of an empty period.

        Raises:
            InputError: a prediction is no number, on all ranks alike; no file is written.
        """
        if not self.predictor.has_events(period):
            return {}
        found = self.predictor.predict(period)
        figures = self.predictor.figures(found)
        if found is not None:
            about = {"store_fingerprint": self.predictor.store.fingerprint, "period": period}
            write_predictions(self._file(period), found, self.predictor.actions.tasks, about)
        if self._after_first is not None:
            self._after_first(period)
            self._after_first = None
        return figures

    def finish(self, periods: int) -> None:
        """Write the figures of the whole stream so far, with intervals over users.

        Raises:
            InputError: a period's file is missing or damaged.
        """
        if not self.predictor.world.is_main:
            return
        paths = [self._file(period) for period in range(periods) if self.predictor.has_events(period)]
        if not paths:
            return
        whole = joined([read_predictions(path, _REMEDY).predictions for path in paths])
        actions = self.predictor.actions
        tasks = parse_tasks(actions.tasks)
        summaries = summarise(tasks, whole.predicted_nT, whole.labels_nT, whole.users_n)
        content: dict[str, Any] = {
            "periods": len(paths),
            "predictions": len(whole),
            "gain": gain_of([summary.values for summary in summaries], actions.loss_weights),
            "tasks": summary_of_tasks(summaries),
        }
        write_json_atomically(self.run / FIGURES, content)
