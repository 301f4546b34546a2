"""Run users through the model and the engines, and say where each engine puts the held-out item.

Users are spread over the ranks; the result is put back in the order of the windows, so it is the same for any number
of ranks.

B users in the batch · L token budget · D model width · C code levels · K list length · N items · U users evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.progress import Progress
from data.event_store import EventStore
from data.loader import Loader
from data.ranges import positions_of
from data.schema import ITEM
from data.sequences import Windows
from evaluation import old_metrics as metrics
from serving.engines.base import Engine, Query
from sharding.world import World

_KEPT = max(metrics.COVERAGE_DEPTHS)


@dataclass(frozen=True, eq=False)
class EngineResult:
    """What one engine returned, users in the order of the evaluated windows.

    Args:
        rank_U: 1-based place of the held-out item, 0 where the list does not hold it.
        items_UK: the first items of each list.
    """

    rank_U: npt.NDArray[np.int64]
    items_UK: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome of evaluating some users.

    Args:
        engines: results by engine name.
        target_items_U: the held-out items.
        level_accuracy_C: share of users whose code is the most likely one, given the true codes before it.
        depth: K, the length of the lists.
    """

    engines: dict[str, EngineResult]
    target_items_U: npt.NDArray[np.int64]
    level_accuracy_C: list[float]
    depth: int

    def summary(self, engine: str, num_items: int) -> dict[str, float]:
        """Mean metrics of one engine by their published names."""
        result = self.engines[engine]
        means = {name: float(values.mean()) for name, values in metrics.per_user_metrics(result.rank_U).items()}
        for k in metrics.COVERAGE_DEPTHS:
            means[f"coverage@{k}"] = metrics.coverage(result.items_UK, k, num_items)
        return means


def evaluate_windows(
    model: nn.Module,
    engines: Sequence[Engine],
    loader: Loader,
    store: EventStore,
    world: World,
    *,
    depth: int,
    label: str,
    filter_history: bool = True,
) -> Evaluation:
    """Evaluate every window of `loader`: its inputs are what the user did, its one target is what came next.

    Args:
        model: called with a batch, gives (loss, output with `hidden_LD`); sharded or not. Left in the mode it had.
        depth: K; a held-out item below it counts as not found.
        filter_history: return no item of the user's history.
    """
    windows, was_training = loader.windows(0), model.training
    model.eval()
    local = _LocalResults([engine.name for engine in engines])
    with torch.no_grad(), Progress(label, len(windows), "users", quiet=not world.is_main) as progress:
        for batch in loader.iterate(epoch=0):
            batch = batch.to(world.device)
            _, output = model(batch)  # a collective: every rank takes part, with users or without
            local.add_accuracy(output.level_correct_C, output.num_targets)
            users = torch.nonzero(batch.offsets.diff()).squeeze(1)
            if len(users):
                last = batch.offsets[users + 1] - 1
                windows_B = batch.window_index_B[users].cpu().numpy()
                targets_B = torch.from_numpy(_held_out(windows_B, windows, store)).to(world.device)
                seen_B = windows.stop[windows_B] if filter_history else np.zeros_like(windows_B)
                query = _query(windows_B, output.hidden_LD[last], seen_B, windows, store)
                for engine in engines:
                    items_BK, _ = engine.retrieve(query, depth)
                    local.add(engine.name, items_BK, targets_B)
                local.add_users(windows_B, targets_B)
            # The other ranks are assumed to be as far as this one.
            progress.advance(min(len(users) * world.size, len(windows) - progress.done))
    model.train(was_training)
    return local.gather(world, depth)


def _held_out(windows_B: npt.NDArray[np.int64], windows: Windows, store: EventStore) -> npt.NDArray[np.int64]:
    """The item [B] asked for. Not the batch's target, which is absent where the item's codes are unknown."""
    assert windows.asked is not None
    at_B = store.offsets[windows.user[windows_B]] + windows.asked[windows_B]
    items_B: npt.NDArray[np.int64] = store.column(ITEM)[at_B].astype(np.int64)
    return items_B


def _query(
    windows_B: npt.NDArray[np.int64],
    hidden_BD: Tensor,
    seen_B: npt.NDArray[np.int64],
    windows: Windows,
    store: EventStore,
) -> Query:
    """The users' vectors, and the first `seen_B` events of each, not only those of the window, as seen items."""
    first_B = store.offsets[windows.user[windows_B]]
    rows = torch.from_numpy(np.repeat(np.arange(len(windows_B)), seen_B))
    items = torch.from_numpy(store.column(ITEM)[positions_of(first_B, seen_B)].astype(np.int64))
    return Query(hidden_BD, rows.to(hidden_BD.device), items.to(hidden_BD.device))


class _LocalResults:
    """What this rank has found so far."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.ranks: dict[str, list[Tensor]] = {name: [] for name in names}
        self.items: dict[str, list[Tensor]] = {name: [] for name in names}
        self.windows: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.correct_C: Tensor | float = 0.0
        self.num_targets: Tensor | float = 0.0

    def add(self, name: str, items_BK: Tensor, targets_B: Tensor) -> None:
        matches = items_BK == targets_B[:, None]
        place = matches.int().argmax(dim=1) + 1
        self.ranks[name].append(torch.where(matches.any(dim=1), place, 0).cpu())
        self.items[name].append(items_BK[:, :_KEPT].cpu())

    def add_users(self, windows_B: npt.NDArray[np.int64], targets_B: Tensor) -> None:
        self.windows.append(torch.from_numpy(windows_B))
        self.targets.append(targets_B.cpu())

    def add_accuracy(self, correct_C: Tensor, num_targets: Tensor) -> None:
        self.correct_C = self.correct_C + correct_C.cpu()
        self.num_targets = self.num_targets + num_targets.cpu()

    def gather(self, world: World, depth: int) -> Evaluation:
        mine: dict[str, Any] = {"windows": _cat(self.windows), "targets": _cat(self.targets)}
        mine |= {"correct": self.correct_C, "num_targets": self.num_targets}
        mine |= {f"rank/{name}": _cat(self.ranks[name]) for name in self.names}
        mine |= {f"items/{name}": _cat(self.items[name], columns=min(_KEPT, depth)) for name in self.names}
        everyone: list[Any] = [None] * world.size
        dist.all_gather_object(everyone, mine)
        order = np.argsort(np.concatenate([part["windows"] for part in everyone]), kind="stable")

        def joined(key: str) -> npt.NDArray[np.int64]:
            return np.concatenate([part[key] for part in everyone])[order]

        num_targets = sum(float(part["num_targets"]) for part in everyone)
        correct = sum(part["correct"] for part in everyone) / max(num_targets, 1)
        return Evaluation(
            {name: EngineResult(joined(f"rank/{name}"), joined(f"items/{name}")) for name in self.names},
            joined("targets"),
            [float(share) for share in correct],
            depth,
        )


def _cat(parts: list[Tensor], columns: int | None = None) -> npt.NDArray[np.int64]:
    """Parts as one array; a rank without users gives one of the right width and no rows."""
    if not parts:
        return np.zeros((0,) if columns is None else (0, columns), np.int64)
    return torch.cat(parts).numpy()
