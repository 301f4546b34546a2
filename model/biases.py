"""Attention biases evaluated on the fly: 1-D tables per head and a scalar function of a pair of tokens.

Nothing of shape [L, L] exists here. A `ScoreBiases` says what an attention backend has to add to q·k; how it does
so without a matrix is the backend's business.

Shapes: B users · L tokens (with tail padding) · H heads · T time buckets · K buckets of a bias by key ·
P distances of a position bias.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import BiasConfig
from model.mask import Mask

MAX_SECONDS = 2**31 - 1
"""68 years: the longest time that is told apart, so that int32 suffices. Bucket 62."""

ORGANIC_BUCKETS = 3
"""Not organic, organic, missing."""


def log_buckets(seconds: Tensor, buckets: int) -> Tensor:
    """Quasi-logarithmic bucket of a number of seconds, two buckets per doubling.

    With e = ⌊log2 s⌋ the bucket is 2e, or 2e + 1 from 1.5·2^e on: 1 | 2 | 3 | 4-5 | 6-7 | 8-11 … are buckets
    0, 2, 3, 4, 5, 6 (bucket 1 stays empty, as no whole second lies in it). Read off the exponent and the first
    mantissa bit of the float32, which is many times cheaper than a logarithm.

    Args:
        seconds: int32 or int64; what lies outside 1 … `MAX_SECONDS` counts as the nearer of the two.
        buckets: results are cut off at `buckets - 1`.

    Returns:
        int32, of the shape of `seconds`.
    """
    bits = seconds.clamp(1, MAX_SECONDS).to(torch.float32).view(torch.int32)
    return bits.bitwise_right_shift_(22).sub_(2 * 127).clamp_(max=buckets - 1)


@functools.lru_cache(maxsize=4)
def bucket_edges(buckets: int) -> Tensor:
    """The fewest seconds that `log_buckets` puts in each bucket or above: int64 [buckets], `MAX_SECONDS` if none are.

    Found by bisection: the float32 inside rounds large numbers, so the edges are not exactly those of the definition.
    """
    bucket = torch.arange(buckets)
    below, edge = torch.zeros(buckets, dtype=torch.int64), torch.full((buckets,), MAX_SECONDS)
    for _ in range(31):
        middle = (below + edge) // 2
        reached = log_buckets(middle, buckets) >= bucket
        below, edge = torch.where(reached, below, middle), torch.where(reached, middle, edge)
    return edge


def alibi_slopes(heads: int) -> Tensor:
    """The fixed slopes of ALiBi, a geometric sequence from 2^(-8/H) to 2^-8: float32 [H]."""
    return torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=torch.float32) / heads)


@dataclass(frozen=True)
class Tokens:
    """What attention needs to know of the tokens of a batch besides their vectors.

    Args:
        offsets: int64 [B+1], the users' ranges; tokens from offsets[-1] on are padding.
        positions_L: int64, place of the token in its user's history, `Mask.positions` (meaningless in the padding).
        query_times_L, key_times_L: int64 seconds.
        duration_buckets_L, organic_L: int64 buckets.
        alone_L: bool, candidates, which nobody else sees; None where there are none.
    """

    offsets: Tensor
    positions_L: Tensor
    query_times_L: Tensor
    key_times_L: Tensor
    duration_buckets_L: Tensor
    organic_L: Tensor
    alone_L: Tensor | None = None

    @property
    def mask(self) -> Mask:
        """Who sees whom."""
        return Mask(self.offsets, self.alone_L)


def describe_tokens(
    cfg: BiasConfig,
    offsets: Tensor,
    timestamps_L: Tensor,
    request_times_L: Tensor,
    durations_L: Tensor,
    organic_L: Tensor,
    alone_L: Tensor | None = None,
) -> Tokens:
    """Buckets and clocks of a batch, computed once for all blocks; a missing duration (-1) takes the last bucket."""
    known = log_buckets(durations_L, cfg.duration_buckets - 1).long()
    return Tokens(
        offsets=offsets,
        positions_L=Mask(offsets, alone_L).positions(timestamps_L.numel()),
        query_times_L=request_times_L if cfg.time_reference == "next" else timestamps_L,
        key_times_L=timestamps_L,
        duration_buckets_L=torch.where(durations_L < 0, cfg.duration_buckets - 1, known),
        organic_L=organic_L,
        alone_L=alone_L,
    )


@dataclass(frozen=True)
class TimeBias:
    """`table_HT[h, log_buckets(query time - key time)]`; a difference below one second counts as one."""

    table_HT: Tensor
    query_times_L: Tensor
    key_times_L: Tensor


@dataclass(frozen=True)
class KeyBias:
    """`table_HK[h, buckets_L[key]]`."""

    table_HK: Tensor
    buckets_L: Tensor


@dataclass(frozen=True)
class PositionBias:
    """`table_HP[h, min(distance, P - 1)]` of two tokens of one user."""

    table_HP: Tensor


@dataclass(frozen=True)
class ScoreBiases:
    """Everything added to the score of a query i and a key j that it sees; None and () are switched off.

    Their distance is that of their places in the history, `Mask.positions`: i - j where no token is alone.

    Args:
        slopes_H: ALiBi, adds `-slopes_H[h] * distance`.
        time: a bias by the time between them.
        by_key: biases by a property of the key.
        position: a learned bias by the distance.
    """

    slopes_H: Tensor | None = None
    time: TimeBias | None = None
    by_key: tuple[KeyBias, ...] = ()
    position: PositionBias | None = None

    def key_bias_LH(self, dtype: torch.dtype) -> Tensor | None:
        """The sum of what is looked up by key, [L, H]; linear in tokens, so its gradient is left to autograd."""
        looked_up = [F.embedding(bias.buckets_L, bias.table_HK.to(dtype).T) for bias in self.by_key]
        return functools.reduce(torch.add, looked_up) if looked_up else None

    def own_bias_LH(self, tokens: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to a token's score with itself, at a distance of zero: [L, H], likewise."""
        own = [self.key_bias_LH(dtype)]
        if self.time is not None:
            table_HT = self.time.table_HT.to(dtype)
            bucket_L = log_buckets(self.time.query_times_L - self.time.key_times_L, table_HT.shape[1])
            own.append(F.embedding(bucket_L, table_HT.T))
        if self.position is not None:
            own.append(self.position.table_HP[:, 0].to(dtype).expand(tokens, -1))
        present = [x for x in own if x is not None]
        return functools.reduce(torch.add, present) if present else None


