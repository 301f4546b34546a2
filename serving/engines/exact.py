"""Every item's log-probability under the cascaded heads: the reference that every faster engine is held to.

B users in the batch · D model width · C code levels · V codes per level · M nodes of a level of the trie · n known
items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.progress import Progress
from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import CACHED_LOGITS, Query, RankedCatalogue


@dataclass(frozen=True)
class TrieLevel:
    """A level of the trie, whole."""

    parents_M: Tensor
    """The prefix of the level before that each one continues."""
    codes_M: Tensor
    """Its last code."""
    child_offsets: Tensor
    """In this level, of the prefixes of the level before; on the CPU."""


def trie_levels(trie: CodeTrie, device: torch.device) -> list[TrieLevel]:
    """The levels, from the first."""
    return [
        TrieLevel(
            torch.from_numpy(trie.parents(level)).to(device),
            torch.from_numpy(codes.astype(np.int64)).to(device),
            torch.from_numpy(offsets.expanded()),
        )
        for level, (codes, offsets) in enumerate(zip(trie.codes, trie.child_offsets, strict=True))
    ]


@torch.no_grad()
def code_log_probabilities(
    heads: CascadedHeads, levels: Sequence[TrieLevel], x_BD: Tensor, progress: Progress | None = None
) -> Iterator[Tensor]:
    """Level by level, log p [B, M] of every prefix's last code after the codes before it.

    Args:
        progress: told how many prefixes have been continued.
    """
    prefixes_Ml = torch.empty(1, 0, dtype=torch.int64, device=x_BD.device)
    block = max(1, CACHED_LOGITS[x_BD.device.type] // (max(1, len(x_BD)) * heads.codes))
    for number, level in enumerate(levels):
        parts = [x_BD.new_zeros(len(x_BD), 0)]
        for first in range(0, len(prefixes_Ml), block):
            prefixes_ml = prefixes_Ml[first : first + block]
            log_p_BmV = torch.log_softmax(heads.all_pairs_logits(x_BD, prefixes_ml, number).float(), dim=-1)
            begin, end = level.child_offsets[first], level.child_offsets[first + len(prefixes_ml)]
            children = slice(int(begin), int(end))
            parts.append(log_p_BmV[:, level.parents_M[children] - first, level.codes_M[children]])
            if progress is not None:
                progress.advance(len(prefixes_ml))
        yield torch.cat(parts, dim=1)
        prefixes_Ml = torch.cat([prefixes_Ml[level.parents_M], level.codes_M[:, None]], dim=1)


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
        self.levels = trie_levels(trie, device)
        self.leaf_of_column = torch.from_numpy(trie.leaf_of_items()).to(device)[catalogue.item_order]

    @torch.no_grad()
    def scores(self, hidden_BD: Tensor) -> Tensor:
        """Log-probability [B, n] of every item of the catalogue, in its order."""
        log_p_BM = hidden_BD.new_zeros(len(hidden_BD), 1)
        of_codes = code_log_probabilities(self.heads, self.levels, hidden_BD)
        for level, log_p_of_code_BM in zip(self.levels, of_codes, strict=True):
            log_p_BM = log_p_BM[:, level.parents_M] + log_p_of_code_BM
        return log_p_BM[:, self.leaf_of_column]

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        return self.catalogue.top(self.scores(query.hidden_BD), query, k)
