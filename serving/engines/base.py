"""What every retrieval engine takes and gives.

B users in the batch · D model width · K list length · N items of the store · n items that may be returned · M
candidates a user · h events of the users' histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semantic_ids.codes.code_table import CodeTable

CACHED_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits held at once, by kind of device: on the CPU a megabyte, so that a block is still in the cache when it is
normalised and read; on a GPU many, so that its cores have work."""


@dataclass(frozen=True)
class History:
    """What users did before they ask, oldest event first, user after user.

    Args:
        offsets_B1: int64 [B + 1], where each user's events begin and end.
        items_h: int64, item indices.
        times_h: int64, seconds.
        request_times_B: int64, when each user asks, seconds.
    """

    offsets_B1: Tensor
    items_h: Tensor
    times_h: Tensor
    request_times_B: Tensor

    @property
    def rows_h(self) -> Tensor:
        """Position in the batch of each event's user."""
        users = torch.arange(len(self.request_times_B), device=self.offsets_B1.device)
        return users.repeat_interleave(self.offsets_B1.diff())


@dataclass(frozen=True)
class Query:
    """A batch of users who want recommendations.

    Args:
        hidden_BD: the model's L2-normalised output at each user's newest token; of no columns where there is no model.
        excluded_rows: [n] positions in the batch, ascending; with `excluded_items` the pairs that must not be returned:
            what a user has seen, where that is wanted, and what is denied to this user.
        excluded_items: [n] item indices; a pair may come more than once.
        history: for engines that read it themselves; None where no engine does.
    """

    hidden_BD: Tensor
    excluded_rows: Tensor
    excluded_items: Tensor
    history: History | None = None

    @property
    def num_users(self) -> int:
        """B."""
        return self.hidden_BD.size(0)


class Engine(Protocol):
    """Returns, for each user, the best K items that may be returned, best first.

    Nothing is taken out of a list afterwards: an engine that is asked for K items returns K, wherever there are as many
    in its catalogue that are not excluded for the user. `log_probabilities` says whether scores are the model's
    log-probabilities of being the next item, so that they can be held against what happened.
    """

    name: str
    log_probabilities: bool

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """Item indices [B, K] (−1 where fewer than K are left) and their scores [B, K] (−inf there)."""
        ...


class RankedCatalogue:
    """Items in the order in which equal scores are returned: more training plays first, then the lower index.

    Args:
        item_order: [n] the items that may be returned, in that order.
        num_items: N.
    """

    def __init__(self, item_order: Tensor, num_items: int) -> None:
        self.item_order = item_order
        self.num_items = num_items
        self.column_of_item = torch.full((num_items,), -1, dtype=torch.int64, device=item_order.device)
        self.column_of_item[item_order] = torch.arange(len(item_order), device=item_order.device)

    @property
    def size(self) -> int:
        """n, the number of items that may be returned."""
        return len(self.item_order)

    def top(self, scores_Bn: Tensor, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """The best k columns that are not excluded, as items.

        `scores_Bn` has a column an item of `item_order` and is overwritten.
        """
        columns = self.column_of_item[query.excluded_items]
        returnable = columns >= 0
        scores_Bn[query.excluded_rows[returnable], columns[returnable]] = -torch.inf
        return self._best(torch.arange(self.size, device=scores_Bn.device).expand_as(scores_Bn), scores_Bn, k)

    def top_of(self, columns_BM: Tensor, scores_BM: Tensor, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """`top` among some columns only, for what must not pass over the catalogue.

        A column may come several times; its best score counts.
        """
        rows = torch.arange(len(columns_BM), device=columns_BM.device)[:, None]
        excluded = query.excluded_rows * self.size + self.column_of_item[query.excluded_items]
        excluded = excluded[self.column_of_item[query.excluded_items] >= 0]
        scores = scores_BM.masked_fill(torch.isin(rows * self.size + columns_BM, excluded), -torch.inf)
        scores, order = torch.sort(scores, dim=1, descending=True)
        columns, by_column = torch.sort(columns_BM.gather(1, order), dim=1, stable=True)
        scores = scores.gather(1, by_column)
        scores[:, 1:].masked_fill_(columns[:, 1:] == columns[:, :-1], -torch.inf)
        return self._best(columns, scores, k)

    def _best(self, columns_BM: Tensor, scores_BM: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The best k of columns that ascend in every row."""
        # A stable sort, not topk: ties must come out in column order.
        scores, order = torch.sort(scores_BM, dim=1, descending=True, stable=True)
        columns = columns_BM.gather(1, order[:, :k])
        scores = scores[:, :k]
        if not self.size:
            return _pad_columns(columns[:, :0], k, -1), _pad_columns(scores[:, :0], k, -torch.inf)
        items = torch.where(scores > -torch.inf, self.item_order[columns], -1)
        return _pad_columns(items, k, -1), _pad_columns(scores, k, -torch.inf)


def ranked_catalogue(
    codes: CodeTable, device: torch.device, denied: npt.NDArray[np.int64] | None = None
) -> RankedCatalogue:
    """The known items of a code table. Unknown items share one tuple, so no engine could tell them apart.

    Args:
        denied: item indices that nobody may be given.
    """
    return whole_catalogue(codes.training_plays_N, device, denied, known_N=codes.known_N)


def whole_catalogue(
    plays_N: npt.NDArray[np.int64],
    device: torch.device,
    denied: npt.NDArray[np.int64] | None = None,
    *,
    known_N: npt.NDArray[np.bool_] | None = None,
) -> RankedCatalogue:
    """All items of a store but those that nobody may be given.

    Args:
        plays_N: training plays, by which ties are broken.
        denied: item indices.
        known_N: the others are left out as well.
    """
    returnable_N = torch.ones(len(plays_N), dtype=torch.bool) if known_N is None else torch.tensor(known_N)
    if denied is not None:
        returnable_N[torch.from_numpy(denied)] = False
    return RankedCatalogue(plays_order(torch.tensor(plays_N), returnable_N).to(device), len(plays_N))


def plays_order(training_plays_N: Tensor, returnable_N: Tensor) -> Tensor:
    """The returnable items by more training plays, then by lower index."""
    order = torch.sort(training_plays_N, descending=True, stable=True).indices
    return order[returnable_N[order]]


def _pad_columns(values_BM: Tensor, k: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values_BM, (0, k - values_BM.size(1)), value=fill)
