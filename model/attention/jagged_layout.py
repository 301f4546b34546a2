"""How the tokens of a batch are laid out while jagged attention works on them: groups of users of nearly equal length.

Padding inside a group repeats the user's own last token: as a key it lies in every real query's future, and as a
query it receives no gradient. So no value needs to be invented for it.

Shapes: L tokens · H heads · E width of a vector · G users of a group · m tokens of the group's longest user ·
P places, over all groups.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

QUERY_BLOCK = 48
"""Queries of a block. Smaller blocks skip more of the future; larger ones take fewer calls and fewer passes over the
gradients of keys and values."""

LONG_QUERY_BLOCK = 96
"""Most queries of a block of long histories, of which a twelfth is taken: they skip the same share of the future."""

CHUNK_SCORES = 1 << 18
"""Scores (over all heads) that a block aims at: 1 MB of float32, so that they stay in the cache."""

MAX_SCORES = 1 << 24
"""Scores (over all heads) that a block never exceeds unless a single query does: 64 MB of float32."""


@dataclass(frozen=True)
class Group:
    """Users of nearly equal length, side by side.

    Args:
        heads: H.
        users: G.
        longest: m.
        block: queries of a block.
        first_place: where the group's H·G·m places begin among those of all groups.
        tokens_Gm: int64, the token at each place (of any head); places beyond a user's length repeat its last token.
    """

    heads: int
    users: int
    longest: int
    block: int
    first_place: int
    tokens_Gm: Tensor

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of queries."""
        starts = range(0, self.longest, self.block)
        return [(start, min(start + self.block, self.longest)) for start in starts]

    def cut(self, x_PE: Tensor) -> Tensor:
        """The group's places as a view, [H*G, m, E]."""
        last_place = self.first_place + self.heads * self.tokens_Gm.numel()
        return x_PE[self.first_place : last_place].view(-1, self.longest, x_PE.shape[1])


@dataclass(frozen=True)
class Layout:
    """Where each token and head of a batch stands while attention works on it: its place.

    Places are ordered by group, then head, then user, then position. A row [token, head] of a contiguous [L, H, E]
    has number token·H + head.

    Args:
        groups: the groups.
        rows_P: int64, the row at each place.
        padding: int64, the places that repeat a token.
        places: int64, the place of each row of a user, P for the rows of the tail padding: [L*H].
    """

    groups: tuple[Group, ...]
    rows_P: Tensor
    padding: Tensor
    places: Tensor

    def gather(self, x_LHE: Tensor) -> Tensor:
        """[L, H, E] → [P, E]."""
        return x_LHE.reshape(-1, x_LHE.shape[2]).index_select(0, self.rows_P)

    def scatter(self, x_PE: Tensor, like_LHE: Tensor) -> Tensor:
        """[P+1, E], the last row zero, → [L, H, E]."""
        return x_PE.index_select(0, self.places).view(like_LHE.shape)

    def zeros(self, x_PE: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros for results of the width of `x_PE`, with the row that `scatter` gives to the tail padding."""
        return x_PE.new_zeros(self.rows_P.numel() + 1, x_PE.shape[1], dtype=dtype or x_PE.dtype)


@functools.lru_cache(maxsize=8)
def make_layout(bounds: tuple[int, ...], tokens: int, heads: int, device: torch.device) -> Layout:
    """The layout for the user ranges `bounds`; cached, since all blocks of a model ask for the same batch's."""
    users = [(stop - start, start) for start, stop in itertools.pairwise(bounds) if stop > start]
    users.sort(key=lambda user: (-user[0], user[1]))
    groups: list[Group] = []
    rows, real, begin, first_place = [], [], 0, 0
    head_H11 = torch.arange(heads)[:, None, None]
    while begin < len(users):
        end, block = _end_of_group(users, begin, heads)
        length_G1, start_G1 = torch.tensor(users[begin:end], dtype=torch.int64).T[:, :, None]
        position_m = torch.arange(users[begin][0])
        tokens_Gm = start_G1 + torch.minimum(position_m, length_G1 - 1)
        groups.append(Group(heads, end - begin, users[begin][0], block, first_place, tokens_Gm.to(device)))
        rows.append((tokens_Gm * heads + head_H11).flatten())
        real.append((position_m < length_G1).expand(heads, -1, -1).flatten())
        begin, first_place = end, first_place + rows[-1].numel()
    rows_P = torch.cat([*rows, torch.empty(0, dtype=torch.int64)])
    real_P = torch.cat([*real, torch.empty(0, dtype=torch.bool)])
    places = torch.full((tokens * heads,), first_place)
    places[rows_P[real_P]] = real_P.nonzero().flatten()
    return Layout(tuple(groups), rows_P.to(device), (~real_P).nonzero().flatten().to(device), places.to(device))


def _end_of_group(users: list[tuple[int, int]], begin: int, heads: int) -> tuple[int, int]:
    """How far the group of `users[begin]` reaches among users sorted by length, and its queries per block."""
    longest = users[begin][0]
    queries = max(QUERY_BLOCK, min(longest // 12, LONG_QUERY_BLOCK))
    block = max(1, min(queries, longest, MAX_SCORES // (heads * longest)))
    most = max(1, CHUNK_SCORES // (heads * block * longest))
    end = begin
    # A tenth shorter, or four tokens: beyond that the padding costs more than another round of calls.
    while end < len(users) and end - begin < most and users[end][0] >= 0.9 * longest - 4:
        end += 1
    return end, block


def padded_scores(layout: Layout) -> int:
    """Scores per head that are computed; at best Σ n(n+1)/2."""
    return sum(group.users * (stop - start) * stop for group in layout.groups for start, stop in group.blocks())
