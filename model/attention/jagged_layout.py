"""How the tokens of a batch are laid out while jagged attention works on them: groups of users of nearly equal length.

Padding inside a group repeats the user's own last token: as a key it lies in every real query's future, and as a
query it receives no gradient. So no value needs to be invented for it.

Tokens that are alone stand apart from the others. The others, events here, see one another as if nothing stood between
them; those that are alone, candidates here, are queries over their user's events, and keys of nobody.

Shapes: L tokens · H heads · E width of a vector · G users of a group · m events of the group's longest user, or its
most candidates · P places, over all groups · U users with a token.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
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
class Block:
    """Queries of each user of a group that are worked on together, and the columns of their scores.

    Args:
        start, stop: the queries start … stop-1.
        keys: columns: no query of the block sees a key beyond.
        seen: the first columns, which every query of the block sees.
    """

    start: int
    stop: int
    keys: int
    seen: int


@dataclass(frozen=True)
class Group:
    """Users of nearly equal length, side by side.

    Args:
        heads: H.
        users: G.
        longest: m.
        block: most queries of a block.
        first_place: where the group's places begin among those of all groups.
        tokens_Gm: int64, the token at each place (of any head); places beyond a user's length repeat its last token.
            Where candidates look at these keys, there is one place more than m.
        blocks: of the queries.
    """

    heads: int
    users: int
    longest: int
    block: int
    first_place: int
    tokens_Gm: Tensor
    blocks: tuple[Block, ...]

    def cut(self, x_PE: Tensor) -> Tensor:
        """The group's places as a view, [H*G, m, E]."""
        last_place = self.first_place + self.heads * self.tokens_Gm.numel()
        return x_PE[self.first_place : last_place].view(self.heads * self.users, self.tokens_Gm.shape[1], x_PE.shape[1])

    def most_numbers(self, width: int) -> int:
        """Of a block's scores, or of vectors of `width` columns of its queries or keys."""
        if not self.blocks:
            return 0
        keys = self.blocks[-1].keys
        return self.heads * self.users * max(self.block * keys, max(self.block, keys) * width)


@dataclass(frozen=True)
class Candidates(Group):
    """The candidates of a group's users, as queries: the last column of a block's scores is a query's own.

    Args:
        events_Gm: int64, the events before each, ascending in each user: it sees the keys 0 … events-1 and itself.
        is_spread: not all of a user have the same events before them.
    """

    events_Gm: Tensor
    is_spread: bool


@dataclass(frozen=True)
class Layout:
    """Where each token and head of a batch stands while attention works on it: its place.

    Places are ordered by group, then head, then user, then position; those of candidates come after all others. A row
    [token, head] of a contiguous [L, H, E] has number token·H + head.

    Args:
        groups: the groups.
        candidates: those of each group; empty where no token is alone.
        rows_P: int64, the row at each place.
        padding: int64, the places that repeat a token.
        places: int64, the place of each row of a user, P for the rows of the tail padding: [L*H].
    """

    groups: tuple[Group, ...]
    candidates: tuple[Candidates, ...]
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


@dataclass(frozen=True)
class _User:
    """How many events and candidates a user has, and where they begin among those of all users."""

    events: int
    candidates: int
    first_event: int
    first_candidate: int


@functools.lru_cache(maxsize=8)
def make_layout(
    bounds: tuple[int, ...], tokens: int, heads: int, device: torch.device, alone: bytes | None = None
) -> Layout:
    """The layout for the user ranges `bounds`; cached, since all blocks of a model ask for the same batch's.

    Args:
        bounds: the users' offsets.
        tokens: L.
        heads: H.
        device: where the layout is to be.
        alone: a byte a token, one for a candidate; None if there are none.
    """
    is_alone = torch.zeros(bounds[-1], dtype=torch.bool)
    if alone is not None:
        is_alone = torch.frombuffer(bytearray(alone), dtype=torch.bool)[: bounds[-1]]
    return _Builder(is_alone, bounds, heads, device, has_candidates=alone is not None).layout(tokens)


