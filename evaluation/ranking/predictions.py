"""What a ranking model predicts of events, each from its item, its context and all that its user did before it.

n events · T tasks · W windows · U users · E events of the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import InputError
from common.progress import Progress
from data.batches import Batch
from data.event_store import EventStore
from data.loader import Loader
from data.ranges import positions_of
from data.sequences import Windows, covering_windows
from sharding.world import World

Predict = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch → predictions [n, T] and the tokens [n] at which they were asked for."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of some events, beside what happened.

    Attributes:
        users_n: int64, whose event it is.
        events_n: int64, flat position in the store, ascending.
        predicted_nT: float32; the probability of a binary task, the value of another.
        labels_nT: float32, NaN where a task asks nothing of the event.
    """

    users_n: npt.NDArray[np.int64]
    events_n: npt.NDArray[np.int64]
    predicted_nT: npt.NDArray[np.float32]
    labels_nT: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """n."""
        return len(self.events_n)


def held_out_windows(store: EventStore, events: str, max_history: int) -> Windows:
    """Windows in which each held-out event is predicted once, knowing everything before it.

    Other than a retrieval request, which is made once a period, an item is ranked when it is shown: by then the user's
    earlier events of the period have come in.

    Args:
        events: `validation` or `test`.
    """
    held = getattr(store.split(), events)
    first_U = np.maximum(held.start_U, 1)  # an event without a past has nothing to be predicted from
    return covering_windows(first_U, np.maximum(np.where(held.asked_U, held.stop_U, 0), first_U), max_history)


def predicted_events(store: EventStore, windows: Windows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """User and flat position of each event that the windows predict, window after window."""
    counts_W = windows.stop - windows.learn_from
    users_n = np.repeat(windows.user, counts_W)
    return users_n, positions_of(store.offsets[windows.user] + windows.learn_from + 1, counts_W)


@torch.no_grad()
def predict_events(
    predict: Predict, loader: Loader, store: EventStore, world: World, *, epoch: int = 0, label: str = ""
) -> Predictions | None:
    """Predict the target events of a loader's windows. Collective; the result is rank 0's, None elsewhere.

    A batch is computed in the same way whoever computes it, so that figures are those of one rank on any number,
    wherever the model itself gives the same numbers.

    Args:
        loader: of one bin a step, not shared out, the same on every rank.
        label: names the progress line; empty shows none.

    Raises:
        InputError: a prediction is no number, on all ranks alike.
    """
    assert (loader.bins, loader.world_size) == (1, 1)
    steps, found = loader.steps_per_epoch(epoch), list[Predictions]()
    with Progress(label, steps, "batches", quiet=not (label and world.is_main)) as progress:
        for first in range(0, steps, world.size):
            together = range(first, min(first + world.size, steps))
            # A rank without a batch of its own takes part in what is collective, with the last one's.
            batch = loader.batch(epoch, together[min(world.rank, len(together) - 1)])
            of_batch = _of_batch(predict, batch, loader.windows(epoch), store, world)
            if world.rank < len(together):
                found.append(of_batch)
            progress.advance(len(together))
    return _gathered(found, world)


def _of_batch(predict: Predict, batch: Batch, windows: Windows, store: EventStore, world: World) -> Predictions:
    assert batch.labels_LT is not None
    users_n, events_n = predicted_events(store, windows.take(batch.window_index_B.numpy()))
    predicted_nT, rows_n = predict(batch.to(world.device))
    assert len(rows_n) == len(events_n)
    labels_nT = batch.labels_LT[rows_n.cpu()].numpy()
    return Predictions(users_n, events_n, predicted_nT.float().cpu().numpy(), labels_nT)


def _gathered(found: list[Predictions], world: World) -> Predictions | None:
    _check_numbers(found, world)
    everyone: list[list[Predictions] | None] | None = [None] * world.size if world.is_main else None
    dist.gather_object(found, everyone, dst=0)
    return None if everyone is None else joined([one for part in everyone for one in part or []])


def _check_numbers(found: list[Predictions], world: World) -> None:
    """Parameters may be broken where the losses before were sound: a row of a table that was not asked for since."""
    broken = [one.events_n[~np.isfinite(one.predicted_nT).all(axis=1)] for one in found]
    own = (sum(map(len, broken)), min((int(events_n.min()) for events_n in broken if len(events_n)), default=-1))
    told: list[tuple[int, int]] = [own] * world.size
    dist.all_gather_object(told, own)
    total, first = sum(count for count, _ in told), min((event for _, event in told if event >= 0), default=-1)
    if total:
        raise InputError(
            f"{total} predictions are no finite numbers, the first of them that of event {first} of the store: the "
            f"model's parameters are broken; take an earlier checkpoint, or train with lower rates"
        )


def joined(parts: list[Predictions]) -> Predictions:
    """All of them, by event."""
    assert parts
    names = ("users_n", "events_n", "predicted_nT", "labels_nT")
    users_n, events_n, predicted_nT, labels_nT = (
        np.concatenate([getattr(one, name) for one in parts]) for name in names
    )
    order_n = np.argsort(events_n, kind="stable")
    return Predictions(users_n[order_n], events_n[order_n], predicted_nT[order_n], labels_nT[order_n])
