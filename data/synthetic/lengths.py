"""How many listens a user has: the quantiles that Yambda's paper publishes, and a curve through them.

Published are the median, the 90th and the 95th percentile, and the mean by users and listens of the 50M part
(46,467,212 / 10,000). The curve is piecewise linear from normal scores to logarithms of lengths. Its knots
below the median and above the 95th percentile are ours, set so that the mean comes out as published.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from common.seeding import derive_seed

MEDIAN, P90, P95 = 3_076, 12_956, 17_030
"""Published listens a user."""

_SHARES = np.array([0.001, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.9999])
_LENGTHS = np.array([15, 180, 970, MEDIAN, 5_750, P90, P95, 21_800, 36_000])
"""Users of at most so many listens are so large a share; the outermost lengths are the least and the most."""


def published_lengths(count: int, seed: int, median: float = MEDIAN) -> np.ndarray:
    """Listens of `count` users, in random order, int64 [count], each at least 1.

    The sample is stratified: each of `count` equal shares of the distribution gives one user, so the
    quantiles hold for small counts also. Another `median` scales all lengths alike.
    """
    random = np.random.Generator(np.random.PCG64(derive_seed(seed, "history lengths")))
    shares = (random.permutation(count) + random.random(count)) / max(count, 1)
    lengths = np.exp(np.interp(ndtri(shares), ndtri(_SHARES), np.log(_LENGTHS)))
    whole: np.ndarray = np.maximum(np.rint(lengths * (median / MEDIAN)), 1).astype(np.int64)
    return whole
