"""The baselines: SASRec and Transformer++, between the same embeddings and heads as HSTU.

Both are pre-norm and causal, with softmax attention over √E. SASRec knows where a token stands by a learned vector,
Transformer++ by turning queries and keys (RoPE); the former has layer norms, biases and two matrices with a ReLU or
GELU between them, the latter RMS norms, no biases and SwiGLU.

Shapes: L tokens · D width · H heads · E width of a query or key · F width of a value · K = E / 2 pairs of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.biases import ScoreBiases, Tokens
from model.config import ModelConfig
from model.kernels.rows import dropout
from model.layers import Opened, QueryKeyNorm, ScaledLinear, gather
from model.products import Linear

PLACE_STD = 0.02


class LearnedPlaces(nn.Module):
    """A learned vector for each place in a history, counted from its first event."""

    def __init__(self, cfg: ModelConfig) -> None:
        """A row for each of `cfg.max_places` places."""
        super().__init__()
        self.weight_PD = nn.Parameter(torch.randn(cfg.max_places, cfg.width) * PLACE_STD)

    def forward(self, tokens: Tokens) -> Tensor:
        """[L, D]; what a token of the tail padding gets means nothing, like its place."""
        return self.at(tokens.positions_L)

    def at(self, positions_L: Tensor) -> Tensor:
        """[L, D] of places; those beyond the last row have the last."""
        return F.embedding(positions_L.clamp(0, self.weight_PD.shape[0] - 1), self.weight_PD)


class Rotation:
    """Turns the column pair (k, k + K) of a token at place p by the angle p · base^(-k / K).

    The product of a turned query and a turned key depends on places only through their difference.
    """

    def __init__(self, positions_L: Tensor, width: int, base: float, dtype: torch.dtype) -> None:
        """Angles for queries and keys of `width` columns; made in float32 at least, whatever is turned by them."""
        pairs = width // 2
        fine = torch.promote_types(dtype, torch.float32)
        speed_K = base ** (-torch.arange(pairs, device=positions_L.device, dtype=fine) / pairs)
        angle_L1K = positions_L.to(fine)[:, None, None] * speed_K
        self.cos_L1K, self.sin_L1K = angle_L1K.cos().to(dtype), angle_L1K.sin().to(dtype)

    def turn(self, x_LHE: Tensor) -> Tensor:
        """[L, H, E] → [L, H, E]."""
        a_LHK, b_LHK = x_LHE.chunk(2, dim=2)
        turned_LHE = torch.cat(
            (a_LHK * self.cos_L1K - b_LHK * self.sin_L1K, b_LHK * self.cos_L1K + a_LHK * self.sin_L1K), dim=2
        )
        return turned_LHE.to(x_LHE.dtype)  # under autocast x is narrower than the angles, and values stay as it is


class FeedForward(nn.Module):
    """SASRec's: two matrices, ReLU or GELU between them."""

    def __init__(self, cfg: ModelConfig) -> None:
        """To `cfg.transformer.ffn_width` and back."""
        super().__init__()
        inner = cfg.transformer.ffn_width or 4 * cfg.width
        self.inner = Linear(cfg.width, inner)
        self.output = ScaledLinear(inner, cfg)
        self.activate: Callable[[Tensor], Tensor] = F.gelu if cfg.transformer.activation == "gelu" else F.relu

    def forward(self, x_LD: Tensor) -> Tensor:
        """[L, D] → [L, D]."""
        update_LD: Tensor = self.output(self.activate(self.inner(x_LD)))
        return update_LD


