"""Residual k-means: a vector as the sum of one codebook row a level.

Level l approximates what levels before it left over, so early codes are coarse and late ones fine, which is what makes
a tuple of codes readable from left to right by cascaded heads and by a prefix trie. FAISS's `ResidualQuantizer` is the
reference (`faiss_reference.py`): same codes for the same codebooks, benchmarks/results/semantic_ids.md for the rest.

C code levels · V codes per level · n vectors · D vector width, which is also that of the codebooks · b partial tuples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.errors import InputError
from common.progress import Progress
from common.seeding import derive_seed
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer, Vectors, check_fittable, sum_of_rows
from semantic_ids.quantizers.blocks import map_blocks
from semantic_ids.quantizers.kmeans import assign, kmeans
from semantic_ids.quantizers.nearest import NearestRows, vectors_of_a_block

TRAINING_VECTORS_PER_CODE = 256
"""Vectors of the sample for each code; more change a centroid by less than its cluster is wide (FAISS's bound, too)."""

_ZERO_BLOCK = 64
"""Vectors with a tuple of zeros coded anew at a time: every pair of numbers is multiplied, V × D for each."""


class ResidualKMeans(Quantizer):
    """Codebooks that code and decode; they never change, so items that come later can be coded too."""

    name = "residual-kmeans"

    def __init__(self, codebooks_CVd: Codebooks, *, beam: int) -> None:
        """Take fitted codebooks.

        Args:
            codebooks_CVd: float32.
            beam: partial tuples kept while encoding; 1 is greedy, more costs time in proportion.
        """
        assert beam >= 1, beam
        self.codebooks_CVd = np.ascontiguousarray(codebooks_CVd, np.float32)
        self.beam = beam
        self._levels = [NearestRows(torch.from_numpy(codebook_Vd)) for codebook_Vd in self.codebooks_CVd]

    @property
    def vector_width(self) -> int:
        """D."""
        return int(self.codebooks_CVd.shape[2])

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

    def project(self, vectors_nD: Vectors) -> Vectors:
        """The vectors themselves."""
        return vectors_nD

    def reconstruct(self, codes_nl: Codes) -> Vectors:
        """See `Quantizer.reconstruct`."""
        return sum_of_rows(self.codebooks_CVd, codes_nl)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """See `Quantizer.arrays`."""
        return {"codebooks": self.codebooks_CVd}

    def settings(self) -> dict[str, Any]:
        """See `Quantizer.settings`."""
        return {"beam": self.beam}

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[np.float32]], settings: Mapping[str, Any]) -> ResidualKMeans:
        """See `Quantizer.load`."""
        return cls(codebooks_of(arrays), beam=beam_of(settings))


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
    residual_nD = _sample(torch.from_numpy(np.ascontiguousarray(vectors_nD, np.float32)), codes, generator)
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


def codebooks_of(arrays: Mapping[str, npt.NDArray[np.float32]]) -> Codebooks:
    """The array `codebooks`, which must be float32 [C, V, d] and the only one.

    Raises:
        InputError: it is not.
    """
    codebooks = arrays.get("codebooks")
    if codebooks is None or set(arrays) != {"codebooks"} or codebooks.ndim != 3 or codebooks.dtype != np.float32:
        found = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in sorted(arrays.items()))
        raise InputError(
            f"the quantiser's arrays are [{found}], expected one, codebooks: float32 (levels, codes, width)"
        )
    return codebooks


def beam_of(settings: Mapping[str, Any]) -> int:
    """The setting `beam`.

    Raises:
        InputError: absent, or not a positive whole number.
    """
    beam = settings.get("beam")
    if not isinstance(beam, int) or beam < 1:
        raise InputError(f"the quantiser's settings say beam = {beam!r}, expected a whole number of at least 1")
    return beam


def _sample(vectors_nD: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    most = codes * TRAINING_VECTORS_PER_CODE
    if len(vectors_nD) <= most:
        return vectors_nD.clone()
    return vectors_nD[torch.randperm(len(vectors_nD), generator=generator)[:most].sort().values]
