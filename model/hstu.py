"""HSTU block: pointwise projection, spatial aggregation, pointwise transformation (HSTU paper, equations 1 to 3).

Shapes: L tokens · D width · H heads · E width of a query or key · F width of a value or gate · I = H · F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import fused_block
from model.biases import BiasTables, ScoreBiases, Tokens
from model.config import ModelConfig
from model.layers import Opened, QueryKeyNorm, ScaledLinear, gather, weighting_of
from model.products import Linear
from model.recompute import Recomputation
from model.transformer import Rotation

PROJECTION_STD = 0.02


class HSTUBlock(nn.Module):
    """x + f2(dropout(norm(A(x) V(x)) ⊙ U(x))), with U, V, Q, K = split(SiLU(f1(norm(x)))).

    The layer norms have no weights, f1 has no bias. The norm before f1 is that of the published code; equation (1)
    leaves it out. Without `cfg.pooled_norm` the outer norm is left out, without `cfg.gate` ⊙ U(x). With `cfg.recompute`
    the backward is left the block's input and what attention gathered, and makes the rest again.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        """Weights as the published code draws them."""
        super().__init__()
        self.cfg = cfg
        inner = cfg.heads * cfg.head_dim_v
        self.widths = [inner if cfg.gate else 0, inner, cfg.heads * cfg.head_dim_qk, cfg.heads * cfg.head_dim_qk]
        self.uvqk = Linear(cfg.width, sum(self.widths), bias=False)
        self.output = ScaledLinear(inner, cfg)
        self.biases = BiasTables(cfg.biases, cfg.heads)
        self.qk_norm = QueryKeyNorm(cfg) if cfg.qk_norm else None
        nn.init.normal_(self.uvqk.weight, std=PROJECTION_STD)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_LD: Tensor, tokens: Tokens) -> Tensor:
        """[L, D] → [L, D]."""
        cfg = self.cfg
        weighting = weighting_of(cfg, self.normaliser(tokens.positions_L, x_LD.dtype), training=False)
        if (not self.training or cfg.attention.dropout == 0) and fused_block.serves(cfg, x_LD, tokens, weighting):
            weight_DI, bias_D = self.output.scaled()
            assert bias_D is not None
            return fused_block.block(
                x_LD,
                self.uvqk.weight,
                weight_DI,
                bias_D,
                cfg=cfg,
                tokens=tokens,
                biases=self.score_biases(tokens),
                weighting=weighting,
                training=self.training,
            )
        with Recomputation(cfg.recompute) as recomputation:
            projected = recomputation.stage(self._project, x_LD)
            q_LHE, k_LHE, v_LHF = self._queries_keys_values(projected.tensors)
            gathered_LHF = gather(
                cfg,
                q_LHE,
                k_LHE,
                v_LHF,
                tokens,
                self.score_biases(tokens),
                self.normaliser(tokens.positions_L, x_LD.dtype),
                training=self.training,
            )
            gathered_LI = gathered_LHF.flatten(1)
            gated = recomputation.stage(self._gate, gathered_LI, self._draw_kept(gathered_LI), projected)
            update_LD: Tensor = self.output(gated.tensors[-1])
        return x_LD + update_LD

    def open(self, x_LD: Tensor, rotation: Rotation | None) -> Opened:
        """Up to attention, for inference, which may find keys and values of other tokens elsewhere."""
        assert rotation is None, "places turn nothing in HSTU"
        projected = self._project(x_LD)
        return Opened(*self._queries_keys_values(projected), projected)

    def close(self, x_LD: Tensor, gathered_LHF: Tensor, opened: Opened) -> Tensor:
        """From what attention gathered to the block's output [L, D], for inference."""
        update_LD: Tensor = self.output(self._gate(gathered_LHF.flatten(1), None, opened.rest)[-1])
        return x_LD + update_LD

    def score_biases(self, tokens: Tokens) -> ScoreBiases:
        """What is added to the scores between these tokens."""
        biases: ScoreBiases = self.biases(tokens)
        return biases

    def _project(self, x_LD: Tensor) -> tuple[Tensor, ...]:
        """Equation 1 and what it passes through: norm(x), f1 of it, U V Q K side by side, normed queries and keys."""
        cfg = self.cfg
        normed_LD = F.layer_norm(x_LD, x_LD.shape[1:], eps=cfg.norm_eps)
        before = self.uvqk(normed_LD)
        uvqk = F.silu(before)
        if self.qk_norm is None:
            return normed_LD, before, uvqk
        _, _, q, k = self._heads(uvqk)
        return normed_LD, before, uvqk, *self.qk_norm(q, k)

    def _heads(self, uvqk: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u_LI, v_LHF, q_LHE, k_LHE, all views."""
        heads = self.cfg.heads
        u, v, q, k = torch.split(uvqk, self.widths, dim=1)
        return u, v.unflatten(1, (heads, -1)), q.unflatten(1, (heads, -1)), k.unflatten(1, (heads, -1))

    def _queries_keys_values(self, projected: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        _, v_LHF, q_LHE, k_LHE = self._heads(projected[2])
        if self.qk_norm is not None:
            q_LHE, k_LHE = projected[4:]
        return q_LHE, k_LHE, v_LHF

    def _draw_kept(self, gathered_LI: Tensor) -> Tensor | None:
        """What dropout keeps, bool [L, I]: drawn outside of the stage that is made again; None if it draws itself."""
        cfg = self.cfg
        if not (cfg.recompute and self.training and cfg.dropout > 0):
            return None
        # Through F.dropout, so that the same is dropped as without recomputation.
        return F.dropout(torch.ones_like(gathered_LI), cfg.dropout) > 0

    def _gate(self, gathered_LI: Tensor, kept_LI: Tensor | None, projected: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The argument of f2 in equation 3, last, and what it passes through."""
        cfg = self.cfg
        u_LI = self._heads(projected[2])[0]
        normed_LI = gathered_LI
        if cfg.pooled_norm:
            normed_LI = F.layer_norm(gathered_LI, gathered_LI.shape[1:], eps=cfg.norm_eps)
        gated_LI = normed_LI * u_LI if cfg.gate else normed_LI
        if kept_LI is None:
            return normed_LI, F.dropout(gated_LI, cfg.dropout, self.training)
        factor_LI = kept_LI.to(gated_LI.dtype).div_(1 - cfg.dropout)
        return normed_LI, factor_LI, gated_LI * factor_LI

    def normaliser(self, positions_L: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The n of pointwise attention, [L], for tokens at these places; None for softmax.

        `length` counts the tokens up to the query, not the whole history: the latter would tell an early token how
        much is still to come, and would change all outputs whenever an event is appended.
        """
        if self.cfg.attention.kind == "softmax":
            return None
        if self.cfg.attention.normalise_by == "length":
            return (positions_L + 1).to(dtype)
        return torch.full_like(positions_L, self.cfg.max_places, dtype=dtype)


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

    def rotation(self, positions_L: Tensor, dtype: torch.dtype) -> Rotation | None:  # noqa: ARG002
        """None: places turn nothing here."""
        return None

    def end(self, x_LD: Tensor) -> Tensor:
        """What comes after the blocks: nothing."""
        return x_LD
