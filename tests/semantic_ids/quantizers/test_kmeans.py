"""k-means with a growing sample, held to the properties of plain k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semantic_ids.quantizers import kmeans as module
from semantic_ids.quantizers.kmeans import assign, kmeans
from tests.semantic_ids.quantizers.vectors import clustered


def fit(vectors: np.ndarray, centroids: int, iterations: int = 10, seed: int = 1, **more: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return kmeans(torch.from_numpy(vectors), centroids, iterations=iterations, generator=generator, **more)


def lost(vectors: np.ndarray, centroids_Vd: torch.Tensor) -> float:
    return float(np.square(vectors[:, None] - centroids_Vd.numpy()[None]).sum(axis=2).min(axis=1).sum())


def lloyd(vectors: np.ndarray, centroids: int, iterations: int, seed: int) -> torch.Tensor:
    """The textbook: random vectors to start from, every pass over all vectors."""
    generator = np.random.default_rng(seed)
    centroids_Vd = vectors[generator.choice(len(vectors), centroids, replace=False)]
    for _ in range(iterations):
        label = np.square(vectors[:, None] - centroids_Vd[None]).sum(axis=2).argmin(axis=1)
        centroids_Vd = np.stack(
            [vectors[label == i].mean(axis=0) if (label == i).any() else centroids_Vd[i] for i in range(centroids)]
        )
    return torch.from_numpy(centroids_Vd)


@pytest.mark.parametrize("spread", [0.2, 3.0])
def test_no_worse_than_the_textbook(spread):
    vectors = clustered(3000, spread=spread)
    ours = np.mean([lost(vectors, fit(vectors, 32, seed=seed)) for seed in range(5)])
    theirs = np.mean([lost(vectors, lloyd(vectors, 32, 10, seed)) for seed in range(5)])
    assert ours < 1.03 * theirs


def test_residuals_are_fitted_better_than_by_the_textbook():
    """Vectors in all directions, of different lengths, are what later levels see: there the start by angle matters."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((8000, 64)) * generator.lognormal(0, 0.3, (8000, 1))
    vectors = vectors.astype(np.float32)
    whole = np.square(vectors).sum()
    explained = [1 - lost(vectors, found) / whole for found in (fit(vectors, 128), lloyd(vectors, 128, 10, 0))]
    assert explained[0] > 1.05 * explained[1]


def test_every_start_has_a_direction():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]])
    directions = module._directions(rows, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(directions.norm(dim=1), 1, rtol=1e-5)
    np.testing.assert_allclose(directions[0], [0.6, 0.8])


def test_vectors_of_zeros_among_the_first_do_not_attract_the_rest():
    """What an earlier level has met exactly leaves zeros, of which random starts pick some."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((4000, 32)).astype(np.float32)
    whole = np.square(vectors).sum()
    explained = 1 - lost(vectors, fit(vectors, 64)) / whole
    with_zeros = np.concatenate([vectors, np.zeros((400, 32), np.float32)])
    assert 1 - lost(with_zeros, fit(with_zeros, 64)) / whole > 0.95 * explained


def test_centroids_are_means_after_the_last_pass():
    vectors = clustered(600, spread=0.02)
    centroids = fit(vectors, 12, iterations=10)
    label = assign(torch.from_numpy(vectors), centroids)
    for i in range(12):
        if (label == i).any():
            np.testing.assert_allclose(centroids[i], vectors[label == i].mean(axis=0), atol=0.02)


@pytest.mark.parametrize("iterations", range(1, 16))
def test_passes_grow_and_end_with_all_vectors(iterations):
    sizes = module._sizes(1_000_000, 16, iterations)
    assert len(sizes) == iterations
    assert sizes == sorted(sizes)
    assert sizes[-1] == 1_000_000
    assert sizes[0] == (1_000_000 if iterations == 1 else 125_000)
    assert module._sizes(1_000_000, 40_000, iterations)[0] >= 400_000


def test_few_vectors_are_read_whole():
    assert module._sizes(50, 16, 10) == [50] * 10


def test_empty_clusters_take_from_the_largest():
    vectors = np.concatenate([np.zeros((100, 2)), np.eye(2)]).astype(np.float32)
    generator = torch.Generator().manual_seed(0)
    centroids = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 0.0]])
    label = torch.tensor([0] * 100 + [2, 2])
    moved = module._moved(centroids, torch.from_numpy(vectors), label, 1.0, generator)
    assert (moved[1] - moved[0]).abs().max() < 0.1, "the centroid without vectors goes beside the largest cluster"
    np.testing.assert_allclose(moved[2], [0.5, 0.5])


@pytest.mark.parametrize("distinct", [1, 3, 8])
def test_fewer_distinct_vectors_than_centroids(distinct):
    vectors = np.repeat(clustered(distinct, spread=1.0), 40, axis=0)
    centroids = fit(vectors, 8)
    assert torch.isfinite(centroids).all()
    assert lost(vectors, centroids) < 1e-2 * np.square(vectors).sum()


def test_a_start_keeps_the_places_of_its_centroids():
    vectors = clustered(2000, spread=0.05)
    before = fit(vectors, 12)
    after = fit(clustered(2000, spread=0.05, seed=3) + np.float32(0.01), 12, start_Vd=before, seed=7)
    assert (after - before).norm(dim=1).max() < 0.5
    assert (torch.cdist(after, before).argmin(dim=1) == torch.arange(12)).all()


def test_a_function_of_the_seed():
    vectors = clustered(500)
    assert torch.equal(fit(vectors, 16), fit(vectors, 16))
    assert not torch.equal(fit(vectors, 16), fit(vectors, 16, seed=2))


def test_progress_is_told_of_every_vector_read():
    told: list[int] = []
    vectors = torch.from_numpy(clustered(400))
    kmeans(vectors, 8, iterations=5, generator=torch.Generator().manual_seed(0), advance=told.append)
    assert told == module._sizes(400, 8, 5)
