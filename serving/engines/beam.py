"""Retrieval by beam search down the prefix trie: only items of the catalogue, and only those a user may be given.

B users in the batch · D model width · b beams of a user · w beams kept · C code levels · V codes per level · l codes of
a prefix · M nodes of a level · K list length · N items · S pairs of a user and an item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_steps import Beams, TrieSteps
from serving.engines.base import Query, RankedCatalogue

WIDTH = 50
"""Beams kept a user, or as many as items are asked for, if that is more."""

DEEPEST = 1000
"""Longest list: a beam search for the whole catalogue would be an expensive exact search."""

_BLOCK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits held at once, by kind of device."""

Indices = npt.NDArray[np.int64]


class BeamEngine:
    """Keeps, level by level, the likeliest prefixes that lead to an item the user may be given.

    A prefix below which a user has seen every item is left out where it comes up, at whatever level, so beams are not
    spent on what must not be returned: w beams end at w tuples, each with at least one unseen item, and lists are full.
    An item's score is that of exact scoring, Σ_l log p(code_l | user, codes before l); what a search of w beams can
    miss is an item one of whose prefixes is not among the w best of its level.

    Args:
        heads: the model's.
        trie: of the code table.
        catalogue: orders items of equal scores.
        width: beams kept a user, w.
        deepest: longest list; longer ones are filled up with −1.
    """

    name = "beam"
    log_probabilities = True

    def __init__(
        self,
        heads: CascadedHeads,
        trie: CodeTrie,
        catalogue: RankedCatalogue,
        *,
        width: int = WIDTH,
        deepest: int = DEEPEST,
    ) -> None:
        self.heads, self.trie, self.catalogue = heads, trie, catalogue
        self.width, self.deepest = width, deepest
        self.steps = TrieSteps(trie, catalogue.item_order.device)
        leaf_sizes = np.diff(trie.leaf_offsets.expanded())
        self._leaf_N = np.full(trie.num_items, -1, np.int32)
        self._leaf_N[trie.leaf_items] = np.repeat(np.arange(len(leaf_sizes), dtype=np.int32), leaf_sizes)

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`; of the places after `deepest`, none is filled."""
        asked = min(k, self.deepest)
        width = max(self.width, asked)
        used_up = [torch.from_numpy(keys).to(query.hidden_BD.device) for keys in self._used_up(query)]
        size = max(1, _BLOCK_LOGITS[query.hidden_BD.device.type] // (width * self.heads.codes))
        leaves, scores = [], []
        for first in range(0, query.num_users, size):
            found = self._search(query.hidden_BD[first : first + size], first, used_up, width)
            leaves.append(found.nodes_Bw)
            scores.append(found.scores_Bw)
        if not leaves:
            return self.catalogue.top_of(*_nothing(query), query, k)
        columns_BM, scores_BM = self._columns(torch.cat(leaves), torch.cat(scores))
        items_BK, scores_BK = self.catalogue.top_of(columns_BM, scores_BM, query, asked)
        missing = (0, k - asked)
        return (
            torch.nn.functional.pad(items_BK, missing, value=-1),
            torch.nn.functional.pad(scores_BK, missing, value=-torch.inf),
        )

    def _search(self, hidden_BD: Tensor, first: int, used_up: list[Tensor], width: int) -> Beams:
        """The best w leaves of users `first`, `first` + 1, …"""
        beams = self.steps.start(len(hidden_BD))
        prefix_Bbl = beams.nodes_Bw.new_empty(len(hidden_BD), 1, 0)
        for level in range(self.steps.num_levels):
            shape_Bb = beams.nodes_Bw.shape
            hidden_TD = hidden_BD.repeat_interleave(shape_Bb[1], dim=0)
            logits_TV = self.heads.level_logits(hidden_TD, prefix_Bbl.flatten(0, 1), level).float()
            # Only the logits of codes that exist are normalised: a number a beam, not one a code.
            scores_Bb = beams.scores_Bw - torch.logsumexp(logits_TV, dim=-1).view(shape_Bb)
            own = used_up[level] - first * self.steps.num_nodes(level)
            logits_BbV = logits_TV.unflatten(0, shape_Bb)
            beams = self.steps.best(level, beams.nodes_Bw, scores_Bb, logits_BbV, width, without=own)
            came_from_Bw1 = beams.came_from_Bw.clamp(min=0)[:, :, None]
            prefix_Bbl = prefix_Bbl.gather(1, came_from_Bw1.expand(-1, -1, level))
            prefix_Bbl = torch.cat([prefix_Bbl, beams.codes_Bw.clamp(min=0)[:, :, None]], dim=2)
        return beams

    def _columns(self, leaves_Bw: Tensor, scores_Bw: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the catalogue and scores [B, M] of all items of the leaves; places left over score −inf."""
        num_users, width = leaves_Bw.shape
        position_S, items_S = self.steps.items(leaves_Bw.flatten())
        user_S = position_S // width
        count_B = torch.bincount(user_S, minlength=num_users)
        longest = int(count_B.max()) if num_users else 0
        begin_B = count_B.cumsum(0) - count_B
        place_S = user_S * longest + torch.arange(len(user_S), device=user_S.device) - begin_B[user_S]
        columns_BM = leaves_Bw.new_zeros(num_users * longest).scatter_(
            0, place_S, self.catalogue.column_of_item[items_S]
        )
        scores_BM = scores_Bw.new_full((num_users * longest,), -torch.inf)
        scores_BM.scatter_(0, place_S, scores_Bw.flatten()[position_S])
        return columns_BM.view(num_users, longest), scores_BM.view(num_users, longest)

    def _used_up(self, query: Query) -> list[Indices]:
        """Of each level, the nodes below which a user has seen everything: user · M + node, ascending."""
        rows, items = query.excluded_rows.cpu().numpy(), query.excluded_items.cpu().numpy()
        seen_S = np.unique(rows * self.trie.num_items + items)
        rows_S, items_S = seen_S // self.trie.num_items, seen_S % self.trie.num_items
        nodes_S = self._leaf_N[items_S].astype(np.int64)
        rows_S, nodes_S = rows_S[nodes_S >= 0], nodes_S[nodes_S >= 0]
        found = []
        for level in reversed(range(self.trie.num_levels)):
            num_nodes = len(self.trie.codes[level])
            keys, counts = np.unique(rows_S * num_nodes + nodes_S, return_counts=True)
            found.append(keys[counts == self._items_below(level, keys % num_nodes)])
            nodes_S = self.trie.child_offsets[level].rows_of(nodes_S)
        return found[::-1]

    def _items_below(self, level: int, nodes_X: Indices) -> Indices:
        """How many items there are below nodes of a level."""
        first_X, last_X = nodes_X, nodes_X
        for offsets in (*self.trie.child_offsets[level + 1 :], self.trie.leaf_offsets):
            first_X, last_X = offsets.ranges(first_X)[0], offsets.ranges(last_X)[1] - 1
        below_X: Indices = last_X - first_X + 1
        return below_X


def _nothing(query: Query) -> tuple[Tensor, Tensor]:
    """No candidates for no users."""
    return query.hidden_BD.new_zeros(0, 0, dtype=torch.int64), query.hidden_BD.new_zeros(0, 0)
