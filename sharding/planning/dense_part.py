"""The dense part of a step: a rank's memory and operations.

The tower is built on the CPU with one block and with two, at two short lengths, and run forward and backward while
every memory block is watched; memory is linear in blocks and in tokens, so four runs say what the whole model needs,
whichever its architecture and options. The fullest moments of the forward, which ends with the heads, and of the
backward are told apart: heads that are large beside a short run's blocks would hide what a long one's need.

Shapes: L tokens a rank and step · T tokens of which something is asked · D width · C code levels.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import InputError
from data.ranking.config import INTERACTIONS, MERGED
from model.biases import Tokens, describe_tokens
from model.config import ModelConfig, Vocabulary
from model.item_head import BLOCK_NUMBERS, ITEMS_PER_NEGATIVE, ItemHead, sampled_softmax
from model.kernels.build import without_kernels
from model.layers import normalised
from model.losses import STATES, cascaded_cross_entropy
from model.recommender import Tower
from model.task_heads import TaskHeads
from sharding.planning.memory_watch import MemoryWatch

GPU_BACKENDS = ("flex", "triton")

_MAX_HEADS = 2**28
"""Numbers of output heads that are allocated to be measured."""


@dataclass(frozen=True)
class DenseUse:
    """The data-parallel part, on each rank.

    Attributes:
        parameters: their number.
        optimizer: bytes of the optimizer's states.
        activations: bytes at the fullest moment of a step, besides parameters, gradients and states.
        flops: operations of a step's products, forward and backward.
    """

    parameters: int
    optimizer: int
    activations: int
    flops: float

    def with_items(self, cfg: ModelConfig, tokens: int, items: int, negatives: int, *, shared: bool) -> DenseUse:
        """With scores of items by their rows, whose number is not known before a step's look-ups are.

        Args:
            items: rows looked up.
            negatives: of a target.
            shared: whether targets have them in common, or each its own (see `model.item_head`).
        """
        chunk = min(cfg.output.chunk_tokens, tokens)
        picked = not shared and items <= ITEMS_PER_NEGATIVE * negatives
        # Scores, their softmax and its copy; with them all scores that some are picked of, or copies of rows.
        held = 3 * chunk * (1 + negatives) + (chunk * items if picked else 0 if shared else 3 * BLOCK_NUMBERS)
        rows = items * cfg.width
        # While scores are there, rows normalised and their gradient; in the backward, gradients of both three times.
        numbers = max(3 * rows + held, 5 * rows)
        flops = 6.0 * tokens * (items if picked else 1 + negatives) * cfg.width
        return dataclasses.replace(self, activations=self.activations + 4 * numbers, flops=self.flops + flops)


@dataclass(frozen=True)
class Line:
    """fixed + per_token · L bytes."""

    fixed: float
    per_token: float

    @staticmethod
    def through(short: float, long: float) -> Line:
        """What so many bytes at `_SHORT` tokens, and at twice as many, lie on."""
        per_token = (long - short) / _SHORT
        return Line(short - per_token * _SHORT, per_token)

    def at(self, tokens: int) -> float:
        """With L tokens."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True)
