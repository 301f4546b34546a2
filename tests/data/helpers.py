"""Small stores made in memory, and obvious implementations to compare with.

U users · E events · N items · A artists · C code levels · V codes per level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import strategies as st

from data import schema
from data.batches import Batch, ItemFeatures
from data.event_store import EventStore
from data.examples import Examples
from data.loader import item_features
from data.sequences import Windows
from data.sources.base import Catalogue, Embeddings, Groups, Histories
from data.split import Split, leave_last_out
from data.stochastic_length import StochasticLength
from data.store_writer import write_event_store

LEVELS, CODES = 3, 5


@dataclass
class MemorySource:
    """A source whose events are random; `lengths_U` says how many each user has."""

    lengths_U: Sequence[int]
    artists_N: Sequence[Sequence[int]]
    num_artists: int = 4
    optional_columns: tuple[str, ...] = ()
    seed: int = 0
    users_per_block: int = 3
    event_types: tuple[str, ...] = ("listen", "like", "dislike")
    description: dict[str, str] = field(default_factory=lambda: {"name": "memory"})
    embedding_width: int | None = None

    @property
    def num_events(self) -> int:
        return sum(self.lengths_U)

    def catalogue(self) -> Catalogue:
        counts = [len(artists) for artists in self.artists_N]
        return Catalogue(
            item_ids=pa.array([f"item-{item}" for item in range(len(counts))], type=pa.string()),
            artists=Groups(
                np.cumsum([0, *counts]),
                np.array([artist for artists in self.artists_N for artist in artists], dtype=np.uint32),
                pa.array([f"artist-{artist}" for artist in range(self.num_artists)], type=pa.string()),
            ),
            titles=pa.array([f"Title {item}" for item in range(len(counts))], type=pa.string()),
        )

    def histories(self) -> Iterator[Histories]:
        random = np.random.default_rng(self.seed)
        for first in range(0, len(self.lengths_U), self.users_per_block):
            lengths = list(self.lengths_U[first : first + self.users_per_block])
            users = [f"user-{user}" for user in range(first, first + len(lengths))]
            yield Histories(pa.array(users, type=pa.string()), np.cumsum([0, *lengths]), self._columns(random, lengths))

    def _columns(self, random: np.random.Generator, lengths: list[int]) -> dict[str, np.ndarray]:
        events = sum(lengths)
        # Few distinct times, so that ties are common.
        times = np.concatenate([np.sort(random.integers(0, 50, size=length)) for length in lengths])
        columns = {
            schema.ITEM: random.integers(0, len(self.artists_N), size=events),
            schema.TIMESTAMP: times,
            schema.EVENT_TYPE: random.integers(0, len(self.event_types), size=events),
            schema.DURATION: random.choice([0, 200, schema.MISSING_DURATION], size=events),
            schema.ORGANIC: random.choice([0, 1, schema.MISSING_ORGANIC], size=events),
            schema.PLAYED_RATIO: random.choice([0, 130, schema.MISSING_PLAYED_RATIO], size=events),
        }
        wanted = (*schema.REQUIRED_COLUMNS, *self.optional_columns)
        return {name: columns[name].astype(schema.EVENT_COLUMNS[name].dtype) for name in wanted}

    def embeddings(self) -> Iterator[Embeddings]:
        if self.embedding_width is not None:
            items = np.arange(0, len(self.artists_N), 2, dtype=np.uint32)
            vectors = np.arange(len(items) * self.embedding_width, dtype=np.float32)
            yield Embeddings(items, vectors.reshape(len(items), self.embedding_width))


def make_store(folder: Path, source: MemorySource) -> EventStore:
    write_event_store(source, folder / "store")
    return EventStore.open(folder / "store")


def examples_of(store: EventStore, windows: Windows, **changes: Any) -> Examples:
    """The windows as they are: nothing thinned, nothing reordered, unless `changes` says so."""
    plain: dict[str, Any] = {"kept_W": windows.lengths, "thinning": StochasticLength(), "tie_limit_U": None, "seed": 0}
    return Examples(store.offsets, store.column(schema.TIMESTAMP), windows, **{**plain, **changes})


def split_by_lengths(lengths: Sequence[int]) -> Split:
    """Leave-last-out of users with so many events; all times are 0."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return leave_last_out(offsets, np.zeros(int(offsets[-1]), dtype=np.uint32))


def random_codes(num_items: int, seed: int) -> np.ndarray:
    """Codes with about a third of the items unknown."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, size=(num_items, LEVELS))
    codes[random.random(num_items) < 0.3] = 0
    return codes


def features_of(store: EventStore, seed: int = 0) -> ItemFeatures:
    return item_features(store, random_codes(store.num_items, seed), CODES)


@st.composite
def sources(draw: st.DrawFn) -> MemorySource:
    num_artists = draw(st.integers(0, 5))
    makers = (
        st.lists(st.integers(0, num_artists - 1), unique=True, max_size=3).map(sorted) if num_artists else st.just([])
    )
    return MemorySource(
        lengths_U=draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)),
        artists_N=draw(st.lists(makers, min_size=1, max_size=7)),
        num_artists=num_artists,
        optional_columns=draw(st.sampled_from([(), (schema.ORGANIC,), schema.OPTIONAL_COLUMNS])),
        seed=draw(st.integers(0, 2**31)),
    )


def bags(batch_features: object, key: str) -> list[list[int]]:
    """One feature as a list of bags."""
    jagged = batch_features.to_dict()[key]  # type: ignore[attr-defined]
    return [bag.tolist() for bag in torch.split(jagged.values(), jagged.lengths().tolist())]


def token_bags(batch: Batch, key: str) -> list[list[int]]:
    """One feature as a list of bags, one a token, whatever tokens share."""
    found, inverse = bags(batch.features, key), batch.features.inverse_indices_or_none()
    places_P = torch.arange(len(found)) if inverse is None else inverse[1][inverse[0].index(key)]
    return [found[place] for place in places_P[batch.rows_L].tolist()]


def token_items(batch: Batch) -> list[int | None]:
    """The item of each token by `item_ids`; None in padding."""
    found = [*batch.item_ids.values().tolist(), None]
    return [found[place] for place in batch.item_rows_P[batch.rows_L].tolist()]
