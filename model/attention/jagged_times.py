"""The times between queries and keys of jagged attention, in buckets.

Shapes: L tokens · G users of a group · m tokens of the group's longest user · q queries of a block · e keys that a
block looks at · T time buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.attention.jagged_layout import Block, Group
from model.biases import MAX_SECONDS, bucket_edges, log_buckets


@dataclass(frozen=True)
class Times:
    """The clocks of one group, int32 seconds since each user's first event.

    Args:
        query_Gm: int32, of the queries.
        key_Gm: int32, of the keys.
        ordered: keys ascend in each user.
    """

    query_Gm: Tensor
    key_Gm: Tensor
    ordered: bool

    @classmethod
    def of(cls, times_2L: Tensor, queries: Group, keys: Group) -> Times:
        """The clocks of a group's queries and of its keys."""
        query_Gm, key_Gm = times_2L[0, queries.tokens_Gm], times_2L[1, keys.tokens_Gm]
        first_G1 = key_Gm.amin(dim=1, keepdim=True)
        # int32 halves the traffic of a pass over pairs; 68 years of one user's history fit in it.
        query_Gm = (query_Gm - first_G1).clamp_(-1, MAX_SECONDS).to(torch.int32)
        key_Gm = (key_Gm - first_G1).clamp_(-1, MAX_SECONDS).to(torch.int32)
        return cls(query_Gm, key_Gm, bool((key_Gm[:, 1:] >= key_Gm[:, :-1]).all()))

    def buckets(self, block: Block, buckets: int) -> Tensor:
        """int32 [G*q*e]."""
        elapsed_Gqe = self.query_Gm[:, block.start : block.stop, None] - self.key_Gm[:, None, : block.keys]
        return log_buckets(elapsed_Gqe, buckets).flatten()

    def keys_from_bucket(self, block: Block, buckets: int) -> Tensor:
        """How many of a query's keys lie in bucket t or above, if keys are ordered: int32 [G, q, T'].

        T' leaves out the buckets that no pair reaches.
        """
        query_Gq = self.query_Gm[:, block.start : block.stop]
        top = int(log_buckets(query_Gq.amax() - self.key_Gm[:, 0].amin(), buckets))
        edges_T = bucket_edges(buckets)[: top + 1].to(query_Gq)
        latest = (query_Gq[:, :, None] - edges_T).flatten(1)
        counts = torch.searchsorted(self.key_Gm, latest, right=True, out_int32=True).clamp_(max=block.keys)
        counts = counts.view(*query_Gq.shape, top + 1)
        counts[:, :, 0] = block.keys  # whatever lies below one second counts as one
        return counts
