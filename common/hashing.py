"""Random numbers that are a function of a name: drawn anywhere, in any order, they are the same."""

from __future__ import annotations

import numpy as np


def uniform_from(names: np.ndarray, seed: int) -> np.ndarray:
    """A number in (0, 1) for each integer name, float64, by SplitMix64's finaliser (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = names.astype(np.uint64) + np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    numbers: np.ndarray = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return numbers
