"""No held-out event moves a vector, not by its last bit: whatever the kind, by position and by the clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.event_store import EventStore
from data.split import SplitConfig, training_mask
from data.store_writer import write_event_store
from semantic_ids.vectors.blended import BlendConfig
from semantic_ids.vectors.choose import VectorsConfig, item_vectors
from semantic_ids.vectors.collaborative import CollaborativeConfig
from tests.semantic_ids.conftest import MemorySource

SPLITS = {
    "leave-last-out": SplitConfig("leave-last-out"),
    "temporal": SplitConfig("temporal", test_seconds=3, validation_seconds=2, gap_seconds=1, end=12),
    "held-out-users": SplitConfig("held-out-users", test_share=0.2),
}
CASES = [("content", 0), ("collaborative", 0), ("collaborative", 3), ("blended", 0), ("blended", 3), ("auto", 0)]


@pytest.fixture(scope="module", params=SPLITS)
def store(request, tmp_path_factory, taste_histories, taste_artists) -> EventStore:
    generator = np.random.default_rng(2)
    content = {item: generator.standard_normal(4) for item in generator.permutation(48)[:30].tolist()}
    path = tmp_path_factory.mktemp("leakage") / "store"
    write_event_store(MemorySource(taste_histories, taste_artists, content), path, SPLITS[request.param])
    return EventStore.open(path)


def changed(store: EventStore, path: Path, where: Callable[[np.ndarray], np.ndarray]) -> EventStore:
    """A copy of which the events that `where` picks of a mask of training events have other items and times."""
    shutil.copytree(store.path, path)
    picked = np.flatnonzero(where(training_mask(store.offsets, store.split())))
    generator = np.random.default_rng(7)
    items = np.load(path / "events" / "item.npy", mmap_mode="r+")
    items[picked] = (generator.permutation(items[picked]) + 1 + generator.integers(0, 40, len(picked))) % 48
    # By the clock every event is moved by a span of its own; else all alike, so that the same users end last.
    times = np.load(path / "events" / "timestamp.npy", mmap_mode="r+")
    times[picked] += np.arange(len(picked), dtype=np.uint32) if store.split_config.by_the_clock else 100
    del items, times
    return EventStore.open(path, verify=False)


def made_of(store: EventStore, kind: str, window: int) -> tuple[bytes, bytes]:
    config = VectorsConfig(CollaborativeConfig(rank=5, window=window), BlendConfig())
    vectors = item_vectors(store, kind, config)
    return vectors.items_n.tobytes(), vectors.block(0, len(vectors)).tobytes()


@pytest.mark.parametrize(("kind", "window"), CASES)
def test_held_out_events_move_no_vector(store, tmp_path, kind, window):
    other = changed(store, tmp_path / "store", lambda training: ~training)
    mask = training_mask(store.offsets, store.split())
    np.testing.assert_array_equal(mask, training_mask(other.offsets, other.split()))
    assert (store.column("item") != other.column("item")).sum() > 0.9 * (~mask).sum() > 10
    assert (store.column("timestamp") != other.column("timestamp"))[~mask].mean() > 0.9
    assert made_of(store, kind, window) == made_of(other, kind, window)


@pytest.mark.parametrize(("kind", "window"), CASES)
def test_training_events_do(store, tmp_path, kind, window):
    other = changed(store, tmp_path / "store", lambda training: training & (np.arange(len(training)) % 5 == 0))
    if kind in ("content", "auto"):  # which know of no event
        assert made_of(store, kind, window) == made_of(other, kind, window)
    else:
        assert made_of(store, kind, window) != made_of(other, kind, window)


def test_held_out_events_may_be_more(tmp_path, taste_histories, taste_artists):
    """By the clock: users who go on listening after the cut-off leave the vectors as they were."""
    config = SPLITS["temporal"]
    longer = [[*items, *range(41, 48)] if user % 2 else items for user, items in enumerate(taste_histories)]
    content = {item: np.eye(4)[item % 4] + item for item in range(0, 48, 2)}
    stores = []
    for name, histories in (("a", taste_histories), ("b", longer)):
        write_event_store(MemorySource(histories, taste_artists, content), tmp_path / name, config)
        stores.append(EventStore.open(tmp_path / name))
    for kind, window in CASES:
        assert made_of(stores[0], kind, window) == made_of(stores[1], kind, window)