class _Builder:
    """Lays out the tokens of a batch."""

    def __init__(
        self, is_alone: Tensor, bounds: tuple[int, ...], heads: int, device: torch.device, *, has_candidates: bool
    ) -> None:
        """`is_alone`: bool, of the users' tokens."""
        self.heads, self.device, self.has_candidates = heads, device, has_candidates
        # One more of each, for users who have none to repeat; nobody looks at it.
        self.events, self.candidates = (
            torch.cat((chosen.nonzero().flatten(), torch.zeros(1, dtype=torch.int64)))
            for chosen in (~is_alone, is_alone)
        )
        self.events_before = torch.cat((torch.zeros(1, dtype=torch.int64), (~is_alone).cumsum(0)))
        firsts = self.events_before[torch.tensor(bounds)].tolist()
        self.users = [
            _User(end - first, stop - start - (end - first), first, start - first)
            for (start, stop), (first, end) in zip(itertools.pairwise(bounds), itertools.pairwise(firsts), strict=True)
            if stop > start
        ]
        self.users.sort(key=lambda user: (-user.events, -user.candidates, user.first_event))
        self.rows: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        self.real: list[Tensor] = [torch.empty(0, dtype=torch.bool)]
        self.places = 0

    def layout(self, tokens: int) -> Layout:
        """Of all users."""
        parts = list(_parts(self.users, self.heads))
        groups = tuple(self._group(self.users[begin:end], block) for begin, end, block in parts)
        candidates: tuple[Candidates, ...] = ()
        if self.has_candidates:
            candidates = tuple(self._candidates(self.users[begin:end], block) for begin, end, block in parts)
        rows_P, real_P = torch.cat(self.rows), torch.cat(self.real)
        places = torch.full((tokens * self.heads,), self.places)
        places[rows_P[real_P]] = real_P.nonzero().flatten()
        padding = (~real_P).nonzero().flatten()
        return Layout(groups, candidates, rows_P.to(self.device), padding.to(self.device), places.to(self.device))

    def _group(self, users: list[_User], block: int) -> Group:
        longest = users[0].events
        # The scores of candidates have one column more than there are events that they see.
        columns = longest + 1 if self.has_candidates else longest
        length_G1, first_G1 = _columns([(user.events, user.first_event) for user in users])
        tokens_Gm = self.events[_numbers(length_G1, first_G1, columns)]
        blocks = tuple(
            Block(start, min(start + block, longest), min(start + block, longest), start + 1)
            for start in range(0, longest, block)
        )
        first_place = self._place(tokens_Gm, length_G1)
        return Group(self.heads, len(users), longest, block, first_place, tokens_Gm.to(self.device), blocks)

    def _candidates(self, users: list[_User], block: int) -> Candidates:
        most = max(user.candidates for user in users)
        length_G1, first_G1 = _columns([(user.candidates, user.first_candidate) for user in users])
        events_G1, first_event_G1 = _columns([(user.events, user.first_event) for user in users])
        tokens_Gm = self.candidates[_numbers(length_G1, first_G1, most)]
        # Whatever stands in for those whom a user lacks sees no more than the user has.
        before_Gm = (self.events_before[tokens_Gm] - first_event_G1).clamp_(min=0).minimum(events_G1)
        is_spread = bool((before_Gm != before_Gm[:, :1]).any())
        block = _queries(most, block, self.heads * len(users) * (users[0].events + 1), is_spread=is_spread)
        blocks = []
        for start in range(0, most, block):
            stop = min(start + block, most)
            columns = int(before_Gm[:, stop - 1].amax()) + 1
            blocks.append(Block(start, stop, columns, int(before_Gm[:, start].amin())))
        first_place = self._place(tokens_Gm, length_G1)
        return Candidates(
            self.heads,
            len(users),
            most,
            block,
            first_place,
            tokens_Gm.to(self.device),
            tuple(blocks),
            before_Gm.to(self.device),
            is_spread,
        )

    def _place(self, tokens_Gm: Tensor, length_G1: Tensor) -> int:
        """Add the places of these tokens, of which each user has so many; the first of the places."""
        head_H11 = torch.arange(self.heads)[:, None, None]
        self.rows.append((tokens_Gm * self.heads + head_H11).flatten())
        self.real.append((torch.arange(tokens_Gm.shape[1]) < length_G1).expand(self.heads, -1, -1).flatten())
        first_place = self.places
        self.places += self.rows[-1].numel()
        return first_place


def _columns(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """int64 [G, 1] each."""
    first_G1, second_G1 = torch.tensor(pairs, dtype=torch.int64).T[:, :, None]
    return first_G1, second_G1


def _numbers(length_G1: Tensor, first_G1: Tensor, columns: int) -> Tensor:
    """first, first + 1 … of each user, the last repeated: int64 [G, columns]."""
    return first_G1 + torch.minimum(torch.arange(columns), (length_G1 - 1).clamp(min=0))


def _parts(users: list[_User], heads: int) -> Iterator[tuple[int, int, int]]:
    """The groups of users sorted by length: first, end, and queries per block."""
    begin = 0
    while begin < len(users):
        end, block = _end_of_group(users, begin, heads)
        yield begin, end, block
        begin = end


def _end_of_group(users: list[_User], begin: int, heads: int) -> tuple[int, int]:
    """How far the group of `users[begin]` reaches, and its queries per block."""
    longest = users[begin].events
    queries = max(QUERY_BLOCK, min(longest // 12, LONG_QUERY_BLOCK))
    block = max(1, min(queries, longest, MAX_SCORES // (heads * max(longest, 1))))
    most = max(1, CHUNK_SCORES // (heads * block * max(longest, 1)))
    end, fewest, most_candidates = begin, users[begin].candidates, users[begin].candidates
    while end < len(users) and end - begin < most and _alike(users[end].events, longest):
        fewest = min(fewest, users[end].candidates)
        most_candidates = max(most_candidates, users[end].candidates)
        if not _alike(fewest, most_candidates):
            break
        end += 1
    return end, block


def _alike(fewer: int, more: int) -> bool:
    """A tenth fewer, or four tokens: beyond that the padding costs more than another round of calls."""
    return fewer >= 0.9 * more - 4


def _queries(most: int, block: int, scores: int, *, is_spread: bool) -> int:
    """Queries of a block of candidates, of which each has so many scores.

    Where they stand between the events, smaller blocks skip the future; at one place there is none to skip.
    """
    queries = block if is_spread else max(block, CHUNK_SCORES // scores)
    return max(1, min(queries, most, MAX_SCORES // scores))


def padded_scores(layout: Layout) -> int:
    """Scores per head that are computed; at best those that are seen: Σ n(n+1)/2 if no token is alone."""
    groups = (*layout.groups, *layout.candidates)
    return sum(group.users * (block.stop - block.start) * block.keys for group in groups for block in group.blocks)
