"""From counts to vectors: shifted PPMI and truncated SVD.

N items · r singular vectors kept · R stored pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from semantic_ids.vectors.co_occurrence import Counts

Floats = npt.NDArray[np.float64]

_START_VECTOR_SEED = 20240217
"""ARPACK iterates from a start vector; a fixed one makes the factorisation a function of the matrix alone."""

_BLOCK_PAIRS = 2**23


def shifted_ppmi(counts: Counts, shift: float) -> sp.csr_matrix:
    """max(0, log(p(i, j) / (p(i) p(j))) - log(shift)) over the stored pairs (Levy and Goldberg 2014)."""
    matrix = counts.weights_NN
    total = counts.row_totals_N.sum()
    values_R = np.empty(matrix.nnz)
    row_R = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    for begin in range(0, matrix.nnz, _BLOCK_PAIRS):
        part = slice(begin, begin + _BLOCK_PAIRS)
        expected = counts.row_totals_N[row_R[part]] * counts.column_totals_N[matrix.indices[part]]
        values_R[part] = np.log(matrix.data[part] * total / expected) - np.log(shift)
    kept_R = values_R > 0
    offsets = np.append(0, np.cumsum(np.bincount(row_R[kept_R], minlength=matrix.shape[0])))
    return sp.csr_matrix((values_R[kept_R], matrix.indices[kept_R], offsets), shape=matrix.shape)


def truncated_svd(matrix: sp.csr_matrix, rank: int) -> tuple[Floats, Floats]:
    """Left singular vectors [n, r] and values [r], largest first, r = min(rank, smaller side - 1, at least 1).

    The sign of a singular vector is arbitrary: each is turned so that its largest entry by magnitude is positive.
    """
    smaller = min(matrix.shape)
    if smaller == 1:  # ARPACK finds fewer vectors than the smaller side, so it cannot find the only one
        left, singular, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        generator = np.random.default_rng(_START_VECTOR_SEED)
        left, singular, _ = svds(
            matrix,
            k=min(rank, smaller - 1),
            v0=generator.standard_normal(smaller),
            rng=generator,
            return_singular_vectors="u",
        )
        left, singular = left[:, ::-1], singular[::-1]
    peak = left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])]
    return left * np.where(peak < 0, -1.0, 1.0), singular


def unit_rows(matrix: Floats) -> Floats:
    """Rows at unit length; rows of zeros stay."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.where(norms > 0, norms, 1))
