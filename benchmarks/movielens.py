"""Every kind of model on MovieLens-100K, each tuned by the same small budget: `python -m benchmarks.movielens`

A model and a classical baseline have a few settings each (the grids below, and those of `evaluation.baselines.tuning`).
A model's three settings with the highest NDCG@10 on the validation events by one seed are trained with three; the one
that is best by the mean of these is evaluated on the test events. Runs that are there already are not made again.
`--quick` trains one model a little, to see that all works.

S seeds · R requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.ablate import compare, request_scores
from benchmarks.harness import ROOT, commit, table
from benchmarks.movielens_baselines import tuned_baselines
from common.progress import Progress
from evaluation.outputs import FIGURES, RANKS, output_path

CONFIG = "configs/movielens-100k.yaml"
RUNS = ROOT / "runs" / "movielens-table"
SEEDS = (0, 1, 2)
"""One alone moves NDCG@10 by as much as a setting does, so the last choice is over all."""
FINALISTS = 3
"""Settings of a model that are trained with all seeds."""
AT_ONCE = 2
BASELINES = ("mostpop", "decaypop", "item_knn", "ials")
METRIC = "ndcg@10"
PLAYS = "training plays of the target"

_ITEMS = ("model.items.kind=vocabulary", "model.items.only=true", "model.output.kind=items", "batch.negatives.kind=all")
_SASREC = (
    "model.architecture=sasrec",
    "model.attention.kind=softmax",
    "model.attention.scale=sqrt",
    *(f"model.biases.{name}=false" for name in ("alibi", "time", "duration", "organic")),
    "model.transformer.ffn_width=64",
)
TEMPERATURES = (0.05, 0.1, 0.15, 0.2, 0.25)

MODELS: Mapping[str, tuple[str, ...]] = {
    "SASRec, item ids": (*_ITEMS, *_SASREC),
    "HSTU, item ids": _ITEMS,
    "HSTU, RQ codes": (),
}
SETTINGS = tuple(f"temperature {value}" for value in TEMPERATURES)
"""What is tried of each model; all else is as the quickstart has it."""


def keys_of(model: str, setting: int) -> tuple[str, ...]:
    """A model's overrides under one of the settings: codes have 1 / temperature as the scale of their logits."""
    temperature = TEMPERATURES[setting]
    if model.endswith("codes"):
        return (*MODELS[model], f"model.output.logit_scale={1 / temperature:.4f}")
    return (*MODELS[model], f"model.output.temperature={temperature}")


@dataclass(frozen=True)
class Job:
    """One training and its evaluation.

    Args:
        model, setting: what is trained.
        seed: of training.
        events: what it is evaluated on.
    """

    model: str
    setting: int
    seed: int
    events: str

    @property
    def folder(self) -> Path:
        """Of the run."""
        name = "".join(letter if letter.isalnum() else "-" for letter in self.model.lower())
        return RUNS / f"{name}-{self.setting}-seed{self.seed}"

    @property
    def ranks(self) -> Path:
        """What the evaluation finds."""
        return output_path(self.folder, RANKS, self.events)

    @property
    def seconds(self) -> float:
        """How long training took."""
        return float((self.folder / "seconds").read_text(encoding="utf-8"))


def jobs_of(model: str, setting: int, events: str) -> list[Job]:
    """One a seed."""
    return [Job(model, setting, seed, events) for seed in SEEDS]


def score(job: Job) -> float:
    """What a setting is chosen by."""
    return float(request_scores(job.ranks, METRIC).mean())


def mean_score(jobs: Sequence[Job]) -> float:
    """Over seeds."""
    return float(np.mean([score(job) for job in jobs]))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return harness.run("movielens", _work, argv)


