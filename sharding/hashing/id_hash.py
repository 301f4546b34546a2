"""A hash of 64 bits that is one-to-one: no two ids are ever taken for one.

n ids.
"""

from __future__ import annotations

from torch import Tensor

_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Odd, so that multiplying by them modulo 2^64 can be undone (splitmix64)."""


def scatter_ids(ids_n: Tensor) -> Tensor:
    """A number of its own for every int64, spread evenly over all: ids may be multiples of something."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        ids_n = (ids_n ^ shift_right(ids_n, shift)) * multiplier
    scattered_n: Tensor = ids_n ^ shift_right(ids_n, 31)
    return scattered_n


def shift_right(values_n: Tensor, bits: int) -> Tensor:
    """With zeros from the left, where torch repeats the sign."""
    shifted_n: Tensor = (values_n >> bits) & (2 ** (64 - bits) - 1)
    return shifted_n
