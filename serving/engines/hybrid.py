"""Candidates from fast engines, scored exactly: what a search has found is put in the order of the model.

B users in the batch · D model width · C code levels · V codes per level · l codes of a prefix · K list length · M
candidates a user · n items that may be returned · S pairs of a user and a candidate · X distinct prefixes of users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from serving.engines.base import Engine, Query, RankedCatalogue
from serving.engines.exclusions import Ints, best_of_allowed

CANDIDATES = 4
"""Candidates a place of the list, of each source."""

_BLOCK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits, or numbers of item vectors, held at once, by kind of device."""


class Scorer(Protocol):
    """Scores some items of each user as the model does."""

    log_probabilities: bool
    catalogue: RankedCatalogue

    def scores(self, hidden_BD: Tensor, rows_S: Tensor, columns_S: Tensor) -> Tensor:
        """Scores [S] of columns of the catalogue for users of the batch.

        Args:
            hidden_BD: the model's output.
            rows_S: position of the user in the batch, ascending.
            columns_S: column of the catalogue.
        """
        ...


class CodeScorer:
    """Log-probabilities of code tuples, teacher-forced: Σ_l log p(code_l | user, codes before l).

    Each distinct prefix of a user's candidates is evaluated once. Candidates are alike, that is how they were found: of
    the first codes there are few, and of the first level there is one evaluation a user.

    Args:
        heads: the model's.
        trie: of the code table.
        catalogue: whose columns are scored.
    """

    log_probabilities = True

    def __init__(self, heads: CascadedHeads, trie: CodeTrie, catalogue: RankedCatalogue) -> None:
        self.heads, self.trie, self.catalogue = heads, trie, catalogue
        self._leaf_n = trie.leaf_of_items()[catalogue.item_order.cpu().numpy()]
        assert (self._leaf_n >= 0).all(), "an item without codes has no log-probability"

    @torch.no_grad()
    def scores(self, hidden_BD: Tensor, rows_S: Tensor, columns_S: Tensor) -> Tensor:
        """See `Scorer`."""
        user_S = rows_S.cpu().numpy()
        nodes = [self._leaf_n[columns_S.cpu().numpy()]]
        for level in reversed(range(self.trie.num_levels)):
            nodes.append(self.trie.child_offsets[level].rows_of(nodes[-1]))
        nodes.reverse()  # nodes[l] ends at the prefix of l codes; nodes[0] is the root
        codes_SC = np.stack(
            [codes[node_S] for codes, node_S in zip(self.trie.codes, nodes[1:], strict=True)], axis=1
        ).astype(np.int64)
        total_S = hidden_BD.new_zeros(len(user_S), dtype=torch.float32)
        for level, node_S in enumerate(nodes[:-1]):
            prefix_S = user_S * (int(node_S.max(initial=0)) + 1) + node_S
            total_S += self._level(hidden_BD, user_S, prefix_S, codes_SC, level)
        return total_S

    def _level(self, hidden_BD: Tensor, user_S: Ints, prefix_S: Ints, codes_SC: Ints, level: int) -> Tensor:
        """Log-probability [S] of each candidate's code, given those before it; `prefix_S` names user and prefix."""
        device = hidden_BD.device
        order_S = np.argsort(prefix_S, kind="stable")
        begin_X = np.flatnonzero(np.diff(prefix_S[order_S], prepend=-1))
        first_X, end_X1 = order_S[begin_X], np.append(begin_X, len(order_S))
        found_S = torch.empty(len(user_S), device=device)
        size = max(1, _BLOCK_NUMBERS[device.type] // self.heads.codes)
        for first in range(0, len(begin_X), size):
            at_x = first_X[first : first + size]
            prefix_xl = torch.from_numpy(codes_SC[at_x, :level]).to(device)
            hidden_xD = hidden_BD[torch.from_numpy(user_S[at_x]).to(device)]
            logits_xV = self.heads.level_logits(hidden_xD, prefix_xl, level).float()
            edges = end_X1[first : first + len(at_x) + 1]
            own_s = order_S[edges[0] : edges[-1]]
            of_s = torch.from_numpy(np.repeat(np.arange(len(at_x)), np.diff(edges))).to(device)
            code_s = torch.from_numpy(codes_SC[own_s, level]).to(device)
            found_S[torch.from_numpy(own_s).to(device)] = logits_xV[of_s, code_s] - logits_xV.logsumexp(1)[of_s]
        return found_S


class ItemScorer:
    """u · e / τ, of a model that gives items vectors; not normalised.

    Args:
        vectors_nD: float32, L2-normalised, a row a column of the catalogue.
        catalogue: whose columns are scored.
        temperature: τ, greater than 0.
    """

    log_probabilities = False

    def __init__(self, vectors_nD: Tensor, catalogue: RankedCatalogue, temperature: float) -> None:
        assert len(vectors_nD) == catalogue.size, (vectors_nD.shape, catalogue.size)
        assert temperature > 0, temperature
        self.vectors_nD, self.catalogue, self.temperature = vectors_nD, catalogue, temperature

    @torch.no_grad()
    def scores(self, hidden_BD: Tensor, rows_S: Tensor, columns_S: Tensor) -> Tensor:
        """See `Scorer`."""
        size = max(1, _BLOCK_NUMBERS[hidden_BD.device.type] // hidden_BD.size(1))
        found = [
            (hidden_BD[rows] * self.vectors_nD[columns]).sum(1)
            for rows, columns in zip(rows_S.split(size), columns_S.split(size), strict=True)
        ]
        return torch.cat(found) / self.temperature


class HybridEngine:
    """Unites the candidates of other engines, scores each exactly, and returns the best.

    What it returns is in the order of exact scoring; what it can miss is what none of its sources has among the first
    `candidates` × K. Its lists are full if those of one source are: a beam search alone would not fill one longer than
    its own longest.

    Args:
        sources: engines over the scorer's catalogue.
        scorer: gives the model's scores.
        candidates: items a place of the list that each source is asked for.
    """

    name = "hybrid"

    def __init__(self, sources: Sequence[Engine], scorer: Scorer, *, candidates: int = CANDIDATES) -> None:
        assert sources, "candidates come from somewhere"
        assert candidates >= 1, candidates
        self.sources, self.scorer, self.catalogue = list(sources), scorer, scorer.catalogue
        self.candidates, self.log_probabilities = candidates, scorer.log_probabilities

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        asked = min(self.candidates * k, max(k, self.catalogue.size))
        items_BM = torch.cat([source.retrieve(query, asked)[0] for source in self.sources], dim=1)
        columns_BM = torch.where(items_BM >= 0, self.catalogue.column_of_item[items_BM], -1).sort(dim=1).values
        alone_BM = columns_BM >= 0
        alone_BM[:, 1:] &= columns_BM[:, 1:] != columns_BM[:, :-1]
        rows_S, place_S = alone_BM.nonzero(as_tuple=True)
        scores_BM = torch.full(columns_BM.shape, -torch.inf, device=columns_BM.device)
        if len(rows_S):
            scores_BM[rows_S, place_S] = self.scorer.scores(query.hidden_BD, rows_S, columns_BM[rows_S, place_S])
        return best_of_allowed(self.catalogue, columns_BM, scores_BM, query, k)