def _work(quick: bool, folder: Path, findings: harness.Findings) -> None:
    _need("stores/movielens-100k", ["-m", "data.prepare", "--config", CONFIG])
    _need("codes/movielens-100k", ["-m", "semantic_ids.fit", "--config", CONFIG])
    if quick:
        job = Job("HSTU, item ids", 0, 0, "validation")
        do(job, run=folder / "quick", more=["epochs=1"])
        found = json.loads(output_path(folder / "quick", FIGURES, "validation").read_text(encoding="utf-8"))
        findings.add(
            "One epoch of HSTU with item ids",
            f"{METRIC} on validation events: {found[METRIC]:.4f}",
            **{"ndcg_one_epoch": found[METRIC]},
        )
        return
    first = {model: [Job(model, place, SEEDS[0], "validation") for place in range(len(SETTINGS))] for model in MODELS}
    _all([job for jobs in first.values() for job in jobs], "tuning")
    trials = {
        model: [jobs_of(model, job.setting, "validation") for job in sorted(jobs, key=score, reverse=True)[:FINALISTS]]
        for model, jobs in first.items()
    }
    _all([job for settings in trials.values() for jobs in settings for job in jobs], "tuning, all seeds")
    chosen = {model: max(settings, key=mean_score)[0].setting for model, settings in trials.items()}
    finals = [job for model, place in chosen.items() for job in jobs_of(model, place, "test")]
    _all(finals, "test")
    _report_tuning(first, trials, chosen, findings)
    _report_table(finals, findings)
    _report_gap(finals, findings)


def _need(path: str, command: list[str]) -> None:
    if not (ROOT / path).exists():
        _call(command)


def _all(jobs: Sequence[Job], label: str) -> None:
    """Two at a time, a thread each."""
    left = [job for job in jobs if not job.ranks.exists()]
    with ThreadPoolExecutor(AT_ONCE) as pool, Progress(label, len(left), "runs") as progress:
        for job, _ in zip(left, pool.map(do, left), strict=True):
            progress.advance(1, note=f"{job.model}, setting {job.setting}, seed {job.seed}")


def do(job: Job, run: Path | None = None, more: Sequence[str] = ()) -> None:
    """Train, if that has not been done, and evaluate."""
    folder = run or job.folder
    if not (folder / "seconds").exists():
        keys = [
            f"run={folder}",
            f"seed={job.seed}",
            "overwrite=true",
            *keys_of(job.model, job.setting),
            *more,
        ]
        begun, started_at = time.monotonic(), commit()
        _call(["-m", "trainer.train", "--config", CONFIG, *keys])
        (folder / "commit").write_text(started_at + "\n", encoding="utf-8")
        (folder / "seconds").write_text(f"{time.monotonic() - begun:.1f}\n", encoding="utf-8")
    with_engines = ["engines=[exact]", "baselines=[]", "bootstrap=1"]
    _call(["-m", "evaluation.evaluate", f"run={folder}", f"events={job.events}", *with_engines])


def _call(arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}\n{done.stderr[-3000:]}")


def _report_tuning(
    first: Mapping[str, Sequence[Job]],
    trials: Mapping[str, Sequence[Sequence[Job]]],
    chosen: Mapping[str, int],
    findings: harness.Findings,
) -> None:
    def cell(model: str, place: int) -> str:
        for jobs in trials[model]:
            if jobs[0].setting == place:
                scores = [score(job) for job in jobs]
                told = f"{mean_score(jobs):.4f} ({min(scores):.4f}–{max(scores):.4f})"
                return f"**{told}**" if chosen[model] == place else told
        return f"{score(first[model][place]):.4f}"

    rows = [[SETTINGS[place], *(cell(model, place) for model in MODELS)] for place in range(len(SETTINGS))]
    jobs = {job for model in MODELS for many in (first[model], *trials[model]) for job in many}
    commits = sorted({(job.folder / "commit").read_text(encoding="utf-8").strip() for job in jobs})
    findings.add(
        "Tuning",
        f"{METRIC} on the validation events, of seed {SEEDS[0]}; of the best {FINALISTS} settings the mean of seeds "
        f"{', '.join(map(str, SEEDS))}, and the least and the most of them. {CONFIG} with this changed; what is bold "
        f"was chosen. Models with item ids: {' '.join(f'`{key}`' for key in _ITEMS)}. Trained at {', '.join(commits)}, "
        f"two at a time with a thread each.\n\n{table(['setting', *MODELS], rows)}",
    )


