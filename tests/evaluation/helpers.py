"""Stores with known histories, and models and engines that answer what they were told to.

B users in the batch · L token budget · K list length · N items · U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from data.batches import Batch
from data.event_store import EventStore
from data.loader import Loader, item_features
from data.sequences import request_windows
from data.sources.base import Catalogue, Embeddings, Groups, Histories
from data.store_writer import write_event_store
from evaluation.evaluator import Evaluation, evaluate_windows
from serving.engines.base import Query, RankedCatalogue
from sharding.world import World

LEVELS, CODES = 2, 8


@dataclass
class HistoriesSource:
    """Users with given histories, a second between events."""

    items_of_user: list[list[int]]
    num_items: int

    description = {"source": "memory"}  # noqa: RUF012
    event_types = ("listen",)
    optional_columns = ()
    embedding_width = None

    @property
    def num_events(self) -> int:
        return sum(map(len, self.items_of_user))

    def catalogue(self) -> Catalogue:
        ids = pa.array([f"item {i}" for i in range(self.num_items)], pa.string())
        unknown = Groups(np.zeros(self.num_items + 1, np.int64), np.zeros(0, np.uint32), ids[:0])
        return Catalogue(ids, unknown, None)

    def histories(self) -> Iterator[Histories]:
        lengths = [len(items) for items in self.items_of_user]
        columns = {
            "item": np.concatenate(self.items_of_user).astype(np.uint32),
            "timestamp": np.concatenate([np.arange(length) for length in lengths]).astype(np.uint32),
            "event_type": np.zeros(sum(lengths), np.uint8),
        }
        users = pa.array([f"user {i}" for i in range(len(lengths))], pa.string())
        yield Histories(users, np.cumsum([0, *lengths]), columns)

    def embeddings(self) -> Iterator[Embeddings]:
        return iter(())


def make_store(path: Path, items_of_user: list[list[int]], num_items: int) -> EventStore:
    write_event_store(HistoriesSource(items_of_user, num_items), path)
    return EventStore.open(path)


def distinct_histories(users: int, num_items: int, seed: int = 0) -> list[list[int]]:
    """Every user with 3 to 9 items, none of them twice."""
    random = np.random.default_rng(seed)
    return [random.permutation(num_items)[: random.integers(3, 10)].tolist() for _ in range(users)]


def random_codes(num_items: int, unknown: float = 0.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, (num_items, LEVELS))
    codes[:, 0] = np.maximum(codes[:, 0], 1)
    codes[random.random(num_items) < unknown] = 0
    return codes


class WindowModel(nn.Module):
    """Its hidden vector is the number of the user's window: an engine that reads it knows who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, batch: Batch) -> tuple[Tensor, Any]:
        self.modes.append(self.training)
        hidden_LD = torch.full((int(batch.target_items_L.numel()), 1), -1.0)
        for row, window in enumerate(batch.window_index_B.tolist()):
            hidden_LD[batch.offsets[row] : batch.offsets[row + 1]] = window
        targets_L = batch.target_items_L >= 0
        targets = targets_L.sum()
        correct_C = torch.stack([targets, (targets_L & (hidden_LD[:, 0] % 2 == 0)).sum()])
        return torch.zeros(()), SimpleNamespace(hidden_LD=hidden_LD, level_correct_C=correct_C, num_targets=targets)


class ToldEngine:
    """Scores items by a table with a row a window; what a user has seen is left out as in every engine."""

    log_probabilities = False

    def __init__(self, scores_UN: Tensor, name: str = "told") -> None:
        self.name, self.scores_UN = name, scores_UN
        self.catalogue = RankedCatalogue(torch.arange(scores_UN.size(1)), scores_UN.size(1))

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        return self.catalogue.top(self.scores_UN[query.hidden_BD[:, 0].long()].clone(), query, k)


def held_out_items(store: EventStore) -> np.ndarray:
    """The held-out test items of the users who have one."""
    test = store.split().test
    users = np.flatnonzero(test.asked_U)
    targets: np.ndarray = store.column("item")[store.offsets[users] + test.start_U[users]].astype(np.int64)
    return targets


def evaluate_told(
    world: World,
    path: Path,
    codes_NC: np.ndarray,
    scores_UN: Tensor,
    depth: int,
    tokens: int = 20,
    model: nn.Module | None = None,
    filter_history: bool = True,
) -> Evaluation:
    """Evaluate `ToldEngine` on the test items of the store at `path`."""
    store = EventStore.open(path)
    loader = Loader(
        store,
        item_features(store, codes_NC, CODES),
        request_windows(store.split().test, 6),
        tokens=tokens,
        bins=world.size,
        rank=world.rank,
        world_size=world.size,
        seed=0,
        shuffle=False,
    )
    engines = [ToldEngine(scores_UN), ToldEngine(-scores_UN, "reversed")]
    return evaluate_windows(
        model or WindowModel(),
        engines,
        loader,
        store,
        world,
        depth=depth,
        label="test",
        filter_history=filter_history,
    )


def evaluate_each(world: World, cases: list[tuple[Any, ...]]) -> list[Evaluation]:
    """Several evaluations in one group of processes, which take long to start."""
    return [evaluate_told(world, *case) for case in cases]
