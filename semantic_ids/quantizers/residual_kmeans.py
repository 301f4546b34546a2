"""Residual k-means: a vector as the sum of one codebook row a level.

Level l approximates what levels before it left over, so early codes are coarse and late ones fine, which is what makes
a tuple of codes readable from left to right by cascaded heads and by a prefix trie. FAISS's `ResidualQuantizer` is the
reference (`faiss_reference.py`): same codes for the same codebooks, benchmarks/results/semantic_ids.md for the rest.

C code levels · V codes per level · n vectors · D vector width, which is also that of the codebooks · b partial tuples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.progress import Progress
from common.seeding import derive_seed
from semantic_ids.quantizers.base import Codebooks, Codes, Vectors, check_fittable
from semantic_ids.quantizers.blocks import map_blocks
from semantic_ids.quantizers.kmeans import assign, kmeans
from semantic_ids.quantizers.nearest import NearestRows, vectors_of_a_block
from semantic_ids.quantizers.residual import ResidualQuantizer, training_vectors

_ZERO_BLOCK = 64
"""Vectors with a tuple of zeros coded anew at a time: every pair of numbers is multiplied, V × D for each."""


class ResidualKMeans(ResidualQuantizer):
    """The nearest row of what is left, level after level; or the best of a beam of partial tuples."""

    name = "residual-kmeans"

    def __init__(self, codebooks_CVd: Codebooks, *, beam: int) -> None:
        """See `ResidualQuantizer`."""
        super().__init__(codebooks_CVd, beam=beam)
        self._levels = [NearestRows(torch.from_numpy(codebook_Vd)) for codebook_Vd in self.codebooks_CVd]

    def encode(self, vectors_nD: Vectors) -> Codes:
        """See `Quantizer.encode`."""
        given_nD = torch.from_numpy(np.ascontiguousarray(vectors_nD, np.float32))
        size = vectors_of_a_block(self.codes_per_level, self.beam)
        coded = map_blocks(self._encode_block, given_nD.split(size))
        return np.concatenate(coded) if coded else np.empty((0, self.num_levels), np.uint16)

    @torch.inference_mode()
    def _encode_block(self, vectors_nD: Tensor) -> Codes:
        coded_nC = self._greedy(vectors_nD) if self.beam == 1 else self._beam_search(vectors_nD)
        return self._without_zero(vectors_nD, coded_nC).numpy().astype(np.uint16)

    def _greedy(self, vectors_nD: Tensor) -> Tensor:
        residual_nD, codes = vectors_nD.clone(), []
        for level in self._levels:
            codes.append(level.nearest(residual_nD))
            residual_nD -= level.codebook_Vd.index_select(0, codes[-1])
        return torch.stack(codes, dim=1)

    def _beam_search(self, vectors_nD: Tensor) -> Tensor:
        n, partial_nb = len(vectors_nD), torch.zeros(len(vectors_nD), 1, dtype=torch.int64)
        residuals_xD, codes_xl = vectors_nD, partial_nb[:, :0]
        for number, level in enumerate(self._levels):
            beams = partial_nb.size(1)
            # Of the last level only the best is wanted.
            width = min(self.beam, beams * self.codes_per_level) if number + 1 < self.num_levels else 1
            partial_nb, row_nb = level.best_continuations(residuals_xD.view(n, beams, -1), width)
            chosen_x = (partial_nb + beams * torch.arange(n)[:, None]).flatten()
            row_x = row_nb.flatten()
            residuals_xD = residuals_xD.index_select(0, chosen_x).sub_(level.codebook_Vd.index_select(0, row_x))
            codes_xl = torch.cat([codes_xl.index_select(0, chosen_x), row_x[:, None]], dim=1)
        return codes_xl

    def _without_zero(self, vectors_nD: Tensor, codes_nC: Tensor) -> Tensor:
        """The next nearest code of the last level where a tuple would be all zero."""
        last, before = self._levels[-1], self._levels[:-1]
        for zero in (~codes_nC.any(dim=1)).nonzero()[:, 0].split(_ZERO_BLOCK):
            residual_zD = vectors_nD[zero].clone()
            for level in before:
                residual_zD -= level.codebook_Vd[0]
            # Sums over single rows: a matrix product may round a row differently in another block.
            distance_zV = (residual_zD[:, None] - last.codebook_Vd[1:]).square().sum(dim=2)
            codes_nC[zero, -1] = 1 + distance_zV.argmin(dim=1)
        return codes_nC


def fit_residual_kmeans(
    vectors_nD: Vectors,
    *,
    levels: int,
    codes: int,
    beam: int,
    iterations: int,
    seed: int,
    start_CVd: Codebooks | None = None,
) -> ResidualKMeans:
    """Fit codebooks, level after level, by k-means on the residuals.

    A function of its arguments alone, bit for bit on one machine and number of threads.

    Args:
        vectors_nD: the sample; what exceeds 256 vectors a code is not read.
        start_CVd: codebooks of an earlier fit to start from, so that codes keep their meaning.

    Raises:
        InputError: fewer vectors than codes, or a start of another shape.
    """
    check_fittable(len(vectors_nD), codes)
    width = vectors_nD.shape[1]
    if start_CVd is not None and start_CVd.shape != (levels, codes, width):
        raise InputError(
            f"the codebooks to start from are {' × '.join(map(str, start_CVd.shape))} (levels × codes × width), but"
            f" {levels} × {codes} × {width} are asked for; set `levels` and `codes` as they are there"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "residual k-means"))
    residual_nD = torch.from_numpy(training_vectors(vectors_nD, codes, seed)).clone()
    codebooks = []
    with Progress(f"fit {levels} codebooks of {codes}", None, "vectors") as progress:
        for level in range(levels):
            start_Vd = None if start_CVd is None else torch.from_numpy(start_CVd[level])
            codebook_Vd = kmeans(
                residual_nD,
                codes,
                iterations=iterations,
                generator=generator,
                start_Vd=start_Vd,
                advance=progress.advance,
            )
            codebooks.append(codebook_Vd.numpy())
            if level + 1 < levels:
                residual_nD -= codebook_Vd[assign(residual_nD, codebook_Vd)]
    return ResidualKMeans(np.stack(codebooks), beam=beam)
