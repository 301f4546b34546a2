"""Runs of `benchmarks.train_step`: a training measured on some ranks and threads, in processes of its own.

One of them alone, by part, with keys of `trainer.train` on top, to see what a change does:

    python -m benchmarks.train_step_runs yambda-512 [--ranks 2] [--threads 1] [--precision bf16] [key=value …]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, table
from benchmarks.train_step_child import Look, Plan
from benchmarks.train_step_operations import Operations, product_seconds
from benchmarks.train_step_parts import PARTS
from benchmarks.train_step_shapes import FLOAT32, SHAPES, Shape

LIMIT_S = 1800

PREDICTED = ("before_model", "parameters_and_states", "fourteen_d")
"""Bytes that a process is expected to need, together."""


@dataclass(frozen=True)
class Setting:
    """How a shape is run."""

    shape: Shape
    ranks: int = 1
    threads: int = 1
    precision: str = FLOAT32
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)} × {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.shape.name}, {ranks}, {self.precision}" + "".join(f", {key}" for key in self.keys)


@dataclass(frozen=True)
class Measured:
    """What the ranks of a run found; what is not told of all of them is of the first.

    Attributes:
        ranks: as `benchmarks.train_step_child` wrote them.
    """

    setting: Setting
    ranks: Sequence[Mapping[str, Any]]

    @property
    def seconds(self) -> list[float]:
        """Of a step, by block."""
        return [block["seconds"] / block["steps"] for block in self.ranks[0]["blocks"]]

    @property
    def targets(self) -> list[float]:
        """Of a step, by block, over all ranks."""
        return [
            float(sum(block["work"]["targets"] for block in blocks) / blocks[0]["steps"])
            for blocks in zip(*(rank["blocks"] for rank in self.ranks), strict=True)
        ]

    @property
    def events_per_s(self) -> float:
        """Targets a second, over all blocks."""
        rate: float = statistics.fmean(self.targets) / statistics.fmean(self.seconds)
        return rate

    @property
    def best_events_per_s(self) -> float:
        """Of the best block: what the machine can do while nobody disturbs it."""
        return max(targets / seconds for targets, seconds in zip(self.targets, self.seconds, strict=True))

    @property
    def gemm_shares(self) -> list[float]:
        """By block: seconds that the counted products take at the measured rates over those of the steps."""
        return [
            statistics.fmean(_product_share(block) for block in blocks)
            for blocks in zip(*(rank["blocks"] for rank in self.ranks), strict=True)
        ]

    @property
    def gemm_share(self) -> float:
        """Of the best block."""
        return max(self.gemm_shares)

    @property
    def operations(self) -> Operations:
        """Of a step of the first rank, on average."""
        blocks = self.ranks[0]["blocks"]
        steps = sum(block["steps"] for block in blocks)
        parts = {name: sum(block["counted"][name] for block in blocks) / steps for name in blocks[0]["counted"]}
        return Operations(**parts)

    @property
    def padding(self) -> float:
        """Share of an epoch's budget that holds no token."""
        return float(self.ranks[0]["padding_of_epoch"])

    @property
    def data_wait(self) -> float:
        """Share of the time; of the rank that waited longest, in its best block."""
        return float(max(min(block["waited"] / block["seconds"] for block in rank["blocks"]) for rank in self.ranks))

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes, of the rank that had most."""
        found: Mapping[str, int] = max((rank["memory"] for rank in self.ranks), key=lambda memory: memory["peak"])
        return found

    @property
    def memory_ratio(self) -> float:
        """Peak over what was there before the model, parameters, optimizer states and the paper's activations."""
        memory = self.memory
        return float(memory["peak"] / sum(memory[name] for name in PREDICTED))

    @property
    def parts(self) -> Mapping[str, Any]:
        """Of a profiled step; empty where none was profiled."""
        found: Mapping[str, Any] = self.ranks[0]["parts"] or {}
        return found

    @property
    def outside_products(self) -> float:
        """What is left of the best block when its counted products have had their time at the machine's rate.

        A profile cannot tell: attention and losses are kernels with products inside.
        """
        return 1.0 - self.gemm_share

    @property
    def rates(self) -> tuple[float, float]:
        """Operations a second of products, in the model's precision and in float32; means over blocks."""
        blocks = self.ranks[0]["blocks"]
        return statistics.fmean(b["rate"] for b in blocks), statistics.fmean(b["float32_rate"] for b in blocks)


def _product_share(block: Mapping[str, Any]) -> float:
    counted = Operations(**block["counted"])
    return product_seconds(counted, block["rate"], block["float32_rate"]) / float(block["seconds"])


def measure(setting: Setting, plan: Plan, scratch: Path) -> Measured:
    """Run it.

    Args:
        plan: without config and keys, which are the setting's.

    Raises:
        RuntimeError: the run failed.
    """
    return Measured(setting, _run(setting, plan, scratch))


def looks_of(setting: Setting, plan: Plan, scratch: Path) -> list[Look]:
    """Train as long as `plan.looks` says, and score what it has come to; else as `measure`."""
    return [Look(**look) for look in _run(setting, plan, scratch)[0]["looks"]]


