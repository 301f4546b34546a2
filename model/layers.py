"""What blocks of every architecture have in common.

Shapes: L tokens · H heads · E width of a query or key · F width of a value · I width of all heads side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import attention
from model.attention.dropout import Dropout
from model.attention.weighting import Weighting
from model.biases import ScoreBiases, Tokens
from model.config import ModelConfig
from model.kernels.rows import unit
from model.products import Linear, linear


@dataclass(frozen=True)
class Opened:
    """A block up to its attention, of each token for itself.

    Args:
        q_LHE, k_LHE, v_LHF: what attention is given.
        rest: what else the block's second half asks for, each [L, …].
    """

    q_LHE: Tensor
    k_LHE: Tensor
    v_LHF: Tensor
    rest: tuple[Tensor, ...] = ()

    def rows(self, rows_l: Tensor) -> Opened:
        """Of some tokens alone."""
        q, k, v, *rest = (part.index_select(0, rows_l) for part in (self.q_LHE, self.k_LHE, self.v_LHF, *self.rest))
        return Opened(q, k, v, tuple(rest))


class QueryKeyNorm(nn.Module):
    """Each head's query and key over their root mean square; the query then times a weight per head and column.

    One weight serves both, since a score knows nothing but their product.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        """All weights one."""
        super().__init__()
        self.eps = cfg.norm_eps
        # Flat, so that optimizers take it for the vector that it is: no weight decay, no orthogonalisation.
        self.weight_I = nn.Parameter(torch.ones(cfg.heads * cfg.head_dim_qk))

    def forward(self, q_LHE: Tensor, k_LHE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query over its root mean square, the same times the weight, the key over its root mean square."""
        shape = q_LHE.shape[2:]
        normed_LHE = F.rms_norm(q_LHE, shape, eps=self.eps)
        weighted_LHE = normed_LHE * self.weight_I.view(q_LHE.shape[1:])
        # Under autocast the weight is wider than what it multiplies; queries and keys must be of one dtype.
        return normed_LHE, weighted_LHE.to(normed_LHE.dtype), F.rms_norm(k_LHE, shape, eps=self.eps)


class ScaledLinear(Linear):
    """A linear layer at the end of a branch, its result times a learned number where the configuration asks for one.

    The number begins at 1/√(2 · blocks): the sum of all branches then begins about as large as one branch alone,
    however many blocks there are.
    """

    def __init__(self, inputs: int, cfg: ModelConfig, *, bias: bool = True) -> None:
        """From `inputs` columns to the width of the residual stream."""
        super().__init__(inputs, cfg.width, bias=bias)
        self.scale_1 = nn.Parameter(torch.tensor([(2.0 * cfg.blocks) ** -0.5])) if cfg.residual_scale else None

    def forward(self, input: Tensor) -> Tensor:
        """[L, inputs] → [L, D]."""
        if self.scale_1 is None:
            return super().forward(input)
        return linear(input, *self.scaled())

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they are applied.

        The number is on them, not on the result, which would have to be kept for the number's gradient.
        """
        if self.scale_1 is None:
            return self.weight, self.bias
        return self.weight * self.scale_1, None if self.bias is None else self.bias * self.scale_1


def normalised(x_LD: Tensor) -> Tensor:
    """An encoder's outputs [L, D] as heads are given them: float32, of length 1."""
    return unit(x_LD.float(), 1e-6)


def score_scale(cfg: ModelConfig) -> float:
    """What q·k is multiplied by."""
    return cfg.head_dim_qk**-0.5 if cfg.attention.scale == "sqrt" else 1.0


def gather(
    cfg: ModelConfig,
    q_LHE: Tensor,
    k_LHE: Tensor,
    v_LHF: Tensor,
    tokens: Tokens,
    biases: ScoreBiases,
    normaliser_L: Tensor | None,
    *,
    training: bool,
) -> Tensor:
    """Attention as it is configured, [L, H, F]; what is dropped follows from torch's CPU generator."""
    weighting = weighting_of(cfg, normaliser_L, training=training)
    return attention(
        q_LHE,
        k_LHE,
        v_LHF,
        tokens.mask,
        biases,
        backend=cfg.attention.backend,
        kind=weighting.kind,
        scale=weighting.scale,
        normaliser_L=weighting.normaliser_L,
        soft_cap=weighting.soft_cap,
        dropout=weighting.dropout,
    )


def weighting_of(cfg: ModelConfig, normaliser_L: Tensor | None, *, training: bool) -> Weighting:
    """How scores become weights; what is dropped follows from torch's CPU generator."""
    options = cfg.attention
    dropout = None
    if training and options.dropout > 0:
        dropout = Dropout(options.dropout, int(torch.randint(2**31 - 1, ())))
    return Weighting(options.kind, score_scale(cfg), normaliser_L, options.soft_cap, dropout)
