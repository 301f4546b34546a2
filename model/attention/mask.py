"""Who sees whom.

Shapes: B users · L tokens (with tail padding).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """User-local and causal: a token sees the tokens of its own user up to itself.

    Args:
        offsets: int64 [B+1], ascending from 0; user b owns the tokens offsets[b] … offsets[b+1]-1, the tokens from
            offsets[-1] on are padding, which sees nothing and is seen by nobody.
    """

    offsets: Tensor

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether query i sees key j: flat numbers of tokens, int64, broadcast against each other → bool.

        This is the definition; backends arrive at the same by ways of their own.
        """
        user_i, user_j = (torch.searchsorted(self.offsets, token.contiguous(), right=True) for token in (i, j))
        return (user_i == user_j) & (j <= i) & (user_i < self.offsets.numel())
