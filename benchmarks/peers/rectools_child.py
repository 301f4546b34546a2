"""Trains a model of RecTools and says how: `python -I rectools_child.py OPTIONS.json`, in RecTools' own environment.

Knows nothing of Segue. Standard output has a JSON object a line: first the settings, then one an epoch with its seconds
and its targets, and one wherever lists were written. Only RecTools' public methods are used, `fit_partial` so that
lists can be asked for in between: seconds are those of the training loop alone, from its start or the end of the epoch
before, without what looking costs.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-any-unimported"

from __future__ import annotations

import inspect
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, __version__, seed_everything
from rectools import Columns
from rectools import __version__ as rectools_version
from rectools.dataset import Dataset
from rectools.dataset.context import get_context
from rectools.models import HSTUModel, SASRecModel

MODELS = {"hstu": HSTUModel, "sasrec": SASRecModel}
TOLD = sys.stdout


def tell(**what: Any) -> None:
    """A line for whoever started this."""
    print(json.dumps(what), file=TOLD, flush=True)


class Clock(Callback):
    """Tells of each epoch what training took and how many targets it had."""

    def __init__(self) -> None:
        self.epoch, self.targets, self.since = 0, 0, 0.0

    def on_train_start(self, *_: Any) -> None:
        """The loop begins, at first or after a look."""
        self.since = time.perf_counter()

    def on_train_batch_end(self, _trainer: Any, _module: Any, _outputs: Any, batch: dict[str, Any], *_: Any) -> None:
        """Padding has no item to predict."""
        self.targets += int((batch["y"] != 0).sum())

    def on_train_epoch_end(self, *_: Any) -> None:
        """Say it."""
        now = time.perf_counter()
        self.epoch += 1
        tell(epoch=self.epoch, seconds=now - self.since, targets=self.targets)
        self.targets, self.since = 0, time.perf_counter()


def make_trainer() -> Trainer:
    """As RecTools makes it where none is given, and with the clock."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(max_epochs=1, min_epochs=1, enable_checkpointing=False, devices=1, callbacks=[Clock()], **quiet)


class Events:
    """The events in the forms that RecTools takes."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = dict(arrays)
        self.frame = pd.DataFrame(
            {
                Columns.User: self.arrays["user_E"],
                Columns.Item: self.arrays["item_E"],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(self.arrays["timestamp_E"], unit="s"),
            }
        )

    def seen_by(self, who: str) -> Dataset:
        """What training or a request may see."""
        return Dataset.construct(self.frame[self.arrays[f"{who}_E"]].reset_index(drop=True))

    def asked(self, who: str) -> pd.DataFrame:
        """Who asks, and when."""
        times = pd.to_datetime(self.arrays[f"{who}_times_R"], unit="s")
        return pd.DataFrame({Columns.User: self.arrays[f"{who}_users_R"], Columns.Datetime: times})


def main(path: str) -> None:
    """Train, and look where asked."""
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    seed_everything(given["seed"], verbose=False)
    events = Events(Path(given["events"]))
    kind = MODELS[given["model"]]
    model = kind(**given["settings"], get_trainer_func=make_trainer)
    tell(settings=settings_of(model, kind), versions=versions())
    training, done = events.seen_by("train"), 0
    for stop in sorted({*given["look_at"], given["epochs"]}):
        model.fit_partial(training, min_epochs=stop - done, max_epochs=stop - done)
        done = stop
        if stop in given["look_at"]:
            with torch.random.fork_rng():  # looking draws numbers, which training is not to notice
                tell(epoch=stop, lists=write_lists(model, events, Path(given["out"]), stop, given["places"]))


def settings_of(model: Any, kind: Any) -> dict[str, Any]:
    """What bears on the result, RecTools' defaults among it."""
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "epochs"]  # our looks decide
    found = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return {name: value for name, value in found.items() if isinstance(value, int | float | str | dict)}


def versions() -> dict[str, str]:
    """Of what trains."""
    return {"rectools": rectools_version, "torch": torch.__version__, "pytorch-lightning": __version__}


def write_lists(model: Any, events: Events, out: Path, epoch: int, places: int) -> dict[str, str]:
    """The list of everyone who asks, without what they have had."""
    told = {}
    for who in ("validation", "test"):
        asked = events.asked(who)
        context = {"context": get_context(asked)} if model.require_recommend_context else {}
        users = asked[Columns.User].to_numpy()
        found = model.recommend(users, events.seen_by(who), k=places, filter_viewed=True, **context)
        row = pd.Index(users).get_indexer(found[Columns.User])
        items_RK = np.full((len(users), places), -1, np.int64)
        items_RK[row, found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].astype(np.int64)
        told[who] = str(out / f"{who}-{epoch}.npz")
        np.savez(told[who], users_R=users, items_RK=items_RK)
    return told


if __name__ == "__main__":
    sys.stdout = sys.stderr  # whatever a library prints is not a line of ours
    warnings.filterwarnings("ignore")
    main(sys.argv[1])
