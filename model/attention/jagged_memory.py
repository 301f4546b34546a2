"""Where attention puts what it computes, a block of scores at a time.

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
        size: numbers that each can hold from the start; it grows where more are asked for.
    """

    device: torch.device
    size: int = 0
    buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Not initialised; what was taken by that name before is overwritten."""
        numbers, held = math.prod(shape), self.buffers.get((name, dtype))
        if held is None or held.numel() < numbers:
            held = torch.empty(max(numbers, self.size), dtype=dtype, device=self.device)
            self.buffers[name, dtype] = held
        return held[:numbers].view(shape)


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
