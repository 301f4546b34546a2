"""Predictions as a file: one row an event, two columns a task.

n events · T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.ranking.tasks import parse_tasks
from evaluation.outputs import ABOUT, EVALUATE, reading, write_table_atomically
from evaluation.ranking.predictions import Predictions

_USER, _EVENT, _PREDICTED, _LABEL = "user", "event", "predicted/", "label/"


@dataclass(frozen=True)
class PredictionFile:
    """What such a file holds.

    Args:
        tasks: as they are written in a configuration.
        about: what was predicted and how, by which two files can be told to be comparable.
    """

    predictions: Predictions
    tasks: tuple[str, ...]
    about: dict[str, Any]


def write_predictions(path: Path, found: Predictions, tasks: Sequence[str], about: dict[str, Any]) -> None:
    """Whole or not at all. Users and events are positions in the store, a label that nothing was asked of is NaN."""
    names = [task.name for task in parse_tasks(tasks)]
    columns: dict[str, Any] = {_USER: found.users_n, _EVENT: found.events_n}
    columns |= {f"{_PREDICTED}{name}": found.predicted_nT[:, at] for at, name in enumerate(names)}
    columns |= {f"{_LABEL}{name}": found.labels_nT[:, at] for at, name in enumerate(names)}
    content = json.dumps({"tasks": list(tasks), "about": about})
    table = pa.table(columns).replace_schema_metadata({ABOUT: content})
    write_table_atomically(path, table)


def read_predictions(path: Path, remedy: str = EVALUATE) -> PredictionFile:
    """What `write_predictions` wrote.

    Args:
        remedy: what to do where it cannot be read.

    Raises:
        InputError: there is none, or it is another kind of file.
    """
    with reading(path, "predictions", remedy) as table:
        content = json.loads(table.schema.metadata[ABOUT])
        names = [task.name for task in parse_tasks(content["tasks"])]

        def columns(kind: str) -> np.ndarray:
            values = [table[f"{kind}{name}"].to_numpy() for name in names]
            return np.stack(values, axis=1).astype(np.float32) if values else np.zeros((len(table), 0), np.float32)

        predictions = Predictions(
            table[_USER].to_numpy(), table[_EVENT].to_numpy(), columns(_PREDICTED), columns(_LABEL)
        )
        return PredictionFile(predictions, tuple(content["tasks"]), content["about"])
