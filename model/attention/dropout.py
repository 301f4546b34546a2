"""Dropout of attention weights as a pure function of (seed, head, query, key).

A backward that computes the weights anew, and every backend whatever its blocks, must find the same weights dropped.
So whether one is kept is read off a hash instead of a generator's state. All arithmetic is modulo 2^32; int32 stands
for it here, whose products wrap around.

Definition, `^` being xor and `>>>` the shift that lets zeros in:

    mix(x): x ^= x >>> 16;  x *= 0x7FEB352D;  x ^= x >>> 15;  x *= 0x846CA68B;  x ^= x >>> 16
    query  = mix(mix(seed ^ head · 0x9E3779B1) ^ i · 0x85EBCA77)
    key    = mix(j · 0xC2B2AE3D + 1)
    kept   iff  mix(query ^ key), read as a signed number, ≥ threshold

i and j are flat numbers of tokens. A seed serves one layer of one step on one rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(bits: int) -> int:
    """The int32 of the same 32 bits."""
    bits &= 0xFFFFFFFF
    return bits - (1 << 32) if bits >> 31 else bits


MIX_FIRST, MIX_SECOND = _signed(0x7FEB352D), _signed(0x846CA68B)
HEAD_FACTOR, QUERY_FACTOR, KEY_FACTOR = _signed(0x9E3779B1), _signed(0x85EBCA77), _signed(0xC2B2AE3D)


@dataclass(frozen=True)
class Dropout:
    """Weights are multiplied by kept / (1 − probability).

    Args:
        probability: of being dropped, 0 ≤ probability < 1.
        seed: its lowest 32 bits count.
    """

    probability: float
    seed: int

    def __post_init__(self) -> None:
        """Check the probability."""
        assert 0 <= self.probability < 1, self.probability

    @property
    def threshold(self) -> int:
        """int32: what the signed hash of a kept weight reaches at least."""
        return round(self.probability * 2**32) - 2**31

    @property
    def factor(self) -> float:
        """What a kept weight is multiplied by."""
        return 1.0 / (1.0 - self.probability)

    def query_hash(self, head: Tensor, i: Tensor) -> Tensor:
        """int32 of heads and flat numbers of tokens, broadcast against each other."""
        seeded = mix_(head.to(torch.int32).mul(HEAD_FACTOR).bitwise_xor_(_signed(self.seed)))
        return mix_(i.to(torch.int32).mul(QUERY_FACTOR).bitwise_xor(seeded))

    def key_hash(self, j: Tensor) -> Tensor:
        """int32 of flat numbers of tokens."""
        return mix_(j.to(torch.int32).mul(KEY_FACTOR).add_(1))

    def keep(self, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Whether a weight is kept: integers, broadcast against each other → bool."""
        return mix_(self.query_hash(head, i).bitwise_xor(self.key_hash(j))) >= self.threshold


def mix_(x: Tensor) -> Tensor:
    """A bijection of int32 that spreads every bit over all; overwrites `x`."""
    x.bitwise_xor_(_shifted(x, 16)).mul_(MIX_FIRST)
    x.bitwise_xor_(_shifted(x, 15)).mul_(MIX_SECOND)
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: Tensor, places: int) -> Tensor:
    # The shift of a signed number lets copies of the sign in.
    return x.bitwise_right_shift(places).bitwise_and_((1 << (32 - places)) - 1)
