"""From a store and a word to item vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.config import resolve
from common.errors import InputError
from semantic_ids.vectors.blended import BlendConfig
from semantic_ids.vectors.choose import EMBEDDINGS, VectorsConfig, item_vectors
from semantic_ids.vectors.collaborative import CollaborativeConfig

CONFIG = VectorsConfig(CollaborativeConfig(rank=6), BlendConfig())


@pytest.fixture(scope="module")
def content_store(make_store, taste_histories, taste_artists):
    """The tastes with content that tells them; items 43 and 44 are of tastes 0 and 2, and nobody plays them."""
    generator = np.random.default_rng(1)
    tastes = {**{item: item // 10 for item in range(35)}, 43: 0, 44: 2}
    content = {item: np.eye(5)[taste] + 0.1 * generator.standard_normal(5) for item, taste in tastes.items()}
    return make_store(taste_histories, taste_artists, content)


def test_auto_takes_content_where_the_store_has_it(content_store, taste_store):
    assert item_vectors(content_store, "auto", CONFIG).kind == "content"
    assert item_vectors(taste_store, "auto", CONFIG).kind == "collaborative"
    for kind in EMBEDDINGS[1:]:
        assert item_vectors(content_store, kind, CONFIG).kind == kind


def test_every_kind_keeps_the_interface(content_store):
    for kind in EMBEDDINGS:
        vectors = item_vectors(content_store, kind, CONFIG)
        vectors.check()
        assert (np.diff(vectors.items_n) > 0).all()
        found = vectors.block(0, len(vectors))
        assert found.shape == (len(vectors), vectors.width)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        places, sample = vectors.sample(9, seed=4)
        np.testing.assert_allclose(sample, found[places], atol=1e-6)


def test_items_nobody_played_lie_among_their_like_in_a_blend(content_store):
    vectors = item_vectors(content_store, "blended", CONFIG)
    found = vectors.block(0, len(vectors))
    assert vectors.items_n.tolist() == [*range(41), 43, 44], "items 41 and 42 have an artist alone"
    for item, taste in ((43, 0), (44, 2)):
        place = vectors.items_n.tolist().index(item)
        nearest = np.argsort(np.square(found[:40] - found[place]).sum(axis=1))[:5]
        assert (nearest // 10 == taste).all()
    # Items 35 … 39 were played and have no content: their taste is known by plays, and so is their content.
    for place in range(35, 40):
        nearest = np.argsort(np.square(found[:35, :5] - found[place, :5]).sum(axis=1))[:5]
        assert (nearest // 10 == 3).all()


def test_all_faults_of_a_blend_are_told(make_store):
    store = make_store([[0], [1]], [[], []])
    with pytest.raises(InputError) as caught:
        item_vectors(store, "blended", CONFIG)
    content, collaborative = caught.value.faults
    assert "embeddings=blended asks for them" in content
    assert "no item vector can be derived" in collaborative


@pytest.mark.parametrize("kind", ["content", "blended"])
def test_content_asked_for_and_absent(taste_store, kind):
    with pytest.raises(InputError, match="holds no content embeddings"):
        item_vectors(taste_store, kind, CONFIG)


def test_keys_of_the_configuration():
    given = ["collaborative.min_plays=3", "collaborative.max_neighbours=null", "blend.fill=zero"]
    config = resolve(VectorsConfig, "fit_ids", None, given)
    assert (config.collaborative.min_plays, config.collaborative.max_neighbours) == (3, None)
    assert config.blend.fill == "zero"
    with pytest.raises(InputError) as caught:
        resolve(
            VectorsConfig, "fit_ids", None, ["blend.content=0", "collaborative.shift=0", "collaborative.min_play=3"]
        )
    assert [fault.split(",")[0].split(" or ")[0].rstrip("?") for fault in caught.value.faults] == [
        "command line: unknown key `collaborative.min_play`; did you mean `collaborative.min_plays`",
        "`collaborative.shift` is 0.0",
        "`blend.content` is 0",
    ]


def test_settings_say_how_vectors_were_made(content_store):
    expected = {"content": set(), "collaborative": {"collaborative"}, "blended": {"collaborative", "blend"}}
    for kind, groups in expected.items():
        settings = item_vectors(content_store, kind, CONFIG).settings()
        assert set(settings) == groups
        assert json.loads(json.dumps(settings)) == settings
        assert settings.get("collaborative", {}).get("min_plays", 0) == 0, "automatic values are filled in"
