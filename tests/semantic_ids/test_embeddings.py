"""Item vectors: nothing leaks into them, and each step equals its obvious dense counterpart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from semantic_ids.embeddings import (
    CollaborativeConfig,
    ItemVectors,
    TrainingEvents,
    co_occurrence,
    item_vectors,
    shifted_ppmi,
    training_events,
    truncated_svd,
)

CONFIGS = [CollaborativeConfig(rank=6), CollaborativeConfig(rank=6, window=3)]
HISTORIES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=7), min_size=1, max_size=5)


def vectors_of(store, config=CONFIGS[0], kind="auto") -> ItemVectors:
    return item_vectors(store, kind, training_events(store), config)


def events_of(histories: list[list[int]], num_items: int) -> TrainingEvents:
    users = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    return TrainingEvents(users, np.concatenate([np.array(items) for items in histories]), len(histories), num_items)


def same(left: ItemVectors, right: ItemVectors) -> bool:
    return np.array_equal(left.items_n, right.items_n) and np.array_equal(left.vectors_nd, right.vectors_nd)


# ── leakage ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", CONFIGS)
def test_held_out_events_move_no_vector(make_store, taste_histories, taste_artists, config):
    # Item 45 is played by nobody in training: planting it as validation or test must not even make it known.
    original = vectors_of(make_store(taste_histories, taste_artists), config)
    planted = [[*items[:-2], 45, 7] if user % 2 else [*items[:-2], 3, 45] for user, items in enumerate(taste_histories)]
    assert same(vectors_of(make_store(planted, taste_artists), config), original)
    assert 45 not in original.items_n

    # The same plant one event earlier is training, and shows: the test above can fail.
    trained = [[*items[:-3], 45, *items[-2:]] for items in taste_histories]
    changed = vectors_of(make_store(trained, taste_artists), config)
    assert 45 in changed.items_n
    assert not same(changed, original)


def test_training_events_are_those_before_train_end(make_store):
    store = make_store([[0, 1, 2, 3], [1, 0], [2], [3, 3, 3]], [[]] * 4)
    events = training_events(store)
    assert events.users_E.tolist() == [0, 0, 1, 1, 2, 3]
    assert events.items_E.tolist() == [0, 1, 1, 0, 2, 3]
    assert events.plays_N.tolist() == [2, 2, 1, 1]


# ── which items are known ────────────────────────────────────────────────────────────────────────────────


def test_known_are_items_with_a_training_event_or_an_artist(taste_store):
    assert vectors_of(taste_store).items_n.tolist() == [*range(41), 41, 42]


def test_played_item_without_a_neighbour_is_known(make_store):
    store = make_store([[0, 1, 0, 1], [0, 1, 1, 0], [2]], [[]] * 4)
    vectors = vectors_of(store)
    assert vectors.items_n.tolist() == [0, 1, 2]
    assert not vectors.vectors_nd[2].any()


def test_items_of_one_taste_are_nearest(taste_store):
    vectors = vectors_of(taste_store).vectors_nd[:40]
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, :5]
    assert (nearest // 10 == np.arange(40)[:, None] // 10).all()


def test_no_vector_to_derive_is_said(make_store):
    store = make_store([[0], [1]], [[], []])
    with pytest.raises(InputError, match=r"no item vector can be derived.*2 training events.*no artist"):
        vectors_of(store)


# ── content ──────────────────────────────────────────────────────────────────────────────────────────────


def test_auto_takes_content_where_the_store_has_it(make_store):
    content = {3: np.array([1.0, 2.0]), 0: np.array([5.0, -1.0])}
    store = make_store([[0, 1, 2, 1, 3]], [[0]] * 4, content)
    for kind in ("auto", "content"):
        vectors = vectors_of(store, kind=kind)
        assert vectors.kind == "content"
        assert vectors.items_n.tolist() == [0, 3]
        assert vectors.vectors_nd.tolist() == [[5.0, -1.0], [1.0, 2.0]]
    assert vectors_of(store, kind="collaborative").kind == "collaborative"


def test_content_asked_for_and_absent(taste_store):
    with pytest.raises(InputError, match=r"holds no content embeddings.*embeddings=collaborative"):
        vectors_of(taste_store, kind="content")
    assert vectors_of(taste_store).kind == "collaborative"


@pytest.mark.parametrize(("item", "value", "fault"), [(2, np.nan, "item index 2"), (9, 1.0, "numbered below 4")])
def test_bad_content_is_refused(make_store, item, value, fault):
    store = make_store([[0, 1, 2, 3]], [[]] * 4, {0: np.ones(2), item: np.array([0.0, value])})
    with pytest.raises(InputError, match=fault):
        vectors_of(store)


# ── each step against its obvious counterpart ────────────────────────────────────────────────────────────


@given(histories=HISTORIES, window=st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_co_occurrence_equals_a_loop_over_pairs(histories, window):
    expected = np.zeros((6, 6))
    for items in histories:
        for i, left in enumerate(items):
            for j, right in enumerate(items):
                distance = abs(i - j)
                if left != right and window == 0:
                    expected[left, right] += 1 / (len(items) - 1)
                elif left != right and distance <= window:
                    expected[left, right] += 1 / distance
    found = co_occurrence(events_of(histories, 6), window)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)
    assert found.nnz == np.count_nonzero(expected)


@given(histories=HISTORIES, shift=st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=60, deadline=None)
def test_ppmi_equals_its_definition(histories, shift):
    counts = co_occurrence(events_of(histories, 6), 2)
    dense = counts.toarray()
    expected = np.zeros((6, 6))
    for i, j in zip(*np.nonzero(dense), strict=True):
        joint, left, right = dense[i, j] / dense.sum(), dense[i].sum() / dense.sum(), dense[:, j].sum() / dense.sum()
        expected[i, j] = max(0.0, math.log(joint / (left * right)) - math.log(shift))
    np.testing.assert_allclose(shifted_ppmi(counts, shift).toarray(), expected, atol=1e-9)


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_truncated_svd_equals_the_dense_one(seed, rows, columns, rank):
    dense = np.random.default_rng(seed).standard_normal((rows, columns))
    left, singular = truncated_svd(sp.csr_matrix(dense), rank)
    expected_left, expected_singular, _ = np.linalg.svd(dense, full_matrices=False)
    kept = max(1, min(rank, min(rows, columns) - 1))
    np.testing.assert_allclose(singular, expected_singular[:kept], rtol=1e-6)
    signs = np.sign((left * expected_left[:, :kept]).sum(axis=0))
    np.testing.assert_allclose(left, expected_left[:, :kept] * signs, atol=1e-4)
    assert (left[np.abs(left).argmax(axis=0), np.arange(kept)] > 0).all()


def test_truncated_svd_survives_a_rank_beyond_the_matrix():
    dense = np.outer(np.arange(1.0, 9.0), np.ones(8))
    left, singular = truncated_svd(sp.csr_matrix(dense), 5)
    assert np.isfinite(left).all()
    np.testing.assert_allclose(singular[1:], 0, atol=1e-6)


def test_many_artists_are_reduced_and_keep_inner_products(make_store):
    # 12 artists, of which each item has two neighbours: the multi-hot matrix has rank below 12.
    artists = [sorted({item % 12, (item // 2) % 12}) for item in range(24)]
    store = make_store([[0]], artists)
    exact = vectors_of(store, CollaborativeConfig(artist_dimensions=12, rank=1)).vectors_nd
    reduced = vectors_of(store, CollaborativeConfig(artist_dimensions=11, rank=1)).vectors_nd
    assert exact.shape == (24, 13)
    assert reduced.shape == (24, 12)
    lost = np.linalg.svd(exact, compute_uv=False)[11]
    assert np.linalg.norm(exact @ exact.T - reduced @ reduced.T, 2) <= lost**2 + 1e-5


def test_shift_needs_a_logarithm():
    with pytest.raises(InputError, match="`shift` is 0"):
        CollaborativeConfig(shift=0)
