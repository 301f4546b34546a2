"""Dense optimizers beside the tables' fused row-wise Adagrad, under one schedule.

The tables move within each backward. Dense parameters move once every `accumulate` batches: AdamW moves them all, or
Muon the matrices inside the blocks and AdamW the rest (output heads, bias tables, vectors), as Muon's authors advise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from trainer.config import OptimizerConfig

BLOCKS = ".blocks."
"""In the name of every parameter of a block, whatever the architecture."""


class Optimizers:
    """All optimizers and the schedule that moves their rates.

    Attributes:
        sparse: of the tables, fused into the backward.
        dense: name → optimizer of dense parameters; together they have each parameter once.
        combined: what the pipeline calls.
    """

    def __init__(self, model: DistributedModelParallel, config: OptimizerConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.factor = config, total_steps, 0.0
        self.sparse = model.fused_optimizer
        parameters = dict(_dense_parameters(model))
        self.dense = _dense_optimizers(parameters, config)
        self.combined = DenseSteps(
            self.sparse, self.dense, parameters, clip_norm=config.clip_norm, accumulate=config.accumulate
        )

    def make_states(self) -> None:
        """Let the optimizers make their moments now, not at the first step, so that a checkpoint can fill them.

        They take a step on a zero gradient, which decays weights: load the parameters afterwards.
        """
        for optimizer in self.dense.values():
            optimizer.init_state()
            optimizer.zero_grad()
        self.combined.make_pending()

    def dense_state(self) -> dict[str, Tensor]:
        """The states of the dense optimizers, and gradients that wait for a step, as live tensors by name.

        The tables' own states go with their rows (`sharding.tables`).
        """
        found = {
            f"{name}_optimizer.{parameter}.{state}": value
            for name, optimizer in self.dense.items()
            for parameter, states in optimizer.state_dict()["state"].items()
            for state, value in states.items()
        }
        if self.config.accumulate > 1:
            found |= {f"pending_gradients.{name}": value for name, value in self.combined.make_pending().items()}
        return found

    def set_rates(self, step: int) -> None:
        """Set all learning rates for a step (0-based) to `factor` times the configured ones."""
        self.factor = schedule_factor(step, self.total_steps, self.config)
        self.combined.batch = step
        rates = {"dense": self.config.learning_rate, "matrices": self.config.muon_learning_rate}
        for name, optimizer in (("sparse", self.sparse), *self.dense.items()):
            for group in optimizer.param_groups:
                group["lr"] = rates.get(name, self.config.sparse_learning_rate) * self.factor


class DenseSteps(CombinedOptimizer):
    """Steps the dense optimizers every `accumulate` batches, on the mean of their gradients, clipped as a whole.

    The pipeline calls `zero_grad` before each backward and `step` right after it: there is no other place for either.

    Attributes:
        batch: number of the batch at hand, from 0; set before each.
    """

    def __init__(
        self,
        sparse: KeyedOptimizer,
        dense: Mapping[str, KeyedOptimizer],
        parameters: dict[str, nn.Parameter],
        *,
        clip_norm: float,
        accumulate: int,
    ) -> None:
        super().__init__([("sparse", sparse), *dense.items()])
        self.sparse, self.dense, self.dense_parameters = sparse, dense, parameters
        self.clip_norm, self.accumulate, self.batch = clip_norm, accumulate, 0

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Forget the dense gradients, unless they are being gathered."""
        self.sparse.zero_grad(set_to_none)  # hands the tables their rate
        if self.batch % self.accumulate == 0:
            for optimizer in self.dense.values():
                optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Step the dense optimizers after the last batch of `accumulate`."""
        self.sparse.step(closure)
        if (self.batch + 1) % self.accumulate:
            return
        gradients = [parameter.grad for parameter in self.dense_parameters.values() if parameter.grad is not None]
        if self.accumulate > 1:
            torch._foreach_div_(gradients, self.accumulate)
        if self.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(list(self.dense_parameters.values()), self.clip_norm)
        for optimizer in self.dense.values():
            optimizer.step(closure)

    def make_pending(self) -> dict[str, Tensor]:
        """The gradients gathered so far by parameter name, made where there are none yet."""
        for parameter in self.dense_parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return {name: parameter.grad for name, parameter in self.dense_parameters.items() if parameter.grad is not None}


def schedule_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up times a cosine from 1 to 0 (or 1 throughout)."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))


def _dense_parameters(model: DistributedModelParallel) -> list[tuple[str, nn.Parameter]]:
    tables = set(model.fused_optimizer.params)
    return [(name, parameter) for name, parameter in model.named_parameters() if name not in tables]


def _dense_optimizers(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> dict[str, KeyedOptimizerWrapper]:
    by_muon = {
        name: parameter
        for name, parameter in parameters.items()
        if config.dense == "muon" and BLOCKS in name and name.endswith("weight") and parameter.dim() == 2
    }
    rest = {name: parameter for name, parameter in parameters.items() if name not in by_muon}

    def adamw(own: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            _decay_groups(own, config.weight_decay), lr=config.learning_rate, betas=(0.9, config.beta2)
        )

    def muon(own: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Muon(own, lr=config.muon_learning_rate, weight_decay=config.weight_decay)

    optimizers = {"dense": KeyedOptimizerWrapper(rest, adamw)}
    if by_muon:
        optimizers["matrices"] = KeyedOptimizerWrapper(by_muon, muon)
    return optimizers


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
