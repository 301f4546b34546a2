"""Full lists without a pass over sorted catalogues: what a baseline scored, then the rest by popularity.

Every baseline returns every item of the store, those without codes too: a baseline must not be weakened by what it has
no need of. What nobody may be given is not in its catalogue.

B users in the batch · b users of a block · K list length · N items · n items that may be returned · M candidates of a
user · P pairs of a user and an excluded item.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from data.ranges import positions_of
from serving.engines.base import History, Query, RankedCatalogue

UNSCORED = torch.finfo(torch.float32).min
"""Score of what a baseline knows nothing of, where its own scores may be below 0: such items come last, by plays."""

_BLOCK_NUMBERS = 1 << 22
"""Numbers held at once of the candidates, or of the scores, of a block of users."""

Found = tuple[Tensor, Tensor]


class FixedListEngine:
    """The same list for everybody, minus what a user has seen.

    Args:
        name: of the engine.
        scores_N: float32, any but NaN and infinities.
        catalogue: the items that may be returned.
    """

    log_probabilities = False

    def __init__(self, name: str, scores_N: Tensor, catalogue: RankedCatalogue) -> None:
        self.name, self.catalogue = name, catalogue
        scores_n = scores_N.to(catalogue.item_order.device)[catalogue.item_order]
        self._scores_n, self._columns_n = torch.sort(scores_n, descending=True, stable=True)

    def retrieve(self, query: Query, k: int) -> Found:
        """See `serving.engines.base.Engine`."""
        needed = min(self.catalogue.size, k + _most_excluded(query, self.catalogue))
        columns_M, scores_M = self._columns_n[:needed], self._scores_n[:needed]

        def block(part: Query, _: int) -> Found:
            shape = part.num_users, needed
            return self.catalogue.top_of(columns_M.expand(shape), scores_M.expand(shape), part, k)

        return in_blocks(query, needed, block)


def best_of_scored(catalogue: RankedCatalogue, scores_BN: sp.csr_matrix, query: Query, k: int) -> Found:
    """The best k where few items have a score: those by their scores, above 0, then the others by popularity, 0."""
    device = catalogue.item_order.device
    scored_Bn = _columns_of(catalogue, scores_BN)
    popular = min(catalogue.size, k + _most_excluded(query, catalogue))
    widest = int(np.diff(scored_Bn.indptr).max(initial=0)) + popular

    def block(part: Query, first: int) -> Found:
        rows = scored_Bn[first : first + part.num_users]
        counts_b = np.diff(rows.indptr)
        shape = part.num_users, int(counts_b.max(initial=0)) + popular
        # Places without a candidate hold the most popular item once more, as one without a score.
        columns_bM, scores_bM = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        columns_bM[:, shape[1] - popular :] = np.arange(popular)
        places = positions_of(np.arange(part.num_users) * shape[1], counts_b)
        columns_bM.flat[places], scores_bM.flat[places] = rows.indices, rows.data
        return catalogue.top_of(
            torch.from_numpy(columns_bM).to(device), torch.from_numpy(scores_bM).to(device), part, k
        )

    return in_blocks(query, widest, block)


def best_of_all(catalogue: RankedCatalogue, scores_bn: Tensor, query: Query, k: int) -> Found:
    """`catalogue.top` without sorting whole rows where few columns can be among the best k.

    `scores_bn` is overwritten.
    """
    columns = catalogue.column_of_item[query.excluded_items]
    scores_bn[query.excluded_rows[columns >= 0], columns[columns >= 0]] = -torch.inf
    if not 0 < k < catalogue.size // 4:
        return catalogue.top(scores_bn, query, k)
    worst_b1 = scores_bn.topk(k, dim=1).values[:, -1:]
    chosen_bn = scores_bn >= worst_b1  # all that are as good as the last one: their order is by plays
    counts_b = chosen_bn.sum(dim=1)
    longest = int(counts_b.max()) if len(counts_b) else 0
    if longest > catalogue.size // 4:
        return catalogue.top(scores_bn, query, k)
    rows, columns = torch.nonzero(chosen_bn, as_tuple=True)
    begin_b = counts_b.cumsum(0) - counts_b
    places = rows * longest + torch.arange(len(rows), device=rows.device) - begin_b[rows]
    columns_bM = columns.new_zeros(len(counts_b) * longest).scatter_(0, places, columns)
    scores_bM = scores_bn.new_full(columns_bM.shape, -torch.inf).scatter_(0, places, scores_bn[rows, columns])
    shape = len(counts_b), longest
    return catalogue.top_of(columns_bM.view(shape), scores_bM.view(shape), query, k)


def in_blocks(query: Query, width: int, block: Callable[[Query, int], Found]) -> Found:
    """Answer so many users at a time that about `_BLOCK_NUMBERS` numbers are held.

    Args:
        width: numbers a user.
        block: of the users' part of the query and the position of the first one.
    """
    size = max(1, _BLOCK_NUMBERS // max(1, width))
    found = [block(_users(query, 0, 0), 0)] if not query.num_users else []
    for first in range(0, query.num_users, size):
        found.append(block(_users(query, first, min(first + size, query.num_users)), first))
    return torch.cat([items for items, _ in found]), torch.cat([scores for _, scores in found])


def newest_items(history: History, num_items: int, newest: int, fading: float) -> sp.csr_matrix:
    """[B, N] float64: Σ fading^age of the user's events of an item, the newest event having age 0, the one before 1.

    Args:
        newest: events that count; 0 = all.
    """
    offsets_B1 = history.offsets_B1.cpu().numpy()
    lengths_B = np.diff(offsets_B1)
    kept_B = np.minimum(lengths_B, newest) if newest else lengths_B
    at = positions_of(offsets_B1[1:] - kept_B, kept_B)
    rows = np.repeat(np.arange(len(kept_B)), kept_B)
    ages = offsets_B1[1:][rows] - 1 - at
    weights = sp.coo_matrix(
        (np.power(fading, ages), (rows, history.items_h.cpu().numpy()[at])), shape=(len(kept_B), num_items)
    ).tocsr()
    weights.eliminate_zeros()  # so old that their weight is none
    return weights


def _columns_of(catalogue: RankedCatalogue, scores_BN: sp.csr_matrix) -> sp.csr_matrix:
    """Scores [B, n] by columns of the catalogue, without what is not in it."""
    columns = catalogue.column_of_item.cpu().numpy()[scores_BN.indices]
    offsets = np.append(0, np.cumsum(columns >= 0))[scores_BN.indptr]
    shape = scores_BN.shape[0], catalogue.size
    return sp.csr_matrix((scores_BN.data[columns >= 0], columns[columns >= 0], offsets), shape=shape)


def _users(query: Query, first: int, last: int) -> Query:
    """Users [first, last) of a query, without their histories."""
    begin, end = torch.searchsorted(
        query.excluded_rows, torch.tensor([first, last], device=query.excluded_rows.device)
    ).tolist()
    return Query(query.hidden_BD[first:last], query.excluded_rows[begin:end] - first, query.excluded_items[begin:end])


def _most_excluded(query: Query, catalogue: RankedCatalogue) -> int:
    """The most items of the catalogue that one user must not be given."""
    columns_P = catalogue.column_of_item[query.excluded_items]
    pairs = (query.excluded_rows * catalogue.size + columns_P)[columns_P >= 0].unique()
    return int(torch.bincount(pairs // max(1, catalogue.size)).max()) if len(pairs) else 0
