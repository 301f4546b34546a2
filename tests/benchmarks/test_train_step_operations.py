"""Operations counted by hand are those that torch counts where the obvious implementation runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step_operations import Operations, Work, operations, product_seconds
from model.biases import describe_tokens
from model.config import AttentionConfig, HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from model.hstu import HSTU

LENGTHS = (3, 7, 2)


def small(**changed: Any) -> ModelConfig:
    return ModelConfig(
        width=16,
        blocks=2,
        heads=2,
        head_dim_qk=8,
        head_dim_v=4,
        attention=AttentionConfig(backend="dense"),
        **changed,
    )


def test_blocks_count_as_torch_counts_them() -> None:
    cfg = small()
    encoder = HSTU(cfg)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    nothing_L = torch.zeros(sum(LENGTHS), dtype=torch.int64)
    tokens = describe_tokens(cfg.biases, offsets, nothing_L, nothing_L, nothing_L, nothing_L)
    x_LD = torch.randn(sum(LENGTHS), cfg.width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        encoder(x_LD, tokens).sum().backward()
    # The oracle computes whole squares, of which the mask leaves a little more than half.
    squares = Work(sum(LENGTHS), sum(n * n for n in LENGTHS), 0)
    assert operations(cfg, Vocabulary(2, 4, 1, 1), squares).total == counter.get_total_flops()
    assert Work.of(LENGTHS, 0).pairs == 6 + 28 + 3


def test_heads_count_every_level_or_every_candidate() -> None:
    work = Work.of(LENGTHS, targets=10, candidates_each=129)
    assert operations(small(), Vocabulary(3, 32, 1, 1), work).heads == 3 * 2 * 10 * 16 * 3 * 32
    of_items = small(items=ItemTableConfig(kind="vocabulary"), output=HeadsConfig(kind="items"))
    assert operations(of_items, Vocabulary(3, 32, 1, 1, 500), work).heads == 3 * 2 * 10 * 16 * 129


def test_work_adds_up() -> None:
    assert Work.of((3,), 2, 5) + Work.of((7, 2), 4, 5) == Work.of(LENGTHS, 6, 5)


def test_heads_run_at_the_float32_rate() -> None:
    assert product_seconds(Operations(30.0, 10.0, 50.0), rate=4.0, float32_rate=10.0) == pytest.approx(10.0 + 5.0)
