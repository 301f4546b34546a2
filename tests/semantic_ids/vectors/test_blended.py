"""Blended vectors: both parts of every item, equal to what whole arrays give; predictions are worth making."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from common.config import from_plain
from common.errors import InputError
from semantic_ids.vectors import blended as room
from semantic_ids.vectors.base import ItemVectors
from semantic_ids.vectors.blended import BlendConfig, BlendedVectors

P, Q, HISTORY = 5, 7, 4
NUM_ITEMS = 400


class Part(ItemVectors):
    """Vectors given as an array."""

    kind = "part"

    def __init__(self, items_n: np.ndarray, vectors_nd: np.ndarray) -> None:
        self.items_n, self.vectors_nd = items_n, vectors_nd

    @property
    def width(self) -> int:
        return self.vectors_nd.shape[1]

    def rows(self, places_m):
        return self.vectors_nd[places_m]


@dataclass
class Catalogue:
    """True parts of all items, and who has which."""

    content_NP: np.ndarray
    collaborative_NQ: np.ndarray
    has_content: np.ndarray
    has_history: np.ndarray
    has_artist: np.ndarray
    played: np.ndarray

    def blend(self, **config) -> BlendedVectors:
        content = Part(np.flatnonzero(self.has_content), self.content_NP[self.has_content])
        known = self.has_artist | self.played
        parts = self.told()[known]
        collaborative = Part(np.flatnonzero(known), parts)
        collaborative.played_n, collaborative.has_artist_n = self.played[known], self.has_artist[known]
        collaborative.has_history_n, collaborative.history_width = self.has_history[known], HISTORY
        return BlendedVectors(content, collaborative, BlendConfig(**config))

    def told(self) -> np.ndarray:
        """Collaborative vectors [N, Q] as far as they are known."""
        told = self.collaborative_NQ.copy()
        told[~self.has_history, :HISTORY] = 0
        told[~self.has_artist, HISTORY:] = 0
        return told


@pytest.fixture
def catalogue() -> Catalogue:
    """Both parts tell of the same four hidden numbers, from far off the origin and on different scales."""
    generator = np.random.default_rng(5)
    hidden = generator.standard_normal((NUM_ITEMS, 4))
    content = 20 + 3 * hidden @ generator.standard_normal((4, P)) + 0.3 * generator.standard_normal((NUM_ITEMS, P))
    tells = hidden @ generator.standard_normal((4, Q)) * 0.1
    collaborative = 0.2 + tells + 0.01 * generator.standard_normal((NUM_ITEMS, Q))
    played = generator.random(NUM_ITEMS) < 0.7
    return Catalogue(
        content.astype(np.float32),
        collaborative.astype(np.float32),
        has_content=generator.random(NUM_ITEMS) < 0.7,
        has_history=played & (generator.random(NUM_ITEMS) < 0.9),
        has_artist=generator.random(NUM_ITEMS) < 0.6,
        played=played,
    )


def ridge(given: np.ndarray, wanted: np.ndarray, share: float):
    x, y = given - given.mean(axis=0), wanted - wanted.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + share * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1]), x.T @ y)
    return lambda vectors: wanted.mean(axis=0) + (vectors - given.mean(axis=0)) @ weights


def blend_of_whole_arrays(catalogue: Catalogue, config: BlendConfig) -> tuple[np.ndarray, np.ndarray]:
    """Items and vectors, by masks over the whole catalogue."""
    content, told = catalogue.content_NP.astype(np.float64), catalogue.told().astype(np.float64)
    has_content, has_history, has_artist = catalogue.has_content, catalogue.has_history, catalogue.has_artist
    plays_tell = has_history | (has_artist & catalogue.played)
    known = has_content | plays_tell if config.collaborative_for_missing else has_content
    both = has_content & has_history
    content_mean = content[has_content].mean(axis=0)
    mean = told[has_history & known].mean(axis=0)
    content_scale = np.sqrt(np.square(content[has_content] - content_mean).sum(axis=1).mean())
    scale = np.sqrt(np.square(told[has_history & known] - mean).sum(axis=1).mean())
    content_of, told_of = ridge(told[both], content[both], config.ridge), ridge(content[both], told[both], config.ridge)
    lacks = has_content & ~has_history
    filled = told.copy()
    filled[lacks] = told_of(content[lacks]) if config.fill == "predict" else mean
    filled[lacks & has_artist, HISTORY:] = told[lacks & has_artist, HISTORY:]
    content = content.copy()
    content[~has_content] = content_of(told[~has_content]) if config.fill == "predict" else content_mean
    parts = (
        config.content * (content - content_mean) / content_scale,
        config.collaborative * (filled - mean) / scale,
    )
    return np.flatnonzero(known), np.concatenate(parts, axis=1)[known]


@pytest.mark.parametrize("fill", ["predict", "zero"])
@pytest.mark.parametrize("collaborative_for_missing", [True, False])
@pytest.mark.parametrize("block", [7, 2**15])
def test_blend_equals_that_of_whole_arrays(catalogue, monkeypatch, fill, collaborative_for_missing, block):
    monkeypatch.setattr(room, "BLOCK_ITEMS", block)
    config = {"content": 2.0, "collaborative": 0.5, "fill": fill, "ridge": 0.05}
    config["collaborative_for_missing"] = collaborative_for_missing
    items, expected = blend_of_whole_arrays(catalogue, BlendConfig(**config))
    vectors = catalogue.blend(**config)
    np.testing.assert_array_equal(vectors.items_n, items)
    found = vectors.block(0, len(vectors))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found.dtype, vectors.width) == (np.float32, P + Q)
    places = np.array([0, 3, 4, 100, len(vectors) - 1])
    np.testing.assert_allclose(vectors.rows(places), found[places], atol=1e-6)
    assert vectors.settings() == {"blend": config}


def test_which_items_are_known(catalogue):
    assert (
        catalogue.blend(collaborative_for_missing=False).items_n.tolist()
        == np.flatnonzero(catalogue.has_content).tolist()
    )
    cold = ~catalogue.has_content & ~catalogue.played
    assert (cold & catalogue.has_artist).any()
    untold = ~catalogue.has_content & ~catalogue.has_history & ~catalogue.has_artist
    vectors = catalogue.blend()
    assert vectors.items_n.tolist() == np.flatnonzero(~(cold | untold)).tolist()
    both = int((catalogue.has_content & catalogue.has_history).sum())
    content_alone = int((catalogue.has_content & ~catalogue.has_history).sum())
    plays_alone = len(vectors) - int(catalogue.has_content.sum())
    assert vectors.counts == {"both": both, "content alone": content_alone, "plays alone": plays_alone}
    assert (
        f"{both} items have content and plays, {content_alone} content alone, {plays_alone} plays" in vectors.notes()[0]
    )


def test_weights_are_root_mean_square_norms(catalogue):
    vectors = catalogue.blend(content=2.0, collaborative=0.5)
    found = vectors.block(0, len(vectors))
    has_content, has_history = catalogue.has_content[vectors.items_n], catalogue.has_history[vectors.items_n]
    assert np.square(found[has_content, :P]).sum(axis=1).mean() == pytest.approx(4, rel=1e-4)
    assert np.square(found[has_history, P:]).sum(axis=1).mean() == pytest.approx(0.25, rel=1e-4)


def test_predicted_parts_are_nearer_to_the_true_ones_than_zero(catalogue):
    catalogue.has_artist[:] = False
    catalogue.collaborative_NQ[:, HISTORY:] = 0
    catalogue.played, catalogue.has_content[:40] = catalogue.has_history, True
    before, after = {}, {}
    for fill in ("predict", "zero"):
        before[fill] = catalogue.blend(fill=fill)
    # The same catalogue where every item has both parts, in the scales of the first.
    whole = Catalogue(catalogue.content_NP, catalogue.collaborative_NQ, *[np.ones(NUM_ITEMS, bool)] * 4)
    whole.has_artist = catalogue.has_artist
    for fill, vectors in before.items():
        other = whole.blend(fill=fill)
        for name in ("_content_spread", "_content_scale", "_collaborative_spread", "_collaborative_scale"):
            setattr(other, name, getattr(vectors, name))
        after[fill] = other.block(0, NUM_ITEMS)[vectors.items_n]
    lacks = {
        "history": (slice(P, P + HISTORY), ~catalogue.has_history),
        "content": (slice(0, P), ~catalogue.has_content),
    }
    for columns, who in lacks.values():
        known = before["predict"].items_n
        rows = who[known]
        assert rows.sum() > 20
        error = {
            fill: np.square((vectors.block(0, len(vectors)) - after[fill])[rows, columns]).sum(axis=1)
            for fill, vectors in before.items()
        }
        assert np.mean(error["predict"] < error["zero"]) > 0.95
        assert error["predict"].mean() < 0.1 * error["zero"].mean()


def test_zero_fill_huddles_what_prediction_tells_apart(catalogue):
    """Neighbours of items without plays: others without plays when filled with zeros, their like when predicted."""
    catalogue.has_artist[:] = False
    alone = catalogue.has_content & ~catalogue.has_history
    shares = {}
    for fill in ("predict", "zero"):
        vectors = catalogue.blend(fill=fill, collaborative_for_missing=False)
        found, lacks = vectors.block(0, len(vectors)), alone[vectors.items_n]
        distances = np.square(found[lacks][:, None] - found[None]).sum(axis=2)
        distances[np.arange(lacks.sum()), np.flatnonzero(lacks)] = np.inf
        nearest = np.argsort(distances, axis=1)[:, :5]
        shares[fill] = lacks[nearest].mean()
    share = lacks.mean()
    assert shares["zero"] > 1.5 * shares["predict"]
    assert shares["predict"] == pytest.approx(share, abs=0.15)


def test_a_blend_without_items_of_both_kinds_is_refused(catalogue):
    catalogue.has_history[catalogue.has_content] = False
    with pytest.raises(InputError, match=r"0 items have both.*embeddings=content or embeddings=collaborative"):
        catalogue.blend()


def test_a_blend_of_one_part_is_refused():
    with pytest.raises(InputError) as caught:
        from_plain(BlendConfig, {"content": 0, "collaborative": 0.0}, "test")
    assert "`content` is 0, so nothing is blended; use embeddings=collaborative" in caught.value.faults[0]
    assert len(caught.value.faults) == 2
    with pytest.raises(InputError, match="expected one of predict, zero"):
        from_plain(BlendConfig, {"fill": "nearest"}, "test")
