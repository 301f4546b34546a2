"""Inputs of attention to try: what backends are held against each other on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from model.attention import attention
from model.attention.dropout import Dropout
from model.biases import KeyBias, PositionBias, ScoreBiases, TimeBias, alibi_slopes
from model.mask import Mask

KINDS = ("silu", "softmax")


@dataclass
class Case:
    """Random inputs for given user lengths; every tensor that takes a gradient is in `leaves`.

    Numbers are drawn in float64 and rounded to `dtype`; tables are float32 at least, as a model holds them. `alone`:
    the share of tokens that are alone, in the padding too, or which ones are.
    """

    lengths: list[int]
    padding: int = 0
    alone: float | list[int] = 0.0
    heads: int = 2
    width_qk: int = 3
    width_v: int = 4
    kind: str = "silu"
    scale: float = 1.0
    alibi: bool = True
    time: bool = True
    duration: bool = True
    organic: bool = True
    positions: int = 6
    soft_cap: float = 0.0
    dropout: float = 0.0
    contiguous: bool = True
    dtype: torch.dtype = torch.float64
    seed: int = 0
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        tokens, heads = sum(self.lengths) + self.padding, self.heads
        wide = torch.promote_types(self.dtype, torch.float32)
        self.mask = Mask(torch.tensor([0, *self.lengths]).cumsum(0), self.alone_L(tokens))
        self.q, self.k = (self.leaf(name, tokens, heads, self.width_qk) for name in "qk")
        self.v = self.leaf("v", tokens, heads, self.width_v)
        # Few distinct steps: ties in time are frequent. In the padding time stands at zero.
        steps = self.integers(4, tokens) * self.integers(50_000, tokens) // 3
        times = 1_600_000_000 + steps.cumsum(0)
        times[sum(self.lengths) :] = 0
        time = position = None
        if self.time:
            time = TimeBias(self.leaf("time", heads, 64, dtype=wide), times + self.integers(3, tokens) * 1000, times)
        by_key = []
        if self.duration:
            by_key.append(KeyBias(self.leaf("duration", heads, 5, dtype=wide), self.integers(5, tokens)))
        if self.organic:
            by_key.append(KeyBias(self.leaf("organic", heads, 3, dtype=wide), self.integers(3, tokens)))
        if self.positions:
            position = PositionBias(self.leaf("position", heads, self.positions, dtype=wide))
        self.biases = ScoreBiases(alibi_slopes(heads) if self.alibi else None, time, tuple(by_key), position)
        self.normaliser = None if self.kind == "softmax" else 1.0 + self.integers(9, tokens).to(wide)
        self.weight = self.normal(tokens, heads, self.width_v)

    def alone_L(self, tokens: int) -> Tensor | None:
        if self.alone == 0.0:
            return None
        if isinstance(self.alone, list):
            return torch.isin(torch.arange(tokens), torch.tensor(self.alone))
        # A generator of its own: all else is as it is without.
        return torch.rand(tokens, generator=torch.Generator().manual_seed(self.seed)) < self.alone

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)

    def integers(self, below: int, count: int) -> Tensor:
        return torch.randint(0, below, (count,), generator=self.generator)

    def leaf(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        self.leaves[name] = self.normal(*shape, dtype=dtype).requires_grad_()
        return self.leaves[name]

    def in_float64(self) -> Case:
        """The same numbers, as they were rounded."""
        other = dataclasses.replace(self, dtype=torch.float64, leaves={})
        with torch.no_grad():
            for name, leaf in other.leaves.items():
                leaf.copy_(self.leaves[name])
            other.weight.copy_(self.weight)
        return other

    def nudged(self, relative: float, seed: int) -> Case:
        """In float64, with every number of q, k, v and of the gradient that comes in that much larger or smaller."""
        other, generator = self.in_float64(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for x in (*other.qkv(), other.weight):
                x *= 1 + relative * (2 * torch.randint(0, 2, x.shape, generator=generator) - 1)
        return other

    def forward(self, backend: str) -> Tensor:
        # As a projection leaves them: views of one wider tensor.
        q, k, v = (x if self.contiguous else torch.cat((x, x + 1), dim=2)[:, :, : x.shape[2]] for x in self.qkv())
        return attention(
            q,
            k,
            v,
            self.mask,
            self.biases,
            backend=backend,
            kind=self.kind,
            scale=self.scale,
            normaliser_L=self.normaliser,
            soft_cap=self.soft_cap,
            dropout=Dropout(self.dropout, self.seed) if self.dropout else None,
        )

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    def forward_and_gradients(self, backend: str) -> dict[str, Tensor]:
        out = self.forward(backend)
        # The padding is weighted too: it must come out as zero and hand back nothing.
        grads = torch.autograd.grad((out * self.weight).sum(), list(self.leaves.values()), materialize_grads=True)
        return {"out": out.detach(), **{f"d{name}": grad for name, grad in zip(self.leaves, grads, strict=True)}}


def worst_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Per tensor the largest difference, relative to the largest magnitude.

    Or to one, the size of the numbers drawn, where all is smaller: some results are sums that cancel to nought.
    """
    assert found.keys() == expected.keys()
    errors = {}
    for name, want in expected.items():
        assert found[name].shape == want.shape, name
        largest = max(want.abs().amax().item(), 1.0) if want.numel() else 1.0
        errors[name] = (found[name] - want).abs().amax().item() / largest if want.numel() else 0.0
    return errors


def cases(**fixed: Any) -> st.SearchStrategy[Case]:
    """Small batches of all kinds: empty users, users of one event, one head, odd widths, options on and off."""
    drawn: dict[str, st.SearchStrategy[Any]] = {
        "lengths": st.lists(st.integers(0, 20), max_size=9),
        "padding": st.integers(0, 4),
        "alone": st.sampled_from((0.0, 0.5, 0.9, 1.0)),
        "heads": st.integers(1, 3),
        "width_qk": st.integers(1, 9),
        "width_v": st.integers(1, 9),
        "kind": st.sampled_from(KINDS),
        "scale": st.sampled_from((1.0, 0.3)),
        "alibi": st.booleans(),
        "time": st.booleans(),
        "duration": st.booleans(),
        "organic": st.booleans(),
        "positions": st.sampled_from((0, 1, 7, 40)),
        "soft_cap": st.sampled_from((0.0, 1.5)),
        "dropout": st.sampled_from((0.0, 0.4)),
        "contiguous": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
    drawn |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(Case, **drawn).filter(lambda case: case.q.shape[0] > 0)
