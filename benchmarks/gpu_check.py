"""Whether what is written for GPUs computes there what it computes on a CPU.

    python -m benchmarks.gpu_check

On whatever CUDA GPUs it finds: every attention backend against the dense oracle in float64, forward and every gradient,
in float32 and bfloat16; then two training steps of a small model on as many ranks as there are GPUs, at most two, with
NCCL and the triton backend, against the same on the CPU with gloo and the jagged one. One table; exit status 0 if all
lies within its bound, 1 if not, 2 where there is no GPU.

Shapes: L tokens · H heads · E width of a query, key or value · T tokens with a target.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from benchmarks.harness import table
from common.faults import report_faults
from common.noise import quiet_known_warnings
from data.batches import Batch, BatchMaker, EventColumns, ItemFeatures, code_dtype
from data.examples import Tokens
from model.attention import attention
from model.attention.dropout import Dropout
from model.biases import KeyBias, PositionBias, ScoreBiases, TimeBias, alibi_slopes
from model.config import AttentionConfig, ModelConfig, Vocabulary
from model.embeddings import INITIAL_STD, build_embeddings, draw_rows
from model.mask import Mask
from model.recommender import Recommender
from sharding.apply import gather_table, shard_model, sharded_tables
from sharding.planning.placement import row_wise
from sharding.world import World

LENGTHS = (0, 1, 700, 64, 33, 0, 129, 1000, 128)
PADDING, HEADS, WIDTH = 57, 4, 64
STEPS, RATE, EPSILON, RANK_TOKENS, ITEMS = 2, 0.05, 1e-8, 512, 600

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error as a share of the tensor's largest magnitude. bfloat16 rounds weights and results to 2^-8 once each."""

TRAINING_BOUND = 1e-3
"""The same for losses, tables and parameters after the steps: row-wise Adagrad magnifies errors of small gradients."""

MODEL = ModelConfig(width=32, heads=2, head_dim_qk=16, head_dim_v=16, dropout=0.0, input_dropout=0.0)
VOCABULARY = Vocabulary(levels=3, codes=64, artists=200, event_types=4)


@dataclass(frozen=True)
class Checked:
    """One row of the table: errors as shares of the largest magnitude."""

    what: str
    forward: float
    gradients: float
    bound: float

    @property
    def holds(self) -> bool:
        """Also false for errors that are not numbers."""
        return self.forward <= self.bound and self.gradients <= self.bound


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Attention:
    """One way of computing attention."""

    backend: str
    kind: str
    soft_cap: float = 0.0
    dropout: float = 0.0

    def __str__(self) -> str:
        extras = [f"soft cap {self.soft_cap:g}"] * (self.soft_cap > 0) + [f"dropout {self.dropout:g}"] * (
            self.dropout > 0
        )
        return ", ".join([f"{self.backend} {self.kind}", *extras])


CHECKS = (
    Attention("jagged", "silu"),
    Attention("jagged", "silu", soft_cap=5.0, dropout=0.2),
    Attention("jagged", "softmax"),
    Attention("jagged", "softmax", soft_cap=5.0, dropout=0.2),
    Attention("triton", "silu"),
    Attention("triton", "silu", soft_cap=5.0, dropout=0.2),
    Attention("flex", "softmax"),
    Attention("flex", "softmax", soft_cap=5.0),
)


def check_attention(device: torch.device, checks: Sequence[Attention], lengths: Sequence[int]) -> Iterator[Checked]:
    """Each of `checks` in each dtype, users of these lengths."""
    for check in checks:
        for dtype, bound in BOUNDS.items():
            expected = forward_and_gradients(check, "dense", device, lengths, dtype, torch.float64)
            try:
                found = forward_and_gradients(check, check.backend, device, lengths, dtype, dtype)
            except Exception:  # one backend that fails must not hide what the others do
                traceback.print_exc()
                found = [torch.full_like(want, math.nan) for want in expected]
            errors = [relative_error(have, want) for have, want in zip(found, expected, strict=True)]
            yield Checked(f"{check}, {str(dtype).removeprefix('torch.')}", errors[0], worst(errors[1:]), bound)


