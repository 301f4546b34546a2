"""Training steps: how near they come to the machine's limit, by part, shape, precision and number of ranks.

    python -m benchmarks.train_step [--quick]

Each figure is of steps of the real trainer on real batches, in processes of their own (`train_step_child`). A step's
operations are counted by hand (`train_step_operations`) and its share of the limit is the time that they would take at
the rate of a large product measured right before and after it, by as many ranks and threads at once.

With `SEGUE_MOVIELENS_1M` (the zip or its folder) the second shape reads MovieLens-1M, otherwise a log of its size.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Findings, run, table
from benchmarks.train_step_child import Plan
from benchmarks.train_step_peers import report_peers
from benchmarks.train_step_runs import PREDICTED, Measured, Setting, by_part, measure, on_two_cores, pick, speeds
from benchmarks.train_step_shapes import (
    BF16,
    LIKE_MOVIELENS_1M,
    SMALL,
    YAMBDA,
    Shape,
    movielens_1m,
    small_negatives,
    yambda,
)

MOVIELENS_1M = "SEGUE_MOVIELENS_1M"
NAIVE = ("model.attention.backend=dense", "batch.distinct=false")
"""A bag a token instead of one a distinct item, and attention by its definition, all of whose scores autograd keeps."""

QUICK, QUICK_SMALL = Plan(warm=1, blocks=2, steps=2, seconds=20, profiled=1), Plan(warm=2, steps=4, seconds=15)
QUICK_NAIVE = Plan(warm=1, blocks=2, steps=2, seconds=15, profiled=0)
QUICK_BF16 = dataclasses.replace(QUICK, profiled=0)
FULL = Plan(warm=2, blocks=3, seconds=60, profiled=2)


def main(quick: bool, folder: Path, findings: Findings) -> None:
    """Measure everything."""
    bench = Bench(folder)
    (small_runs, large_runs) = quick_runs(bench) if quick else full_runs(bench)
    runs = [*small_runs, *large_runs]
    report_speed(runs, findings)
    report_parts(runs, findings)
    report_limit(large_runs, findings)
    report_ranks(runs, findings)
    report_naive(bench, small_runs, quick, findings)
    if not quick:
        report_memory(runs, findings)
    report_peers(small_runs, quick, folder, findings)


class Bench:
    """Runs settings one after another."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __call__(self, setting: Setting, plan: Plan) -> Measured:
        """One run; of a plan that leaves it open, the shape says how many steps."""
        return measure(setting, plan, self._scratch)


def quick_runs(bench: Bench) -> tuple[list[Measured], list[Measured]]:
    """The small shape on two ranks; the large one with a step a quarter as large, on one rank and on two."""
    large = _shorter(yambda(512, YAMBDA, 2), 1_024, 2)
    small = bench(Setting(SMALL, ranks=2), QUICK_SMALL)
    found = [bench(Setting(large, ranks), QUICK) for ranks in (1, 2)]
    return [small], [*found, bench(Setting(_shorter(large, 1_024, 1), precision=BF16), QUICK_BF16)]


def full_runs(bench: Bench) -> tuple[list[Measured], list[Measured]]:
    """Every shape on one rank with one thread and with two, on two ranks, and in bfloat16."""
    given = os.environ.get(MOVIELENS_1M)
    shapes: list[Shape] = [SMALL, small_negatives(movielens_1m(Path(given)) if given else LIKE_MOVIELENS_1M)]
    large = [yambda(512, YAMBDA, 4), yambda(2048, YAMBDA, 3)]
    found: list[list[Measured]] = []
    for group in (shapes, large):
        runs = []
        for shape in group:
            plan = dataclasses.replace(FULL, steps=shape.steps)
            runs += [bench(Setting(shape, ranks, threads), plan) for ranks, threads in ((1, 1), (1, 2), (2, 1))]
            runs.append(bench(Setting(shape, precision=BF16), dataclasses.replace(plan, profiled=0)))
        found.append(runs)
    return found[0], found[1]


def _shorter(shape: Shape, tokens: int, bins: int) -> Shape:
    return dataclasses.replace(shape, tokens=tokens, bins=bins)


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────


