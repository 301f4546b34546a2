"""Engines of a model that gives items vectors of their own: a user's vector against every item's.

B users in the batch · b users of a block · D model width · n items that may be returned · y items of a block · K list
length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving.engines.base import Query, RankedCatalogue
from serving.engines.exclusions import excluded_columns
from serving.engines.faiss_indexes import INNER_PRODUCT, IndexConfig, VectorIndex, engine_name

_BLOCK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits held at once, by kind of device."""

_BLOCK_USERS = 128
"""Users of a block; the rest of a block are items."""


_WHOLE = 64
"""Blocks have a multiple of so many items: in what is left over at the edge of a product, libraries round otherwise
(257 items showed it, 256 not), and equal vectors would have unequal scores."""


class ItemExactEngine:
    """Every item's log-probability: log softmax over all returnable items of u · e_i / τ.

    Users and items are taken in blocks: what is held besides the item vectors is a block of logits and the lists. The
    normaliser runs over what may be returned to anybody, a user's excluded items included: what a user has seen says
    nothing of how likely the others are next.

    Args:
        vectors_nD: float32, L2-normalised, a row a column of the catalogue, on its device.
        catalogue: what may be returned; orders items of equal scores.
        temperature: τ, greater than 0.
    """

    name = "exact"
    log_probabilities = True

    def __init__(self, vectors_nD: Tensor, catalogue: RankedCatalogue, temperature: float) -> None:
        _check(vectors_nD, catalogue, temperature)
        self.vectors_nD, self.catalogue, self.temperature = vectors_nD, catalogue, temperature

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        columns_P = self.catalogue.column_of_item[query.excluded_items]
        rows_P, columns_P = query.excluded_rows[columns_P >= 0], columns_P[columns_P >= 0]
        items, scores = [], []
        for first in range(0, max(1, query.num_users), _BLOCK_USERS):
            hidden_bD = query.hidden_BD[first : first + _BLOCK_USERS]
            own_P = (rows_P >= first) & (rows_P < first + len(hidden_bD))
            found = self._block(hidden_bD, rows_P[own_P] - first, columns_P[own_P], k)
            items.append(found[0])
            scores.append(found[1])
        return torch.cat(items), torch.cat(scores)

    def _block(self, hidden_bD: Tensor, rows_P: Tensor, columns_P: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Items and scores [b, K] of some users."""
        most = min(_BLOCK_LOGITS[hidden_bD.device.type] // max(1, len(hidden_bD)), self.catalogue.size + _WHOLE - 1)
        size = max(1, most // _WHOLE) * _WHOLE
        order = torch.argsort(columns_P)
        rows_P, columns_P = rows_P[order], columns_P[order]
        best_bK = hidden_bD.new_empty(len(hidden_bD), 0, dtype=torch.int64)
        normaliser_b = hidden_bD.new_full((len(hidden_bD),), -torch.inf, dtype=torch.float64)
        for first in range(0, self.catalogue.size, size):
            logits_by = self._logits(hidden_bD, first, size)
            normaliser_b = torch.logaddexp(normaliser_b, torch.logsumexp(logits_by, dim=1).double())
            own = slice(*torch.searchsorted(columns_P, columns_P.new_tensor([first, first + size])).tolist())
            logits_by[rows_P[own], columns_P[own] - first] = -torch.inf
            best_bK = _best(torch.cat([best_bK, _best_of_block(logits_by, first, k)], dim=1), k)
        logits_bK, columns_bK = _unsorted(best_bK)
        scores_bK = (logits_bK.double() - normaliser_b[:, None]).float()
        left_bK = logits_bK > -torch.inf
        items_bK = torch.where(left_bK, self.catalogue.item_order[columns_bK], -1)
        return _padded(items_bK, k, -1), _padded(scores_bK.masked_fill(~left_bK, -torch.inf), k, -torch.inf)

    def _logits(self, hidden_bD: Tensor, first: int, size: int) -> Tensor:
        """u · e / τ [b, y] of items `first` …"""
        vectors_yD = self.vectors_nD[first : first + size]
        whole_yD = torch.nn.functional.pad(vectors_yD, (0, 0, 0, size - len(vectors_yD)))
        return (hidden_bD @ whole_yD.T)[:, : len(vectors_yD)] / self.temperature


class ItemFaissEngine:
    """The items with the largest u · e_i, by an index. A score is u · e_i / τ, not normalised.

    Args:
        vectors_nD: float32, L2-normalised, a row a column of the catalogue.
        catalogue: what may be returned; orders items of equal scores.
        temperature: τ, greater than 0.
        index: how vectors are searched; flat where it is not given.
    """

    log_probabilities = False

    def __init__(
        self, vectors_nD: Tensor, catalogue: RankedCatalogue, temperature: float, index: IndexConfig | None = None
    ) -> None:
        _check(vectors_nD, catalogue, temperature)
        self.catalogue, self.temperature = catalogue, temperature
        self.index = VectorIndex(vectors_nD.detach().cpu().numpy(), index, INNER_PRODUCT)
        self.name = engine_name(self.index.config)

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        exclusions = self.index.exclusions(*excluded_columns(query, self.catalogue))
        products, columns = self.index.search(query.hidden_BD.float().cpu().numpy(), k, exclusions)
        columns_BK = torch.from_numpy(columns).to(query.hidden_BD.device)
        scores_BK = torch.from_numpy(products).to(query.hidden_BD.device) / self.temperature
        if not self.catalogue.size:
            return columns_BK, scores_BK
        return torch.where(columns_BK >= 0, self.catalogue.item_order[columns_BK], -1), scores_BK


def _check(vectors_nD: Tensor, catalogue: RankedCatalogue, temperature: float) -> None:
    assert len(vectors_nD) == catalogue.size, (vectors_nD.shape, catalogue.size)
    assert vectors_nD.dtype == torch.float32, vectors_nD.dtype
    assert temperature > 0, temperature


def _best_of_block(logits_by: Tensor, first: int, k: int) -> Tensor:
    """The best k of logits, whose columns begin with `first`, as `_sortable` numbers [b, ≤ k] in any order."""
    columns_y = torch.arange(first, first + logits_by.size(1), device=logits_by.device)
    if logits_by.size(1) <= k:
        return _sortable(logits_by, columns_y)
    logits_bK, places_bK = logits_by.topk(k, dim=1, sorted=False)
    numbers_bK = _sortable(logits_bK, columns_y[places_bK])
    # Where the list is cut among equal logits, topk takes any of them: these rows are sorted out by column.
    cut_b = ((logits_by >= logits_bK.amin(dim=1, keepdim=True)).sum(dim=1) > k).nonzero().flatten()
    numbers_bK[cut_b] = _best(_sortable(logits_by[cut_b], columns_y), k)
    return numbers_bK


def _sortable(logits_bM: Tensor, columns_bM: Tensor) -> Tensor:
    """Logits and columns as one whole number each, larger for a larger logit and, of equal ones, a lower column."""
    bits_bM = (logits_bM + 0.0).contiguous().view(torch.int32)  # of -0, 0
    # A float's bits ascend with it, but descend where it is negative.
    ascending_bM = torch.where(bits_bM < 0, bits_bM ^ 0x7FFFFFFF, bits_bM).long()
    return (ascending_bM << 32) | (0xFFFFFFFF - columns_bM)


def _unsorted(numbers_bK: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and columns out of `_sortable`'s numbers."""
    ascending_bK = (numbers_bK >> 32).int()
    bits_bK = torch.where(ascending_bK < 0, ascending_bK ^ 0x7FFFFFFF, ascending_bK)
    return bits_bK.view(torch.float32), 0xFFFFFFFF - (numbers_bK & 0xFFFFFFFF)


def _best(numbers_bM: Tensor, k: int) -> Tensor:
    """The largest k of each row, largest first."""
    return numbers_bM.topk(min(k, numbers_bM.size(1)), dim=1).values


def _padded(values_bM: Tensor, k: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values_bM, (0, k - values_bM.size(1)), value=fill)
