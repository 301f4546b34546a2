"""User-local causal attention over flat tokens: one signature, several backends.

Shapes: B users · L tokens (with tail padding) · H heads · E width of a query or key · F width of a value.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from common.spans import ATTENTION, span
from model.attention import dense, fused, jagged
from model.attention.dropout import Dropout
from model.attention.weighting import Weighting
from model.biases import ScoreBiases
from model.mask import Mask


class Backend(Protocol):
    """One way of computing attention; arguments as in `attention`."""

    def __call__(
        self,
        q_LHE: Tensor,
        k_LHE: Tensor,
        v_LHF: Tensor,
        mask: Mask,
        biases: ScoreBiases,
        weighting: Weighting,
    ) -> Tensor:
        """[L, H, F]."""


def _backend(name: str) -> Backend:
    # What needs a compiler of its own is imported by those who ask for it.
    if name == "flex":
        from model.attention.flex import attend as flex

        return flex
    if name == "triton":
        from model.attention.triton_silu import attend as triton

        return triton
    return {"dense": dense.attend, "jagged": _jagged}[name]


def _jagged(
    q_LHE: Tensor, k_LHE: Tensor, v_LHF: Tensor, mask: Mask, biases: ScoreBiases, weighting: Weighting
) -> Tensor:
    """By a kernel of our own where there is one that does, by PyTorch's operators elsewhere."""
    attend = fused.attend if fused.serves(q_LHE, mask, weighting) else jagged.attend
    return attend(q_LHE, k_LHE, v_LHF, mask, biases, weighting)


def attention(
    q_LHE: Tensor,
    k_LHE: Tensor,
    v_LHF: Tensor,
    mask: Mask,
    biases: ScoreBiases,
    *,
    backend: str,
    kind: str,
    scale: float,
    normaliser_L: Tensor | None,
    soft_cap: float = 0.0,
    dropout: Dropout | None = None,
) -> Tensor:
    """Spatial aggregation of HSTU (equation 2), or softmax attention, within each user.

    A token i gathers from the tokens j that it sees: `Σ_j φ(s_ij) v_j` with `s_ij = scale · q_i·k_j + bias_ij`, where φ
    is the softmax over j, or the pointwise SiLU, whose sum is then divided by `normaliser_L[i]`.

    Args:
        q_LHE, k_LHE, v_LHF: floating, all of one dtype; need not be contiguous. From bfloat16, scores and softmax
            are made in float32.
        mask: who sees whom.
        biases: what is added to the scores; tables of any floating dtype.
        backend: `jagged`, `dense`, `flex` (softmax only) or `triton` (silu only).
        kind: `silu` or `softmax`.
        scale: what q·k is multiplied by.
        normaliser_L: positive, for `silu`; None for `softmax`.
        soft_cap: if positive, scores pass through `soft_cap · tanh(s / soft_cap)`, biases included.
        dropout: of the weights φ(s).

    Returns:
        [L, H, F] of the dtype of the inputs; rows of the tail padding are zero.
    """
    assert (normaliser_L is None) == (kind == "softmax"), "silu is divided by a normaliser, softmax is not"
    assert soft_cap >= 0, soft_cap
    weighting = Weighting(kind, scale, normaliser_L, soft_cap, dropout)
    with span(ATTENTION):
        return _backend(backend)(q_LHE, k_LHE, v_LHF, mask, biases, weighting)
