"""What a layer keeps for the backward, per token: HSTU, HSTU that recomputes, and Transformers of the same width.

    python -m benchmarks.activations [--quick]

The figures are bytes per token and layer over the width d, in bfloat16: the unit of the HSTU paper's 14 d and 33 d.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Findings, run, table
from common.noise import quiet_known_warnings
from model.biases import Tokens, describe_tokens
from model.config import AttentionConfig, BiasConfig, ModelConfig, TransformerConfig
from model.hstu import HSTU
from model.transformer import Transformer
from sharding.planning.memory_watch import MemoryWatch

HEAD_WIDTH = 64
DEPTHS = (1, 3)
"""Blocks of the two encoders whose difference is what a layer costs."""

_HOW_COUNTED = (
    "Feed-forward layers are 4 d wide with GELU in the Transformer, 8/3 d wide with SwiGLU in Transformer++. Counted "
    "are the memory blocks that the forward made and that are there after it, each once and whole, without parameters, "
    f"inputs and outputs; the difference of {DEPTHS[1]} blocks and {DEPTHS[0]}. Autograd's own account, by hooks on "
    "saved tensors, counts the same where nothing is recomputed. A CPU keeps what dropout drew as numbers, 2 bytes "
    "each in bfloat16; on a GPU it is 1 byte, as in the paper's count, and with `recompute` it is 1 byte everywhere. "
    "The paper's operations are fused; here what passes between any two is kept, unless it is recomputed."
)

PAPER = {"HSTU": "14", "Transformer": "33"}


def main(quick: bool, folder: Path, findings: Findings) -> None:  # noqa: ARG001
    """Count what is kept, and time what recomputation costs."""
    quiet_known_warnings()
    torch.set_num_threads(1 if quick else 2)
    width, tokens = (128, 512) if quick else (512, 4096)
    variants = configurations(width)
    report_kept(variants, width, tokens, findings)
    report_time(variants, tokens, 2 if quick else 5, findings)


def configurations(width: int) -> dict[str, ModelConfig]:
    """The models side by side: heads as wide together as the model, dropout on."""
    heads = width // HEAD_WIDTH
    common: dict[str, Any] = {
        "width": width,
        "heads": heads,
        "head_dim_qk": HEAD_WIDTH,
        "head_dim_v": HEAD_WIDTH,
        "dropout": 0.2,
        "max_history": 2048,
    }
    baseline: dict[str, Any] = {
        "attention": AttentionConfig(kind="softmax", scale="sqrt"),
        "biases": BiasConfig(alibi=False, time=False, duration=False, organic=False),
    }
    transformer = TransformerConfig(ffn_width=4 * width, activation="gelu")
    return {
        "HSTU": ModelConfig(**common),
        "HSTU, recompute": ModelConfig(**common, recompute=True),
        "Transformer": ModelConfig(architecture="sasrec", transformer=transformer, **common, **baseline),
        "Transformer++": ModelConfig(architecture="transformer++", **common, **baseline),
    }


def build(config: ModelConfig, blocks: int, dtype: torch.dtype) -> nn.Module:
    """An encoder of so many blocks."""
    torch.manual_seed(0)
    config = dataclasses.replace(config, blocks=blocks)
    return (HSTU(config) if config.architecture == "hstu" else Transformer(config)).to(dtype)


def make_tokens(config: ModelConfig, tokens: int) -> Tokens:
    """Histories of 1 … 255 events, hours apart."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 256, (tokens // 128 - 1,), generator=random)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0).clamp(max=tokens)))
    times_L = 10**9 + torch.randint(0, 7200, (tokens,), generator=random).cumsum(0)
    durations_L = torch.randint(30, 400, (tokens,), generator=random)
    return describe_tokens(config.biases, offsets, times_L, times_L + 60, durations_L, durations_L % 3)


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kept:
    """Bytes after a forward: alive, by looking at memory; saved, by asking autograd (only where it keeps all)."""

    alive: int
    saved: int


