"""Residual quantisation through FAISS: a vector as the sum of one codebook row a level.

Level l approximates what levels before it left over, so early codes are coarse and late ones fine, which is what makes
a tuple of codes readable from left to right by cascaded heads and by a prefix trie.

C code levels · V codes per level · n vectors · d vector width.
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.progress import Progress
from common.seeding import derive_seed

MAX_CODES = 65536
"""Codes are stored in 16 bits."""

TRAINING_VECTORS_PER_CODE = 256
"""FAISS's own bound on what k-means reads, applied here before residuals are computed for vectors it would drop."""

_CHUNK = 65536
"""Vectors coded at a time: bounds what the beam search holds, and lets progress be told."""


def check_codes_per_level(codes: int) -> None:
    """FAISS packs codes into bits, so their number is a power of two.

    Raises:
        InputError: it is not, or is out of range.
    """
    if not 2 <= codes <= MAX_CODES:
        raise InputError(f"`codes` is {codes}, must be a power of two from 2 to {MAX_CODES}")
    if codes & (codes - 1):
        lower = 1 << (codes.bit_length() - 1)
        raise InputError(f"`codes` is {codes}, must be a power of two; the nearest are {lower} and {2 * lower}")


class ResidualQuantizer:
    """Codebooks that code and decode; they never change, so items that come later can be coded too."""

    def __init__(self, codebooks_CVd: npt.NDArray[np.float32], *, beam: int) -> None:
        """Take trained codebooks.

        Args:
            codebooks_CVd: float32, V a power of two.
            beam: partial codes kept while encoding; 1 is greedy, more costs time in proportion.
        """
        levels, codes, width = codebooks_CVd.shape
        check_codes_per_level(codes)
        assert beam >= 1, beam
        self.codebooks_CVd = np.ascontiguousarray(codebooks_CVd, np.float32)
        self._faiss = faiss.ResidualQuantizer(width, levels, codes.bit_length() - 1)
        self._faiss.max_beam_size = beam
        faiss.copy_array_to_vector(self.codebooks_CVd.ravel(), self._faiss.codebooks)
        self._faiss.is_trained = True

    def encode(self, vectors_nd: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Codes [n, C] of 0 … V-1; says how far it is on standard error."""
        levels, codes, _ = self.codebooks_CVd.shape
        codes_nC = np.empty((len(vectors_nd), levels), np.int64)
        with Progress("code items", len(vectors_nd), "items") as progress:
            for start in range(0, len(vectors_nd), _CHUNK):
                chunk = np.ascontiguousarray(vectors_nd[start : start + _CHUNK], np.float32)
                packed = self._faiss.compute_codes(chunk)
                codes_nC[start : start + _CHUNK] = faiss.unpack_bitstrings(packed, levels, codes.bit_length() - 1)
                progress.advance(len(chunk))
        return codes_nC

    def decode(self, codes_xC: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Approximate vectors [..., d] of codes [..., C]."""
        return decode(self.codebooks_CVd, codes_xC)

    def relative_errors(
        self, vectors_nd: npt.NDArray[np.float32], codes_nC: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """[C]: Σ‖x - x̂_l‖² / Σ‖x‖², where x̂_l sums levels 0 … l."""
        errors = np.zeros(len(self.codebooks_CVd))
        total = 0.0
        for start in range(0, len(vectors_nd), _CHUNK):
            residual = vectors_nd[start : start + _CHUNK].astype(np.float64)
            total += float(np.square(residual).sum())
            for level, codebook_Vd in enumerate(self.codebooks_CVd):
                residual -= codebook_Vd[codes_nC[start : start + _CHUNK, level]]
                errors[level] += float(np.square(residual).sum())
        return errors / total if total > 0 else errors


def decode(codebooks_CVd: npt.NDArray[np.float32], codes_xC: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Sum of the codebook rows that codes [..., C] name: [..., d]."""
    levels, _, width = codebooks_CVd.shape
    assert codes_xC.shape[-1] == levels, (codes_xC.shape, codebooks_CVd.shape)
    summed = np.zeros((*codes_xC.shape[:-1], width), np.float32)
    for level in range(levels):
        summed += codebooks_CVd[level][codes_xC[..., level]]
    return summed


def fit_residual_quantizer(
    vectors_nd: npt.NDArray[np.float32], *, levels: int, codes: int, beam: int, iterations: int, seed: int
) -> ResidualQuantizer:
    """Train codebooks, level after level, by plain k-means on the residuals; a function of its arguments alone.

    FAISS trains by `Train_progressive_dim` unless told otherwise; plain k-means was four times as fast and left two
    thirds of the error (8 × 1024 on 100,000 vectors of 128 numbers).

    Raises:
        InputError: V is not a power of two, or fewer vectors than V: k-means cannot place more centroids than there
            are points. Between V and FAISS's advice of 39 V vectors training goes on, without FAISS's warning: the
            codebooks code the very catalogue they are trained on, so there is no unseen sample to overfit against,
            and diagnostics show the codes that find no use.
    """
    check_codes_per_level(codes)
    if len(vectors_nd) < codes:
        affordable = 1 << (max(len(vectors_nd), 1).bit_length() - 1)
        raise InputError(
            f"`codes` is {codes}, but only {len(vectors_nd)} items have a vector, and a codebook cannot hold more codes"
            f" than there are items to train it on; set codes={affordable} or less"
        )
    sample = _training_sample(vectors_nd, codes * TRAINING_VECTORS_PER_CODE, seed)
    quantizer = faiss.ResidualQuantizer(sample.shape[1], levels, codes.bit_length() - 1)
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.max_beam_size = beam
    quantizer.cp.niter = iterations
    quantizer.cp.seed = derive_seed(seed, "residual quantizer") % 2**31
    quantizer.cp.min_points_per_centroid = 1
    with Progress(f"train {levels} codebooks of {codes}", None, "vectors") as progress:
        quantizer.train(sample)
        progress.advance(len(sample))
    codebooks = faiss.vector_to_array(quantizer.codebooks).reshape(levels, codes, sample.shape[1])
    return ResidualQuantizer(codebooks, beam=beam)


def _training_sample(vectors_nd: npt.NDArray[np.float32], most: int, seed: int) -> npt.NDArray[np.float32]:
    if len(vectors_nd) > most:
        generator = np.random.default_rng(derive_seed(seed, "training vectors"))
        vectors_nd = vectors_nd[np.sort(generator.choice(len(vectors_nd), most, replace=False))]
    return np.ascontiguousarray(vectors_nd, np.float32)
