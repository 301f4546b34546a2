"""Stores with known histories, and models and engines that answer what they were told to.

B users in the batch · L token budget · K list length · N items · U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.batches import Batch
from data.event_store import EventStore
from data.loader import item_features
from data.sources.base import Catalogue, Embeddings, Groups, Histories
from data.split import SplitConfig
from data.store_writer import write_event_store
from evaluation.evaluator import Reader, evaluate_requests
from evaluation.parts import Parts
from evaluation.requests import make_requests
from evaluation.results import Evaluation
from serving.engines.base import Query, RankedCatalogue
from sharding.world import World

LEVELS, CODES = 2, 8


@dataclass
class HistoriesSource:
    """Users with given histories, a second between events where no times are given."""

    items_of_user: list[list[int]]
    num_items: int
    times_of_user: list[list[int]] | None = None

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
            "timestamp": np.concatenate(self.times_of_user or [range(length) for length in lengths]).astype(np.uint32),
            "event_type": np.zeros(sum(lengths), np.uint8),
        }
        users = pa.array([f"user {i}" for i in range(len(lengths))], pa.string())
        yield Histories(users, np.cumsum([0, *lengths]), columns)

    def embeddings(self) -> Iterator[Embeddings]:
        return iter(())


def make_store(
    path: Path,
    items_of_user: list[list[int]],
    num_items: int,
    times_of_user: list[list[int]] | None = None,
    split: SplitConfig | None = None,
) -> EventStore:
    write_event_store(HistoriesSource(items_of_user, num_items, times_of_user), path, split=split or SplitConfig())
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


def window_states(batch: Batch) -> Tensor:
    """A model whose hidden vector is the number of the user's window: an engine that reads it knows who asks."""
    hidden_LD = torch.full((len(batch.rows_L), 1), -1.0)
    for row, window in enumerate(batch.window_index_B.tolist()):
        hidden_LD[batch.offsets[row] : batch.offsets[row + 1]] = window
    return hidden_LD


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
    filter_history: bool = True,
    protocol: str = "next",
    folder: Path | None = None,
) -> Evaluation | None:
    """Evaluate `ToldEngine` on the test items of the store at `path`."""
    store = EventStore.open(path)
    requests = make_requests(store, "test", 6, protocol)
    reader = Reader(window_states, item_features(store, codes_NC, CODES), tokens)
    engines = [ToldEngine(scores_UN), ToldEngine(-scores_UN, "reversed")]
    return evaluate_requests(
        reader,
        engines,
        requests,
        store,
        world,
        depth=depth,
        label="test",
        filter_history=filter_history,
        parts=Parts(folder, "key", world.rank),
    )


def evaluate_each(world: World, cases: list[tuple[Any, ...]]) -> list[Evaluation | None]:
    """Several evaluations in one group of processes, which take long to start."""
    return [evaluate_told(world, *case) for case in cases]
