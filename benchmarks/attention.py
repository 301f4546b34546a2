"""Attention on a CPU: jagged, beside what plain PyTorch does with padding, in speed, memory and accuracy.

    python -m benchmarks.attention [--quick]

Histories of the published lengths, cut at the longest; 4 heads of 64; ALiBi, time, duration and organic biases, all
trained; forward and backward in float32 on two threads. Each contender runs in a process of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Findings, measure, run, table
from common.memory import peak_bytes, resident_bytes
from data.synthetic.lengths import published_lengths
from model.attention import attention
from model.attention.jagged_blocks import Distances
from model.attention.jagged_layout import make_layout
from model.biases import KeyBias, ScoreBiases, TimeBias, alibi_slopes, log_buckets
from model.mask import Mask

HEADS, WIDTH = 4, 64
THREADS = 2
PRODUCT = 2048
"""Rows and columns of the matrices whose product is the rate that others are held against."""
TIME_BUCKETS, DURATION_BUCKETS, ORGANIC_BUCKETS = 64, 32, 3
SCALE = WIDTH**-0.5
USERS = {512: 32, 2_048: 8, 8_192: 4}
"""Longest history → users of a batch."""

PADDED_SCORES = 1 << 28
"""Scores that padded attention holds at once (1 GB of float32): more users are taken one share after another."""

CONTENDERS = {
    "jagged silu": ("silu", "ours"),
    "jagged softmax": ("softmax", "ours"),
    "jagged silu, bf16": ("silu", "ours, queries, keys and values in bfloat16, scores and sums in float32"),
    "padded dense silu": ("silu", "padded [B, H, S, S] biases and scores, autograd"),
    "padded sdpa softmax": ("softmax", "F.scaled_dot_product_attention, padded, float mask that takes a gradient"),
    "padded sdpa softmax, biases not trained": ("softmax", "the same, mask without gradient: PyTorch's fused kernel"),
}


def main(quick: bool, folder: Path, findings: Findings) -> None:
    """Measure everything."""
    del folder
    report_accuracy(findings)
    report_speed((512,) if quick else tuple(USERS), quick, findings)
    report_biases(findings)


# ── a batch ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Inputs:
    """A batch without tail padding; L tokens."""

    lengths: tuple[int, ...]
    leaves: dict[str, Tensor]
    biases: ScoreBiases
    mask: Mask
    normaliser_L: Tensor
    weight: Tensor

    @classmethod
    def make(cls, lengths: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
        """Random numbers; listens come in sittings, minutes apart within one and hours between."""
        generator, tokens = torch.Generator().manual_seed(0), sum(lengths)

        def normal(*shape: int, size: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=generator).mul_(size).to(dtype)

        def buckets(count: int) -> Tensor:
            return torch.randint(0, count, (tokens,), generator=generator)

        leaves = {name: normal(tokens, HEADS, WIDTH) for name in "qkv"}
        for name, count in (("time", TIME_BUCKETS), ("duration", DURATION_BUCKETS), ("organic", ORGANIC_BUCKETS)):
            leaves[name] = normal(HEADS, count, size=0.1)
        for leaf in leaves.values():
            leaf.requires_grad_()
        steps = torch.where(buckets(15) == 0, buckets(80_000), 60 + buckets(240))
        times = 1_600_000_000 + steps.cumsum(0)
        biases = ScoreBiases(
            alibi_slopes(HEADS),
            TimeBias(leaves["time"], times + 100, times),
            (
                KeyBias(leaves["duration"], buckets(DURATION_BUCKETS)),
                KeyBias(leaves["organic"], buckets(ORGANIC_BUCKETS)),
            ),
        )
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        longest = torch.full((tokens,), float(max(lengths)), dtype=dtype)
        return cls(lengths, leaves, biases, Mask(offsets), longest, normal(tokens, HEADS, WIDTH))

    def attend(self, kind: str, backend: str = "jagged") -> Tensor:
        """With our own."""
        return attention(
            self.leaves["q"],
            self.leaves["k"],
            self.leaves["v"],
            self.mask,
            self.biases,
            backend=backend,
            kind=kind,
            scale=SCALE,
            normaliser_L=self.normaliser_L if kind == "silu" else None,
        )

    def forward_and_gradients(self, kind: str, backend: str) -> list[Tensor]:
        """The output and the gradient of every leaf."""
        out = self.attend(kind, backend)
        return [out.detach(), *torch.autograd.grad(out, list(self.leaves.values()), self.weight)]


# ── padded attention ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Share:
    """Some users of a batch, padded to the longest of the batch: b users, S places each."""

    inputs: Inputs
    tokens_bS: Tensor  # the token at each place; some token where there is none
    real_bS: Tensor
    visible_SS: Tensor

    def bias(self) -> Tensor:
        """[H, b, S, S]."""
        time = self.inputs.biases.time
        assert time is not None
        place_S = torch.arange(self.tokens_bS.shape[1])
        alibi_HSS = -alibi_slopes(HEADS)[:, None, None] * (place_S[:, None] - place_S)
        with torch.no_grad():
            clock_bS, key_bS = time.query_times_L[self.tokens_bS], time.key_times_L[self.tokens_bS]
            elapsed = (clock_bS[:, :, None] - key_bS[:, None, :]).to(torch.int32)
            buckets = log_buckets(elapsed, TIME_BUCKETS)
        # Of the ways to look up a table whose backward PyTorch can do, the quickest here (others: 1.5 to 5 times).
        by_time = torch.gather(time.table_HT, 1, buckets.view(1, -1).expand(HEADS, -1).long())
        by_key = sum(bias.table_HK[:, bias.buckets_L[self.tokens_bS]] for bias in self.inputs.biases.by_key)
        assert isinstance(by_key, Tensor)
        return by_time.view(HEADS, *elapsed.shape) + alibi_HSS[:, None] + by_key[:, :, None, :]

    def padded(self) -> list[Tensor]:
        """q, k, v: [H, b, S, E]."""
        return [self.inputs.leaves[name][self.tokens_bS].permute(2, 0, 1, 3) for name in "qkv"]

    def real(self, out_HbSF: Tensor) -> Tensor:
        """Back to tokens, [·, H, F]."""
        return out_HbSF.permute(1, 2, 0, 3)[self.real_bS]

    def dense_silu(self) -> Tensor:
        """Every step a PyTorch operator on [H, b, S, S]."""
        q, k, v = self.padded()
        scores = torch.matmul(q, k.transpose(2, 3)) * SCALE + self.bias()
        weights = F.silu(scores) * self.visible_SS / float(max(self.inputs.lengths))
        return self.real(torch.matmul(weights, v))

    def sdpa_softmax(self, trained: bool) -> Tensor:
        """PyTorch's own operator."""
        q, k, v = self.padded()
        bias = self.bias().masked_fill(~self.visible_SS, -torch.inf)
        bias = bias if trained else bias.detach()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)
        return self.real(out)


