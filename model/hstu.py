"""HSTU block: pointwise projection, spatial aggregation, pointwise transformation (HSTU paper, equations 1 to 3).

Shapes: L tokens · D width · H heads · E width of a query or key · F width of a value or gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import attention
from model.biases import BiasTables, Tokens
from model.config import ModelConfig

PROJECTION_STD = 0.02


class HSTUBlock(nn.Module):
    """x + f2(dropout(norm(A(x) V(x)) ⊙ U(x))), with U, V, Q, K = split(SiLU(f1(norm(x)))).

    The layer norms have no weights, f1 has no bias. The norm before f1 is that of the published code; equation (1)
    leaves it out.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        """Weights as the published code draws them."""
        super().__init__()
        self.cfg = cfg
        inner = cfg.heads * cfg.head_dim_v
        self.widths = [inner, inner, cfg.heads * cfg.head_dim_qk, cfg.heads * cfg.head_dim_qk]
        self.uvqk = nn.Linear(cfg.width, sum(self.widths), bias=False)
        self.output = nn.Linear(inner, cfg.width)
        self.biases = BiasTables(cfg.biases, cfg.heads)
        nn.init.normal_(self.uvqk.weight, std=PROJECTION_STD)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_LD: Tensor, tokens: Tokens) -> Tensor:
        """[L, D] → [L, D]."""
        cfg = self.cfg
        normed_LD = F.layer_norm(x_LD, x_LD.shape[1:], eps=cfg.norm_eps)
        u, v, q, k = torch.split(F.silu(self.uvqk(normed_LD)), self.widths, dim=1)
        gathered_LHF = attention(
            q.view(-1, cfg.heads, cfg.head_dim_qk),
            k.view(-1, cfg.heads, cfg.head_dim_qk),
            v.view(-1, cfg.heads, cfg.head_dim_v),
            tokens.offsets,
            self.biases(tokens),
            backend=cfg.attention.backend,
            kind=cfg.attention.kind,
            scale=cfg.head_dim_qk**-0.5 if cfg.attention.scale == "sqrt" else 1.0,
            normaliser_L=self._normaliser(tokens, x_LD.dtype),
        )
        gated = F.layer_norm(gathered_LHF.flatten(1), v.shape[1:], eps=cfg.norm_eps) * u
        update_LD: Tensor = self.output(F.dropout(gated, cfg.dropout, self.training))
        return x_LD + update_LD

    def _normaliser(self, tokens: Tokens, dtype: torch.dtype) -> Tensor | None:
        """The n of pointwise attention, [L].

        `length` counts the tokens up to the query, not the whole history: the latter would tell an early token how
        much is still to come, and would change all outputs whenever an event is appended.
        """
        if self.cfg.attention.kind == "softmax":
            return None
        if self.cfg.attention.normalise_by == "length":
            return (tokens.positions_L + 1).to(dtype)
        return torch.full_like(tokens.positions_L, self.cfg.max_history, dtype=dtype)


class HSTU(nn.Module):
    """A stack of blocks."""

    def __init__(self, cfg: ModelConfig) -> None:
        """`cfg.blocks` blocks."""
        super().__init__()
        self.blocks = nn.ModuleList(HSTUBlock(cfg) for _ in range(cfg.blocks))

    def forward(self, x_LD: Tensor, tokens: Tokens) -> Tensor:
        """[L, D] → [L, D]; tokens of a user see that user's earlier tokens only."""
        for block in self.blocks:
            x_LD = block(x_LD, tokens)
        return x_LD
