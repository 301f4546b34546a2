"""Content vectors: read in blocks, told of all their faults, zeros left out."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids.vectors import content as room
from semantic_ids.vectors.content import ContentVectors


@pytest.fixture
def embedded(make_store):
    """A store of 40 items of which some have an embedding, in no order; and the embeddings by item."""
    generator = np.random.default_rng(3)
    items = generator.permutation(40)[:29].tolist()
    embeddings = {item: generator.standard_normal(3).astype(np.float32) for item in items}
    return make_store([list(range(40))], [[]] * 40, embeddings), embeddings


def spoil(store, items: dict[int, int] | None = None, vectors: dict[int, float] | None = None) -> None:
    """Change what the store's files hold: item indices and vectors, by row of the file."""
    for name, changes in (("item", items), ("vector", vectors)):
        column = np.load(store.path / "embeddings" / f"{name}.npy", mmap_mode="r+")
        for row, value in (changes or {}).items():
            column[row] = value


@pytest.mark.parametrize("block_bytes", [1, 36, 2**25])
def test_items_ascend_whatever_the_order_of_the_file(embedded, monkeypatch, block_bytes):
    monkeypatch.setattr(room, "BLOCK_BYTES", block_bytes)
    store, embeddings = embedded
    vectors = ContentVectors(store)
    assert vectors.items_n.tolist() == sorted(embeddings)
    assert (len(vectors), vectors.width, vectors.zero_vectors, vectors.notes()) == (29, 3, 0, ())
    np.testing.assert_array_equal(vectors.block(0, 29), np.stack([embeddings[item] for item in sorted(embeddings)]))
    np.testing.assert_array_equal(vectors.rows(np.array([2, 20])), vectors.block(0, 29)[[2, 20]])
    vectors.block(0, 29)[:] = 0
    assert vectors.block(0, 29).any(), "blocks are copies"


def test_nothing_is_read_before_it_is_asked_for(embedded, monkeypatch):
    monkeypatch.setattr(ContentVectors, "_read", lambda self: pytest.fail("read"))
    assert ContentVectors(embedded[0]).width == 3


def test_all_are_read_once(embedded, capsys):
    vectors = ContentVectors(embedded[0])
    capsys.readouterr()
    vectors.check()
    vectors.check()
    assert len(vectors) == 29
    assert capsys.readouterr().err.count("check embeddings") == 1


def test_zeros_tell_nothing(embedded):
    store, embeddings = embedded
    spoil(store, vectors={0: 0.0, 7: 0.0})
    zeros = {list(embeddings)[row] for row in (0, 7)}
    vectors = ContentVectors(store)
    assert vectors.items_n.tolist() == sorted(set(embeddings) - zeros)
    np.testing.assert_array_equal(vectors.block(0, 27), np.stack([embeddings[item] for item in vectors.items_n]))
    assert vectors.zero_vectors == 2
    assert vectors.notes()[0].startswith("2 embeddings are all zero")


def test_all_faults_are_told_at_once(embedded):
    store, embeddings = embedded
    first = next(iter(embeddings))
    spoil(store, items={1: first, 2: 40}, vectors={3: np.nan, 4: np.inf})
    with pytest.raises(InputError) as caught:
        ContentVectors(store).check()
    twice, beyond, broken = caught.value.faults
    bad = min(list(embeddings)[3], list(embeddings)[4])
    assert f"item 'item {first}' (item index {first}) has two embeddings" in twice
    assert "item index 40, but items are numbered below 40" in beyond
    assert f"2 embeddings hold a value that is not finite, the first is that of item 'item {bad}'" in broken
    assert all(fault.startswith(str(store.path)) and "prepare the store again" in fault for fault in (twice, broken))
    with pytest.raises(InputError):
        len(ContentVectors(store))


def test_embeddings_that_are_all_zero(embedded):
    store, _ = embedded
    spoil(store, vectors=dict.fromkeys(range(29), 0.0))
    with pytest.raises(InputError, match="embeddings are all zero; use embeddings=collaborative"):
        ContentVectors(store).check()


def test_content_asked_for_and_absent(taste_store):
    with pytest.raises(InputError, match=r"holds no content embeddings.*use embeddings=collaborative"):
        ContentVectors(taste_store)
