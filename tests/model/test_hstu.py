from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.biases import Tokens, describe_tokens
from model.config import AttentionConfig, BiasConfig, ModelConfig
from model.hstu import HSTU, HSTUBlock

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "residual_scale": {"residual_scale": True},
    "soft_cap": {"soft_cap": 0.7},
    "no gate": {"gate": False},
    "no pooled norm": {"pooled_norm": False},
    "position": {"biases": BiasConfig(alibi=False, position=True, position_buckets=4)},
    "all": {
        "qk_norm": True,
        "residual_scale": True,
        "soft_cap": 0.7,
        "biases": BiasConfig(position=True, position_buckets=40),
    },
}


def make_tokens(cfg: ModelConfig, lengths: list[int], padding: int) -> Tokens:
    tokens = sum(lengths) + padding
    generator = torch.Generator().manual_seed(1)
    times = 10**9 + torch.randint(0, 5000, (tokens,), generator=generator).cumsum(0)
    return describe_tokens(
        cfg.biases,
        torch.tensor([0, *lengths]).cumsum(0),
        times,
        times + 60,
        torch.randint(-1, 400, (tokens,), generator=generator),
        torch.randint(0, 3, (tokens,), generator=generator),
    )


def make(
    backend: str, kind: str, normalise_by: str = "max", blocks: int = 2, soft_cap: float = 0.0, **changes: Any
) -> tuple[HSTU, ModelConfig]:
    torch.manual_seed(0)
    attention = AttentionConfig(backend=backend, kind=kind, normalise_by=normalise_by, soft_cap=soft_cap, dropout=0.3)
    sizes = {"width": 6, "blocks": blocks, "heads": 2, "head_dim_qk": 3, "head_dim_v": 5, "max_history": 20}
    cfg = ModelConfig(**sizes, attention=attention, **changes)
    model = HSTU(cfg).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model, cfg


def test_block_is_equations_1_to_3() -> None:
    cfg = make("jagged", "silu", blocks=1)[1]
    cfg.biases = BiasConfig(alibi=False, time=False, duration=False, organic=False)
    block = HSTUBlock(cfg).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    f1 = F.silu(F.layer_norm(x, (6,), eps=1e-6) @ block.uvqk.weight.T)
    u, v, q, k = f1[:, :10], f1[:, 10:20], f1[:, 20:26], f1[:, 26:]
    gathered = torch.zeros(4, 10, dtype=torch.float64)
    for head in range(2):
        qh, kh, vh = q[:, 3 * head : 3 * head + 3], k[:, 3 * head : 3 * head + 3], v[:, 5 * head : 5 * head + 5]
        for i in range(4):
            for j in range(i + 1):
                gathered[i, 5 * head : 5 * head + 5] += F.silu(qh[i] @ kh[j]) / 20 * vh[j]
    expected = x + (F.layer_norm(gathered, (10,), eps=1e-6) * u) @ block.output.weight.T + block.output.bias
    torch.testing.assert_close(block(x, make_tokens(cfg, [4], 0)), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("kind", "normalise_by"), [("silu", "max"), ("silu", "length"), ("softmax", "max")])
def test_backends_agree_in_every_parameter(kind: str, normalise_by: str, name: str, training: bool) -> None:
    """In training too: what dropout drops is the same."""
    grads = []
    for backend in ("dense", "jagged"):
        model, cfg = make(backend, kind, normalise_by, **OPTIONS[name])
        x = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        torch.manual_seed(7)
        out: Tensor = model.train(training)(x, make_tokens(cfg, [3, 0, 20, 1], 6))[:24]
        out.square().sum().backward()
        grads.append({"out": out.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    for parameter, want in grads[0].items():
        torch.testing.assert_close(grads[1][parameter], want, msg=parameter)


@pytest.mark.parametrize("normalise_by", ["max", "length"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_appended_event_changes_no_earlier_output(normalise_by: str, name: str) -> None:
    """Holds for n = length too, since it counts the tokens up to the query."""
    model, cfg = make("jagged", "silu", normalise_by, **OPTIONS[name])
    x = torch.randn(12, 6, dtype=torch.float64)
    shorter, longer = model(x, make_tokens(cfg, [9], 3)), model(x, make_tokens(cfg, [12], 0))
    torch.testing.assert_close(shorter[:9], longer[:9])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_an_option_changes_the_outcome(kind: str, name: str) -> None:
    """A switch that is read nowhere would agree with everything above."""
    model, cfg = make("jagged", kind, **OPTIONS[name])
    plain, plain_cfg = make("jagged", kind, biases=BiasConfig(alibi=name != "position"))
    common, inner = model.state_dict(), plain.blocks[0].widths[1]
    if name == "no gate":  # U is any function of the token
        for key in [key for key in common if "uvqk" in key]:
            common[key] = torch.cat((torch.ones(inner, 6, dtype=torch.float64), common[key]))
    plain.load_state_dict({key: value for key, value in common.items() if key in plain.state_dict()})
    x = torch.randn(12, 6, dtype=torch.float64)
    same = torch.allclose(model(x, make_tokens(cfg, [12], 0)), plain(x, make_tokens(plain_cfg, [12], 0)))
    assert same == (name == "plain")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_changes_no_bit(kind: str, name: str, dtype: torch.dtype) -> None:
    found = []
    for recompute in (False, True):
        model, cfg = make("jagged", kind, recompute=recompute, **OPTIONS[name])
        model.to(dtype).train()
        x = torch.randn(30, 6, dtype=dtype, generator=torch.Generator().manual_seed(5)).requires_grad_()
        torch.manual_seed(7)
        out: Tensor = model(x, make_tokens(cfg, [3, 0, 20, 1], 6))[:24]
        out.square().sum().backward()
        found.append({"out": out.detach(), "x": x.grad, **{name: p.grad for name, p in model.named_parameters()}})
    for parameter, want in found[0].items():
        assert torch.equal(found[1][parameter], want), parameter
    assert all(grad.any() for grad in found[0].values())


def test_attention_dropout_drops_in_training_alone() -> None:
    model, cfg = make("jagged", "silu", dropout=0.0)
    x, tokens = torch.randn(12, 6, dtype=torch.float64), make_tokens(cfg, [12], 0)
    first, second = model.train()(x, tokens), model(x, tokens)
    assert not torch.equal(first, second), "each step drops others"
    torch.manual_seed(3)
    again = model(x, tokens)
    torch.manual_seed(3)
    assert torch.equal(again, model(x, tokens)), "which ones follows from the seed"
    assert torch.equal(model.eval()(x, tokens), model(x, tokens))


def test_a_scaled_branch_begins_at_its_share() -> None:
    torch.manual_seed(0)
    plain = HSTUBlock(ModelConfig(blocks=8))
    torch.manual_seed(0)
    cfg = ModelConfig(blocks=8, residual_scale=True)
    scaled = HSTUBlock(cfg)
    x, tokens = torch.randn(5, 64), make_tokens(cfg, [5], 0)
    plain.eval(), scaled.eval()
    torch.testing.assert_close(scaled(x, tokens) - x, (plain(x, tokens) - x) / 4)
