"""User-local causal attention over flat tokens: one signature, several backends.

Shapes: B users · L tokens (with tail padding) · H heads · E width of a query or key · F width of a value.
"""

from __future__ import annotations

from torch import Tensor

from model.attention import dense, jagged
from model.biases import ScoreBiases

BACKENDS = {"dense": dense.attend, "jagged": jagged.attend}


def attention(
    q_LHE: Tensor,
    k_LHE: Tensor,
    v_LHF: Tensor,
    offsets: Tensor,
    biases: ScoreBiases,
    *,
    backend: str,
    kind: str,
    scale: float,
    normaliser_L: Tensor | None,
) -> Tensor:
    """Spatial aggregation of HSTU (equation 2), or softmax attention, within each user.

    Token i of a user gathers from the tokens j ≤ i of the same user, itself included:
    `Σ_j φ(scale · q_i·k_j + bias_ij) v_j`, where φ is the softmax over j, or the pointwise SiLU, whose sum is
    then divided by `normaliser_L[i]`.

    Args:
        q_LHE, k_LHE, v_LHF: floating, all of one dtype; need not be contiguous.
        offsets: int64 [B+1], ascending from 0; user b owns the tokens offsets[b] … offsets[b+1]-1.
        biases: what is added to the scores.
        backend: `jagged` or `dense`.
        kind: `silu` or `softmax`.
        scale: what q·k is multiplied by.
        normaliser_L: positive, for `silu`; None for `softmax`.

    Returns:
        [L, H, F]; rows from offsets[-1] on are zero.
    """
    assert (normaliser_L is None) == (kind == "softmax"), "silu is divided by a normaliser, softmax is not"
    return BACKENDS[backend](q_LHE, k_LHE, v_LHF, offsets, biases, kind, scale, normaliser_L)