def forward_and_gradients(
    check: Attention,
    backend: str,
    device: torch.device,
    lengths: Sequence[int],
    rounded: torch.dtype,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Output [L, H, E], gradients of q, k, v and all tables; inputs rounded to one dtype, computed in another."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths) + PADDING
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(rounded).to(dtype).to(device)

    def integers(below: int) -> Tensor:
        return torch.randint(0, below, (tokens,), generator=generator).to(device)

    q, k, v = (normal(tokens, HEADS, WIDTH).requires_grad_() for _ in range(3))
    tables = [(0.3 * normal(HEADS, size)).requires_grad_() for size in (64, 32, 3, 100)]
    times = 1_600_000_000 + (integers(4) * integers(50_000)).cumsum(0)
    biases = ScoreBiases(
        slopes_H=alibi_slopes(HEADS).to(device),
        time=TimeBias(tables[0], times + integers(1000), times),
        by_key=(KeyBias(tables[1], integers(32)), KeyBias(tables[2], integers(3))),
        position=PositionBias(tables[3]),
    )
    out = attention(
        q,
        k,
        v,
        Mask(offsets),
        biases,
        backend=backend,
        kind=check.kind,
        scale=WIDTH**-0.5,
        normaliser_L=None if check.kind == "softmax" else torch.full((tokens,), 50.0, dtype=dtype, device=device),
        soft_cap=check.soft_cap,
        dropout=Dropout(check.dropout, seed=7) if check.dropout else None,
    )
    return [out, *torch.autograd.grad((out * normal(*out.shape)).sum(), [q, k, v, *tables])]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error, as a share of the largest magnitude."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def worst(errors: Sequence[float]) -> float:
    """The largest, or the first that is not a number, which `max` would overlook."""
    return next((error for error in errors if error != error), max(errors))


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────


def check_training(ranks: int, device: str, backend: str) -> Checked:
    """Steps on `ranks` of `device` with an attention backend, against the CPU with jagged attention."""
    found, expected = train(ranks, device, backend), train(ranks, "cpu", "jagged")
    assert list(found) == list(expected)
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    losses = errors.pop("losses")
    way = "nccl" if device == "cuda" else "gloo"
    what = f"{STEPS} training steps, {backend}, {way} on {ranks} rank{'s' * (ranks > 1)}"
    return Checked(what, losses, worst(list(errors.values())), TRAINING_BOUND)


def train(ranks: int, device: str, backend: str) -> dict[str, Tensor]:
    """The losses of all steps, and every table and parameter after the last."""
    with tempfile.TemporaryDirectory(prefix="segue-gpu-check-") as folder:
        multiprocessing.spawn(_enter, args=(ranks, device, backend, folder), nprocs=ranks, join=True)
        result: dict[str, Tensor] = torch.load(Path(folder) / "result.pt", weights_only=True)
    return result


def _enter(rank: int, ranks: int, device: str, backend: str, folder: str) -> None:
    quiet_known_warnings()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
    own = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
    if own.type == "cuda":
        torch.cuda.set_device(own)
    else:
        torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    way = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(way, store=store, rank=rank, world_size=ranks)
    try:
        result = train_on(World(rank, ranks, ranks, own), backend)
        if rank == 0:
            torch.save(result, Path(folder) / "result.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def train_on(world: World, backend: str) -> dict[str, Tensor]:
    """Every rank takes part; on rank 0 the result is whole."""
    torch.manual_seed(0)
    config = dataclasses.replace(MODEL, attention=AttentionConfig(backend=backend))
    model = Recommender(config, build_embeddings(config, VOCABULARY, 0, torch.device("meta")), VOCABULARY)
    model.tower.to(world.device)

    def rows(name: str, start: int, stop: int, width: int) -> Tensor:
        return draw_rows(0, name, start, stop, width, INITIAL_STD)

    plan = row_wise(model, world)
    sharded = shard_model(model, plan, world, learning_rate=RATE, epsilon=EPSILON, draw_rows=rows)
    dense = dict(sharded.named_parameters())
    dense = {name: x for name, x in dense.items() if ".tower." in f".{name}"}
    losses = []
    for step in range(STEPS):
        loss, _ = sharded(make_batch(world, step))
        loss.backward()
        losses.append(loss.detach().clone())
        dist.all_reduce(losses[-1])
        with torch.no_grad():
            for parameter in dense.values():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
    result = {"losses": torch.stack(losses).cpu()}
    result |= {name.split(".tower.")[-1]: parameter.detach().cpu() for name, parameter in dense.items()}
    for name, sharded_table in sharded_tables(sharded).items():
        whole = gather_table(sharded_table, world)
        if whole is not None:
            result[name] = whole.cpu()
    return result


def make_batch(world: World, step: int) -> Batch:
    """Made up, another one for every rank and step; items repeat, as they do in histories."""
    random = np.random.default_rng([0, step, world.rank])
    offsets_B = np.array([0, 100, 100, 101, 310, RANK_TOKENS - 40])
    events = int(offsets_B[-1]) + 1
    columns = EventColumns(
        offsets=np.array([0, events]),
        items=random.integers(0, ITEMS, events).astype(np.uint32),
        timestamps=1_600_000_000 + random.integers(0, 5000, events).cumsum(),
        event_types=random.integers(0, VOCABULARY.event_types, events).astype(np.uint8),
        durations=random.integers(1, 400, events),
        organic=random.integers(0, 3, events),
    )
    at_n = np.arange(events - 1)
    tokens = Tokens(at_n, at_n + 1, None, offsets_B, None)
    batch = BatchMaker(columns, made_up_items()).make(tokens, np.arange(5), RANK_TOKENS, 1.0 / len(at_n))
    return batch.to(world.device)


def made_up_items() -> ItemFeatures:
    """The same for every rank and step: codes, and none to two artists an item."""
    generator = torch.Generator().manual_seed(0)
    counts_N = torch.randint(0, 3, (ITEMS,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)))
    artists = torch.randint(0, VOCABULARY.artists, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    codes_NC = torch.randint(
        0, VOCABULARY.codes, (ITEMS, VOCABULARY.levels), generator=generator, dtype=code_dtype(VOCABULARY.codes)
    )
    return ItemFeatures(codes_NC, VOCABULARY.codes, offsets, artists, VOCABULARY.artists, MODEL.qr_remainders)


# ── the entry ────────────────────────────────────────────────────────────────────────────────────────────


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print, judge."""
    argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__).parse_args(argv)
    quiet_known_warnings()
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        advice = "run `make gpu-check ACCELERATOR=cuda` on a machine with one"
        report_faults("gpu_check", [f"there is no CUDA GPU that PyTorch can use{built}: {advice}"])
        return 2
    gpus, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
    print(f"{gpus} × {name}, torch {torch.__version__}, CUDA {torch.version.cuda}\n", flush=True)
    checked = [*check_attention(torch.device("cuda", 0), CHECKS, LENGTHS)]
    checked.append(check_training(min(gpus, 2), "cuda", "triton"))
    print(report(checked))
    return 0 if all(row.holds for row in checked) else 1


def report(checked: Sequence[Checked]) -> str:
    """The table, and a last line that says how many hold."""
    rows: list[list[Any]] = [
        [row.what, f"{row.forward:.1e}", f"{row.gradients:.1e}", f"{row.bound:.0e}", "yes" if row.holds else "NO"]
        for row in checked
    ]
    header = ["against the dense oracle, or the CPU", "forward", "gradients, updates", "bound", "holds"]
    return f"{table(header, rows)}\n\n{sum(row.holds for row in checked)} of {len(checked)} hold"


if __name__ == "__main__":
    sys.exit(main())
