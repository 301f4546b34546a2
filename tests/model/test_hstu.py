from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.biases import Tokens, describe_tokens
from model.config import AttentionConfig, BiasConfig, ModelConfig
from model.hstu import HSTU, HSTUBlock


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


def make(backend: str, kind: str, normalise_by: str = "max", blocks: int = 2) -> tuple[HSTU, ModelConfig]:
    torch.manual_seed(0)
    attention = AttentionConfig(backend=backend, kind=kind, normalise_by=normalise_by)
    cfg = ModelConfig(width=6, blocks=blocks, heads=2, head_dim_qk=3, head_dim_v=5, max_history=20, attention=attention)
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


@pytest.mark.parametrize(("kind", "normalise_by"), [("silu", "max"), ("silu", "length"), ("softmax", "max")])
def test_backends_agree_in_every_parameter(kind: str, normalise_by: str) -> None:
    grads = []
    for backend in ("dense", "jagged"):
        model, cfg = make(backend, kind, normalise_by)
        x = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        out: Tensor = model(x, make_tokens(cfg, [3, 0, 20, 1], 6))[:24]
        out.square().sum().backward()
        grads.append({"out": out.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    for name, want in grads[0].items():
        torch.testing.assert_close(grads[1][name], want, msg=name)


@pytest.mark.parametrize("normalise_by", ["max", "length"])
def test_an_appended_event_changes_no_earlier_output(normalise_by: str) -> None:
    """Holds for n = length too, since it counts the tokens up to the query."""
    model, cfg = make("jagged", "silu", normalise_by)
    x = torch.randn(12, 6, dtype=torch.float64)
    shorter, longer = model(x, make_tokens(cfg, [9], 3)), model(x, make_tokens(cfg, [12], 0))
    torch.testing.assert_close(shorter[:9], longer[:9])