class BiasTables(nn.Module):
    """The learned tables of one block, all zero at first; what is switched off has no parameter."""

    def __init__(self, cfg: BiasConfig, heads: int) -> None:
        """Tables for `heads` heads."""
        super().__init__()
        self.register_buffer("slopes_H", alibi_slopes(heads) if cfg.alibi else None, persistent=False)
        self.time_HT = nn.Parameter(torch.zeros(heads, cfg.time_buckets)) if cfg.time else None
        self.duration_HK = nn.Parameter(torch.zeros(heads, cfg.duration_buckets)) if cfg.duration else None
        self.organic_HK = nn.Parameter(torch.zeros(heads, ORGANIC_BUCKETS)) if cfg.organic else None
        self.position_HP = nn.Parameter(torch.zeros(heads, cfg.position_buckets)) if cfg.position else None

    def forward(self, tokens: Tokens) -> ScoreBiases:
        """The tables together with the tokens they look at."""
        by_key = []
        if self.duration_HK is not None:
            by_key.append(KeyBias(self.duration_HK, tokens.duration_buckets_L))
        if self.organic_HK is not None:
            by_key.append(KeyBias(self.organic_HK, tokens.organic_L))
        time = None
        if self.time_HT is not None:
            time = TimeBias(self.time_HT, tokens.query_times_L, tokens.key_times_L)
        slopes_H = self.slopes_H
        assert slopes_H is None or isinstance(slopes_H, Tensor)
        position = None if self.position_HP is None else PositionBias(self.position_HP)
        return ScoreBiases(slopes_H, time, tuple(by_key), position)
