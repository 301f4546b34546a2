"""Vectors to quantise."""

from __future__ import annotations

import numpy as np

from semantic_ids.quantizers.base import Codebooks, Vectors


def clustered(n: int, width: int = 10, clusters: int = 12, spread: float = 0.2, seed: int = 3) -> Vectors:
    """Points around a few centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((clusters, width))
    noise = spread * generator.standard_normal((n, width))
    return (centres[generator.integers(clusters, size=n)] + noise).astype(np.float32)


def greedy_codes(codebooks_CVd: Codebooks, vectors_nD: Vectors) -> np.ndarray:
    """The nearest codebook row of what is left, level after level, in float64."""
    residual, codes = vectors_nD.astype(np.float64), []
    for codebook in codebooks_CVd.astype(np.float64):
        codes.append(np.square(residual[:, None] - codebook[None]).sum(axis=-1).argmin(axis=1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, axis=1)


def relative_error(vectors_nD: Vectors, approximate_nD: Vectors) -> float:
    """Σ‖x - x̂‖² / Σ‖x‖²."""
    return float(np.square(vectors_nD - approximate_nD).sum() / np.square(vectors_nD).sum())