def report_speed(runs: Sequence[Measured], findings: Findings) -> None:
    """Every run in a row, and what the shapes are."""
    shapes = {found.setting.shape.name: found.setting.shape for found in runs if found.setting.precision != BF16}
    about = "\n".join(f"- **{one.name}**: {one.about}; {one.log.about}; {one.batches}." for one in shapes.values())
    text = (
        f"{about}\n\n{speeds(runs)}\n\nEvents are targets; padding counts as nothing. The share of the product rate is "
        "that of the best block of steps; what is left of 1 is the time outside products, and that of products made "
        "again or more slowly. bfloat16: the blocks' products count at the bfloat16 rate, or at the float32 rate where "
        "that is higher, as on processors without products in bfloat16; the heads' at the float32 rate."
    )
    large = [found for found in runs if found.setting.shape.name.startswith("yambda")]
    figures = {
        "padding_share": max(found.padding for found in large if found.setting.precision != BF16),
        "data_wait_share": max(found.data_wait for found in large if found.setting.precision != BF16),
    }
    findings.add("Speed", text, small_events_per_s=on_two_cores(runs, "small").events_per_s, **figures)


def report_parts(runs: Sequence[Measured], findings: Findings) -> None:
    """A table a shape."""
    names = dict.fromkeys(found.setting.shape.name for found in runs)
    for name in names:
        shown = [found for found in runs if found.setting.shape.name == name and found.ranks[0]["parts"]]
        if shown:
            findings.add(f"Time by part, {name}", by_part(shown))
    findings.add("How parts are told apart", HOW_PARTS)


HOW_PARTS = (
    "Self times of the main thread of rank 0, so that parts add up to the step. A node of the backward is of the part "
    "in which its forward ran. Cascaded heads and the softmax over items form their gradients in the forward: that is "
    "in `heads and loss`. De-duplication of ids is done by the loader and in `data wait`; `ids to their owners` is "
    "TorchRec's input distribution, AlltoAll included; rows that come back, and gradients that go, are in `lookup` and "
    "its backward, and so is the tables' Adagrad, which FBGEMM does there. `dense all-reduce` has the buckets of "
    "DistributedDataParallel and the wait for them. `rest` is the L2 norm of states, the loop and all between parts."
)


def report_limit(runs: Sequence[Measured], findings: Findings) -> None:
    """Operations counted, the rates of products, and the shares."""
    rows, figures = [], {}
    for found in runs:
        setting, counted = found.setting, found.operations
        rate, float32 = found.rates
        name = setting.shape.name.replace("-", "_")
        rows.append(
            [
                str(setting),
                *(f"{part / 1e9:,.1f}" for part in (counted.projections, counted.attention, counted.heads)),
                f"{rate / 1e9:,.1f}",
                f"{float32 / 1e9:,.1f}",
                f"{found.gemm_share:.1%}",
                f"{statistics.fmean(found.gemm_shares):.1%}",
            ]
        )
        if setting.precision == BF16:
            figures[f"gemm_share_bf16_{name}"] = found.gemm_share
        elif (setting.ranks, setting.threads) == (1, 1):
            figures[f"gemm_share_fp32_{name}"] = found.gemm_share
            figures[f"outside_products_{name}"] = found.outside_products
    head = [
        *("", "projections", "attention", "heads", "product rate", "in float32"),
        *("share, best block", "share, all blocks"),
    ]
    text = (
        f"{table(head, rows)}\n\nBillions of operations of a step of rank 0, forward and backward, and billions a "
        "second. Attention counts the causal half of each user's own pairs, two products forward and four backward; "
        "nothing counts that is computed twice."
    )
    figures["gemm_share_fp32"] = figures["gemm_share_fp32_yambda_512"]
    figures["gemm_share_bf16"] = figures["gemm_share_bf16_yambda_512"]
    findings.add("Share of the machine's product rate", text, **figures)