def shares(inputs: Inputs) -> list[Share]:
    """The batch in shares that fit `PADDED_SCORES`."""
    longest = max(inputs.lengths)
    users = max(1, PADDED_SCORES // (HEADS * longest**2))
    place_S, length_B = torch.arange(longest), torch.tensor(inputs.lengths)
    real_BS = place_S < length_B[:, None]
    tokens_BS = inputs.mask.offsets[:-1, None] + torch.minimum(place_S, length_B[:, None] - 1)
    visible_SS = torch.ones(longest, longest, dtype=torch.bool).tril_()
    return [
        Share(inputs, tokens_BS[first : first + users], real_BS[first : first + users], visible_SS)
        for first in range(0, len(inputs.lengths), users)
    ]


def step_of(name: str, inputs: Inputs) -> Callable[[], None]:
    """Forward and backward of one batch by a contender."""
    if is_ours(name):
        kind = CONTENDERS[name][0]
        return lambda: inputs.attend(kind).backward(inputs.weight)
    parts = shares(inputs)
    weights = inputs.weight.split([int(part.real_bS.sum()) for part in parts])

    def step() -> None:
        for part, weight in zip(parts, weights, strict=True):
            out = part.dense_silu() if "dense" in name else part.sdpa_softmax(trained="not trained" not in name)
            out.backward(weight)

    return step


# ── speed and memory ─────────────────────────────────────────────────────────────────────────────────────


def is_ours(name: str) -> bool:
    """Of the contenders."""
    return CONTENDERS[name][1].startswith("ours")


def batch_lengths(longest: int, users: int) -> tuple[int, ...]:
    """Published lengths, newest events up to the longest."""
    return tuple(min(int(length), longest) for length in published_lengths(users, seed=0))


def measure_one(name: str, longest: int, users: int, repeats: int) -> dict[str, Any]:
    """In this process: best seconds of a step, memory beyond the inputs, and the matrix-product rate beside it."""
    torch.set_num_threads(THREADS)
    inputs = Inputs.make(batch_lengths(longest, users), torch.bfloat16 if "bf16" in name else torch.float32)
    step = step_of(name, inputs)
    before = resident_bytes()
    seconds = []
    for _ in range(repeats):
        for leaf in inputs.leaves.values():
            leaf.grad = None
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = peak_bytes() - before
    # Last, since its matrices would raise the peak.
    return {"seconds": min(seconds), "peak_bytes": peak, "product_rate": product_rate()}


def product_rate() -> float:
    """Operations a second of a product of two `PRODUCT`² matrices in float32, the best of some."""
    a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * PRODUCT**3 / best


def report_speed(histories: tuple[int, ...], quick: bool, findings: Findings) -> None:
    """Tokens a second and memory of every contender at every history; figures are those of 2,048 (quick: 512)."""
    rows, found = [], {}
    for longest in histories:
        users = 4 if quick else USERS[longest]
        lengths = batch_lengths(longest, users)
        # Two products forward and four backward; that the scores are made anew is our own affair.
        operations = 6 * 2 * WIDTH * HEADS * sum(n * (n + 1) // 2 for n in lengths)
        for name in list(CONTENDERS)[: 5 if quick else 6]:
            command = ["-m", "benchmarks.attention", "--measure", name, str(longest), str(users), "2" if quick else "5"]
            told = found[longest, name] = measure(command).summary
            told["share"] = operations / told["seconds"] / told["product_rate"]
            rows.append(
                [
                    f"{longest:,}",
                    name,
                    f"{sum(lengths) / told['seconds'] / 1e3:.2f} k",
                    f"{told['peak_bytes'] / 1e6:,.0f}",
                    f"{told['share']:.1%}",
                ]
            )
    head = ["longest history", "attention", "tokens/s", "peak MB beyond the inputs", "share of the matrix-product rate"]
    text = table(head, rows) + (
        "\n\nBest of several steps, forward and backward. Operations are counted on the causal half, six products "
        f"without recomputation; the rate is that of a {PRODUCT}³ float32 product in the same process. Peak is the "
        "largest resident set less what was resident before the first step.\n\n"
        + "\n".join(f"- {name}: {what}" for name, (_, what) in CONTENDERS.items())
    )
    judged = 2_048 if 2_048 in histories else histories[-1]
    silu, softmax, bf16, dense, sdpa, *fused = (found[judged, name] for name in CONTENDERS if (judged, name) in found)
    findings.add(
        "Speed and memory",
        text,
        speedup_vs_padded_dense=dense["seconds"] / silu["seconds"],
        peak_memory_ratio_vs_padded_dense=silu["peak_bytes"] / dense["peak_bytes"],
        speedup_vs_sdpa=sdpa["seconds"] / softmax["seconds"],
        speedup_of_bf16=silu["seconds"] / bf16["seconds"],
        gemm_share=silu["share"],
        gemm_share_softmax=softmax["share"],
        judged_at_history=judged,
    )
    if fused:
        findings.figures["speedup_vs_sdpa_biases_not_trained"] = fused[0]["seconds"] / softmax["seconds"]


# ── accuracy, and memory of biases ───────────────────────────────────────────────────────────────────────


def report_accuracy(findings: Findings) -> None:
    """float32 against the oracle in float64, forward and every gradient."""
    lengths, rows, worst = (300, 37, 1, 180), [], 0.0
    names = ["out", *(f"d{name}" for name in Inputs.make((1,)).leaves)]
    for kind in ("silu", "softmax"):
        narrow, wide = Inputs.make(lengths), Inputs.make(lengths, torch.float64)
        oracle = wide.forward_and_gradients(kind, "dense")
        errors = [
            float((found - want).abs().max() / want.abs().max())
            for found, want in zip(narrow.forward_and_gradients(kind, "jagged"), oracle, strict=True)
        ]
        worst = max(worst, *errors)
        rows.append([kind, *(f"{error:.1e}" for error in errors)])
    text = table(["jagged", *names], rows) + "\n\nLargest difference over largest magnitude, float32 against float64."
    findings.add("Accuracy", text, max_relative_error=worst)


def report_biases(findings: Findings) -> None:
    """Bytes of biases by history."""
    inputs = Inputs.make((2,))
    ours = sum(inputs.leaves[name].nbytes for name in ("time", "duration", "organic")) + alibi_slopes(HEADS).nbytes
    rows, held = [], []
    for longest in (512, 1_024, 2_048, 4_096, 8_192, 16_384):
        layout = make_layout((0, longest), longest, HEADS, torch.device("cpu"))
        shared = Distances(alibi_slopes(HEADS), None, layout, torch.float32).bias_HAZ.nbytes
        held.append(ours)
        rows.append([f"{longest:,}", f"{ours:,}", f"{shared / 1e6:.2f}", f"{4 * HEADS * longest**2 / 1e6:,.1f}"])
    head = ["history", "our tables, bytes", "our ALiBi by distance, MB", "materialised [H, S, S] of one user, MB"]
    text = table(head, rows) + (
        "\n\nOur tables do not know the length. While attention runs, ALiBi is laid out once for all users and blocks, "
        "which is linear in the length; a materialised bias is quadratic and each user's own."
    )
    findings.add("Memory of biases", text, bias_bytes=ours, bias_bytes_constant=len(set(held)) == 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure_one(sys.argv[2], *(int(number) for number in sys.argv[3:6]))))
        sys.exit(0)
    sys.exit(run("attention", main))
