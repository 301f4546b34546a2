"""Batches for the model, made by hand: the model's tests depend on no loader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data.batches import FEATURE_KEYS, ITEM_KEY, Batch
from model.config import Vocabulary

VOCABULARY = Vocabulary(levels=3, codes=7, artists=20, event_types=4, items=50)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return VOCABULARY


def _bags(ids_per_token: list[list[int]]) -> tuple[list[int], list[int]]:
    return [i for ids in ids_per_token for i in ids], [len(ids) for ids in ids_per_token]


def make_batch(
    users: Sequence[Sequence[tuple[int, int]]], padding: int = 0, seed: int = 0, distinct: bool = False
) -> Batch:
    """Users as lists of (item, seconds); the items' codes, artists and event types follow from their numbers.

    The last event of a user is the target of its last input. Items without an artist: every third. QR remainders: 8.
    With `distinct`, bags of distinct items and event types, which the tokens share; without, a bag a token.
    """
    v = VOCABULARY
    generator = torch.Generator().manual_seed(seed)
    codes_NC = torch.randint(0, v.codes, (50, v.levels), generator=generator)
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
