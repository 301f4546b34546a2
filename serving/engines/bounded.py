"""The exact best K items without scoring the catalogue: what bounds can rule out is not looked at.

log p only falls along a prefix, so below a prefix that scores less than a user's K-th best item there is none of the
best K. A beam search finds K good items first; then every prefix that scores at least as much as the K-th of them is
followed, level by level, and no other.

B users in the batch · D model width · V codes per level · C code levels · l codes of a prefix · M candidates a user · K
list length · S prefixes of all users, ragged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_arrays import in_rows
from semantic_ids.codes.trie_steps import Barred, TrieSteps
from serving.engines.base import CACHED_LOGITS, Query, RankedCatalogue
from serving.engines.beam import BeamEngine, log_probabilities, unfiltered

WIDTH = 200
"""Beams of the search that finds the thresholds."""

FRONTIER = 1 << 22
"""Prefixes followed for one user at most."""

_BLOCK = {"cpu": 1 << 12, "cuda": 1 << 16}
"""Prefixes followed at once, by kind of device: their continuations are all held."""

_BLOCK_A_USER = 16
"""For each user at most: in smaller blocks, the first items are found sooner, and rule out more of what waits."""

_SLACK = 1e-4
"""Nats below the threshold that are followed all the same: two ways to the same score differ by their rounding."""


_LOWEST = -1e4
"""Nats, below any item: the threshold of a user who has none yet, where prefixes are compared."""


@dataclass(frozen=True)
class _Prefixes:
    """Prefixes of one level that are to be followed: [S] each."""

    users_S: Tensor
    nodes_S: Tensor
    scores_S: Tensor
    codes_Sl: Tensor

    def __len__(self) -> int:
        return len(self.users_S)

    def where(self, kept: Tensor | slice) -> _Prefixes:
        return _Prefixes(self.users_S[kept], self.nodes_S[kept], self.scores_S[kept], self.codes_Sl[kept])

    @staticmethod
    def joined(parts: list[_Prefixes]) -> _Prefixes:
        columns = ("users_S", "nodes_S", "scores_S", "codes_Sl")
        return _Prefixes(*(torch.cat([getattr(part, column) for part in parts]) for column in columns))


class BoundedEngine:
    """Returns what exact scoring returns, and what other engines are held to where that takes seconds a user.

    How many prefixes it follows depends on how sure the model is: one that spreads its probability evenly over deep
    codes makes every short prefix look as good as a whole item, and nothing is ruled out. The worst case is exact
    scoring. A user for whom `frontier` prefixes have been followed is followed no further: what has been found by then,
    at least the beam search's list, is returned, but is not proven to be the best.

    Args:
        heads: the model's.
        trie: of the code table.
        catalogue: which items may be returned; orders those of equal scores.
        width: beams of the search that finds the thresholds.
        frontier: prefixes followed for one user at most.
        steps: as of `BeamEngine`.

    Attributes:
        users: how many have been asked for.
        unproven_users: of them, those with more prefixes to follow than `frontier`.
        prefixes: followed so far, beside those of the beam search.
    """

    name = "bounded"
    log_probabilities = True

    def __init__(
        self,
        heads: CascadedHeads,
        trie: CodeTrie,
        catalogue: RankedCatalogue,
        *,
        width: int = WIDTH,
        frontier: int = FRONTIER,
        steps: TrieSteps | None = None,
    ) -> None:
        self.beam = BeamEngine(heads, trie, catalogue, width=width, steps=steps)
        self.heads, self.catalogue, self.steps, self.frontier = heads, catalogue, self.beam.steps, frontier
        self.trie_prefixes = 1 + sum(self.steps.num_nodes(level) for level in range(self.steps.num_levels - 1))
        self.users = self.unproven_users = self.prefixes = 0

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        barred = self.beam.used_up.of(query)
        columns_BM, scores_BM = self.beam.candidates(query, min(k, self.beam.deepest), barred)
        threshold_B = scores_BM.new_full((query.num_users,), -torch.inf)
        if 0 < k <= scores_BM.size(1):
            threshold_B = scores_BM.topk(k, dim=1, sorted=False).values.amin(1) - _SLACK
        more_columns_BM, more_scores_BM = self._follow(query.hidden_BD, threshold_B, barred, k)
        columns_BM = torch.cat([columns_BM, more_columns_BM], dim=1)
        scores_BM = torch.cat([scores_BM, more_scores_BM], dim=1)
        return self.catalogue.top_of(columns_BM, scores_BM, unfiltered(query), k)

    def _follow(self, hidden_BD: Tensor, threshold_B: Tensor, barred: list[Barred], k: int) -> tuple[Tensor, Tensor]:
        """Columns and scores [B, M] of all items that score at least a user's threshold and are among the best k."""
        num_users, device, block = len(hidden_BD), hidden_BD.device, _BLOCK[hidden_BD.device.type]
        block = min(block, _BLOCK_A_USER * max(1, num_users))
        users_B = torch.arange(num_users, device=device)
        no_codes = users_B.new_zeros(num_users, 0)
        followed_B, unproven_B = torch.zeros_like(users_B), torch.zeros_like(users_B, dtype=torch.bool)
        best_BK = hidden_BD.new_full((num_users, k), -torch.inf)
        # By level, what waits to be followed. Taken from the deepest level that fills a block, else from the first that
        # has any, so no level ever holds much more than what one block leads to; and the best first, so that good items
        # are found early and rule out more.
        waiting: list[list[_Prefixes]] = [[] for _ in range(self.steps.num_levels)]
        if num_users:
            root = _Prefixes(users_B, torch.zeros_like(users_B), hidden_BD.new_zeros(num_users), no_codes)
            waiting[0].append(root)
        leaves: list[_Prefixes] = []
        while any(waiting):
            level = self._next_level(waiting, block)
            prefixes, waiting[level] = _best_block(waiting[level], threshold_B, block)
            within = followed_B[prefixes.users_S] < self.frontier
            unproven_B[prefixes.users_S[~within]] = True
            if not within.any():
                continue
            prefixes = prefixes.where(within)
            followed_B += torch.bincount(prefixes.users_S, minlength=num_users)
            longer = self._longer(hidden_BD, threshold_B, prefixes, level, barred[level])
            if len(longer) and level + 1 < len(waiting):
                waiting[level + 1].append(longer)
            elif len(longer):
                leaves.append(longer)
                scores_BM = self._items(longer, num_users, barred[-1])[1]
                best_BK = torch.cat([best_BK, scores_BM], dim=1).topk(k, dim=1, sorted=False).values
                threshold_B = torch.maximum(threshold_B, best_BK.amin(1) - _SLACK)
        self.users += num_users
        self.prefixes += int(followed_B.sum())
        self.unproven_users += int(unproven_B.sum())
        if not leaves:
            return hidden_BD.new_zeros(num_users, 0, dtype=torch.int64), hidden_BD.new_zeros(num_users, 0)
        return self._items(_Prefixes.joined(leaves), num_users, barred[-1])

    def _next_level(self, waiting: list[list[_Prefixes]], block: int) -> int:
        sizes = [sum(map(len, parts)) for parts in waiting]
        full = [level for level, size in enumerate(sizes) if size >= block]
        return full[-1] if full else next(level for level, parts in enumerate(waiting) if parts)

    def _longer(
        self, hidden_BD: Tensor, threshold_B: Tensor, prefixes: _Prefixes, level: int, barred: Barred
    ) -> _Prefixes:
        """The continuations of prefixes that are not ruled out."""
        cached = max(1, CACHED_LOGITS[hidden_BD.device.type] // self.heads.codes)
        *_, state_SD = self.heads.states(hidden_BD[prefixes.users_S], prefixes.codes_Sl)
        log_p = log_probabilities(self.heads, state_SD, level, cached)
        found = []
        for first in range(0, len(prefixes), cached):
            part = prefixes.where(slice(first, first + cached))
            step = self.steps.continuations(level, part.nodes_S, log_p(first, first + len(part)))
            scores_S = part.scores_S[step.beams_S] + step.log_p_S
            users_S = part.users_S[step.beams_S]
            kept = torch.nonzero(scores_S >= threshold_B[users_S])[:, 0]
            codes_Sl = torch.cat([part.codes_Sl[step.beams_S[kept]], step.codes_S[kept, None]], dim=1)
            found.append(_Prefixes(users_S[kept], step.nodes_S[kept], scores_S[kept], codes_Sl))
        longer = _Prefixes.joined(found)
        return longer.where(~self._is_barred(level, longer.users_S, longer.nodes_S, barred))

    def _is_barred(self, level: int, users_S: Tensor, nodes_S: Tensor, barred: Barred) -> Tensor:
        """Which pairs of a user and a node of a level are not to be followed."""
        num_nodes = self.steps.num_nodes(level)
        keys_P = barred.users_P * num_nodes + barred.children_P
        return _among(nodes_S, barred.children_M) | _among(users_S * num_nodes + nodes_S, keys_P)

    def _items(self, leaves: _Prefixes, num_users: int, barred: Barred) -> tuple[Tensor, Tensor]:
        """Columns and scores [B, M] of the items of leaves."""
        leaves = leaves.where(torch.argsort(leaves.users_S, stable=True))
        leaf_S, place_S = self.steps.item_places(leaves.nodes_S)
        users_S, scores_S = leaves.users_S[leaf_S], leaves.scores_S[leaf_S]
        left = torch.nonzero(~self._is_barred(self.steps.num_levels, users_S, place_S, barred))[:, 0]
        bounds_B1 = torch.searchsorted(users_S[left], torch.arange(num_users + 1, device=left.device))
        columns_S = self.catalogue.column_of_item[self.steps.items_at(place_S[left])]
        return in_rows(columns_S, bounds_B1, 0), in_rows(scores_S[left], bounds_B1, -torch.inf)


def _best_block(waiting: list[_Prefixes], threshold_B: Tensor, block: int) -> tuple[_Prefixes, list[_Prefixes]]:
    """The `block` prefixes that stand furthest above their users' thresholds, and the others; less those below."""
    prefixes = _Prefixes.joined(waiting)
    above_S = prefixes.scores_S - threshold_B.clamp(min=_LOWEST)[prefixes.users_S]
    prefixes = prefixes.where(above_S >= 0)
    if len(prefixes) <= block:
        return prefixes, []
    order = torch.argsort(above_S[above_S >= 0], descending=True)
    return prefixes.where(order[:block]), [prefixes.where(order[block:])]


def _among(values_S: Tensor, sorted_P: Tensor) -> Tensor:
    """Which values are among some that ascend."""
    if not len(sorted_P):
        return torch.zeros_like(values_S, dtype=torch.bool)
    return sorted_P[torch.searchsorted(sorted_P, values_S).clamp_(max=len(sorted_P) - 1)] == values_S
