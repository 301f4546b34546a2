"""Dense AdamW beside the tables' fused row-wise Adagrad, under one schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from trainer.config import OptimizerConfig


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that scales the whole gradient down to a norm before it steps; 0 leaves it alone."""

    def __init__(self, params: Any, *, clip_norm: float, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.clip_norm = clip_norm

    def step(self, closure: Any = None) -> Any:
        """Clip, then step. The pipeline calls `step` right after the backward: there is no other place to clip."""
        if self.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(
                [parameter for group in self.param_groups for parameter in group["params"]], self.clip_norm
            )
        return super().step(closure)


class Optimizers:
    """Both optimizers and the schedule that moves their rates."""

    def __init__(self, model: DistributedModelParallel, config: OptimizerConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.factor = config, total_steps, 0.0
        self.sparse = model.fused_optimizer
        self.dense = KeyedOptimizerWrapper(
            dict(_dense_parameters(model)),
            lambda parameters: ClippedAdamW(
                _decay_groups(parameters, config.weight_decay),
                clip_norm=config.clip_norm,
                lr=config.learning_rate,
                betas=(0.9, config.beta2),
            ),
        )
        self.combined = CombinedOptimizer([("sparse", self.sparse), ("dense", self.dense)])

    def make_states(self) -> None:
        """Let AdamW make its moments now, not at the first step, so that a checkpoint can be loaded into them.

        It takes a step on a zero gradient, which decays weights: load the parameters afterwards.
        """
        self.dense.init_state()
        self.dense.zero_grad()

    def set_rates(self, step: int) -> None:
        """Set both learning rates for a step (0-based) to `factor` times the configured ones."""
        self.factor = schedule_factor(step, self.total_steps, self.config)
        for optimizer, rate in (
            (self.dense, self.config.learning_rate),
            (self.sparse, self.config.sparse_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.factor


def schedule_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up times a cosine from 1 to 0 (or 1 throughout)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))


def _dense_parameters(model: DistributedModelParallel) -> list[tuple[str, nn.Parameter]]:
    tables = set(model.fused_optimizer.params)
    return [(name, parameter) for name, parameter in model.named_parameters() if name not in tables]


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
