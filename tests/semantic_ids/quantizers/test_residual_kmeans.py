"""Residual k-means against residual coding written out, and against FAISS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids.quantizers import residual
from semantic_ids.quantizers.base import Quantizer
from semantic_ids.quantizers.faiss_reference import FaissResidual, fit_faiss
from semantic_ids.quantizers.residual_kmeans import ResidualKMeans, fit_residual_kmeans
from tests.semantic_ids.quantizers.vectors import clustered, greedy_codes, relative_error

VECTORS = clustered(500)
FITS = {"residual-kmeans": fit_residual_kmeans, "faiss": fit_faiss}
KINDS: list[type[Quantizer]] = [ResidualKMeans, FaissResidual]


def fit(kind: str = "residual-kmeans", vectors: np.ndarray = VECTORS, **more: object) -> Quantizer:
    keys = {"levels": 3, "codes": 8, "beam": 1, "iterations": 10, "seed": 1, **more}
    return FITS[kind](vectors, **keys)


@pytest.mark.parametrize("kind", FITS)
def test_greedy_codes_and_reconstruction_are_the_obvious_ones(kind):
    quantizer = fit(kind)
    codes = quantizer.encode(VECTORS)
    assert codes.dtype == np.uint16
    expected = greedy_codes(quantizer.codebooks_CVd, VECTORS)
    nonzero = expected.any(axis=1)
    assert nonzero.mean() > 0.9
    np.testing.assert_array_equal(codes[nonzero], expected[nonzero])
    for levels in (1, 2, 3):
        summed = sum(quantizer.codebooks_CVd[level][codes[:, level]] for level in range(levels))
        np.testing.assert_allclose(quantizer.reconstruct(codes[:, :levels]), summed, rtol=1e-6)
    np.testing.assert_array_equal(quantizer.project(VECTORS), VECTORS)
    assert (quantizer.num_levels, quantizer.codes_per_level, quantizer.vector_width) == (3, 8, 10)


@pytest.mark.parametrize("beam", [1, 4])
def test_the_same_codes_as_faiss_at_full_size(beam):
    """256 codes are where the short list begins; tuples may differ where float32 cannot tell two of them apart."""
    vectors = clustered(20000, width=32, clusters=300, spread=0.4)
    codebooks = fit(vectors=vectors, levels=8, codes=256, iterations=4).codebooks_CVd
    ours = ResidualKMeans(codebooks, beam=beam).encode(vectors[:1000])
    theirs = FaissResidual(codebooks, beam=beam).encode(vectors[:1000])
    same = (ours == theirs).all(axis=1)
    assert same.mean() > 0.995
    errors = [
        np.square(vectors[:1000] - FaissResidual(codebooks, beam=1).reconstruct(codes)).sum(axis=1)
        for codes in (ours, theirs)
    ]
    assert errors[0].sum() < 1.0001 * errors[1].sum()


@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_error_on_fitted_and_unseen_vectors_beside_faiss(spread):
    vectors, unseen = clustered(6000, 24, 100, spread, seed=3), clustered(2000, 24, 100, spread, seed=4)
    ratios = []
    for seed in range(3):
        ours, theirs = (fit(kind, vectors, levels=4, codes=64, seed=seed) for kind in FITS)
        ratios.append(
            [
                relative_error(given, ours.reconstruct(ours.encode(given)))
                / relative_error(given, theirs.reconstruct(theirs.encode(given)))
                for given in (vectors, unseen)
            ]
        )
    fitted_ratio, unseen_ratio = np.mean(ratios, axis=0)
    assert fitted_ratio < 1.05
    assert unseen_ratio < 1.02


def test_a_wide_beam_finds_the_best_tuples():
    """A beam as wide as all partial tuples is a search of all."""
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    codebooks = fit(
        vectors=np.random.default_rng(1).standard_normal((300, 6)).astype(np.float32), codes=5
    ).codebooks_CVd
    every = np.array(list(itertools.product(range(5), repeat=3)))[1:]  # the tuple of zeros is never given
    decoded = sum(codebooks[level][every[:, level]] for level in range(3))
    best = every[np.square(vectors[:, None] - decoded[None]).sum(axis=2).argmin(axis=1)]
    found = ResidualKMeans(codebooks, beam=125).encode(vectors)
    zero_is_best = np.square(vectors - codebooks[:, 0].sum(axis=0)).sum(axis=1) < np.square(
        vectors[:, None] - decoded[None]
    ).sum(axis=2).min(axis=1)
    np.testing.assert_array_equal(found[~zero_is_best], best[~zero_is_best])
    greedy = ResidualKMeans(codebooks, beam=1)
    errors = [
        relative_error(vectors, greedy.reconstruct(ResidualKMeans(codebooks, beam=beam).encode(vectors)))
        for beam in (1, 3, 125)
    ]
    assert errors[0] > errors[1] >= errors[2]


@pytest.mark.parametrize("beam", [1, 4])
def test_a_row_is_coded_alike_in_any_block(beam):
    vectors = clustered(3000, width=32, clusters=300, spread=0.4)
    quantizer = ResidualKMeans(fit(vectors=vectors, levels=4, codes=512, iterations=2).codebooks_CVd, beam=beam)
    whole = quantizer.encode(vectors)
    for size in (1, 7, 1000):
        parts = [quantizer.encode(vectors[start : start + size]) for start in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(parts)[:300], whole[:300])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [1, 3])
def test_no_tuple_is_all_zero(kind, levels):
    generator = np.random.default_rng(0)
    codebooks = generator.standard_normal((levels, 8, 4)).astype(np.float32)
    codebooks[:, 0] *= 0.01  # what is near zero would be coded by zeros
    vectors = np.concatenate([codebooks[:, 0].sum(axis=0)[None]] * 200 + [codebooks[0, 3:4]])
    codes = kind(codebooks, beam=1).encode(vectors)  # type: ignore[call-arg]
    assert codes.any(axis=1).all()
    before, last = codebooks[:-1, 0].sum(axis=0), codebooks[-1]
    expected = 1 + np.square(vectors[0] - before - last[1:]).sum(axis=1).argmin()
    np.testing.assert_array_equal(codes[:200], [[0] * (levels - 1) + [expected]] * 200)
    assert codes[-1, 0] == 3


@pytest.mark.parametrize("kind", FITS)
def test_a_fit_is_a_function_of_its_seed_and_survives_being_saved(kind):
    quantizer, again, other = fit(kind), fit(kind), fit(kind, seed=2)
    np.testing.assert_array_equal(quantizer.codebooks_CVd, again.codebooks_CVd)
    assert not np.array_equal(quantizer.codebooks_CVd, other.codebooks_CVd)
    loaded = type(quantizer).load(quantizer.arrays(), quantizer.settings())
    np.testing.assert_array_equal(loaded.encode(VECTORS), quantizer.encode(VECTORS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arrays", "settings", "fault"),
    [
        ({}, {"beam": 1}, r"are \[\], expected one, codebooks"),
        ({"codebooks": np.zeros((2, 4), np.float32)}, {"beam": 1}, r"codebooks: float32 \(2, 4\)"),
        ({"codebooks": np.zeros((2, 4, 3), np.float32), "more": np.zeros(1, np.float32)}, {"beam": 1}, "more"),
        ({"codebooks": np.zeros((2, 4, 3), np.float32)}, {}, "beam = None"),
        ({"codebooks": np.zeros((2, 4, 3), np.float32)}, {"beam": 0}, "beam = 0"),
    ],
)
def test_what_does_not_belong_together_is_not_loaded(kind, arrays, settings, fault):
    with pytest.raises(InputError, match=fault):
        kind.load(arrays, settings)


def test_a_bounded_sample_is_read(monkeypatch):
    monkeypatch.setattr(residual, "TRAINING_VECTORS_PER_CODE", 20)
    few = fit(vectors=clustered(160))
    moved = clustered(160)
    assert np.array_equal(few.codebooks_CVd, fit(vectors=moved).codebooks_CVd)
    # Of 500 vectors 160 are read: those that are not may be anything.
    read = np.zeros(500, bool)
    for place in range(0, 500, 25):
        changed = VECTORS.copy()
        changed[place] += 100
        read[place] = not np.array_equal(fit(vectors=changed).codebooks_CVd, fit().codebooks_CVd)
    assert 0 < read[::25].sum() < 20


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("distinct", [1, 3, 8])
def test_fewer_distinct_vectors_than_codes(kind, distinct):
    repeated = np.repeat(VECTORS[:distinct], 40, axis=0)
    quantizer = fit(kind, repeated)
    assert np.isfinite(quantizer.codebooks_CVd).all()
    np.testing.assert_allclose(quantizer.reconstruct(quantizer.encode(repeated)), repeated, atol=0.05)


@pytest.mark.parametrize("kind", FITS)
def test_fewer_vectors_than_codes_are_refused(kind, capfd):
    assert np.isfinite(fit(kind, VECTORS[:8]).codebooks_CVd).all()
    assert "WARNING" not in capfd.readouterr().err
    with pytest.raises(InputError, match=r"`codes` is 8, but only 7 items have a vector.*codes=7 or less"):
        fit(kind, VECTORS[:7])


def test_faiss_wants_a_power_of_two_and_ours_does_not():
    with pytest.raises(InputError, match="nearest are 8 and 16"):
        fit("faiss", codes=12)
    quantizer = fit(codes=12)
    np.testing.assert_array_equal(quantizer.encode(VECTORS), greedy_codes(quantizer.codebooks_CVd, VECTORS))


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"are 2 × 8 × 10 .*, but 3 × 8 × 10 are asked for"):
        fit(start_CVd=fit(levels=2).codebooks_CVd)


def test_a_refit_from_its_own_codebooks_keeps_codes():
    first = fit(iterations=20)
    second = fit(iterations=20, seed=5, start_CVd=first.codebooks_CVd)
    fresh = fit(iterations=20, seed=5)
    kept = (second.encode(VECTORS)[:, 0] == first.encode(VECTORS)[:, 0]).mean()
    assert kept > 0.8 > (fresh.encode(VECTORS)[:, 0] == first.encode(VECTORS)[:, 0]).mean()