class DenseModel:
    """A tower, whatever the number of tokens.

    Attributes:
        parameters: their number.
        optimizer: bytes of the optimizer's states.
        forward, backward: bytes of activations at the fullest moment of each.
        chunk, per_row: tokens that the loss holds the logits of at once, and bytes for each, on top of the forward's.
        flops_per_token: forward and backward.
    """

    parameters: int
    optimizer: int
    forward: Line
    backward: Line
    chunk: int
    per_row: int
    flops_per_token: float

    def at(self, tokens: int) -> DenseUse:
        """With L tokens a step."""
        rows = max(min(self.chunk, tokens // STATES) - _CHUNK, 0)  # beyond those that were there when it was measured
        activations = max(int(max(self.forward.at(tokens) + self.per_row * rows, self.backward.at(tokens))), 0)
        return DenseUse(self.parameters, self.optimizer, activations, self.flops_per_token * tokens)


def measure_dense(
    cfg: ModelConfig, vocabulary: Vocabulary, mean_history: float = 0.0, optimizer: str = "adamw"
) -> DenseModel:
    """Memory and operations of the tower, from four short runs on the CPU.

    Where a GPU's kernels are asked for, PyTorch's operators run in their place: they keep the same tensors for the
    backward. Nothing of the real size is ever allocated but two blocks' and the heads' parameters.

    Raises:
        InputError: the heads, which are allocated, are beyond measure.
    """
    heads = _head_numbers(cfg, vocabulary)
    history = min(mean_history or cfg.max_history / 2, cfg.max_history)
    one, two = (count_tower(cfg, vocabulary, blocks) for blocks in (1, 2))
    parameters = _extended(one.parameters, two.parameters, cfg.blocks)
    in_matrices = _extended(one.in_matrices, two.in_matrices, cfg.blocks)
    peaks = [[_peaks(cfg, vocabulary, blocks, length) for length in (_SHORT, 2 * _SHORT)] for blocks in (1, 2)]
    forward, backward = (
        Line.through(*(_extended(one[moment], two[moment], cfg.blocks) for one, two in zip(*peaks, strict=True)))
        for moment in (0, 1)
    )
    states = 8 * parameters - (4 * in_matrices if optimizer == "muon" else 0)
    # A token sees half of its window; a merged candidate half of the inputs, and itself.
    seen = (history + 2 if cfg.form == MERGED else cfg.window_tokens(history) + 1) / 2
    attention = 3 * 2 * cfg.heads * (cfg.head_dim_qk + cfg.head_dim_v) * cfg.blocks * seen
    products = 6.0 * (in_matrices + heads / _tokens_an_answer(cfg))
    chunk = cfg.output.chunk_tokens if cfg.output.kind == "codes" else 0
    per_row = _per_row_of_a_chunk(cfg, vocabulary)
    return DenseModel(int(parameters), int(states), forward, backward, chunk, per_row, attention + products)


def _per_row_of_a_chunk(cfg: ModelConfig, vocabulary: Vocabulary) -> int:
    """Bytes: logits, softmax and its copy; of `STATES` tokens each level's gradient, and what a state is made of."""
    return 4 * (3 * vocabulary.codes + STATES * (vocabulary.levels + 4) * cfg.width)


def _head_numbers(cfg: ModelConfig, vocabulary: Vocabulary) -> int:
    """Numbers of the output's matrices; where the output are items, none: `DenseUse.with_items` adds what scores take.

    Raises:
        InputError: too many to be allocated.
    """
    if cfg.output.kind == "items":
        return 0
    if cfg.output.kind == "codes":
        numbers = vocabulary.levels * vocabulary.codes * cfg.width
        made_of = f"{vocabulary.levels} levels × {vocabulary.codes} codes × width {cfg.width}"
        less = "give fewer codes a level"
    else:
        actions, columns = cfg.output.actions, (3 if cfg.form == INTERACTIONS else 1) * cfg.width + 1
        numbers = len(actions.tasks) * actions.hidden * columns
        made_of = f"{len(actions.tasks)} tasks × {actions.hidden} hidden columns × {columns} weights"
        less = "set a smaller model.output.actions.hidden"
    if numbers > _MAX_HEADS:
        raise InputError(
            f"{made_of} make output heads of {numbers} numbers, more than the {_MAX_HEADS} that are planned for: {less}"
        )
    return numbers


def _tokens_an_answer(cfg: ModelConfig) -> int:
    """Of how many tokens the heads see one: an item's, not the action's behind it; a candidate, not the input's."""
    return 1 if cfg.form in (None, INTERACTIONS) else 2


_SHORT = 256
"""Tokens of the shorter run; users have half as many."""
_CHUNK = _SHORT // 2 // STATES
"""Tokens of a chunk of the loss, so that half of the shorter run's states are held at once."""


@dataclass(frozen=True)
class TowerSizes:
    """Numbers of a tower: parameters, and those of them in matrices of the blocks."""

    parameters: int
    in_matrices: int


def count_tower(cfg: ModelConfig, vocabulary: Vocabulary, blocks: int) -> TowerSizes:
    """Of so many blocks, built on the meta device."""
    with torch.device("meta"):
        tower = Tower(_on_cpu(cfg, blocks), vocabulary)
    matrices = sum(
        parameter.numel()
        for name, parameter in tower.named_parameters()
        if ".blocks." in name and name.endswith("weight") and parameter.dim() == 2
    )
    return TowerSizes(sum(p.numel() for p in tower.parameters()), matrices)


def _extended(one: float, two: float, blocks: int) -> float:
    """From one block and two to `blocks`."""
    return one + (two - one) * (blocks - 1)


def _on_cpu(cfg: ModelConfig, blocks: int, chunk: int = _CHUNK) -> ModelConfig:
    attention = cfg.attention
    if attention.backend in GPU_BACKENDS:
        attention = dataclasses.replace(attention, backend="jagged")
    output = cfg.output
    if output.kind != "actions":
        output = dataclasses.replace(output, chunk_tokens=min(output.chunk_tokens, chunk))
    return dataclasses.replace(cfg, blocks=blocks, attention=attention, output=output)


def _peaks(cfg: ModelConfig, vocabulary: Vocabulary, blocks: int, tokens: int, chunk: int = _CHUNK) -> tuple[int, int]:
    """Bytes at the fullest moments of the tower's forward and of its backward, parameters and their gradients apart."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        tower = Tower(_on_cpu(cfg, blocks, chunk), vocabulary).train()
        x_LD = torch.randn(tokens, cfg.width, requires_grad=True)
        targets = torch.randint(0, vocabulary.codes, (tokens, vocabulary.levels))
        if cfg.output.kind == "actions":
            targets = torch.ones(tokens, len(cfg.output.actions.tasks))
        for parameter in tower.parameters():
            parameter.grad = torch.zeros_like(parameter)
        described = _histories(cfg, tokens)
        known = [x_LD, targets, *tower.parameters(), *(p.grad for p in tower.parameters() if p.grad is not None)]
        on_gpu = without_kernels() if cfg.attention.backend in GPU_BACKENDS else contextlib.nullcontext()
        with on_gpu, MemoryWatch(known) as watch:
            loss = _loss(tower, x_LD, described, targets)
            forward, watch.peak = watch.peak, 0
            loss.backward()
    return forward, watch.peak


def _loss(tower: Tower, x_LD: Tensor, tokens: Tokens, targets: Tensor) -> Tensor:
    """Args: `targets` are codes [L, C], or labels [L, tasks]."""
    cfg, rows_LD = tower.cfg, x_LD
    x_LD = nn.functional.dropout(x_LD * 1.0, cfg.input_dropout)
    if tower.places is not None:
        x_LD = x_LD + tower.places(tokens)
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
        x_LD = tower.encoder(x_LD, tokens)
    x_LD = normalised(x_LD)
    # The real model leaves out padding, and tokens of which nothing is asked: a copy, as here.
    rows_T = torch.arange(0, len(x_LD), _tokens_an_answer(cfg))
    x_TD = x_LD.index_select(0, rows_T)
    if isinstance(tower.heads, TaskHeads):
        candidates_TD = rows_LD.index_select(0, rows_T) * 1.0 if tower.heads.meets_candidates else None
        return tower.heads.loss(x_TD, candidates_TD, targets.index_select(0, rows_T)).loss_sum
    if isinstance(tower.heads, ItemHead):
        return _item_loss(x_TD, cfg)
    return cascaded_cross_entropy(tower.heads, x_TD, targets, cfg.output.chunk_tokens).loss_sum


def _item_loss(x_TD: Tensor, cfg: ModelConfig) -> Tensor:
    """Targets and negatives that are one item: what more of them takes is `DenseUse.with_items`."""
    nought_T = torch.zeros(len(x_TD), dtype=torch.int64)
    one_1D = torch.ones(1, cfg.width, requires_grad=True)
    found = sampled_softmax(
        x_TD, one_1D, nought_T, nought_T[:1, None], nought_T, temperature=1.0, chunk_tokens=cfg.output.chunk_tokens
    )
    return found.loss_sum


def _histories(cfg: ModelConfig, tokens: int) -> Tokens:
    """Users of equal histories, minutes apart; as long in a short run as in a long one, or it would not be linear."""
    length = min(cfg.max_tokens, _SHORT // 2)
    offsets = torch.tensor([*range(0, tokens, length), tokens])
    times_L = torch.arange(tokens) * 60
    alone_L = torch.arange(tokens) % 2 == 1 if cfg.form == MERGED else None  # a candidate behind each input
    return describe_tokens(cfg.biases, offsets, times_L, times_L + 60, times_L % 300, times_L % 3, alone_L)
