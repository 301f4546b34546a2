"""Neighbour overlap against distances sorted in full, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.quality import neighbours
from semantic_ids.quality.neighbours import nearest, neighbour_overlap
from semantic_ids.quantizers.base import Codes, Quantizer, Vectors, sum_of_rows
from semantic_ids.vectors.base import ItemVectors


class MemoryVectors(ItemVectors):
    kind = "content"

    def __init__(self, vectors_nD: np.ndarray) -> None:
        self.items_n = np.arange(len(vectors_nD)) * 2
        self.vectors_nD = vectors_nD.astype(np.float32)

    @property
    def width(self) -> int:
        return self.vectors_nD.shape[1]

    def rows(self, places_m: np.ndarray) -> np.ndarray:
        return self.vectors_nD[places_m]


class Additive(Quantizer):
    name = "additive"

    def __init__(self, codebooks_CVd: np.ndarray) -> None:
        self.codebooks_CVd = codebooks_CVd.astype(np.float32)

    @property
    def vector_width(self) -> int:
        return self.codebooks_CVd.shape[2]

    def encode(self, vectors_nD: Vectors) -> Codes:
        raise NotImplementedError

    def project(self, vectors_nD: Vectors) -> Vectors:
        return vectors_nD

    def reconstruct(self, codes_nl: Codes) -> Vectors:
        assert codes_nl.dtype == np.uint16
        return sum_of_rows(self.codebooks_CVd, codes_nl)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"codebooks": self.codebooks_CVd}

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Additive:
        return cls(arrays["codebooks"])


def obvious_nearest(vectors: np.ndarray, query: np.ndarray, own: int, k: int) -> list[int]:
    """Whole numbers in float64: every distance is exact, so ties are ties."""
    distances = [float(((row.astype(np.float64) - query) ** 2).sum()) for row in vectors]
    others = [place for place in range(len(vectors)) if place != own]
    return sorted(others, key=lambda place: (distances[place], place))[:k]


small = st.integers(-2, 2)


@given(st.data(), st.integers(2, 30), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_nearest_equals_a_full_sort_with_many_ties(data, rows, width):
    vectors = np.array(
        data.draw(st.lists(st.lists(small, min_size=width, max_size=width), min_size=rows, max_size=rows))
    )
    vectors = vectors.astype(np.float32)
    k = data.draw(st.integers(1, rows - 1))
    queries = data.draw(st.permutations(range(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_QUERY_BLOCK", 4)
        patch.setattr(neighbours, "_ROW_BLOCK", 3)
        found = nearest(vectors, vectors[queries], np.array(queries), k)
    np.testing.assert_array_equal(found, [obvious_nearest(vectors, vectors[own], own, k) for own in queries])


def test_equal_rows_keep_to_their_order_whatever_rounding_does():
    generator = np.random.default_rng(0)
    distinct = (1000 + generator.standard_normal((7, 33))).astype(np.float32)
    place = generator.integers(7, size=300)
    found = nearest(distinct[place], distinct[place], np.arange(300), 5)
    expected = [[other for other in np.flatnonzero(place == place[own]) if other != own][:5] for own in range(300)]
    np.testing.assert_array_equal(found, expected)
    negative = np.array([[0.0], [1.0], [-0.0], [0.0]], np.float32)  # -0.0 equals 0.0
    np.testing.assert_array_equal(nearest(negative, negative, np.arange(4), 2), [[2, 3], [0, 2], [0, 3], [0, 2]])


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("shape", [(60, 100, 1000), (500, 100, 20)])
def test_overlap_is_the_share_of_neighbours_kept(shape, asymmetric):
    items, database, queries = shape
    generator = np.random.default_rng(1)
    quantizer = Additive(generator.integers(-8, 9, (2, 16, 4)))
    codes = generator.integers(0, 16, (items, 2)).astype(np.uint16)
    kept = sum_of_rows(quantizer.codebooks_CVd, codes)
    vectors = MemoryVectors(kept + generator.integers(-3, 4, kept.shape))
    overlap = neighbour_overlap(
        vectors, quantizer, codes, queries=queries, database=database, k=5, seed=3, asymmetric=asymmetric
    )

    places, sampled = vectors.sample(database, 3)
    overlaps = {}
    for own in range(len(places)):
        true = obvious_nearest(sampled, sampled[own], own, 5)
        query = sampled[own] if asymmetric else kept[places][own]
        overlaps[own] = len(set(true) & set(obvious_nearest(kept[places], query, own, 5))) / 5
    if queries >= len(places):
        assert overlap == pytest.approx(np.mean(list(overlaps.values())))
    else:  # which were drawn is not known here, but that a draw of the same size gives such a mean is
        spread = np.std(list(overlaps.values())) / queries**0.5
        assert overlap == pytest.approx(np.mean(list(overlaps.values())), abs=4 * spread)
    assert 0 < overlap < 1


def test_codes_that_hold_everything_overlap_wholly_and_codes_of_others_hardly():
    generator = np.random.default_rng(2)
    quantizer = Additive(generator.standard_normal((1, 400, 6)))
    codes = np.arange(400, dtype=np.uint16)[:, None]
    vectors = MemoryVectors(quantizer.codebooks_CVd[0])
    assert neighbour_overlap(vectors, quantizer, codes, seed=0) == 1.0
    added_level = np.concatenate([codes, generator.integers(0, 400, (400, 1)).astype(np.uint16)], axis=1)
    assert neighbour_overlap(vectors, quantizer, added_level, seed=0) == 1.0, (
        "levels beyond the quantiser's are not read"
    )
    assert neighbour_overlap(vectors, quantizer, generator.permutation(codes), seed=0) < 0.1


def test_it_is_a_function_of_its_seed():
    generator = np.random.default_rng(4)
    quantizer = Additive(generator.standard_normal((2, 8, 4)))
    codes = generator.integers(0, 8, (300, 2)).astype(np.uint16)
    vectors = MemoryVectors(generator.standard_normal((300, 4)))
    first, again, other = (
        neighbour_overlap(vectors, quantizer, codes, queries=20, database=200, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(("items", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0), (4, 1.0)])
def test_few_items_are_all_neighbours(items, expected):
    quantizer = Additive(np.ones((1, 4, 2)))
    vectors = MemoryVectors(np.arange(2.0 * items).reshape(items, 2))
    assert neighbour_overlap(vectors, quantizer, np.zeros((items, 1), np.uint16), seed=0) == expected
