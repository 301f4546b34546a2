"""Batches for the model, made by hand: the model's tests depend on no loader."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data.batches import FEATURE_KEYS, ITEM_KEY, Batch
from data.ranking.config import INTERACTIONS, INTERLEAVED, MERGED
from model.config import Vocabulary

VOCABULARY = Vocabulary(levels=3, codes=7, artists=20, event_types=4, items=50)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return VOCABULARY


def _bags(ids_per_token: list[list[int]]) -> tuple[list[int], list[int]]:
    return [i for ids in ids_per_token for i in ids], [len(ids) for ids in ids_per_token]


def codes_of_items(seed: int = 0) -> Tensor:
    """[N, C]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY.codes, (VOCABULARY.items, VOCABULARY.levels), generator=generator)


def make_batch(
    users: Sequence[Sequence[tuple[int, int]]], padding: int = 0, seed: int = 0, distinct: bool = False
) -> Batch:
    """Users as lists of (item, seconds); the items' codes, artists and event types follow from their numbers.

    The last event of a user is the target of its last input. Items without an artist: every third. QR remainders: 8.
    With `distinct`, bags of distinct items and event types, which the tokens share; without, a bag a token.
    """
    v = VOCABULARY
    codes_NC = codes_of_items(seed)
    items, times, requests, targets, lengths = [], [], [], [], []
    for user in users:
        for (item, time), (target, request) in itertools.pairwise(user):
            items.append(item)
            times.append(time)
            requests.append(request)
            targets.append(target)
        lengths.append(max(len(user) - 1, 0))
    own = list(dict.fromkeys(items)) if distinct else items
    kinds = sorted({item % v.event_types for item in items}) if distinct else [item % v.event_types for item in items]
    # What padding is made of: a row of empty bags, which all of it shares, or one for each of its tokens.
    empty: list[list[int]] = [[]] * (1 if distinct else padding)
    unknown = -(-v.artists // 8)
    bags = [
        [[level * v.codes + int(code) for level, code in enumerate(codes_NC[item])] for item in own] + empty,
        [[unknown] if item % 3 == 0 else [item % v.artists // 8] for item in own] + empty,
        [[] if item % 3 == 0 else [item % v.artists % 8] for item in own] + empty,
        [[kind] for kind in kinds] + empty,
    ]
    values, counts = zip(*map(_bags, bags), strict=True)
    sharing: dict[str, Any] = {}
    if distinct:
        kind_of_row = [kinds.index(item % v.event_types) for item in own] + [len(kinds)]
        inverse_FP = torch.tensor([list(range(len(own) + 1))] * 3 + [kind_of_row])
        sharing = {
            "stride_per_key_per_rank": [[len(feature)] for feature in counts],
            "inverse_indices": (list(FEATURE_KEYS), inverse_FP),
        }
    rows = [own.index(item) for item in items] + [len(own)] * padding

    def flat(content: list[int], fill: int) -> Tensor:
        return torch.tensor(content + [fill] * padding, dtype=torch.int64)

    targets_L = flat(targets, -1)
    return Batch(
        features=KeyedJaggedTensor(
            keys=list(FEATURE_KEYS),
            values=torch.tensor([i for feature in values for i in feature], dtype=torch.int64),
            lengths=torch.tensor([n for feature in counts for n in feature], dtype=torch.int64),
            **sharing,
        ),
        rows_L=torch.tensor(rows, dtype=torch.int64) if distinct else torch.arange(len(items) + padding),
        item_ids=KeyedJaggedTensor(
            keys=[ITEM_KEY], values=torch.tensor(own, dtype=torch.int64), lengths=torch.tensor([len(own)]), stride=1
        ),
        item_rows_P=torch.arange(len(own) + len(empty)).clamp(max=len(own)),
        offsets=torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0),
        timestamps_L=flat(times, 0),
        request_times_L=flat(requests, 0),
        durations_L=flat([-1 if item % 5 == 0 else 30 * item for item in items], -1),
        organic_L=flat([item % 3 for item in items], 2),
        target_items_L=targets_L,
        target_codes_LC=torch.where(targets_L[:, None] < 0, -1, codes_NC[targets_L.clamp(min=0)]),
        loss_weight=torch.tensor(1.0 / max(len(targets), 1)),
        window_index_B=torch.arange(len(lengths)),
    )


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    return make_batch


def action_of(item: int, seconds: int) -> int:
    """What is done with an item, as it happens; of `VOCABULARY.event_types`."""
    return (item + seconds) % VOCABULARY.event_types


def labels_of(item: int, seconds: int) -> list[float]:
    """A binary and a regression task's, of which one or the other sometimes asks nothing."""
    action = action_of(item, seconds)
    return [math.nan if item % 7 == 0 else float(action == 1), math.nan if item % 11 == 3 else action / 2]


def make_ranking_batch(
    users: Sequence[Sequence[tuple[int, int]]],
    form: str,
    padding: int = 0,
    distinct: bool = False,
    action: Callable[[int, int], int] = action_of,
) -> Batch:
    """Users as in `make_batch`; asked for is what is done with each item but a user's first.

    Args:
        action: of an item at a time.
    """
    # A token: item, action (None where hidden), seconds, seconds of the next event, whether alone, event asked for.
    tokens: list[tuple[int | None, int | None, int, int, bool, tuple[int, int] | None]] = []
    ends = [0]
    for user in users:
        for place, (item, time) in enumerate(user if len(user) > 1 else ()):
            done, asked = action(item, time), (item, time) if place else None
            following = user[place + 1] if place + 1 < len(user) else None
            if form == INTERLEAVED or (form == MERGED and place):
                tokens.append((item, None, time, time, form == MERGED, asked))
            if following is not None:
                shown = None if form == INTERLEAVED else item
                beside = following if form == INTERACTIONS else None
                tokens.append((shown, done, time, following[1], False, beside))
        ends.append(len(tokens))
    rows: list[tuple[int | None, int | None]] = [token[:2] for token in tokens]
    beside = [(token[5][0], None) if form == INTERACTIONS and token[5] else (None, None) for token in tokens]
    empty: tuple[None, None] = (None, None)
    if distinct:
        own = [row for row in dict.fromkeys([*rows, *beside]) if row != empty] + [empty]
        at, candidate_at = ([own.index(row) for row in some] + [len(own) - 1] * padding for some in (rows, beside))
    else:
        own = [*rows, *[empty] * padding]
        own += [*beside, *[empty] * (padding + 1)] if form == INTERACTIONS else []
        at = list(range(len(tokens) + padding))
        candidate_at = [len(at) + i for i in at]
    features, item_ids, item_rows_P = _bags_of_rows(own, distinct)

    def flat(content: list[Any], fill: Any) -> Tensor:
        return torch.tensor(content + [fill] * padding)

    nothing = [math.nan, math.nan]
    return Batch(
        features=features,
        rows_L=torch.tensor(at, dtype=torch.int64),
        item_ids=item_ids,
        item_rows_P=item_rows_P,
        offsets=torch.tensor(ends),
        timestamps_L=flat([token[2] for token in tokens], 0).long(),
        request_times_L=flat([token[3] for token in tokens], 0).long(),
        durations_L=flat([-1 if token[0] is None else 30 * token[0] for token in tokens], -1).long(),
        organic_L=flat([2 if token[0] is None else token[0] % 3 for token in tokens], 2).long(),
        target_items_L=flat([token[5][0] if token[5] else -1 for token in tokens], -1).long(),
        target_codes_LC=torch.empty(len(at), 0, dtype=torch.int64),
        loss_weight=torch.tensor(1.0 / max(sum(token[5] is not None for token in tokens), 1)),
        window_index_B=torch.arange(len(users)),
        labels_LT=flat([labels_of(*token[5]) if token[5] else nothing for token in tokens], nothing)
        .float()
        .view(-1, 2),
        alone_L=flat([token[4] for token in tokens], False).bool() if form == MERGED else None,
        candidate_rows_L=torch.tensor(candidate_at, dtype=torch.int64) if form == INTERACTIONS else None,
    )


def _bags_of_rows(
    rows: list[tuple[int | None, int | None]], distinct: bool
) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor, Tensor]:
    """Features, item ids and `item_rows_P` of rows that are an item or none, an action or none."""
    items = [item for item, _ in rows if item is not None]
    actions = [action for _, action in rows if action is not None]
    if distinct:
        items, actions = list(dict.fromkeys(items)), list(dict.fromkeys(actions))
        of_items: list[int | None] = [*items, None]
        of_actions: list[int | None] = [*actions, None]
        item_at = [of_items.index(item) for item, _ in rows]
        action_at = [of_actions.index(action) for _, action in rows]
    else:
        of_items, of_actions = [item for item, _ in rows], [action for _, action in rows]
        places = itertools.count()
        item_at = [len(items) if item is None else next(places) for item in of_items]
    v, codes_NC = VOCABULARY, codes_of_items()
    unknown = -(-v.artists // 8)
    bags = [
        [
            [] if i is None else [level * v.codes + int(code) for level, code in enumerate(codes_NC[i])]
            for i in of_items
        ],
        [[] if i is None else [unknown] if i % 3 == 0 else [i % v.artists // 8] for i in of_items],
        [[] if i is None or i % 3 == 0 else [i % v.artists % 8] for i in of_items],
        [[] if action is None else [action] for action in of_actions],
    ]
    values, counts = zip(*map(_bags, bags), strict=True)
    sharing: dict[str, Any] = {}
    if distinct:
        sharing = {
            "stride_per_key_per_rank": [[len(feature)] for feature in counts],
            "inverse_indices": (list(FEATURE_KEYS), torch.tensor([item_at] * 3 + [action_at])),
        }
    features = KeyedJaggedTensor(
        keys=list(FEATURE_KEYS),
        values=torch.tensor([i for feature in values for i in feature], dtype=torch.int64),
        lengths=torch.tensor([n for feature in counts for n in feature], dtype=torch.int64),
        **sharing,
    )
    item_ids = KeyedJaggedTensor(
        keys=[ITEM_KEY], values=torch.tensor(items, dtype=torch.int64), lengths=torch.tensor([len(items)]), stride=1
    )
    return features, item_ids, torch.tensor(item_at)


@pytest.fixture
def ranking_batch_of() -> Callable[..., Batch]:
    return make_ranking_batch


@pytest.fixture
def users() -> list[list[tuple[int, int]]]:
    """Five users of different lengths, one of them without an input, with ties in time."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for length in (9, 2, 1, 30, 5):
        items = torch.randint(0, 50, (length,), generator=generator).tolist()
        gaps = torch.randint(0, 4000, (length,), generator=generator) * torch.randint(
            0, 2, (length,), generator=generator
        )
        found.append(list(zip(items, (1_000_000_000 + gaps.cumsum(0)).tolist(), strict=True)))
    return found
