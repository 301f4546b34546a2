"""What a plan promises beside what its ranks hold and send, and what it costs to have tables on several ranks.

    python -m benchmarks.sharding [--quick] [--scratch FOLDER]

Ranks are processes of this machine under gloo, which share its cores: bytes are those of any network, seconds are not.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.harness import Findings, measure, table
from benchmarks.sharding_prediction import jobs, run_jobs, towers
from benchmarks.sharding_price import GLOBAL_BATCHES, RANKS, all_of_it, train_alike
from benchmarks.sharding_ranks import LIVE_ONLY, REUSING, on_ranks
from benchmarks.sharding_tables import BAG, WIDTH, Size
from common.noise import quiet_known_warnings
from data.event_store import EventStore
from sharding.world import open_world

USERS, ITEMS = 600, 60_000
SIZE = Size(rows=10_000_000, bags=8192, repeats=9)
QUICK_SIZE = Size(rows=500_000, bags=2048, repeats=3)
ALIKE = (20_000, 256)
"""Rows, and bags of a quarter of a global batch."""
QUICK_JOBS = ("as configured", "cut by columns", "large tables")
FOUR_RANKS_JOBS = (*QUICK_JOBS, "a bag a token")


def main() -> int:
    """Entry point."""
    return harness.run("sharding", _work)


def _work(quick: bool, scratch: Path, findings: Findings) -> None:
    quiet_known_warnings()
    store = make_store(scratch)
    every = [job.name for job in jobs(1)]
    wanted = {2: (1, QUICK_JOBS)} if quick else {2: (2, every), 4: (1, FOUR_RANKS_JOBS)}
    report_prediction(
        {ranks: predicted_and_measured(store, ranks, scale, names) for ranks, (scale, names) in wanted.items()},
        findings,
    )
    size = QUICK_SIZE if quick else SIZE
    by_rank = on_ranks(RANKS, REUSING, all_of_it, size, str(scratch), ALIKE)
    report_price(by_rank[0]["price"], size, findings)
    report_precisions([own["precisions"] for own in by_rank], findings)
    report_items([own["items"] for own in by_rank], size, findings)
    with open_world() as world:
        train_alike(world, str(scratch), *ALIKE)
    if not quick:
        on_ranks(4, {}, train_alike, str(scratch), *ALIKE)
    report_alike(scratch, findings)


# ── predicted and measured ───────────────────────────────────────────────────────────────────────────────


def make_store(folder: Path) -> Path:
    """Events of five kinds, of items with several artists."""
    log, store = folder / "log", folder / "store"
    made = ["kind=yambda", f"out={log}", "size=quick", f"users={USERS}", f"items={ITEMS}", "embedding_width=4"]
    measure(["-m", "data.synthesize", *made, "kinds=[listens,likes,multi_event]"])
    measure(["-m", "data.prepare", "source=yambda", f"path={log}", "size=quick", "kind=multi_event", f"out={store}"])
    return store


def predicted_and_measured(store: Path, ranks: int, scale: int, names: Sequence[str]) -> list[list[dict[str, Any]]]:
    """By job, what each rank found."""
    found = [job for job in jobs(scale) if job.name in names]
    dense = towers(found, EventStore.open(store, verify=False))
    by_rank = on_ranks(ranks, LIVE_ONLY, run_jobs, str(store), found, dense)
    return [[own[index] for own in by_rank] for index in range(len(found))]


def report_prediction(measured: dict[int, list[list[dict[str, Any]]]], findings: Findings) -> None:
    """Parameters, traffic, memory."""
    each = [(ranks, by_rank) for ranks, found in measured.items() for by_rank in found]
    findings.add(
        "Parameters: predicted and measured",
        table(
            ["ranks", "model", "tables", "their optimizer", "dense parameters"],
            [
                [ranks, by_rank[0]["job"], *(_mb(value) for value in by_rank[0]["bytes"].values())]
                for ranks, by_rank in each
            ],
        )
        + "\n\nOf rank 0, MB; every rank's are compared with the plan's arithmetic to the byte.",
        parameter_bytes_error=max(
            abs(own["predicted_bytes"][kind] - size)
            for _, by_rank in each
            for own in by_rank
            for kind, size in own["bytes"].items()
        ),
    )
    traffic = [(ranks, by_rank[0]["job"], *one) for ranks, by_rank in each for one in _traffic(by_rank)]
    findings.add(
        "Traffic: predicted and measured",
        table(
            ["ranks", "model", "collection", "stage", "predicted", "counted", "error"],
            [
                [ranks, job, *key.split("."), f"{predicted:,.0f}", f"{counted:,}", f"{predicted / counted - 1:+.2%}"]
                for ranks, job, key, predicted, counted in traffic
            ],
        )
        + "\n\nBytes that all ranks give to others in one step. Rows of items are taken to be asked for evenly, which "
        "they are not in one batch; how many ids each rank is to get, told beforehand, is not predicted.",
        alltoall_bytes_error=max(abs(predicted / counted - 1) for *_, predicted, counted in traffic),
    )
    findings.add(
        "Memory: predicted and measured",
        table(
            [
                "ranks",
                "model",
                "tables and optimizer",
                "dense",
                "activations or exchange",
                "predicted",
                "peak",
                "error",
            ],
            [[ranks, own["job"], *_memory(own)] for ranks, by_rank in each for own in [max(by_rank, key=_worst)]],
        )
        + "\n\nMB, on the rank where the error is largest. The peak is the growth of the resident set from before the "
        f"model is built until four steps are done, three of them by the trainer's pipeline. glibc is "
        f"told to give blocks back at once (`{' '.join(f'{k}={v}' for k, v in LIVE_ONLY.items())}`), so that what is "
        "held is seen, and not what once was; without, add what the allocator keeps.",
        peak_memory_error=max(_worst(own) for _, by_rank in each for own in by_rank),
        peak_memory_error_by_model={
            f"{by_rank[0]['job']}, {ranks} ranks": round(max(map(_worst, by_rank)), 4) for ranks, by_rank in each
        },
    )


def _traffic(by_rank: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """Collection and stage, predicted, counted; ranks together."""
    keys = sorted({key for own in by_rank for key in (*own["sent"], *own["predicted_sent"])})
    return [
        (
            key,
            sum(own["predicted_sent"].get(key, 0.0) for own in by_rank),
            sum(own["sent"].get(key, 0) for own in by_rank),
        )
        for key in keys
    ]


def _worst(own: dict[str, Any]) -> float:
    error: float = abs(own["predicted_peak"] / own["peak"] - 1)
    return error


def _memory(own: dict[str, Any]) -> list[str]:
    kinds = own["kinds"]
    dense = kinds["dense_parameters"] + kinds["dense_gradients"] + kinds["dense_optimizer"]
    return [
        _mb(kinds["tables"] + kinds["sparse_optimizer"]),
        _mb(dense),
        _mb(kinds["working"]),
        _mb(own["predicted_peak"]),
        _mb(own["peak"]),
        f"{own['predicted_peak'] / own['peak'] - 1:+.1%}",
    ]


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────


def report_price(found: dict[str, Any], size: Size, findings: Findings) -> None:
    """Two ranks beside one process, and asking for each item once."""
    rows = RANKS * size.bags * BAG
    single, sharded = (statistics.median(found[name]) for name in ("single", "sharded"))
    findings.add(
        "The price of sharding",
        table(
            ["", "ms a step", "rows/s"],
            [
                ["one process, FBGEMM alone, two threads", f"{1e3 * single:.1f}", f"{rows / single / 1e6:.2f} M"],
                ["two ranks, row-wise, one thread each", f"{1e3 * sharded:.1f}", f"{rows / sharded / 1e6:.2f} M"],
            ],
        )
        + f"\n\n{size.rows:,} × {WIDTH}, bags of {BAG} Zipf ids, {size.bags:,} bags a rank: forward, backward and "
        f"update, medians of {size.repeats}, by turns. Every rank sends a float32 sum for each bag of the other, and "
        "gets as many gradients.",
        rows_per_s=rows / sharded,
        rows_per_s_single_process=rows / single,
        rows_per_s_ratio_vs_single_process=single / sharded,
    )
    catalogues = found["catalogues"]
    saved = [1 - one["once"]["bytes"] / one["plain"]["bytes"] for one in catalogues]
    gained = [1 - one["once"]["seconds"] / one["plain"]["seconds"] for one in catalogues]
    lines = [
        [
            f"{one['items']:,}",
            f"{one['distinct']:.0%}",
            f"{one['plain']['bytes'] / 1e6:.2f} → {one['once']['bytes'] / 1e6:.2f}",
            f"{bytes_saved:.1%}",
            f"{1e3 * one['plain']['seconds']:.1f} → {1e3 * one['once']['seconds']:.1f}",
            f"{seconds_saved:.1%}",
        ]
        for one, bytes_saved, seconds_saved in zip(catalogues, saved, gained, strict=True)
    ]
    findings.add(
        "Each item once",
        table(["items", "distinct of a batch", "MB sent", "saved", "ms a step", "saved"], lines)
        + f"\n\nThe same table; a token's bag is that of its item, drawn by Zipf's law, {size.bags:,} tokens a rank. "
        "On the left a bag a token, on the right one for each distinct item of the batch. Bytes of rank 0, all stages.",
        dedup_bytes_saved=saved[1],
        dedup_bytes_saved_little_repetition=saved[0],
        dedup_time_saved=gained[1],
        dedup_time_saved_little_repetition=gained[0],
    )


def report_precisions(by_rank: list[dict[str, Any]], findings: Findings) -> None:
    """Bytes, seconds, errors."""
    lines, figures = [], dict[str, Any]()
    for name, kept in by_rank[0].items():
        if "fault" in kept:
            lines.append([name, "", "", kept["fault"], ""])
            continue
        errors = [max(own[name]["errors"][part] for own in by_rank) for part in (0, 1)]
        lines.append(
            [name, f"{kept['bytes'] / 1e6:.2f}", f"{1e3 * kept['seconds']:.1f}", *(f"{e:.1e}" for e in errors)]
        )
        if "float32" not in name:
            figures[f"{name.removeprefix('items ')}_error"] = errors[0]
            figures[f"{name.removeprefix('items ')}_gradient_error"] = errors[1]
    findings.add(
        "Fewer bits on the way",
        table(["", "MB sent by rank 0", "ms a step", "error of vectors", "error of gradients"], lines)
        + "\n\nSums of bags in float32, float16 and bfloat16; then rows of a table of items in float32 and int8. "
        "Errors are relative to float32, ‖difference‖ / ‖float32‖, the larger of the two ranks'. Ids stay as they are.",
        **figures,
    )


def report_items(by_rank: list[dict[str, Any]], size: Size, findings: Findings) -> None:
    """Vocabulary beside hashing."""
    lines, figures = [], dict[str, Any]()
    for name in ("vocabulary", "hashed"):
        asked = sum(own[name]["ids"] for own in by_rank)
        seconds = by_rank[0][name]["seconds"]
        usual = asked / len(seconds) / statistics.median(seconds)
        lines.append(
            [
                name,
                f"{asked / len(seconds):,.0f}",
                f"{1e3 * statistics.median(seconds):.1f}",
                f"{1e3 * max(seconds):.0f}",
                f"{usual / 1e6:.2f} M",
            ]
        )
        figures[f"item_rows_per_s_{name}"] = usual
    findings.add(
        "The table of items",
        table(["rows by", "distinct ids a step", "ms a step", "slowest step", "rows/s"], lines)
        + f"\n\n{size.rows:,} × {WIDTH} on two ranks: lookup, backward and update of each row once; medians of "
        f"{len(by_rank[0]['hashed']['seconds'])}. The slowest step under hashing is one that hands out rows. "
        "Until a row is theirs, ids read the shared one of their bucket: few rows are touched at first, in its favour.",
        **figures,
        item_rows_per_s_ratio_hashed=figures["item_rows_per_s_hashed"] / figures["item_rows_per_s_vocabulary"],
    )


def report_alike(folder: Path, findings: Findings) -> None:
    """The tables that the same global batches end with on all numbers of ranks there are."""
    tables = {int(path.stem): np.load(path) for path in sorted(folder.glob("*.npy"))}
    differences = {size: float(np.abs(tables[size] - tables[1]).max()) for size in tables}
    findings.add(
        "The same tables",
        table(["ranks", "largest difference to one rank"], [[size, f"{one:.1e}"] for size, one in differences.items()])
        + f"\n\nAfter {GLOBAL_BATCHES} steps with the same global batches, {len(tables[1]):,} × {WIDTH} row-wise; "
        f"numbers reach {np.abs(tables[1]).max():.2f}. Sums of float32 in another order is all that differs.",
        max_table_difference=max(differences.values()),
    )


if __name__ == "__main__":
    sys.exit(main())
