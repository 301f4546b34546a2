"""Who sees whom.

Shapes: B users · L tokens (with tail padding).
"""

from __future__ import annotations

from dataclasses import dataclass

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """User-local and causal: a token sees the tokens of its own user up to itself, but those that are alone.

    A token that is alone is seen by nobody but itself: a candidate, which sees the history before it and no other
    candidate (HSTU paper, Algorithm 1).

    Args:
        offsets: int64 [B+1], ascending from 0; user b owns the tokens offsets[b] … offsets[b+1]-1, the tokens from
            offsets[-1] on are padding, which sees nothing and is seen by nobody.
        alone_L: bool; None where no token is.
    """

    offsets: Tensor
    alone_L: Tensor | None = None

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether query i sees key j: flat numbers of tokens, int64, broadcast against each other → bool.

        This is the definition; backends arrive at the same by ways of their own.
        """
        user_i, user_j = (torch.searchsorted(self.offsets, token.contiguous(), right=True) for token in (i, j))
        seen = (user_i == user_j) & (j <= i) & (user_i < self.offsets.numel())
        return seen if self.alone_L is None else seen & (~self.alone_L[j] | (i == j))

    def positions(self, tokens: int) -> Tensor:
        """A token's place in its user's history: how many tokens before it it sees, int64 [tokens].

        Distances, places and rotations count by it, so that each of many candidates at the end of a history stands
        where it would stand alone. Meaningless in the padding.
        """
        place_L: Tensor = torch.ops.fbgemm.offsets_range(self.offsets[:-1].contiguous(), tokens)
        if self.alone_L is None:
            return place_L
        others_L = self.alone_L.long()
        before_L = others_L.cumsum(0) - others_L
        user_L = torch.searchsorted(self.offsets, torch.arange(tokens, device=self.offsets.device), right=True) - 1
        first_L = self.offsets[user_L.clamp(max=self.offsets.numel() - 2)].clamp(max=max(tokens - 1, 0))
        return place_L - (before_L - before_L[first_L]) if tokens else place_L
