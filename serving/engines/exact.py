"""Every item's log-probability under the cascaded heads: the reference that every faster engine is held to.

B users in the batch · D model width · C code levels · V codes per level · M nodes of a level of the trie · n known
items.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import Query, RankedCatalogue

_BLOCK_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits held at once, by kind of device: on the CPU a megabyte, so that a block is still in the cache when it is
normalised; on a GPU many, so that its cores have work."""


class ExactEngine:
    """Scores the whole catalogue: the chain rule over the levels, each prefix of codes evaluated once.

    An item's score is Σ_l log p(code_l | user, codes before l). Items that share all codes share a score and come
    in the order of `catalogue`. The work is B × (prefixes) × V × D products; memory is bounded by blocks of prefixes.
    """

    name = "exact"
    log_probabilities = True

    def __init__(self, heads: CascadedHeads, trie: CodeTrie, catalogue: RankedCatalogue) -> None:
        device = catalogue.item_order.device
        self.heads, self.catalogue = heads, catalogue
        levels = range(trie.num_levels)
        self.parents = [torch.from_numpy(trie.parents(level)).to(device) for level in levels]
        self.codes = [torch.from_numpy(codes.astype(np.int64)).to(device) for codes in trie.codes]
        self.child_offsets = [torch.from_numpy(offsets.expanded()) for offsets in trie.child_offsets]
        self.leaf_of_column = torch.from_numpy(trie.leaf_of_items()).to(device)[catalogue.item_order]

    @torch.no_grad()
    def scores(self, hidden_BD: Tensor) -> Tensor:
        """Log-probability [B, n] of every item of the catalogue, in its order."""
        log_p_BM = hidden_BD.new_zeros(len(hidden_BD), 1)
        prefixes_Ml = torch.empty(1, 0, dtype=torch.int64, device=hidden_BD.device)
        for level, (parents, codes) in enumerate(zip(self.parents, self.codes, strict=True)):
            log_p_BM = log_p_BM[:, parents] + self._level(hidden_BD, prefixes_Ml, level)
            prefixes_Ml = torch.cat([prefixes_Ml[parents], codes[:, None]], dim=1)
        return log_p_BM[:, self.leaf_of_column]

    def _level(self, hidden_BD: Tensor, prefixes_Ml: Tensor, level: int) -> Tensor:
        """Log-probability [B, children] of each child of every prefix, given the prefix."""
        block = max(1, _BLOCK_LOGITS[hidden_BD.device.type] // (len(hidden_BD) * self.heads.codes))
        parts = []
        for first in range(0, len(prefixes_Ml), block):
            prefixes_ml = prefixes_Ml[first : first + block]
            log_p_BmV = torch.log_softmax(self.heads.all_pairs_logits(hidden_BD, prefixes_ml, level).float(), dim=-1)
            begin, end = self.child_offsets[level][first], self.child_offsets[level][first + len(prefixes_ml)]
            children = slice(int(begin), int(end))
            parts.append(log_p_BmV[:, self.parents[level][children] - first, self.codes[level][children]])
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        return self.catalogue.top(self.scores(query.hidden_BD), query, k)
