"""Where jagged attention puts what it computes.

Shapes: H heads · G users of a group · m tokens of the group's longest user · E width of a query or key ·
F width of a value · T time buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Scratch:
    """Memory by name that all blocks of a call share: fresh memory is slower than the arithmetic.

    Args:
        size: numbers that each can hold.
    """

    size: int
    device: torch.device
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Not initialised; what was taken by that name before is overwritten."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(self.size, dtype=dtype, device=self.device)
        return self.buffers[name][: math.prod(shape)].view(shape)


@dataclass(frozen=True)
class Gradients:
    """Where the backward of a `Part` puts what it finds, of the same shapes; None where nothing is asked for.

    Args:
        q: written; to all else is added.
        k, v, key_bias: of the keys.
        table_HT: of the table of time, float64.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_bias: Tensor | None
    table_HT: Tensor | None
