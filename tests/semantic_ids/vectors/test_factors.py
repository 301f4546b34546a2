"""PPMI and truncated SVD against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.vectors import factors
from semantic_ids.vectors.co_occurrence import Counts
from semantic_ids.vectors.factors import shifted_ppmi, truncated_svd, unit_rows


@given(
    dense=st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=5, max_size=5),
    shift=st.sampled_from([0.5, 1.0, 3.0]),
    pruned=st.integers(0, 24),
)
@settings(max_examples=100, deadline=None)
def test_ppmi_equals_its_definition(dense, shift, pruned):
    full = np.array(dense, float)
    stored = full.copy()
    stored.flat[pruned] = 0
    expected = np.zeros((5, 5))
    for i, j in zip(*np.nonzero(stored), strict=True):
        joint, left, right = full[i, j] / full.sum(), full[i].sum() / full.sum(), full[:, j].sum() / full.sum()
        expected[i, j] = max(0.0, math.log(joint / (left * right)) - math.log(shift))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "_BLOCK_PAIRS", 3)
        found = shifted_ppmi(Counts(sp.csr_matrix(stored), full.sum(axis=1), full.sum(axis=0)), shift)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-9)
    assert (found.data > 0).all()


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_truncated_svd_equals_the_dense_one(seed, rows, columns, rank):
    dense = np.random.default_rng(seed).standard_normal((rows, columns))
    left, singular = truncated_svd(sp.csr_matrix(dense), rank)
    expected_left, expected_singular, _ = np.linalg.svd(dense, full_matrices=False)
    kept = max(1, min(rank, min(rows, columns) - 1))
    np.testing.assert_allclose(singular, expected_singular[:kept], rtol=1e-6)
    signs = np.sign((left * expected_left[:, :kept]).sum(axis=0))
    np.testing.assert_allclose(left, expected_left[:, :kept] * signs, atol=1e-4)
    assert (left[np.abs(left).argmax(axis=0), np.arange(kept)] > 0).all()


def test_truncated_svd_survives_a_rank_beyond_the_matrix():
    dense = np.outer(np.arange(1.0, 9.0), np.ones(8))
    left, singular = truncated_svd(sp.csr_matrix(dense), 5)
    assert np.isfinite(left).all()
    np.testing.assert_allclose(singular[1:], 0, atol=1e-6)


def test_unit_rows_leave_zeros():
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0, 0]])), [[0.6, 0.8], [0, 0]])
