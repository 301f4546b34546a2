"""Drawn training logs and queries, and the obvious way to a list.

U users of a log · B users who ask · N items · K list length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from evaluation.baselines.training_log import TrainingLog
from serving.engines.base import History, Query, RankedCatalogue, whole_catalogue

DAY = 86_400
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Drawn:
    """Training histories, of which the last events may be held out, and who asks for what.

    Args:
        items, times: of each user's events, held-out ones last.
        learnt: how many events of each user are training.
        asking: histories of those who ask.
        excluded: items that each of them must not be given.
        denied: items that nobody may be given.
    """

    items: list[list[int]]
    times: list[list[int]]
    learnt: list[int]
    num_items: int
    asking: list[list[int]]
    excluded: list[list[int]]
    denied: list[int]

    @property
    def log(self) -> TrainingLog:
        lengths = [len(items) for items in self.items]
        return TrainingLog(
            np.concatenate([np.zeros(0, int), *self.items]).astype(np.uint32),
            np.cumsum([0, *lengths])[:-1],
            np.array(self.learnt, np.int64),
            self.num_items,
            np.concatenate([np.zeros(0, int), *self.times]).astype(np.uint32),
        )

    @property
    def histories(self) -> list[list[int]]:
        """Items of each user's training events."""
        return [items[:learnt] for items, learnt in zip(self.items, self.learnt, strict=True)]

    @property
    def plays_N(self) -> np.ndarray:
        return np.bincount([item for items in self.histories for item in items], minlength=self.num_items)

    @property
    def catalogue(self) -> RankedCatalogue:
        return whole_catalogue(self.plays_N.astype(np.int64), CPU, np.array(self.denied, np.int64))

    @property
    def query(self) -> Query:
        return query_of(self.asking, self.excluded)

    def lists(self, scores_BN: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Sorted item by item: the score, then plays, then the lower index; without what is excluded or denied."""
        items_BK = np.full((len(self.asking), k), -1, np.int64)
        for row, excluded in enumerate(self.excluded):
            allowed = [item for item in range(self.num_items) if item not in {*excluded, *self.denied}]
            best = sorted(allowed, key=lambda item: (-scores_BN[row, item], -self.plays_N[item], item))[:k]
            items_BK[row, : len(best)] = best
        scores_BK = np.take_along_axis(scores_BN, np.maximum(items_BK, 0), axis=1).astype(np.float32)
        return torch.from_numpy(items_BK), torch.from_numpy(np.where(items_BK >= 0, scores_BK, -np.inf))


def query_of(asking: list[list[int]], excluded: list[list[int]]) -> Query:
    items = torch.tensor([item for history in asking for item in history], dtype=torch.int64)
    offsets = torch.tensor(np.cumsum([0, *map(len, asking)]), dtype=torch.int64)
    history = History(offsets, items, torch.arange(len(items)), torch.full((len(asking),), len(items)))
    rows = torch.tensor([row for row, own in enumerate(excluded) for _ in own], dtype=torch.int64)
    return Query(
        torch.zeros(len(asking), 0),
        rows,
        torch.tensor([i for own in excluded for i in own], dtype=torch.int64),
        history,
    )


@st.composite
def drawn(draw: st.DrawFn, most_items: int = 9) -> Drawn:
    """Replays, ties, items never played, users without history, everything excluded or denied: all of them come up."""
    num_items = draw(st.integers(1, most_items))
    item = st.integers(0, num_items - 1)
    items = draw(st.lists(st.lists(item, min_size=1, max_size=10), min_size=1, max_size=6))
    times = [sorted(draw(st.lists(st.integers(0, 20), min_size=len(own), max_size=len(own)))) for own in items]
    learnt = [draw(st.integers(0, len(own))) for own in items]
    learnt[0] = max(1, learnt[0])
    users = draw(st.integers(0, 4))
    some = st.lists(item, max_size=num_items)
    return Drawn(
        items,
        [[time * DAY // 4 for time in own] for own in times],
        learnt,
        num_items,
        draw(st.lists(st.lists(item, max_size=8), min_size=users, max_size=users)),
        draw(st.lists(some, min_size=users, max_size=users)),
        draw(st.one_of(st.just([]), some)),
    )


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], **tolerance: float) -> None:
    """Items are equal, scores nearly."""
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1], wanted[1], **tolerance)