def report_ranks(runs: Sequence[Measured], findings: Findings) -> None:
    """Two ranks of a thread each beside one, and what it costs that tables lie over both."""
    rows, figures = [], {}
    for one in runs:
        name = one.setting.shape.name
        two = pick(runs, name, ranks=2)
        if (one.setting.ranks, one.setting.threads, one.setting.precision) != (1, 1, "float32") or two is None:
            continue
        scaling = two.best_events_per_s / one.best_events_per_s
        suffix = f"_{name.replace('-', '_')}" * (name != "yambda-512")
        figures[f"scaling_2_ranks{suffix}"] = scaling
        figures[f"{OF_POSSIBLE}{suffix}"] = scaling * one.rates[1] / (2 * two.rates[1])
        rows.append(
            [
                name,
                f"{one.best_events_per_s:,.0f}",
                f"{two.best_events_per_s:,.0f}",
                f"{scaling:.2f} ×",
                f"{two.rates[1] / one.rates[1]:.2f} ×",
                f"{_sparse_share(one):.1%}",
                f"{_sparse_share(two):.1%}",
                f"{two.parts['seconds']['dense all-reduce'] / two.parts['whole']:.1%}",
            ]
        )
    head = [
        *("shape", "events/s, 1 rank", "2 ranks", "gain", "each rank's product rate beside the lone one's"),
        *("ids and tables, 1 rank", "2 ranks", "dense all-reduce, 2 ranks"),
    ]
    text = (
        f"{table(head, rows)}\n\nBest blocks; a rank has one thread. Where the product rate of each of two is below "
        "that of one alone, the two share a core's units or the memory, which no program mends. What row-wise sharding "
        "costs is the difference of the two columns of ids and tables, of which a part is the wait for the other rank."
    )
    findings.add("Two ranks", text, **figures)


OF_POSSIBLE = "scaling_of_possible"
"""What two ranks gain over what two products at once gain: not the machine's doing, but ours."""

SPARSE = ("ids to their owners", "lookup", "lookup, backward")


def _sparse_share(found: Measured) -> float:
    return float(sum(found.parts["seconds"][part] for part in SPARSE) / found.parts["whole"])


def report_naive(bench: Bench, runs: Sequence[Measured], quick: bool, findings: Findings) -> None:
    """The small shape's steps beside those of the obvious implementations."""
    fast = pick(runs, "small", ranks=2)
    assert fast is not None
    plan = QUICK_NAIVE if quick else dataclasses.replace(FULL, steps=SMALL.steps // 2, profiled=0)
    naive = bench(Setting(SMALL, ranks=2, keys=NAIVE), plan)
    again = bench(Setting(SMALL, ranks=2), dataclasses.replace(plan, profiled=0))  # so that it stands between two
    best = max(fast.best_events_per_s, again.best_events_per_s)
    speedup = best / naive.best_events_per_s
    rows = [["as it is", f"{best:,.0f}"], [" ".join(NAIVE), f"{naive.best_events_per_s:,.0f}"]]
    findings.add(
        "Beside the obvious",
        table(["small, 2 ranks × 1 thread", "events/s, best block"], rows),
        speedup_vs_naive=speedup,
    )


def report_memory(runs: Sequence[Measured], findings: Findings) -> None:
    """What a process had at most beside what it should need."""
    rows = []
    for found in runs:
        memory = found.memory
        parts = [f"{memory[name] / 1e6:,.0f}" for name in PREDICTED]
        rows.append([str(found.setting), *parts, f"{memory['peak'] / 1e6:,.0f}", f"{found.memory_ratio:.2f}"])
    judged = pick(runs, "yambda-2048")
    assert judged is not None
    memory = judged.memory
    twice = memory["peak"] / (sum(memory[name] for name in PREDICTED) + memory["fourteen_d"])
    text = (
        f"{table(['', 'before the model', 'parameters and states', '14 d', 'peak', 'peak over the sum'], rows)}\n\n"
        "Megabytes of the rank that had most; the peak is that of steps, building apart. The paper's 14 d are bytes a "
        "token and layer in bfloat16, that is 7 d numbers: 28 d bytes in float32, which is what stands here. Read as "
        f"14 d numbers, as `activations.md` counts what our blocks keep, the ratio of yambda-2048 is {twice:.2f}."
    )
    findings.add("Memory", text, memory_ratio=judged.memory_ratio, memory_ratio_14_d_numbers=twice)


if __name__ == "__main__":
    sys.exit(run("train_step", main))
