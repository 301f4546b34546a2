"""The data room: from a log to batches, beside what the disk and a bare scan allow.

    python -m benchmarks.data [--quick] [--scratch FOLDER]

Prepares event stores from a synthetic log in Yambda's layout, packs and balances windows of published lengths, makes
batches, and thins histories by Stochastic Length. A full run generates 50 and 200 million events (8 GB of scratch).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.harness import Findings, Measured, measure, run, table
from common.noise import quiet_known_warnings
from data.event_store import EventStore
from data.loader import Loader, item_features
from data.sequences import training_windows
from data.stochastic_length import StochasticLength, attention_sparsity, sparsity
from data.synthetic.lengths import published_lengths

USERS_PER_50M = 10_000
LEVELS, CODES = 8, 1024
UNKNOWN_SHARE = 0.18
BALANCED_RANKS = 8

SHAPES = {512: 8_192, 2_048: 16_384, 8_192: 65_536}
"""History length → tokens of a bin."""

THINNED = 1.7
"""α of Stochastic Length, with the longest histories once more."""

LOADING_S, TRAINING_STEPS = 15.0, 8
QUICK_USERS, QUICK_LOADING_S, QUICK_TRAINING_STEPS = 3000, 3.0, 2
"""How long batches are made for their speed, and how many are trained on for that of training."""


def main(quick: bool, folder: Path, findings: Findings) -> None:
    """Measure preparing, loading and thinning."""
    quiet_known_warnings()
    torch.set_num_threads(1)
    sizes = {"quick": QUICK_USERS} if quick else {"50m": USERS_PER_50M, "200m": 4 * USERS_PER_50M}
    prepared = {name: prepare_one(folder, name, users, quick) for name, users in sizes.items()}
    report_prepare(prepared, findings)
    store = EventStore.open(folder / f"store-{next(iter(sizes))}", verify=False)
    report_loader(store, quick, findings)
    report_thinning(10_000 if quick else 1_000_000, findings)


# ── preparing ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Prepared:
    """One log prepared, and the limit beside it."""

    prepare: Measured
    scan_seconds: float
    write_seconds: float
    read_gb: float
    store_gb: float

    @property
    def events_per_s(self) -> float:
        """By the command's own clock, which starts when Python has been loaded."""
        return float(self.prepare.summary["events"] / self.prepare.summary["seconds"])

    @property
    def share(self) -> float:
        """Of the speed of a bare scan and write."""
        return float((self.scan_seconds + self.write_seconds) / self.prepare.summary["seconds"])


