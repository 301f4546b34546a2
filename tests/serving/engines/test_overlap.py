from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.engines.overlap
from serving.engines.overlap import engine_overlap


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 12), st.integers(1, 12))
def test_overlap_is_that_of_sets(seed: int, requests: int, length: int, reference_length: int) -> None:
    random = np.random.default_rng(seed)
    num_items = 15

    def lists(width: int) -> np.ndarray:
        items_RK = np.stack([random.permutation(num_items)[:width] for _ in range(requests)])
        items_RK[np.arange(width) >= random.integers(0, width + 1, requests)[:, None]] = -1
        return items_RK

    items_RK, reference_RK = lists(length), lists(reference_length)
    depths = (1, 3, 5, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.engines.overlap, "_BLOCK_PAIRS", 2 * length)
        found = engine_overlap(items_RK, reference_RK, depths)
    assert list(found) == [depth for depth in depths if depth <= min(length, reference_length)]
    for depth, overlap in found.items():
        shares = []
        for own, reference in zip(items_RK[:, :depth].tolist(), reference_RK[:, :depth].tolist(), strict=True):
            wanted = set(reference) - {-1}
            if wanted:
                shares.append(len(wanted & set(own)) / len(wanted))
        assert overlap == pytest.approx(np.mean(shares)) if shares else math.isnan(overlap)


def test_by_default_as_deep_as_lists_go() -> None:
    items_RK = np.arange(200)[None]
    assert engine_overlap(items_RK, items_RK[:, ::-1]) == {10: 0.0, 50: 0.0, 100: 0.0, 200: 1.0}
    assert engine_overlap(items_RK, items_RK[:, :60]) == {10: 1.0, 50: 1.0}
