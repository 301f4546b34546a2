"""FAISS's residual quantiser against residual coding written out, and its limits told."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids import residual_quantizer
from semantic_ids.residual_quantizer import ResidualQuantizer, check_codes_per_level, fit_residual_quantizer


@pytest.fixture(scope="module")
def vectors_nd() -> np.ndarray:
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((12, 10))
    return (centres[generator.integers(12, size=500)] + 0.2 * generator.standard_normal((500, 10))).astype(np.float32)


def fit(vectors_nd: np.ndarray, *, levels: int = 3, codes: int = 8, beam: int = 1, seed: int = 1) -> ResidualQuantizer:
    return fit_residual_quantizer(vectors_nd, levels=levels, codes=codes, beam=beam, iterations=10, seed=seed)


def greedy_codes(codebooks_CVd: np.ndarray, vectors_nd: np.ndarray) -> np.ndarray:
    """The nearest codebook row of what is left, level after level."""
    residual, codes = vectors_nd.astype(np.float64), []
    for codebook in codebooks_CVd.astype(np.float64):
        distances = ((residual[:, None, :] - codebook[None]) ** 2).sum(axis=-1)
        codes.append(distances.argmin(axis=1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, axis=1)


def test_greedy_encoding_and_decoding_equal_the_obvious_ones(vectors_nd, monkeypatch):
    monkeypatch.setattr(residual_quantizer, "_CHUNK", 128)  # chunks of unequal size
    quantizer = fit(vectors_nd)
    codes = quantizer.encode(vectors_nd)
    np.testing.assert_array_equal(codes, greedy_codes(quantizer.codebooks_CVd, vectors_nd))
    decoded = sum(quantizer.codebooks_CVd[level][codes[:, level]] for level in range(3))
    np.testing.assert_array_equal(quantizer.decode(codes), decoded)
    np.testing.assert_array_equal(quantizer.decode(codes.reshape(50, 10, 3)), decoded.reshape(50, 10, -1))
    expected = [
        np.square(vectors_nd - quantizer.codebooks_CVd[np.arange(n)[:, None], codes[:, :n].T].sum(axis=0)).sum()
        / np.square(vectors_nd).sum()
        for n in (1, 2, 3)
    ]
    np.testing.assert_allclose(quantizer.relative_errors(vectors_nd, codes), expected, rtol=1e-5)
    assert expected[0] > expected[1] > expected[2]


def test_first_level_is_k_means(vectors_nd):
    quantizer = fit(vectors_nd, levels=1)
    codes = quantizer.encode(vectors_nd)[:, 0]
    for code in range(8):
        # Ten iterations nearly settle: a centroid is the mean of its cell.
        np.testing.assert_allclose(quantizer.codebooks_CVd[0, code], vectors_nd[codes == code].mean(axis=0), atol=0.05)


def test_a_wider_beam_finds_better_codes():
    scattered = np.random.default_rng(0).standard_normal((500, 10)).astype(np.float32)  # greedy suits tight clusters
    quantizer = fit(scattered)
    wide = ResidualQuantizer(quantizer.codebooks_CVd, beam=16)
    greedy_error = quantizer.relative_errors(scattered, quantizer.encode(scattered))[-1]
    assert wide.relative_errors(scattered, wide.encode(scattered))[-1] < 0.97 * greedy_error


def test_fit_is_a_function_of_its_seed(vectors_nd):
    np.testing.assert_array_equal(fit(vectors_nd).codebooks_CVd, fit(vectors_nd).codebooks_CVd)
    assert not np.array_equal(fit(vectors_nd).codebooks_CVd, fit(vectors_nd, seed=2).codebooks_CVd)


def test_training_reads_a_bounded_sample(vectors_nd, monkeypatch):
    monkeypatch.setattr(residual_quantizer, "TRAINING_VECTORS_PER_CODE", 20)
    sample = residual_quantizer._training_sample(vectors_nd, 160, seed=1)
    assert sample.shape == (160, 10)
    assert len(np.unique(sample, axis=0)) == 160
    # Trained on the sample, hence equal to the codebooks of the sample alone.
    np.testing.assert_array_equal(fit(vectors_nd).codebooks_CVd, fit(sample).codebooks_CVd)


@pytest.mark.parametrize("distinct", [1, 3, 8])
def test_fewer_distinct_vectors_than_codes(vectors_nd, distinct):
    repeated = np.repeat(vectors_nd[:distinct], 40, axis=0)
    quantizer = fit(repeated)
    assert np.isfinite(quantizer.codebooks_CVd).all()
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(repeated)), repeated, atol=1e-2)


def test_as_many_codes_as_vectors_is_exact_and_one_more_is_refused(vectors_nd, capfd):
    quantizer = fit(vectors_nd[:8])
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(vectors_nd[:8])), vectors_nd[:8], atol=1e-5)
    assert "WARNING" not in capfd.readouterr().err
    with pytest.raises(InputError, match=r"`codes` is 8, but only 7 items have a vector.*codes=4 or less"):
        fit(vectors_nd[:7])


@pytest.mark.parametrize(("codes", "fault"), [(1000, "nearest are 512 and 1024"), (1, "from 2"), (131072, "to 65536")])
def test_codes_are_a_power_of_two(codes, fault):
    with pytest.raises(InputError, match=fault):
        check_codes_per_level(codes)