def kept_by(encoder: nn.Module, x_LD: Tensor, tokens: Tokens) -> Kept:
    """Run the forward of a training step, twice, and count what waits for the backward."""
    before = [x_LD, *encoder.parameters(), *encoder.buffers(), *_tensors(tokens)]
    with MemoryWatch(before) as watch:
        out = encoder(x_LD, tokens)
    alive = watch.now() - out.untyped_storage().nbytes()
    ignored = {tensor.untyped_storage().data_ptr() for tensor in before}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        again = encoder(x_LD, tokens)
    del out, again
    return Kept(alive, sum(found.values()))


def _tensors(tokens: Tokens) -> list[Tensor]:
    found = (getattr(tokens, leaf.name) for leaf in dataclasses.fields(tokens))
    return [tensor for tensor in found if tensor is not None]


def kept_per_layer(config: ModelConfig, tokens: int, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per token, layer and column that are alive after the forward, and those that autograd saved."""
    described = make_tokens(config, tokens)
    counts = []
    for blocks in DEPTHS:
        encoder = build(config, blocks, dtype).train()
        x_LD = torch.randn(tokens, config.width).to(dtype).requires_grad_()
        counts.append(kept_by(encoder, x_LD, described))
    share = (DEPTHS[1] - DEPTHS[0]) * tokens * config.width
    return (counts[1].alive - counts[0].alive) / share, (counts[1].saved - counts[0].saved) / share


def report_kept(variants: dict[str, ModelConfig], width: int, tokens: int, findings: Findings) -> None:
    """The table, in the paper's unit and in numbers."""
    rows, half = [], {}
    for name, config in variants.items():
        whole, saved = kept_per_layer(config, tokens, torch.float32)
        half[name], _ = kept_per_layer(config, tokens, torch.bfloat16)
        asked = "–" if config.recompute else f"{saved:.1f} d"
        numbers = f"{whole / 4:.1f} d"
        rows.append([name, numbers, f"{whole:.1f} d", asked, f"{half[name]:.1f} d", PAPER.get(name, "–")])
    head = ["", "numbers", "bytes, float32", "the same, asked of autograd", "bytes, bfloat16", "the paper's bytes"]
    sizes = f"d = {width}; {tokens:,} tokens, {width // HEAD_WIDTH} heads × {HEAD_WIDTH}"
    text = f"{table(head, rows)}\n\nPer token and layer, over the width {sizes}, dropout on. {_HOW_COUNTED}"
    findings.add(
        "Activations",
        text,
        activation_d_hstu=half["HSTU"],
        activation_d_hstu_recompute=half["HSTU, recompute"],
        activation_d_transformer=half["Transformer"],
    )


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────


def report_time(variants: dict[str, ModelConfig], tokens: int, rounds: int, findings: Findings) -> None:
    """A step's forward and backward, by turns, best of several."""
    names = ("HSTU", "HSTU, recompute", "Transformer")
    steps = {name: training_step(variants[name], tokens) for name in names}
    best = dict.fromkeys(names, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    rows = [[name, f"{tokens / seconds:,.0f}", f"{seconds / best['HSTU']:.2f}"] for name, seconds in best.items()]
    threads = torch.get_num_threads()
    text = table(["", "tokens/s", "time, HSTU = 1"], rows) + (
        f"\n\nForward and backward of {DEPTHS[1]} blocks in float32, {threads} threads, best of {rounds}."
    )
    findings.add("What recomputation costs", text, recompute_time_ratio=best["HSTU, recompute"] / best["HSTU"])


def training_step(config: ModelConfig, tokens: int) -> Callable[[], None]:
    """A forward and backward to call."""
    encoder = build(config, DEPTHS[1], torch.float32).train()
    described = make_tokens(config, tokens)
    x_LD = torch.randn(tokens, config.width, requires_grad=True)

    def step() -> None:
        encoder(x_LD, described).square().mean().backward()

    return step


if __name__ == "__main__":
    sys.exit(run("activations", main))
