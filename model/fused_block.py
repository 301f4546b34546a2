"""An HSTU block in one function, by the kernels for the CPU: what `HSTUBlock` says, with a third of its memory traffic.

Autograd would keep what passes between any two operations, and copy the gradients of U, V, Q and K side by side. Here
the forward keeps the block's input, the projection before its SiLU and what attention gathered, six numbers a token and
column; with `recompute` the projection is left out too, which leaves two. All else is made again on the way, in passes
over single rows.

Shapes: L tokens · D width · I width of all heads' values · W = 2 · I + 2 · heads · E columns of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.attention import fused
from model.attention.weighting import Weighting
from model.biases import ScoreBiases, Tokens
from model.config import ModelConfig
from model.kernels.rows import Drawn, gate, gate_backward_, layer_norm, layer_norm_backward, silu, silu_backward_


def serves(cfg: ModelConfig, x_LD: Tensor, tokens: Tokens, weighting: Weighting) -> bool:
    """Whether such a block is computed so: float32 on a CPU, with norm and gate, without norms of queries and keys."""
    return (
        cfg.attention.backend == "jagged"
        and cfg.pooled_norm
        and cfg.gate
        and not cfg.qk_norm
        and x_LD.dtype == torch.float32
        and not torch.is_autocast_enabled(x_LD.device.type)
        and fused.serves(x_LD, tokens.mask, weighting)
    )


def block(
    x_LD: Tensor,
    uvqk_WD: Tensor,
    output_DI: Tensor,
    bias_D: Tensor,
    *,
    cfg: ModelConfig,
    tokens: Tokens,
    biases: ScoreBiases,
    weighting: Weighting,
    training: bool,
) -> Tensor:
    """[L, D] → [L, D]; the weights are those of the two linear layers."""
    call = fused.Call.of(tokens.mask, biases, weighting)
    plan = _Plan(cfg, call, Drawn.draw(cfg.dropout, training=training))
    result: Tensor = _Block.apply(x_LD, uvqk_WD, output_DI, bias_D, *fused.Added.of(biases, call.longest), plan)
    return result


@dataclass(frozen=True)
class _Plan:
    """What carries no gradient."""

    cfg: ModelConfig
    call: fused.Call
    drawn: Drawn

    def parts(self, uvqk_LW: Tensor) -> tuple[Tensor, fused.QueriesKeysValues]:
        """U, and queries, keys and values: views."""
        cfg = self.cfg
        values, keys = cfg.heads * cfg.head_dim_v, cfg.heads * cfg.head_dim_qk
        u, v, q, k = torch.split(uvqk_LW, [values, values, keys, keys], dim=1)
        q_LHE, k_LHE, v_LHF = (x.unflatten(1, (cfg.heads, -1)) for x in (q, k, v))
        return u, fused.QueriesKeysValues(q_LHE, k_LHE, v_LHF)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_LD: Tensor,
        uvqk_WD: Tensor,
        output_DI: Tensor,
        bias_D: Tensor,
        key_bias_LH: Tensor | None,
        by_distance_HN: Tensor | None,
        by_time_HT: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        added, epsilon = fused.Added(key_bias_LH, by_distance_HN, by_time_HT), plan.cfg.norm_eps
        x_LD = x_LD.contiguous()
        before_LW = layer_norm(x_LD, epsilon) @ uvqk_WD.T
        u_LI, qkv = plan.parts(silu(before_LW))
        gathered_LHF, log_sum_LH = fused.forward(plan.call, qkv, added)
        gathered_LI = gathered_LHF.flatten(1)
        gated_LI = gate(gathered_LI, u_LI, epsilon, plan.drawn)
        ctx.plan = plan
        kept = None if plan.cfg.recompute else before_LW
        ctx.save_for_backward(x_LD, uvqk_WD, output_DI, kept, gathered_LI, log_sum_LH, *added)
        return torch.addmm(x_LD, gated_LI, output_DI.T).add_(bias_D)

    @staticmethod
    def backward(ctx: Any, grad_LD: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x_LD, uvqk_WD, output_DI, before_LW, gathered_LI, log_sum_LH, *added = ctx.saved_tensors
        epsilon, grad_LD = plan.cfg.norm_eps, grad_LD.contiguous()
        normed_LD = layer_norm(x_LD, epsilon)
        if before_LW is None:
            before_LW = normed_LD @ uvqk_WD.T
        u_LI, qkv = plan.parts(silu(before_LW))
        grad_before_LW = torch.empty_like(before_LW)
        grad_u_LI, grad_qkv = plan.parts(grad_before_LW)
        grad_LI = grad_LD @ output_DI
        gated_LI = gate_backward_(gathered_LI, u_LI, epsilon, plan.drawn, grad_LI, grad_u_LI)
        grad_output_DI = grad_LD.T @ gated_LI
        del gated_LI
        gathered_LHF, grad_LHF = (x.view(len(x), plan.cfg.heads, -1) for x in (gathered_LI, grad_LI))
        grad_added = fused.backward(plan.call, qkv, fused.Added(*added), gathered_LHF, log_sum_LH, grad_LHF, grad_qkv)
        silu_backward_(before_LW, grad_before_LW)
        grad_uvqk_WD = grad_before_LW.T @ normed_LD
        grad_x_LD = layer_norm_backward(x_LD, grad_before_LW @ uvqk_WD, grad_LD, epsilon)
        return grad_x_LD, grad_uvqk_WD, grad_output_DI, grad_LD.sum(dim=0), *grad_added, None
