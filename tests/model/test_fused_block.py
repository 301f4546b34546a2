"""An HSTU block in one function against the same block by PyTorch's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model import fused_block
from model.biases import Tokens, describe_tokens
from model.config import AttentionConfig, BiasConfig, ModelConfig
from model.hstu import HSTUBlock
from model.kernels.build import library, without_kernels
from model.kernels.rows import _dropped
from model.layers import weighting_of

pytestmark = pytest.mark.skipif(library() is None, reason="needs a compiler")

LENGTHS, PADDING = [1, 0, 55, 110, 7], 9
TOKENS = sum(LENGTHS) + PADDING


def tokens_of(cfg: ModelConfig) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    times = 10**9 + torch.randint(0, 5000, (TOKENS,), generator=generator).cumsum(0)
    return describe_tokens(
        cfg.biases,
        torch.tensor([0, *LENGTHS]).cumsum(0),
        times,
        times + 60,
        torch.randint(-1, 400, (TOKENS,), generator=generator),
        torch.randint(0, 3, (TOKENS,), generator=generator),
    )


def block_of(**changes: Any) -> HSTUBlock:
    torch.manual_seed(0)
    sizes = {"width": 52, "heads": 2, "head_dim_qk": 25, "head_dim_v": 30, "dropout": 0.0, "max_history": 120}
    block = HSTUBlock(ModelConfig(**{**sizes, **changes}))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block


def run(block: HSTUBlock) -> dict[str, Tensor]:
    """Output and gradients; in the padding neither means anything."""
    generator = torch.Generator().manual_seed(2)
    x_LD = torch.randn(TOKENS, block.cfg.width, generator=generator).requires_grad_()
    weight_LD = torch.randn(TOKENS, block.cfg.width, generator=generator)
    weight_LD[-PADDING:] = 0
    block.zero_grad()
    out_LD = block(x_LD, tokens_of(block.cfg))
    out_LD.backward(weight_LD)
    assert x_LD.grad is not None
    found = {"out": out_LD.detach()[:-PADDING], "x": x_LD.grad[:-PADDING]}
    return found | {
        name: parameter.grad.clone() for name, parameter in block.named_parameters() if parameter.grad is not None
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softmax": {"attention": AttentionConfig(kind="softmax", scale="sqrt")},
    "length": {"attention": AttentionConfig(normalise_by="length")},
    "recompute": {"recompute": True},
    "recompute, softmax": {"recompute": True, "attention": AttentionConfig(kind="softmax")},
    "residual_scale": {"residual_scale": True},
    "no biases": {"biases": BiasConfig(alibi=False, time=False, duration=False, organic=False)},
    "position": {"biases": BiasConfig(alibi=False, position=True, position_buckets=20)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_block_by_operators(name: str) -> None:
    block = block_of(**OPTIONS[name])
    tokens = tokens_of(block.cfg)
    weighting = weighting_of(block.cfg, block.normaliser(tokens.positions_L, torch.float32), training=True)
    assert fused_block.serves(block.cfg, torch.zeros(1), tokens, weighting)
    found = run(block)
    with without_kernels():
        expected = run(block)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        difference = (found[key] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert difference < 5e-6, (key, difference)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_dropped_is_dropped_in_the_backward_too(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against operators that are given the kernel's draws."""
    block = block_of(dropout=0.4, recompute=recompute)
    torch.manual_seed(5)
    found = run(block)
    torch.manual_seed(5)
    drawn = fused_block.Drawn.draw(0.4, training=True)
    kept = _dropped(torch.ones(TOKENS, 60), drawn)
    monkeypatch.setattr("model.hstu.F.dropout", lambda x, share, training=True: x * kept)
    other = block_of(dropout=0.4)
    with without_kernels():
        expected = run(other)
    for key, value in expected.items():
        assert (found[key] - value).abs().max() / value.abs().max() < 5e-6, key


def test_keeps_six_numbers_a_token_and_column_and_with_recompute_two() -> None:
    for recompute, numbers in ((False, 6), (True, 2)):
        block = block_of(width=32, heads=1, head_dim_qk=32, head_dim_v=32, recompute=recompute)
        kept: dict[int, int] = {}

        def pack(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
            return x

        tokens = tokens_of(block.cfg)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            block(torch.randn(TOKENS, 32, requires_grad=True), tokens)
        large = [size for size in kept.values() if size >= TOKENS * 32]
        assert sum(large) == numbers * 32 * TOKENS


def test_options_that_it_lacks_are_left_to_operators() -> None:
    tokens = tokens_of(ModelConfig())
    for changes in ({"qk_norm": True}, {"gate": False}, {"pooled_norm": False}):
        block = block_of(**changes)
        weighting = weighting_of(block.cfg, block.normaliser(tokens.positions_L, torch.float32), training=False)
        assert not fused_block.serves(block.cfg, torch.zeros(1), tokens, weighting)
        run(block)
