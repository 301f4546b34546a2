"""From q·k to the weights of values: what the backends of attention are told besides tensors, mask and biases."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from model.attention.dropout import Dropout


@dataclass(frozen=True)
class Weighting:
    """Arguments of `model.attention.attention`, which says what they mean."""

    kind: str
    scale: float
    normaliser_L: Tensor | None
    soft_cap: float
    dropout: Dropout | None
