"""What quantised deltas cost in quality: the quickstart's training, restored from them 1, 5 and 10 times.

Each training is stopped that often, at even distances, saved as a delta on its chain, and gone on with from what was
read back. float32 restores bit for bit, so how often does not matter there. The newest checkpoint of each is measured
on the test items; differences to float32 have intervals from a paired bootstrap over users.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import harness
from benchmarks.ablate import request_scores
from benchmarks.harness import ROOT, Findings, table
from common.progress import Progress
from evaluation.outputs import RANKS, output_path

CONFIG = "configs/movielens-100k.yaml"
RESTORES = (1, 5, 10)
FORMATS = ("int8", "int4")
STEPS, QUICK_STEPS = 1280, 60
SAMPLES = 2000
AT_ONCE = 2
"""Trainings side by side, each on one thread."""


def main() -> int:
    """Entry point."""
    return harness.run("checkpoint_quality", _work)


def _work(quick: bool, scratch: Path, findings: Findings) -> None:
    steps, restores = (QUICK_STEPS, (1,)) if quick else (STEPS, RESTORES)
    keys = _prepare(scratch)
    formats = FORMATS[:1] if quick else FORMATS
    runs = [("float32", 1), *((values, times) for values in formats for times in restores)]
    ndcg_U: dict[tuple[str, int], np.ndarray] = {}
    with Progress("trainings", len(runs), "runs") as progress, ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {
            run: pool.submit(_train, scratch / f"{run[0]}-{run[1]}", keys, *run, steps) for run in reversed(runs)
        }
        for run in waiting:  # the longest first
            ndcg_U[run] = waiting[run].result()
            progress.advance()
    reference = ndcg_U["float32", 1]
    lines = []
    figures = {}
    for values, times in runs:
        own_U = ndcg_U[values, times]
        gain, low, high = _difference(own_U, reference)
        told = "" if values == "float32" else f"{gain:+.4f} ({low:+.4f} … {high:+.4f})"
        lines.append([values, "any" if values == "float32" else times, f"{own_U.mean():.4f}", told])
        if values != "float32":
            figures[f"ndcg_change_{values}_{times}"] = gain
    findings.add(
        "NDCG@10 on the test items, newest checkpoint",
        table(["deltas", "restores", "NDCG@10", "against float32"], lines)
        + f"\n\n`{CONFIG}`, {steps} steps on one rank; intervals of 95% over {len(reference)} users, paired. "
        "Optimizer states stay float32. Every interval ends in a delta, and the chain has one base: each restore "
        "dequantises every row touched since, and training goes on from there.",
        ndcg_float32=float(reference.mean()),
        **figures,
    )


def _prepare(scratch: Path) -> list[str]:
    store, codes = scratch / "store", scratch / "codes"
    _call(["data.prepare", "--config", CONFIG, f"out={store}"])
    _call(["semantic_ids.fit", "--config", CONFIG, f"store={store}", f"out={codes}"])
    return [f"store={store}", f"codes={codes}"]


def _train(run: Path, keys: list[str], values: str, times: int, steps: int) -> np.ndarray:
    """NDCG@10 of each user after a training with that many restores."""
    common = ["trainer.train", "--config", CONFIG, *keys, f"run={run}", "validate_every=1000"]
    common += [f"checkpoint.values={values}", "checkpoint.chain_share=1000000", "checkpoint.every=0", "resume=auto"]
    _call([*common, "max_steps=1"])  # the base, before anything worth quantising has been learnt
    for part in range(times + 1):
        _call([*common, f"max_steps={steps * (part + 1) // (times + 1)}"])
    _call(["evaluation.evaluate", f"run={run}", "checkpoint=latest", "bootstrap=1", *keys])
    return request_scores(output_path(run, RANKS, "test"), "ndcg@10")


def _call(arguments: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}\n{done.stderr[-3000:]}")


def _difference(own_U: np.ndarray, reference_U: np.ndarray) -> tuple[float, float, float]:
    """Mean gain and its interval."""
    gain_U = own_U - reference_U
    random = np.random.default_rng(0)
    means = [gain_U[random.integers(len(gain_U), size=len(gain_U))].mean() for _ in range(SAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(gain_U.mean()), float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