def _report_table(finals: Sequence[Job], findings: harness.Findings) -> None:
    """Models over all seeds, baselines, and the difference of each to HSTU with item ids."""
    scores: dict[str, np.ndarray] = {}
    details: dict[str, dict[str, float]] = {}
    reference = "HSTU, item ids"
    for model in (reference, *(name for name in MODELS if name != reference)):
        jobs = [job for job in finals if job.model == model]
        scores[model] = np.stack([request_scores(job.ranks, METRIC) for job in jobs])
        details[model] = {
            "hr@10": float(np.mean([request_scores(job.ranks, "hr@10").mean() for job in jobs])),
            "hr@100": float(np.mean([request_scores(job.ranks, "hr@100").mean() for job in jobs])),
            "seconds": float(np.mean([job.seconds for job in jobs])),
        }
    baselines = tuned_baselines(BASELINES, ROOT / "stores" / "movielens-100k")
    for name, found in baselines.items():
        # A baseline has no seed: it stands beside each of the model's.
        scores[name] = np.repeat(found.scores_R[None], len(SEEDS), axis=0)
        details[name] = {"hr@10": found.hr10, "hr@100": found.hr100, "seconds": found.seconds}
    rows, figures = [], {}
    for one in sorted(compare(scores, "test"), key=lambda one: -one.value):
        row: list[Any] = [one.name, f"{one.value:.4f}", f"{details[one.name]['hr@10']:.4f}"]
        row += [f"{details[one.name]['hr@100']:.4f}", f"{one.difference:+.4f}", f"{one.low:+.4f} … {one.high:+.4f}"]
        rows.append([*row, f"{details[one.name]['seconds']:.0f}"])
        figures[f"{METRIC} {one.name}"] = one.value
    figures["rq_over_item_ids"] = figures[f"{METRIC} HSTU, RQ codes"] / figures[f"{METRIC} {reference}"]
    head = ["", "NDCG@10", "HR@10", "HR@100", f"to {reference}", "95% interval", "seconds to train"]
    grids = "\n\n".join(
        f"{name}: "
        + "; ".join(
            f"{trial} **{score:.4f}**" if best else f"{trial} {score:.4f}" for trial, score, best in found.trials
        )
        for name, found in baselines.items()
    )
    findings.add(
        "Test",
        "Leave-last-out: the last rating of each of 943 users, ranked against 1,682 films without those rated before. "
        f"Models over seeds {', '.join(map(str, SEEDS))}; intervals of the difference are over users and seeds. "
        f"Seconds of one training or fit on one thread, at least another beside it.\n\n{table(head, rows)}",
        **figures,
    )
    findings.add("Tuning of the baselines", f"{METRIC} on the validation events.\n\n{grids}")


def _report_gap(finals: Sequence[Job], findings: harness.Findings) -> None:
    """Where codes stand behind item ids: by how often a film was rated, and how often each code is named rightly."""
    found = {
        model: [
            json.loads(output_path(job.folder, FIGURES, "test").read_text(encoding="utf-8"))
            for job in finals
            if job.model == model
        ]
        for model in ("HSTU, item ids", "HSTU, RQ codes")
    }
    by_plays = {
        model: np.mean([[row[METRIC] for row in one["segments"] if row["segment"] == PLAYS] for one in runs], axis=0)
        for model, runs in found.items()
    }
    labels = [row["label"] for row in found["HSTU, RQ codes"][0]["segments"] if row["segment"] == PLAYS]
    rows = [[label, *(f"{values[place]:.4f}" for values in by_plays.values())] for place, label in enumerate(labels)]
    right = np.mean([one["level_accuracy"] for one in found["HSTU, RQ codes"]], axis=0)
    findings.add(
        "Codes beside item ids",
        f"{METRIC} of test events by {PLAYS}, mean over seeds.\n\n{table([PLAYS, *by_plays], rows)}\n\n"
        "Given the codes before it, the likeliest code of a level is the right one in "
        f"{', '.join(f'{one:.1%}' for one in right)} of the cases. What was tried to close the gap stands in "
        "docs/log.md.",
    )


if __name__ == "__main__":
    sys.exit(main())
