"""Operations of a training step, by hand: what its matrix products must do, padding and recomputation apart.

A product of [m, k] and [k, n] counts 2 m k n. What has weights or a gradient on both sides costs three times its
forward; attention has two products forward and four backward, over the pairs that the causal mask leaves. Look-ups of
embeddings, norms, activations, biases and optimizers are no products and count nothing.

L tokens, without padding · D width · H heads · E, F widths of a head's queries and values · T tokens with a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ModelConfig, Vocabulary


@dataclass(frozen=True)
class Work:
    """What a step is made of, summed over as many steps as one likes.

    Attributes:
        tokens: real ones.
        pairs: Σ n (n + 1) / 2 over users' lengths n.
        targets: tokens with a target.
        candidates: items that targets are held against, Σ over targets, with `output.kind=items`.
    """

    tokens: int
    pairs: int
    targets: int
    candidates: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], targets: int, candidates_each: int = 0) -> Work:
        """Of users with so many tokens."""
        pairs = sum(n * (n + 1) // 2 for n in lengths)
        return cls(sum(lengths), pairs, targets, targets * candidates_each)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.targets + other.targets,
            self.candidates + other.candidates,
        )


@dataclass(frozen=True)
class Operations:
    """By part. Those inside the blocks run in the model's precision, those of heads always in float32."""

    projections: float
    attention: float
    heads: float

    @property
    def in_blocks(self) -> float:
        """What `model.precision` decides of."""
        return self.projections + self.attention

    @property
    def total(self) -> float:
        """All."""
        return self.in_blocks + self.heads


def operations(cfg: ModelConfig, vocabulary: Vocabulary, work: Work) -> Operations:
    """Forward and backward of an HSTU."""
    assert cfg.architecture == "hstu", cfg.architecture
    inner_qk, inner_v = cfg.heads * cfg.head_dim_qk, cfg.heads * cfg.head_dim_v
    columns = 2 * inner_qk + (2 if cfg.gate else 1) * inner_v
    projections = 3 * 2.0 * work.tokens * cfg.blocks * cfg.width * (columns + inner_v)
    attention = 3 * 2.0 * work.pairs * cfg.blocks * (inner_qk + inner_v)
    if cfg.output.kind == "codes":
        heads = 3 * 2.0 * work.targets * cfg.width * vocabulary.levels * vocabulary.codes
    else:
        heads = 3 * 2.0 * work.candidates * cfg.width
    return Operations(projections, attention, heads)


def product_seconds(counted: Operations, rate: float, float32_rate: float) -> float:
    """Seconds that the products alone take at the machine's measured rates.

    Args:
        rate: operations a second of a product in the model's precision.
        float32_rate: the same in float32.
    """
    return counted.in_blocks / rate + counted.heads / float32_rate
