"""k-means that is made for residuals: few passes over the sample, from a start by direction.

Three things make it faster than the textbook's at equal or lower error (benchmarks/results/semantic_ids.md):

- *Start by direction.* Random vectors are the usual start, but residuals differ in length, and the shortest of them
  attract nearly all vectors in the first pass, since a far centroid pays for its own length. That never quite heals,
  and deepens the hourglass of later levels. So the first pass assigns by angle.
- *A growing sample.* Early passes need no precision: most read an eighth of the sample, a fifth of them a quarter, a
  fifth a half, and only the last reads all of it.
- *Over-relaxation.* A centroid moves 1.8 times as far as the mean of its vectors; the last pass moves it onto the mean.

n vectors · V centroids · d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semantic_ids.quantizers.blocks import map_blocks
from semantic_ids.quantizers.nearest import NearestRows, vectors_of_a_block

_RELAXATION = 1.8
"""Below 2, beyond which centroids move away from their means."""

_FEWEST, _FEWEST_A_CENTROID = 2**14, 10
"""Vectors that an early pass reads at least, in all and for each centroid: below, reading fewer saves no time."""

_SPLIT = 0.01
"""How far the halves of a divided cluster are set apart, of the mean size of its numbers."""


def kmeans(
    vectors_nd: Tensor,
    centroids: int,
    *,
    iterations: int,
    generator: torch.Generator,
    start_Vd: Tensor | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Centroids [V, d]; a function of its arguments alone.

    Args:
        vectors_nd: float32, at least as many as centroids.
        iterations: passes, most of them over a part of the vectors.
        start_Vd: centroids to start from, which then keep their places.
        advance: told how many vectors were read.
    """
    n = len(vectors_nd)
    assert n >= centroids >= 1, (n, centroids)
    # Shuffled, so that the first m vectors are a sample.
    vectors_nd = vectors_nd[torch.randperm(n, generator=generator)]
    centroids_Vd = vectors_nd[:centroids].clone() if start_Vd is None else start_Vd.clone()
    passes = _sizes(n, centroids, iterations)
    for number, size in enumerate(passes):
        part_nd = vectors_nd[:size]
        by_angle = number == 0 and start_Vd is None
        label_n = assign(part_nd, _directions(centroids_Vd, generator) if by_angle else centroids_Vd)
        between = 0 < number < len(passes) - 1
        centroids_Vd = _moved(centroids_Vd, part_nd, label_n, _RELAXATION if between else 1.0, generator)
        advance(size)
    return centroids_Vd


def assign(vectors_nd: Tensor, centroids_Vd: Tensor) -> Tensor:
    """Index [n] of the nearest centroid."""
    rows = NearestRows(centroids_Vd)
    size = vectors_of_a_block(len(centroids_Vd), 1)
    return torch.cat(map_blocks(rows.nearest, vectors_nd.split(size)))


def _sizes(n: int, centroids: int, iterations: int) -> list[int]:
    """How many vectors each pass reads."""
    fewest = min(n, max(_FEWEST, centroids * _FEWEST_A_CENTROID))
    fifth = iterations // 5
    shares = ([1 / 8] * (iterations - 2 * fifth - 1) + [1 / 4] * fifth + [1 / 2] * fifth + [1.0])[-iterations:]
    return [max(fewest, round(n * share)) for share in shares]


def _directions(centroids_Vd: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of length one, so that the nearest is the one at the least angle.

    A row of zeros (a vector that an earlier level has met exactly) has no direction, and left at zero it would attract
    everything that is nearer to the origin than to other rows: it takes one at random.
    """
    random_Vd = torch.randn(centroids_Vd.shape, generator=generator)
    directions_Vd = torch.where(centroids_Vd.any(dim=1, keepdim=True), centroids_Vd, random_Vd)
    return torch.nn.functional.normalize(directions_Vd, dim=1, eps=torch.finfo().tiny)


def _moved(
    centroids_Vd: Tensor, vectors_nd: Tensor, label_n: Tensor, relaxation: float, generator: torch.Generator
) -> Tensor:
    """Centroids moved towards the means of their vectors; those without vectors take half of the largest clusters."""
    counts_V = torch.bincount(label_n, minlength=len(centroids_Vd))
    sums_Vd = torch.zeros_like(centroids_Vd).index_add_(0, label_n, vectors_nd)
    means_Vd = sums_Vd / counts_V.clamp(min=1)[:, None]
    moved_Vd = torch.where(counts_V[:, None] > 0, centroids_Vd + relaxation * (means_Vd - centroids_Vd), centroids_Vd)
    empty = (counts_V == 0).nonzero()[:, 0]
    largest = counts_V.argsort(descending=True, stable=True)[: len(empty)]
    empty, largest = empty[counts_V[largest] > 1], largest[counts_V[largest] > 1]
    if len(empty):
        apart = torch.randn(len(empty), centroids_Vd.size(1), generator=generator)
        apart *= _SPLIT * moved_Vd[largest].abs().mean(dim=1, keepdim=True)
        moved_Vd[empty] = moved_Vd[largest] + apart
        moved_Vd[largest] -= apart
    return moved_Vd