def prepare_one(folder: Path, name: str, users: int, quick: bool) -> Prepared:
    """Generate a log, prepare it, scan it, write as many bytes; the log is removed afterwards."""
    log, store = folder / f"log-{name}", folder / f"store-{name}"
    catalogue = ["items=60000", "embedding_width=64"] if quick else []
    measure(["-m", "data.synthesize", "kind=yambda", f"out={log}", f"size={name}", f"users={users}", *catalogue])
    prepared = measure(
        ["-m", "data.prepare", "source=yambda", f"path={log}", f"size={name}", "kind=listens", f"out={store}"]
    )
    scan_seconds, read = scan(log, log / "flat" / name / "listens.parquet")
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    write_seconds = write(folder / "written", size)
    for path in sorted(log.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return Prepared(prepared, scan_seconds, write_seconds, read / 1e9, size / 1e9)


def scan(log: Path, listens: Path) -> tuple[float, int]:
    """Decode with PyArrow, once, with all its threads, the columns that prepare reads; seconds, and bytes of files."""
    columns = {
        listens: ["uid", "timestamp", "item_id", "is_organic", "played_ratio_pct", "track_length_seconds"],
        log / "artist_item_mapping.parquet": ["artist_id", "item_id"],
        log / "album_item_mapping.parquet": ["album_id", "item_id"],
        log / "embeddings.parquet": ["item_id", "embed"],
    }
    start = time.perf_counter()
    for path, names in columns.items():
        for _ in pq.ParquetFile(path).iter_batches(batch_size=2**20, columns=names):
            pass
    return time.perf_counter() - start, sum(path.stat().st_size for path in columns)


def write(path: Path, size: int) -> float:
    """Seconds to write and fsync that many bytes in one file."""
    block = np.random.default_rng(0).bytes(2**24)
    start = time.perf_counter()
    with path.open("wb") as file:
        for done in range(0, size, len(block)):
            file.write(block[: min(len(block), size - done)])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def report_prepare(prepared: dict[str, Prepared], findings: Findings) -> None:
    """Rate, memory and share of the limit, by size of the log."""
    rows = [
        [
            name,
            f"{one.prepare.summary['events']:,}",
            f"{one.prepare.summary['seconds']:.1f}",
            f"{one.events_per_s / 1e6:.2f} M",
            f"{one.prepare.peak_gb:.2f}",
            f"{one.read_gb:.2f}",
            f"{one.store_gb:.2f}",
            f"{one.scan_seconds:.1f} + {one.write_seconds:.1f}",
            f"{one.share:.0%}",
        ]
        for name, one in prepared.items()
    ]
    head = ["log", "events", "s", "events/s", "peak GB", "GB read", "GB written", "scan + write s", "share of limit"]
    text = table(head, rows) + (
        "\n\n`data.prepare` by its own clock (without loading Python's modules); peak is the process's largest "
        "resident set. The limit is a bare PyArrow decode of the same columns, and a write of as many bytes with fsync."
    )
    first, last = (list(prepared.values())[place] for place in (0, -1))
    figures: dict[str, Any] = {
        "prepare_events_per_s": first.events_per_s,
        "prepare_peak_gb": first.prepare.peak_gb,
        "prepare_share_of_scan_limit": first.share,
    }
    if last is not first:
        figures["prepare_peak_growth"] = last.prepare.peak_gb / first.prepare.peak_gb
        figures["prepare_time_over_linear"] = first.events_per_s / last.events_per_s
        text += (
            f"\n\nFour times the events take {figures['prepare_peak_growth']:.2f} × the memory and "
            f"{figures['prepare_time_over_linear']:.2f} × the time an event."
        )
    findings.add("Preparing", text, **figures)


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────


def report_loader(store: EventStore, quick: bool, findings: Findings) -> None:
    """Padding, balance of attention work over ranks, and speed of making batches."""
    random = np.random.default_rng(0)
    codes_NC = random.integers(0, CODES, (store.num_items, LEVELS))
    codes_NC[random.random(store.num_items) < UNKNOWN_SHARE] = 0
    features = item_features(store, codes_NC, CODES)
    split = store.split()

    def loader(history: int, world_size: int = 1, alpha: float = 2.0) -> Loader:
        return Loader(
            store,
            features,
            training_windows(store.offsets, split, history),
            tokens=SHAPES[history],
            bins=BALANCED_RANKS,
            rank=0,
            world_size=world_size,
            seed=0,
            shuffle=True,
            thinning=StochasticLength(alpha=alpha),
            longest=history,
        )

    rows: list[tuple[str, int, float, float, float]] = []
    for history, alpha in (*((history, 2.0) for history in SHAPES), (max(SHAPES), THINNED)):
        one = loader(history, alpha=alpha)
        ratios = work_ratios(one)
        name = f"{history}" if alpha == 2 else f"{history}, α = {alpha}"
        rows.append((name, SHAPES[history], one.padding_share(0), float(np.mean(ratios)), float(np.max(ratios))))
    seconds = QUICK_LOADING_S if quick else LOADING_S
    alone, among = (tokens_per_s(loader(512, world_size), seconds) for world_size in (1, BALANCED_RANKS))
    training = training_tokens_per_s(loader(512), store, QUICK_TRAINING_STEPS if quick else TRAINING_STEPS)
    text = table(
        ["longest history", "tokens a bin", "padding", f"Σ n², max / mean of {BALANCED_RANKS}", "worst step"],
        [[row[0], row[1], f"{row[2]:.2%}", f"{row[3]:.3f}", f"{row[4]:.3f}"] for row in rows],
    )
    text += (
        f"\n\nHistories of the published lengths, newest events, {LEVELS} × {CODES} codes, {UNKNOWN_SHARE:.0%} of the "
        f"items without. One process and thread makes {alone / 1e6:.2f} M tokens/s as the only rank and "
        f"{among / 1e6:.2f} M as one of {BALANCED_RANKS}; training on one thread consumes {training / 1e3:.1f} k/s "
        f"(default model, history 512): {alone / training:.0f} × slower."
    )
    findings.add(
        "Loading",
        text,
        loader_tokens_per_s=alone,
        loader_tokens_per_s_of_8_ranks=among,
        loader_over_training=alone / training,
        padding_share=rows[0][2],
        balance_max_over_mean=rows[0][3],
        balance_max_over_mean_by_history={str(row[0]): round(float(row[3]), 4) for row in rows},
    )


def work_ratios(loader: Loader) -> list[float]:
    """Most over mean Σ n² of the bins, one a step; the last step may be partly empty and does not count."""
    lengths_W = loader.lengths(0).astype(np.float64)
    ratios = []
    for step in range(max(loader.steps_per_epoch(0) - 1, 1)):
        work = [np.square(lengths_W[windows]).sum() for windows in loader.bins_of_step(0, step)]
        ratios.append(float(np.max(work) / np.mean(work)))
    return ratios


def batches_without_end(loader: Loader) -> Iterator[Any]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        yield from loader.iterate(epoch)
        epoch += 1


def tokens_per_s(loader: Loader, seconds: float) -> float:
    """Real tokens a second of making batches, planning of epochs included."""
    done, start = 0, time.perf_counter()
    for batch in batches_without_end(loader):
        done += int(batch.offsets[-1])
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def training_tokens_per_s(loader: Loader, store: EventStore, steps: int) -> float:
    """Tokens a second of whole training steps of the default model, one rank on one thread."""
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

    from model.config import ModelConfig, Vocabulary
    from serving.checkpoints.model import build_sharded
    from sharding.world import open_world
    from trainer.config import OptimizerConfig
    from trainer.optimizers import Optimizers

    config, optimizer = ModelConfig(max_history=512), OptimizerConfig()
    vocabulary = Vocabulary(LEVELS, CODES, store.num_artists, len(store.event_types))
    with open_world() as world:
        model = build_sharded(config, vocabulary, world, seed=0, learning_rate=0.02, epsilon=1e-8, codebooks_CVd=None)
        optimizers = Optimizers(model, optimizer, 1000)
        loader.bins = 1  # of 8,192 tokens: the rate is the same, and a step is short
        loader.tokens_per_batch = loader.tokens
        batches = [batch for batch, _ in zip(batches_without_end(loader), range(steps + 1), strict=False)]
        pipeline = TrainPipelineSparseDist(model, optimizers.combined, world.device, execute_all_batches=True)
        stream = iter(batches)
        model.train()
        pipeline.progress(stream)  # the first step sets up
        start = time.perf_counter()
        for _ in range(steps):
            pipeline.progress(stream)
        seconds = time.perf_counter() - start
    return sum(int(batch.offsets[-1]) for batch in batches[1:]) / seconds


# ── thinning ─────────────────────────────────────────────────────────────────────────────────────────────


def report_thinning(users: int, findings: Findings) -> None:
    """Stochastic Length on the published lengths: measured against equation (4), in the form of the paper's tables."""
    lengths_U = published_lengths(users, seed=0)
    random = np.random.default_rng(0)
    longest_history = (1024, 2048, 4096, 8192)
    rows, worst = [], 0.0
    for alpha in (1.6, 1.7, 1.8, 1.9, 2.0):
        cells = []
        for longest in longest_history:
            thinning = StochasticLength(alpha=alpha)
            whole = np.minimum(lengths_U, longest)
            kept = thinning.kept_lengths(whole, longest, random)
            expected = float(thinning.expected_lengths(whole, longest).mean())
            error = abs(float(kept.mean()) / expected - 1)
            worst = max(worst, error)
            cells += [f"{sparsity(kept, longest):.1%}", f"{attention_sparsity(kept, longest):.1%}", f"{error:.2%}"]
        rows.append([alpha, *cells])
    head = ["α"] + [f"{longest:,} {what}" for longest in longest_history for what in ("sparsity", "s2", "error")]
    text = table(head, rows) + (
        f"\n\n{users:,} users of the published lengths, newest events up to the longest history, one draw. `sparsity` "
        "and `s2` as in Tables 3, 14 and 15 of the HSTU paper (α = 2.0 is the log itself, unthinned); `error` is the "
        "mean length measured against the expectation of equation (4)."
    )
    findings.add("Stochastic Length", text, stochastic_length_error=worst)


if __name__ == "__main__":
    sys.exit(run("data", main))
