from __future__ import annotations

import torch

from model.config import ModelConfig
from model.layers import QueryKeyNorm, ScaledLinear


def test_queries_and_keys_over_their_root_mean_square() -> None:
    norm = QueryKeyNorm(ModelConfig(heads=3, head_dim_qk=5)).double()
    with torch.no_grad():
        norm.weight_I.normal_()
    q, k = torch.randn(2, 7, 3, 5, dtype=torch.float64).unbind()
    unweighted, weighted, key = norm(q, k)
    for token in range(7):
        for head in range(3):
            want = q[token, head] / (q[token, head].square().mean() + 1e-6).sqrt()
            torch.testing.assert_close(unweighted[token, head], want)
            torch.testing.assert_close(weighted[token, head], want * norm.weight_I[5 * head : 5 * head + 5])
            torch.testing.assert_close(
                key[token, head], k[token, head] / (k[token, head].square().mean() + 1e-6).sqrt()
            )


def test_vectors_are_vectors_to_the_optimizers() -> None:
    """Matrices are decayed and orthogonalised, vectors are not."""
    cfg = ModelConfig(residual_scale=True)
    assert [p.dim() for p in QueryKeyNorm(cfg).parameters()] == [1]
    assert {name: p.dim() for name, p in ScaledLinear(4, cfg).named_parameters()} == {
        "weight": 2,
        "bias": 1,
        "scale_1": 1,
    }


def test_a_scaled_layer_is_a_layer_times_a_number() -> None:
    for bias in (True, False):
        layer = ScaledLinear(6, ModelConfig(width=3, residual_scale=True), bias=bias).double()
        with torch.no_grad():
            layer.scale_1.fill_(-1.7)
        x = torch.randn(4, 6, dtype=torch.float64)
        want = x @ layer.weight.T * -1.7 + (layer.bias * -1.7 if bias else 0)
        torch.testing.assert_close(layer(x), want)
    assert ScaledLinear(6, ModelConfig()).scale_1 is None
