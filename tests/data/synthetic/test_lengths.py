from __future__ import annotations

import numpy as np
import pytest

from data.synthetic.lengths import MEDIAN, P90, P95, published_lengths


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_the_published_quantiles_and_mean_come_out(count: int) -> None:
    lengths = published_lengths(count, seed=1)
    np.testing.assert_allclose(np.quantile(lengths, [0.5, 0.9, 0.95]), [MEDIAN, P90, P95], rtol=0.01)
    np.testing.assert_allclose(lengths.mean(), 46_467_212 / 10_000, rtol=0.01)


def test_lengths_follow_from_the_seed_alone_and_are_in_random_order() -> None:
    lengths = published_lengths(1_000, seed=2)
    assert lengths.dtype == np.int64
    np.testing.assert_array_equal(lengths, published_lengths(1_000, seed=2))
    assert (lengths != published_lengths(1_000, seed=3)).any()
    assert abs(np.corrcoef(lengths, np.arange(1_000))[0, 1]) < 0.1


def test_a_median_scales_all_lengths_and_none_falls_below_one() -> None:
    lengths, tenth = published_lengths(2_000, seed=2), published_lengths(2_000, seed=2, median=MEDIAN / 10)
    np.testing.assert_array_equal(np.abs(tenth - lengths / 10) <= 0.6, True)
    least = published_lengths(2_000, seed=2, median=1)
    assert least.min() == 1
    assert least.max() > 5


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_users(count: int) -> None:
    lengths = published_lengths(count, seed=0)
    assert lengths.shape == (count,)
    assert (lengths >= 1).all()