def _run(setting: Setting, plan: Plan, scratch: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    setting.shape.log.make()
    print(f"measuring {setting}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=scratch) as kept:
        folder = Path(kept)
        keys = [*setting.shape.overrides(folder / "run", setting.ranks, setting.precision), *setting.keys]
        whole = dataclasses.replace(plan, config=setting.shape.config, keys=keys)
        (folder / "plan.json").write_text(json.dumps(dataclasses.asdict(whole)), encoding="utf-8")
        command = [sys.executable, "-m", "torchx_components.launch", "--standalone"]
        command += ["--nproc-per-node", str(setting.ranks), "-m", "benchmarks.train_step_child"]
        environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, str(folder / "plan.json")],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        files = [folder / f"rank-{rank}.json" for rank in range(setting.ranks)]
        if done.returncode or not all(file.is_file() for file in files):
            raise RuntimeError(f"{setting} ended with status {done.returncode}\n{done.stderr[-4000:]}")
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def on_two_cores(runs: Sequence[Measured], name: str) -> Measured:
    """The better of two ranks and two threads."""
    found = [pick(runs, name, *shared) for shared in ((2, 1), (1, 2))]
    return max((one for one in found if one is not None), key=lambda one: one.events_per_s)


def pick(
    runs: Sequence[Measured], name: str, ranks: int = 1, threads: int = 1, precision: str = "float32"
) -> Measured | None:
    """The run of a setting, if there is one."""
    for found in runs:
        setting = found.setting
        if (setting.shape.name, setting.ranks, setting.threads, setting.precision) == (name, ranks, threads, precision):
            return found
    return None


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────


def speeds(runs: Sequence[Measured]) -> str:
    """A row a run."""
    head = [
        *("shape", "ranks × threads", "precision", "events/s", "best block", "ms a step", "share of the product rate"),
        *("padding", "data wait", "peak MB"),
    ]
    rows = []
    for run in runs:
        setting = run.setting
        rows.append(
            [
                setting.shape.name,
                f"{setting.ranks} × {setting.threads}",
                " ".join((setting.precision, *setting.keys)),
                f"{run.events_per_s:,.0f}",
                f"{run.best_events_per_s:,.0f}",
                f"{statistics.fmean(run.seconds) * 1e3:,.0f}",
                f"{run.gemm_share:.1%}",
                f"{run.padding:.1%}",
                f"{run.data_wait:.2%}",
                f"{run.memory['peak'] / 1e6:,.0f}",
            ]
        )
    return table(head, rows)


def by_part(runs: Sequence[Measured]) -> str:
    """A row a part; of each run milliseconds, share of the step and, in brackets, of the part in PyTorch's products."""
    rows = []
    for part in PARTS:
        cells = []
        for run in runs:
            seconds, products = run.parts["seconds"][part], run.parts["products"][part]
            inside = f" ({products / seconds:.0%})" if products > 0 else ""
            cells.append(f"{seconds * 1e3:,.1f} · {seconds / run.parts['whole']:.1%}{inside}")
        rows.append([part, *cells])
    whole = [
        f"{run.parts['whole'] * 1e3:,.1f} · 100% ({sum(run.parts['products'].values()) / run.parts['whole']:.0%})"
        for run in runs
    ]
    unprofiled = [f"{min(run.seconds) * 1e3:,.1f}" for run in runs]
    rows += [["the profiled step", *whole], ["the best block's, unprofiled", *unprofiled]]
    return table(["ms a step · share (of it in PyTorch's products)", *(str(run.setting) for run in runs)], rows)


def by_operator(run: Measured) -> str:
    """The operators that took most."""
    whole = run.parts["whole"]
    rows = [
        [f"`{name}`", f"{seconds * 1e3:,.1f}", f"{seconds / whole:.1%}"]
        for name, seconds in run.parts["operators"].items()
    ]
    return table(["operator, itself alone", "ms a step", "share"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """One run, printed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step_runs", description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default=FLOAT32, choices=("float32", "bf16"))
    parser.add_argument("--steps", type=int, help="of each of three blocks")
    parser.add_argument("--seconds", type=float, default=60.0, help="that the blocks may take, about")
    parser.add_argument("--operators", action="store_true", help="say too which operators took most")
    parser.add_argument("keys", nargs="*", help="of trainer.train")
    given = parser.parse_args(argv)
    shape = SHAPES[given.shape]
    setting = Setting(shape, given.ranks, given.threads, given.precision, tuple(given.keys))
    plan = Plan(steps=given.steps or shape.steps, seconds=given.seconds)
    with tempfile.TemporaryDirectory(prefix="segue-train-step-") as scratch:
        run = measure(setting, plan, Path(scratch))
    print(f"{speeds([run])}\n\n{by_part([run])}")
    if given.operators:
        print(f"\n{by_operator(run)}")
    rate, float32 = run.rates
    print(f"\nproducts: {rate / 1e9:,.1f} and, in float32, {float32 / 1e9:,.1f} billion operations a second")
    print(f"memory: {json.dumps(dict(run.memory))}, ratio {run.memory_ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
