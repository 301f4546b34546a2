"""Is what kernels train as good? `python -m benchmarks.train_step_quality`

Pairs of trainings on MovieLens-100K, of one seed each, by the kernels for the CPU and by PyTorch's operators
(`SEGUE_KERNELS=off`). They differ in the order of sums and in what dropout draws, so two runs of a pair drift apart,
and it takes several pairs to tell a loss of quality from chance. `--quick` trains a pair for an epoch, to see that all
works.

S seeds · R requests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import harness
from benchmarks.ablate import compare, request_scores
from benchmarks.harness import ROOT, Findings, table
from benchmarks.train_step_peers import OURS, TEMPERATURE
from benchmarks.train_step_shapes import MOVIELENS, MOVIELENS_100K, SMALL
from common.native import SWITCH
from common.progress import Progress
from evaluation.outputs import RANKS, output_path

SEEDS = (0, 1, 2)
AT_ONCE = 2
"""Trainings side by side, a thread each."""
WAYS = {"operators": "off", "kernels": "on"}
METRIC = "ndcg@10"
EXACT = ("engines=[exact]", "baselines=[]", "bootstrap=1")


@dataclass(frozen=True)
class Model:
    """What is trained in pairs.

    Attributes:
        epochs: without validations on the way.
        config: keys go on top of.
    """

    about: str
    epochs: int
    config: str
    keys: Sequence[str]


MODELS = {
    "codes": Model("the quickstart's, cascaded heads over 4 × 256 codes", 20, MOVIELENS, ()),
    "items": Model(
        "the small shape of train_step, softmax over all items",
        30,
        "",
        [
            *(f"{name}={value}" for name, value in SMALL.keys.items()),
            *("batch.tokens=5248", "batch.bins=2", f"model.output.temperature={TEMPERATURE}", *OURS),
        ],
    ),
    "negatives": Model(
        "the same with 128 uniform negatives for each target, steps an eighth as large",
        20,
        "",
        [
            *(f"{name}={value}" for name, value in SMALL.keys.items() if not name.startswith("batch.negatives")),
            *("batch.negatives.kind=uniform", "batch.negatives.count=128", "batch.negatives.per=target"),
            *("batch.tokens=1312", "batch.bins=1", f"model.output.temperature={TEMPERATURE}"),
        ],
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return harness.run("train_step_quality", _work, argv)


def _work(quick: bool, scratch: Path, findings: Findings) -> None:
    MOVIELENS_100K.make()
    models = {"items": MODELS["items"]} if quick else MODELS
    seeds = SEEDS[:1] if quick else SEEDS
    runs = [(name, way, seed) for name in models for way in WAYS for seed in seeds]
    with Progress("trainings", len(runs), "runs") as progress, ThreadPoolExecutor(AT_ONCE) as pool:
        found = []
        for scores_R in pool.map(lambda run: _trained(run[0], run[1], run[2], scratch, quick=quick), runs):
            found.append(scores_R)
            progress.advance(1)
    of = dict(zip(runs, found, strict=True))
    rows, figures = [], {}
    for name, model in models.items():
        pairs = {way: np.stack([of[name, way, seed] for seed in seeds]) for way in WAYS}
        before, after = compare(pairs, "validation")
        told = f"{after.difference:+.4f} ({after.low:+.4f} … {after.high:+.4f})"
        rows.append([name, model.about, f"{before.value:.4f}", f"{after.value:.4f}", told])
        figures[f"ndcg_of_kernels_less_operators_{name}"] = after.difference
        figures |= {f"ndcg_low_{name}": after.low, f"ndcg_high_{name}": after.high}
    head = ["", "trained", *WAYS, "kernels less operators (95%)"]
    findings.add(
        "NDCG@10 on the validation events",
        f"{table(head, rows)}\n\nMovieLens-100K, {len(seeds)} pairs of seeds; intervals over users and seeds. Epochs: "
        f"{', '.join(f'{name} {model.epochs}' for name, model in models.items())}; the last checkpoint, exact scoring.",
        **figures,
    )


def _trained(name: str, way: str, seed: int, scratch: Path, *, quick: bool) -> np.ndarray:
    """The metric of each request, [R]."""
    model, run = MODELS[name], scratch / f"{name}-{way}-{seed}"
    epochs = 1 if quick else model.epochs
    given = ["--config", model.config] if model.config else []
    keys = [f"store={MOVIELENS_100K.store}", f"codes={MOVIELENS_100K.codes}", *model.keys]
    steps = [f"run={run}", f"seed={seed}", f"epochs={epochs}", "validate_every=1000", "log_every=1000"]
    _call(way, ["trainer.train", *given, *keys, *steps])
    _call(way, ["evaluation.evaluate", f"run={run}", "events=validation", *EXACT])
    return request_scores(output_path(run, RANKS, "validation"), METRIC)


def _call(way: str, arguments: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", SWITCH: WAYS[way]}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
