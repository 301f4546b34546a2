"""Prefixes of codes that lead to nothing a user may be given, so that a search down the trie leaves them out.

A known item may be missing from the catalogue: nobody is given it. Items may be excluded for one user. What is kept is
sparse: of each level only the nodes all of whose items are one or the other, which are few beside the trie's.

A child of a leaf is an item, by its place among the trie's leaf items: level C. A node is used up if its children are,
so each level follows from the one below it.

P pairs of a user and an item or node · M barred children of a level · n known items · N items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_steps import Barred, TrieSteps
from serving.engines.base import Query, RankedCatalogue


class UsedUp:
    """Says of each level which nodes must not be stepped to.

    Args:
        steps: of the trie.
        trie: of the code table.
        catalogue: the items that may be returned at all.
    """

    def __init__(self, steps: TrieSteps, trie: CodeTrie, catalogue: RankedCatalogue) -> None:
        self.steps, self.catalogue = steps, catalogue
        items_n = torch.from_numpy(trie.leaf_items.astype("int64")).to(steps.device)
        self._place_N = torch.full((trie.num_items,), -1, dtype=torch.int32, device=steps.device)
        self._place_N[items_n] = torch.arange(len(items_n), dtype=torch.int32, device=steps.device)
        denied_M = torch.nonzero(catalogue.column_of_item[items_n] < 0)[:, 0]
        self._denied = [denied_M]
        for level in reversed(range(steps.num_levels)):
            nobody = torch.zeros_like(denied_M)
            _, denied_M = self._parents_used_up(level + 1, nobody, denied_M, denied_M[:0])[:2]
            self._denied.insert(0, denied_M)

    def of(self, query: Query) -> list[Barred]:
        """For levels 0 … C - 1 the nodes, and last the items' places, that are barred in this query."""
        returnable_P = self.catalogue.column_of_item[query.excluded_items] >= 0
        users_P = query.excluded_rows[returnable_P]
        children_P = self._place_N[query.excluded_items[returnable_P]].long()
        keys_P = torch.unique((users_P * len(self._place_N) + children_P)[children_P >= 0])
        users_P, children_P = keys_P // len(self._place_N), keys_P % len(self._place_N)
        found: list[Barred] = []
        for level in range(self.steps.num_levels, -1, -1):
            denied_M = self._denied[level]
            parents_P = self.steps.parents(level, children_P)
            found.insert(0, Barred(denied_M, users_P, children_P, parents_P))
            users_P, children_P = self._parents_used_up(level, users_P, children_P, denied_M)
        return found

    def _parents_used_up(
        self, level: int, users_P: Tensor, children_P: Tensor, denied_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pairs (user, node of the level before) all of whose children in `level` are the user's pairs or denied.

        Both come in the order of users and, within a user, of children; so do the pairs returned.
        """
        parents_P = self.steps.parents(level, children_P)
        new_P = torch.ones_like(users_P, dtype=torch.bool)
        new_P[1:] = (users_P[1:] != users_P[:-1]) | (parents_P[1:] != parents_P[:-1])
        first_X = torch.nonzero(new_P)[:, 0]
        counts_X = torch.cat([first_X, first_X.new_tensor([len(users_P)])]).diff()
        users_X, parents_X = users_P[first_X], parents_P[first_X]
        begin_X, end_X = self.steps.ranges(level, parents_X)
        if len(denied_M):
            counts_X = counts_X + torch.searchsorted(denied_M, end_X) - torch.searchsorted(denied_M, begin_X)
        whole_X = counts_X == end_X - begin_X
        return users_X[whole_X], parents_X[whole_X]
