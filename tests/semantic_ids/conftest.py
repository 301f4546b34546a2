"""Small event stores, written and opened as real ones are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from data.event_store import EventStore
from data.sources.base import Catalogue, Embeddings, Groups, Histories
from data.store_writer import write_event_store


@dataclass
class MemorySource:
    """A source whose events are given as lists of item indices, one list a user."""

    items_of_user: list[list[int]]
    artists_of_item: list[list[int]]
    item_embeddings: dict[int, np.ndarray] | None

    description = {"source": "memory"}  # noqa: RUF012
    event_types = ("listen",)
    optional_columns = ()

    @property
    def num_events(self) -> int:
        return sum(map(len, self.items_of_user))

    def catalogue(self) -> Catalogue:
        artists = max((artist + 1 for row in self.artists_of_item for artist in row), default=0)
        return Catalogue(
            item_ids=pa.array([f"item {i}" for i in range(len(self.artists_of_item))], pa.string()),
            artists=Groups(
                offsets=np.cumsum([0, *map(len, self.artists_of_item)]),
                values=np.array([artist for row in self.artists_of_item for artist in row], np.uint32),
                ids=pa.array([f"artist {i}" for i in range(artists)], pa.string()),
            ),
            titles=None,
        )

    def histories(self) -> Iterator[Histories]:
        lengths = [len(items) for items in self.items_of_user]
        columns = {
            "item": np.array([item for items in self.items_of_user for item in items], np.uint32),
            "timestamp": np.concatenate([np.arange(length) for length in lengths]).astype(np.uint32),
            "event_type": np.zeros(sum(lengths), np.uint8),
        }
        users = pa.array([f"user {i}" for i in range(len(lengths))], pa.string())
        yield Histories(users, np.cumsum([0, *lengths]), columns)

    @property
    def embedding_width(self) -> int | None:
        return None if self.item_embeddings is None else len(next(iter(self.item_embeddings.values())))

    def embeddings(self) -> Iterator[Embeddings]:
        if self.item_embeddings is not None:
            vectors = np.stack(list(self.item_embeddings.values())).astype(np.float32)
            yield Embeddings(np.array(list(self.item_embeddings), np.uint32), vectors)


@pytest.fixture(scope="module", autouse=True)
def one_faiss_thread() -> Iterator[None]:
    """Clusterings this small spend their time waking threads."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


MakeStore = Callable[..., EventStore]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    def make(
        items_of_user: list[list[int]],
        artists_of_item: list[list[int]],
        item_embeddings: dict[int, np.ndarray] | None = None,
    ) -> EventStore:
        path: Path = tmp_path_factory.mktemp("store") / "store"
        write_event_store(MemorySource(items_of_user, artists_of_item, item_embeddings), path)
        return EventStore.open(path)

    return make


NUM_ITEMS = 48
"""Items of `taste_histories`: 4 tastes of 10 items, one item of every taste, and 7 that nobody plays."""


@pytest.fixture(scope="session")
def taste_histories() -> list[list[int]]:
    """60 users, each of whom plays items of one taste, and item 40 now and then."""
    generator = np.random.default_rng(0)
    histories = []
    for user in range(60):
        own = generator.choice(10, size=generator.integers(5, 10), replace=False) + 10 * (user % 4)
        histories.append([*own.tolist(), 40, int(own[0]), int(own[1])])
    return histories


@pytest.fixture(scope="session")
def taste_artists() -> list[list[int]]:
    """Every taste has an artist; of the items that nobody plays, 41 and 42 have one too."""
    return [[item // 10] if item < 40 or item in (41, 42) else [] for item in range(NUM_ITEMS)]


@pytest.fixture(scope="session")
def taste_store(make_store: MakeStore, taste_histories: list[list[int]], taste_artists: list[list[int]]) -> EventStore:
    return make_store(taste_histories, taste_artists)
