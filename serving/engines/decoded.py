"""Retrieval by nearest neighbour: a user's likeliest codes are decoded to vectors, FAISS finds the items near them.

B users in the batch · D model width · b beams · C code levels · V codes per level · l codes of a prefix · K list length
· d item vector width · n known items · M candidates a user.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.heads import CascadedHeads
from semantic_ids.codes.code_table import CodeTable
from serving.engines.base import Query, RankedCatalogue
from serving.engines.exclusions import Exclusions, best_of_allowed, excluded_columns
from serving.engines.faiss_indexes import L2, IndexConfig, VectorIndex, engine_name

BEAMS = 32
"""Code tuples decoded a user. More find more of what stands deep in the list, and cost in proportion."""

NEAR = 50
"""Neighbours asked of every beam but the best one, which alone must be able to fill the list."""


class FaissEngine:
    """Decodes a user's likeliest code tuples and returns the items nearest to any of them.

    An item's score is max over the beams of log p(beam | user) − ‖item − beam‖² / 2σ²: what the item would be worth
    if an item's vector were its code tuple's, blurred by σ. σ is half the root mean square length of a codebook row of
    the last level, the finest difference that codes can express; a level of zeros, which was added to tell items apart,
    expresses none and is passed over. The beams know nothing of the catalogue: a tuple that no item carries leads to
    the items nearest to it, and items may come and go without the heads' knowledge.

    With a flat index (`name` is "faiss") the search itself is exact; the approximation is that the distribution over
    items is reduced to a few points. One point, the expected vector, is not enough: it lies between a user's tastes, in
    none of them. With another index ("ivfpq", "hnsw") some of the items near a point are missed, too.

    Args:
        heads: the model's.
        table: whose codebooks decode, and whose items are returned.
        catalogue: orders items of equal scores.
        beams: code tuples decoded a user.
        near: items asked of every beam but the best one.
        index: how items near a point are searched; flat where it is not given.
    """

    log_probabilities = False

    def __init__(
        self,
        heads: CascadedHeads,
        table: CodeTable,
        catalogue: RankedCatalogue,
        *,
        beams: int = BEAMS,
        near: int = NEAR,
        index: IndexConfig | None = None,
    ) -> None:
        self.heads, self.catalogue, self.beams, self.near = heads, catalogue, beams, near
        self.codebooks_CVd = torch.tensor(table.codebooks_CVd, device=catalogue.item_order.device)
        self.twice_variance = max(0.5 * _finest_square(self.codebooks_CVd), 1e-12)
        items = catalogue.item_order.cpu().numpy()
        self.index = VectorIndex(table.decode(table.codes_NC[items]), index, L2)
        self.name = engine_name(self.index.config)

    @torch.no_grad()
    def decode(self, hidden_BD: Tensor) -> tuple[Tensor, Tensor]:
        """A user's likeliest code tuples by beam search: their vectors [B, b, d] and log-probabilities [B, b].

        Best beam first. Any tuple may come, also one that no item carries.
        """
        num_users, device = len(hidden_BD), hidden_BD.device
        log_p_Bb = torch.zeros(num_users, 1, device=device)
        vectors_Bbd = torch.zeros(num_users, 1, self.codebooks_CVd.size(2), device=device)
        prefix_Bbl = torch.empty(num_users, 1, 0, dtype=torch.int64, device=device)
        for level, codebook_Vd in enumerate(self.codebooks_CVd):
            width = log_p_Bb.size(1)
            hidden_TD = hidden_BD.repeat_interleave(width, dim=0)
            logits_TV = self.heads.level_logits(hidden_TD, prefix_Bbl.flatten(0, 1), level).float()
            log_p_BbV = log_p_Bb[:, :, None] + torch.log_softmax(logits_TV, dim=-1).unflatten(0, (num_users, width))
            flat_BX = log_p_BbV.flatten(1)
            log_p_Bb, best_Bb = flat_BX.topk(min(self.beams, flat_BX.size(1)), dim=1)
            parent_Bb, code_Bb = best_Bb // len(codebook_Vd), best_Bb % len(codebook_Vd)
            vectors_Bbd = _pick(vectors_Bbd, parent_Bb) + codebook_Vd[code_Bb]
            prefix_Bbl = torch.cat([_pick(prefix_Bbl, parent_Bb), code_Bb[:, :, None]], dim=2)
        return vectors_Bbd, log_p_Bb

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        vectors_Bbd, log_p_Bb = self.decode(query.hidden_BD)
        exclusions = self.index.exclusions(*excluded_columns(query, self.catalogue))
        # The best beam alone fills the list. What another beam has beyond k items is worse than those k.
        best = self._search(vectors_Bbd[:, :1], log_p_Bb[:, :1], k, exclusions)
        others = self._search(vectors_Bbd[:, 1:], log_p_Bb[:, 1:], min(k, self.near), exclusions)
        columns_BM, scores_BM = (torch.cat(parts, dim=1) for parts in zip(best, others, strict=True))
        return best_of_allowed(self.catalogue, columns_BM, scores_BM, query, k)

    def _search(
        self, vectors_Bbd: Tensor, log_p_Bb: Tensor, depth: int, exclusions: Exclusions
    ) -> tuple[Tensor, Tensor]:
        """Columns and scores [B, M] of the `depth` items nearest to each vector that a user may be given."""
        num_users, beams = log_p_Bb.shape
        users = np.repeat(np.arange(num_users), beams)
        distances, columns = self.index.search(vectors_Bbd.flatten(0, 1).cpu().numpy(), depth, exclusions, users)
        distance_BbK = torch.from_numpy(distances).to(log_p_Bb.device).view(num_users, beams, depth)
        scores_BbK = log_p_Bb[:, :, None] - distance_BbK / self.twice_variance
        columns_BbK = torch.from_numpy(columns).to(log_p_Bb.device).view(num_users, beams, depth)
        return columns_BbK.flatten(1), scores_BbK.flatten(1)


def _finest_square(codebooks_CVd: Tensor) -> float:
    """Mean squared length of a codebook row of the last level whose rows are not all zeros; 0 where there is none."""
    squares_C = codebooks_CVd.square().sum(2).mean(1)
    return float(squares_C[squares_C > 0][-1:].sum())


def _pick(values_Bbx: Tensor, beam_Bb: Tensor) -> Tensor:
    """values[B, beam[B, b], :]."""
    return values_Bbx.gather(1, beam_Bb[:, :, None].expand(-1, -1, values_Bbx.size(2)))
