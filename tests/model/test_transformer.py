from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from model.biases import Tokens, describe_tokens
from model.config import AttentionConfig, BiasConfig, ModelConfig, TransformerConfig
from model.transformer import LearnedPlaces, Rotation, Transformer, TransformerBlock

NO_BIASES = BiasConfig(alibi=False, time=False, duration=False, organic=False)
BASELINES = ("sasrec", "transformer++")


def configure(architecture: str, backend: str = "jagged", **changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "width": 6,
        "heads": 2,
        "head_dim_qk": 4,
        "head_dim_v": 5,
        "max_history": 20,
        "biases": NO_BIASES,
        "attention": AttentionConfig(kind="softmax", scale="sqrt", backend=backend),
    }
    return ModelConfig(architecture=architecture, **{**settings, **changes})


def make_tokens(lengths: list[int], padding: int = 0) -> Tokens:
    tokens = sum(lengths) + padding
    zeros = torch.zeros(tokens, dtype=torch.int64)
    return describe_tokens(NO_BIASES, torch.tensor([0, *lengths]).cumsum(0), zeros, zeros, zeros, zeros)


def make(cfg: ModelConfig, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(cfg).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def draw(tokens: int, width: int = 6) -> Tensor:
    return torch.randn(tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_sasrec_block_is_its_equations(activation: str) -> None:
    cfg = configure("sasrec", transformer=TransformerConfig(activation=activation))
    block = make(cfg).blocks[0]
    x = draw(5)
    expected = x + plain_attention(block, normed(block.attention_norm, x))
    inner = getattr(F, activation)(linear(block.feed.inner, normed(block.feed_norm, expected)))
    assert inner.shape == (5, 24)
    expected = expected + linear(block.feed.output, inner)
    torch.testing.assert_close(block(x, make_tokens([5]), None), expected)


def normed(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def plain_attention(block: TransformerBlock, x: Tensor, turns: dict[tuple[int, int], Tensor] | None = None) -> Tensor:
    """Head by head, query by query, for heads of 4 and 5 columns; `turns` are 4 × 4 matrices by query and key."""
    q, k, v = linear(block.qkv, x).split([8, 8, 10], dim=1)
    gathered = torch.zeros(len(x), 10, dtype=x.dtype)
    for head in range(2):
        qh, kh, vh = q[:, 4 * head : 4 * head + 4], k[:, 4 * head : 4 * head + 4], v[:, 5 * head : 5 * head + 5]
        for i in range(len(x)):
            turned = [qh[i] if turns is None else qh[i] @ turns[i, j] for j in range(i + 1)]
            scores = torch.stack([turned[j] @ kh[j] for j in range(i + 1)]) / 2
            gathered[i, 5 * head : 5 * head + 5] = scores.softmax(0) @ vh[: i + 1]
    return linear(block.output, gathered)


def test_a_transformer_plus_plus_block_is_its_equations() -> None:
    """Rotations as matrices: the pair (k, k + 2) of columns turns by (i - j) · base^(-k / 2)."""
    cfg = configure("transformer++", transformer=TransformerConfig(rope_base=100.0))
    block = make(cfg).blocks[0]
    x, tokens = draw(5), make_tokens([5])

    def rms(norm: torch.nn.RMSNorm, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight

    turns = {}
    for i in range(5):
        for j in range(5):
            turn = torch.zeros(4, 4, dtype=torch.float64)
            for pair in range(2):
                angle = (i - j) * 100.0 ** (-pair / 2)
                turn[pair, pair] = turn[pair + 2, pair + 2] = math.cos(angle)
                turn[pair, pair + 2], turn[pair + 2, pair] = math.sin(angle), -math.sin(angle)
            turns[i, j] = turn
    expected = x + plain_attention(block, rms(block.attention_norm, x), turns)
    gate, value = linear(block.feed.inner, rms(block.feed_norm, expected)).split([16, 16], dim=1)
    expected = expected + linear(block.feed.output, F.silu(gate) * value)
    assert all(layer.bias is None for layer in block.modules() if isinstance(layer, torch.nn.Linear))
    rotation = Rotation(tokens.positions_L, 4, 100.0, torch.float64)
    torch.testing.assert_close(block(x, tokens, rotation), expected)


@given(
    places=st.tuples(*[st.integers(0, 5000)] * 2),
    shift=st.integers(0, 5000),
    pairs=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_turned_products_know_distances_alone(places: tuple[int, int], shift: int, pairs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 2 * pairs, dtype=torch.float64, generator=generator).unbind()

    def product(i: int, j: int) -> Tensor:
        turned = [
            Rotation(torch.tensor([place]), 2 * pairs, 10_000.0, torch.float64).turn(x) for x, place in ((q, i), (k, j))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(places[0] + shift, places[1] + shift), product(*places), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(product(places[0], places[0]), (q * k).sum())


def test_angles_of_far_places_are_fine_in_half_precision() -> None:
    places = torch.tensor([8191])
    rough, fine = (Rotation(places, 8, 10_000.0, dtype) for dtype in (torch.bfloat16, torch.float64))
    assert rough.cos_L1K.dtype == torch.bfloat16
    torch.testing.assert_close(rough.cos_L1K.double(), fine.cos_L1K, atol=0.005, rtol=0)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("architecture", BASELINES)
def test_later_events_and_other_users_change_nothing(architecture: str, qk_norm: bool) -> None:
    model = make(configure(architecture, qk_norm=qk_norm))
    x = draw(14)
    alone, appended = model(x, make_tokens([9], 5)), model(x, make_tokens([12], 2))
    torch.testing.assert_close(alone[:9], appended[:9])
    behind = model(torch.cat((draw(3, 6) * 7, x)), make_tokens([3, 0, 9], 5))
    torch.testing.assert_close(alone[:9], behind[3:12])
    earlier = x.clone()
    earlier[2, 0] += 1
    changed = (model(earlier, make_tokens([9], 5))[:9] != alone[:9]).any(dim=1)
    assert changed.tolist() == [False, False, *[True] * 7], "but earlier events count"


@pytest.mark.parametrize("architecture", BASELINES)
def test_backends_agree_in_every_parameter(architecture: str) -> None:
    found = []
    for backend in ("dense", "jagged"):
        model = make(configure(architecture, backend, qk_norm=True, residual_scale=True))
        out = model(draw(30), make_tokens([3, 0, 20, 1], 6))[:24]
        out.square().mul(torch.arange(24.0)[:, None]).sum().backward()
        found.append({"out": out.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    for name, want in found[0].items():
        torch.testing.assert_close(found[1][name], want, msg=name)


def test_learned_places_count_from_the_first_event() -> None:
    places = LearnedPlaces(configure("sasrec", max_history=4))
    got = places(make_tokens([3, 0, 6], 2))[:9]
    assert torch.equal(got, places.weight_PD[torch.tensor([0, 1, 2, 0, 1, 2, 3, 3, 3])])


def test_feed_forward_layers_have_alike_many_numbers() -> None:
    """Three matrices of 8/3 against two of 4."""
    counts = [
        sum(p.numel() for p in make(configure(name, width=96)).blocks[0].feed.parameters() if p.dim() == 2)
        for name in BASELINES
    ]
    assert counts == [2 * 4 * 96 * 96, 3 * 256 * 96]
    cfg = configure("transformer++", transformer=TransformerConfig(ffn_width=11))
    assert make(cfg).blocks[0].feed.output.in_features == 11


@pytest.mark.parametrize("architecture", BASELINES)
def test_both_branches_begin_at_their_share(architecture: str) -> None:
    model = Transformer(configure(architecture, residual_scale=True, blocks=8))
    scales = {name: p.item() for name, p in model.named_parameters() if name.endswith("scale_1")}
    assert len(scales) == 16
    assert set(scales.values()) == {0.25}


@pytest.mark.parametrize("architecture", BASELINES)
def test_dropout_in_training_alone(architecture: str) -> None:
    model = make(configure(architecture, dropout=0.5))
    x, tokens = draw(9), make_tokens([9])
    assert not torch.equal(model.train()(x, tokens), model(x, tokens))
    assert torch.equal(model.eval()(x, tokens), model(x, tokens))
