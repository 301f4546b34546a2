"""Collaborative vectors: which items are known, and that they equal what dense matrices give."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from common.errors import InputError
from data.training_events import training_events
from semantic_ids.vectors import collaborative as room
from semantic_ids.vectors.collaborative import CollaborativeConfig, CollaborativeVectors

CONFIGS = [CollaborativeConfig(rank=6), CollaborativeConfig(rank=6, window=3)]


def vectors_of(store, config=CONFIGS[0]) -> CollaborativeVectors:
    return CollaborativeVectors(store, training_events(store), config)


def whole(vectors) -> np.ndarray:
    return vectors.block(0, len(vectors))


# ── against dense matrices ───────────────────────────────────────────────────────────────────────────────


def dense_history(histories: list[list[int]], num_items: int, config: CollaborativeConfig) -> np.ndarray:
    """Unit rows [N, rank] of U √S of the PPMI of the counts of training histories, held in dense matrices."""
    counts = np.zeros((num_items, num_items))
    for items in histories:
        for i, left in enumerate(items):
            for j, right in enumerate(items):
                if left != right and (config.window == 0 or abs(i - j) <= config.window):
                    counts[left, right] += 1 / (abs(i - j) if config.window else len(items) - 1)
    totals = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts * counts.sum() / np.outer(totals, totals)) - math.log(config.shift)
    left, singular, _ = np.linalg.svd(np.where(counts > 0, np.maximum(pmi, 0), 0))
    columns = left[:, : config.rank] * np.sqrt(singular[: config.rank])
    columns *= np.sign(columns[np.abs(columns).argmax(axis=0), np.arange(config.rank)])
    norms = np.linalg.norm(columns, axis=1, keepdims=True)
    return np.where(norms > 1e-9, columns / np.maximum(norms, 1e-9), 0)


def dense_artists(artists: list[list[int]]) -> np.ndarray:
    """Unit rows [N, A] of which a rare artist weighs more."""
    multi_hot = np.array([[float(artist in row) for artist in range(5)] for row in artists])
    weighted = multi_hot * np.log((1 + len(artists)) / (1 + multi_hot.sum(axis=0)))
    norms = np.linalg.norm(weighted, axis=1, keepdims=True)
    return np.where(norms > 0, weighted / np.maximum(norms, 1e-9), 0)


@pytest.mark.parametrize("window", [0, 1, 4, 50])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_vectors_equal_those_of_dense_matrices(taste_store, taste_histories, taste_artists, window, shift):
    config = CollaborativeConfig(rank=6, window=window, shift=shift, artist_weight=0.4)
    training = [items[:-2] for items in taste_histories]
    expected = np.concatenate([dense_history(training, 48, config), 0.4 * dense_artists(taste_artists)], axis=1)
    vectors = vectors_of(taste_store, config)
    np.testing.assert_allclose(whole(vectors), expected[vectors.items_n], atol=2e-5)
    assert vectors.width == expected.shape[1] == 11
    assert vectors.history_width == 6


def test_rows_are_those_of_the_whole(taste_store):
    vectors = vectors_of(taste_store)
    places = np.array([0, 5, 6, 42])
    np.testing.assert_array_equal(vectors.rows(places), whole(vectors)[places])
    vectors.rows(places)[:] = 0
    assert whole(vectors)[places].any(), "rows are copies"


# ── which items are known ────────────────────────────────────────────────────────────────────────────────


def test_known_are_items_with_a_training_event_or_an_artist(taste_store):
    vectors = vectors_of(taste_store)
    assert vectors.items_n.tolist() == [*range(41), 41, 42]
    assert vectors.played_n.tolist() == [True] * 41 + [False] * 2
    assert vectors.has_history_n[:40].all()
    assert not vectors.has_history_n[41:].any()
    assert vectors.has_artist_n.tolist() == [True] * 40 + [False, True, True]


def test_played_item_without_a_neighbour_is_known(make_store):
    store = make_store([[0, 1, 0, 1], [0, 1, 1, 0], [2]], [[]] * 4)
    vectors = vectors_of(store)
    assert vectors.items_n.tolist() == [0, 1, 2]
    assert not whole(vectors)[2].any()
    assert "1 items that were played have no neighbour and no artist" in vectors.notes()[0]


def test_items_of_one_taste_are_nearest(taste_store):
    vectors = whole(vectors_of(taste_store))[:40]
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, :5]
    assert (nearest // 10 == np.arange(40)[:, None] // 10).all()


def test_no_vector_to_derive_is_said(make_store):
    store = make_store([[0], [1]], [[], []])
    with pytest.raises(InputError, match=r"no item vector can be derived.*2 training events.*no artist"):
        vectors_of(store)


# ── pruning ──────────────────────────────────────────────────────────────────────────────────────────────


def test_small_stores_are_not_pruned(taste_store):
    vectors = vectors_of(taste_store, CollaborativeConfig(rank=6, window=3))
    assert (vectors.config.min_plays, vectors.config.max_neighbours) == (0, 0)
    assert vectors.settings()["collaborative"]["max_neighbours"] == 0
    assert vectors.notes() == ()


def test_large_stores_are_pruned_unless_told_otherwise(taste_store, monkeypatch):
    monkeypatch.setattr(room, "LARGE_PAIRS", 100)
    config = CollaborativeConfig(rank=6, window=3)
    vectors = vectors_of(taste_store, config)
    assert vectors.settings()["collaborative"] == {
        **dataclasses.asdict(config),
        "min_plays": room.LARGE_MIN_PLAYS,
        "max_neighbours": room.LARGE_MAX_NEIGHBOURS,
    }
    assert "of an item's neighbours, the 64 heaviest of those played at least 5 times" in vectors.notes()[0]
    kept = vectors_of(taste_store, dataclasses.replace(config, min_plays=0, max_neighbours=0))
    assert kept.settings()["collaborative"]["max_neighbours"] == 0
    assert kept.settings()["collaborative"]["min_plays"] == 0


def test_rarely_played_items_keep_a_vector(make_store, taste_histories, taste_artists):
    histories = [list(items) for items in taste_histories]
    histories[0].insert(2, 43)  # played once, beside items that are played often
    store = make_store(histories, [[]] * 48)
    every = vectors_of(store, CollaborativeConfig(rank=6, window=3))
    pruned = vectors_of(store, CollaborativeConfig(rank=6, window=3, min_plays=2, max_neighbours=8))
    np.testing.assert_array_equal(every.items_n, pruned.items_n)
    place = every.items_n.tolist().index(43)
    assert pruned.has_history_n[place]
    assert not np.allclose(whole(every), whole(pruned))
    similarity = whole(pruned)[:40] @ whole(pruned)[place]
    assert np.argmax(similarity) < 10, "nearest is an item of the taste beside which it was played"


# ── artists ──────────────────────────────────────────────────────────────────────────────────────────────


def test_many_artists_are_reduced_and_keep_inner_products(make_store):
    # 12 artists, of which each item has two neighbours: the multi-hot matrix has rank below 12.
    artists = [sorted({item % 12, (item // 2) % 12}) for item in range(24)]
    store = make_store([[0]], artists)
    exact = whole(vectors_of(store, CollaborativeConfig(artist_dimensions=12, rank=1)))
    reduced = whole(vectors_of(store, CollaborativeConfig(artist_dimensions=11, rank=1)))
    assert exact.shape == (24, 13)
    assert reduced.shape == (24, 12)
    lost = np.linalg.svd(exact, compute_uv=False)[11]
    assert np.linalg.norm(exact @ exact.T - reduced @ reduced.T, 2) <= lost**2 + 1e-5


def test_shift_needs_a_logarithm():
    with pytest.raises(InputError, match="`shift` is 0"):
        CollaborativeConfig(shift=0)