class SwiGLU(nn.Module):
    """Transformer++'s: SiLU(x A) ⊙ (x B), times a third matrix."""

    def __init__(self, cfg: ModelConfig) -> None:
        """To `cfg.transformer.ffn_width` twice and back."""
        super().__init__()
        inner = cfg.transformer.ffn_width or -(-8 * cfg.width // 3)
        self.inner = Linear(cfg.width, 2 * inner, bias=False)
        self.output = ScaledLinear(inner, cfg, bias=False)

    def forward(self, x_LD: Tensor) -> Tensor:
        """[L, D] → [L, D]."""
        gate, value = self.inner(x_LD).chunk(2, dim=1)
        update_LD: Tensor = self.output(F.silu(gate) * value)
        return update_LD


def _norm(cfg: ModelConfig) -> nn.Module:
    kind = nn.LayerNorm if cfg.architecture == "sasrec" else nn.RMSNorm
    return kind(cfg.width, eps=cfg.norm_eps)


class TransformerBlock(nn.Module):
    """x + dropout(attention(norm(x))), then y + dropout(feed-forward(norm(y)))."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Matrices by Xavier's rule, biases zero."""
        super().__init__()
        self.cfg = cfg
        is_sasrec = cfg.architecture == "sasrec"
        values = cfg.heads * cfg.head_dim_v
        self.widths = [cfg.heads * cfg.head_dim_qk, cfg.heads * cfg.head_dim_qk, values]
        self.attention_norm, self.feed_norm = _norm(cfg), _norm(cfg)
        self.qkv = Linear(cfg.width, sum(self.widths), bias=is_sasrec)
        self.qk_norm = QueryKeyNorm(cfg) if cfg.qk_norm else None
        self.output = ScaledLinear(values, cfg, bias=is_sasrec)
        self.feed = FeedForward(cfg) if is_sasrec else SwiGLU(cfg)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x_LD: Tensor, tokens: Tokens, rotation: Rotation | None) -> Tensor:
        """[L, D] → [L, D]."""
        opened = self.open(x_LD, rotation)
        biases = self.score_biases(tokens)
        q_LHE, k_LHE, v_LHF = opened.q_LHE, opened.k_LHE, opened.v_LHF
        gathered_LHF = gather(self.cfg, q_LHE, k_LHE, v_LHF, tokens, biases, None, training=self.training)
        return self.close(x_LD, gathered_LHF, opened)

    def open(self, x_LD: Tensor, rotation: Rotation | None) -> Opened:
        """Up to attention, which may find keys and values of other tokens elsewhere."""
        projected = self.qkv(self.attention_norm(x_LD))
        q_LHE, k_LHE, v_LHF = (
            part.unflatten(1, (self.cfg.heads, -1)) for part in torch.split(projected, self.widths, dim=1)
        )
        if self.qk_norm is not None:
            _, q_LHE, k_LHE = self.qk_norm(q_LHE, k_LHE)
        if rotation is not None:
            q_LHE, k_LHE = rotation.turn(q_LHE), rotation.turn(k_LHE)
        return Opened(q_LHE, k_LHE, v_LHF)

    def close(self, x_LD: Tensor, gathered_LHF: Tensor, opened: Opened) -> Tensor:  # noqa: ARG002
        """From what attention gathered to the block's output [L, D]."""
        x_LD = x_LD + self._drop(self.output(gathered_LHF.flatten(1)))
        return x_LD + self._drop(self.feed(self.feed_norm(x_LD)))

    def score_biases(self, tokens: Tokens) -> ScoreBiases:  # noqa: ARG002
        """None of them."""
        return ScoreBiases()

    def normaliser(self, positions_L: Tensor, dtype: torch.dtype) -> Tensor | None:  # noqa: ARG002
        """None: softmax normalises by itself."""
        return None

    def _drop(self, update_LD: Tensor) -> Tensor:
        return dropout(update_LD, self.cfg.dropout, training=self.training)


class Transformer(nn.Module):
    """A stack of blocks and a norm, which pre-norm blocks need at their end."""

    def __init__(self, cfg: ModelConfig) -> None:
        """`cfg.blocks` blocks."""
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.blocks))
        self.norm = _norm(cfg)

    def forward(self, x_LD: Tensor, tokens: Tokens) -> Tensor:
        """[L, D] → [L, D]; tokens of a user see that user's earlier tokens only."""
        rotation = self.rotation(tokens.positions_L, x_LD.dtype)
        for block in self.blocks:
            x_LD = block(x_LD, tokens, rotation)
        return self.end(x_LD)

    def rotation(self, positions_L: Tensor, dtype: torch.dtype) -> Rotation | None:
        """How queries and keys at these places are turned; None where they are not."""
        cfg = self.cfg
        if cfg.architecture != "transformer++":
            return None
        return Rotation(positions_L, cfg.head_dim_qk, cfg.transformer.rope_base, dtype)

    def end(self, x_LD: Tensor) -> Tensor:
        """What comes after the blocks: the norm."""
        normed_LD: Tensor = self.norm(x_LD)
        return normed_LD
