"""Ranking on MovieLens-100K: is the candidate better met early, and is a sequence worth more than running averages?

    python -m benchmarks.ranking [--quick]

Every form of a history (docs/ranking.md) is trained from three seeds by one configuration,
`configs/movielens-100k-ranking.yaml`, beside a regression on running averages. Twice: on a split, the last tenth of
each user's ratings held out; and in a stream, a single pass over time, each day predicted before it is learnt from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Findings, measure, run, table
from data.event_store import EventStore
from data.ranking.config import FORMS, INTERACTIONS, INTERLEAVED
from data.ranking.tasks import parse_tasks
from data.sequences import make_plan
from data.split import training_mask
from evaluation.metrics.intervals import RESAMPLES
from evaluation.outputs import PREDICTIONS
from evaluation.ranking.comparison import TaskDifference, compare_predictions
from evaluation.ranking.evaluate import LOGISTIC
from evaluation.ranking.files import read_predictions
from evaluation.ranking.intervals import summarise
from evaluation.ranking.logistic import columns_of, logistic_predictions
from evaluation.ranking.predictions import Predictions, joined, predicted_events
from evaluation.ranking.streaming import FOLDER

CONFIG = ROOT / "configs" / "movielens-100k-ranking.yaml"
SEEDS = (0, 1, 2)
PERIOD = 86_400
STREAM = (
    "batch.windows=stream",
    "batch.predict_first=true",
    f"batch.period_seconds={PERIOD}",
    "batch.bins=1",  # smaller steps: there is one pass to learn in
    "batch.tokens=512",
    "epochs=1000",
    "validate_every=1000",
    "patience=0",
    "optimizer.schedule=constant",
    "model.attention.kind=softmax",  # interleaved: NE .873 against .879 of SiLU (docs/log.md)
    "model.attention.scale=sqrt",
)
SHOWN = {"liked": ("ne", "auc", "gauc"), "rating": ("mse", "r2")}


def main(quick: bool, folder: Path, findings: Findings) -> None:
    """Prepare once, then both protocols."""
    store = folder / "store"
    measure(["-m", "data.prepare", "--config", str(CONFIG), f"out={store}"])
    measure(["-m", "semantic_ids.fit", "--config", str(CONFIG), f"store={store}", f"out={folder / 'codes'}"])
    bench = Bench(folder, EventStore.open(store), SEEDS[:1] if quick else SEEDS, quick)
    forms = (INTERLEAVED, INTERACTIONS) if quick else FORMS
    report_split(bench, forms, findings)
    if not quick:
        report_stream(bench, forms, findings)


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    folder: Path
    store: EventStore
    seeds: tuple[int, ...]
    quick: bool

    def train(self, form: str, seed: int, *keys: str) -> Path:
        """A run's folder."""
        path = self.folder / f"{form}-{seed}-{'stream' if keys else 'split'}"
        command = ["-m", "trainer.train", "--config", str(CONFIG), f"store={self.store.path}"]
        command += [f"codes={self.folder / 'codes'}", f"run={path}", f"seed={seed}"]
        command += [f"model.output.actions.form={form}", *keys]
        if self.quick:
            command.append("max_steps=20")
        measure(command)
        return path


@dataclass(frozen=True)
class Model:
    """What a kind of model predicted of the same events, from one seed or several."""

    found: tuple[Predictions, ...]

    def mean(self) -> Predictions:
        """The first seed's events with the mean of all seeds' predictions: what is compared."""
        first = self.found[0]
        predicted_nT = np.mean([one.predicted_nT for one in self.found], axis=0)
        return Predictions(first.users_n, first.events_n, predicted_nT, first.labels_nT)


# ── both protocols ───────────────────────────────────────────────────────────────────────────────────────


def report_split(bench: Bench, forms: Sequence[str], findings: Findings) -> None:
    """The test events, each known by everything before it."""
    models, tasks = {}, list[str]()
    for form in forms:
        found = []
        for seed in bench.seeds:
            path = bench.train(form, seed)
            measure(["-m", "evaluation.evaluate", f"run={path}", "bootstrap=1"])
            file = read_predictions(path / PREDICTIONS)
            found.append(file.predictions)
            tasks = list(file.tasks)
        models[form] = Model(tuple(found))
    asked = models[forms[0]].found[0]
    columns, fit_E = columns_of(bench.store, tasks), training_mask(bench.store.offsets, bench.store.split())
    predicted_nT = logistic_predictions(parse_tasks(tasks), columns, fit_E, asked.events_n)
    models[LOGISTIC] = _like(asked, predicted_nT)
    _report("Split", models, tasks, findings, "")


def report_stream(bench: Bench, forms: Sequence[str], findings: Findings) -> None:
    """The training events, each predicted before its day is learnt from."""
    models, tasks = {}, list[str]()
    for form in forms:
        found = []
        for seed in bench.seeds:
            path = bench.train(form, seed, *STREAM)
            files = [read_predictions(one) for one in sorted((path / FOLDER).glob("period-*.parquet"))]
            found.append(joined([one.predictions for one in files]))
            tasks = list(files[0].tasks)
        models[form] = Model(tuple(found))
    predicted_nT = _logistic_stream(bench.store, tasks, models[forms[0]].found[0])
    models[LOGISTIC] = _like(models[forms[0]].found[0], predicted_nT)
    _report("Stream", models, tasks, findings, "_stream")


def _like(asked: Predictions, predicted_nT: np.ndarray) -> Model:
    return Model((Predictions(asked.users_n, asked.events_n, predicted_nT, asked.labels_nT),))


def _logistic_stream(store: EventStore, tasks: Sequence[str], asked: Predictions) -> np.ndarray:
    """Each day by a regression fitted to all days before it."""
    columns, split = columns_of(store, tasks), store.split()
    plan = make_plan("stream", store.offsets, columns.times_E, split, 10**6, seed=0, period_seconds=PERIOD)
    assert plan.num_epochs is not None
    predicted_nT = np.full((len(asked), len(tasks)), np.nan, dtype=np.float32)
    training_E = training_mask(store.offsets, split)
    opens = columns.times_E[training_E].min()
    place_E = np.full(store.num_events, -1)
    place_E[asked.events_n] = np.arange(len(asked))
    for period in range(plan.num_epochs):
        _, events_n = predicted_events(store, plan.windows(period))
        learnt_E = training_E & (columns.times_E < opens + period * PERIOD)
        if len(events_n):
            predicted_nT[place_E[events_n]] = logistic_predictions(parse_tasks(tasks), columns, learnt_E, events_n)
    return predicted_nT


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────


def _report(title: str, models: dict[str, Model], tasks: Sequence[str], findings: Findings, suffix: str) -> None:
    parsed = parse_tasks(tasks)
    rows, figures = [], dict[str, Any]()
    for name, model in models.items():
        cells = [name]
        for task, shown in SHOWN.items():
            for figure in shown:
                values = [_figures(parsed, one)[task][figure] for one in model.found]
                cells.append(f"{np.mean(values):.4f}" + (f" ± {np.std(values):.4f}" if len(values) > 1 else ""))
                figures[f"{name}_{task}_{figure}{suffix}"] = float(np.mean(values))
        rows.append(cells)
    head = ["", *(f"{task} {figure}" for task, shown in SHOWN.items() for figure in shown)]
    compared = [
        [f"{after} against {before}", *(_difference(one) for one in _compare(parsed, models[before], models[after]))]
        for before, after in ((INTERACTIONS, INTERLEAVED), (INTERACTIONS, "merged"), (LOGISTIC, INTERLEAVED))
        if before in models and after in models
    ]
    asked = next(iter(models.values())).found[0]
    names = [f"{task} {figure}" for task, figure in (("liked", "ne"), ("liked", "gauc"), ("rating", "mse"))]
    text = (
        f"{len(asked):,} predictions of {len(np.unique(asked.users_n)):,} users; mean and standard deviation over "
        f"seeds.\n\n{table(head, rows)}\n\nDifferences of the seeds' mean predictions, 95% intervals over users:\n\n"
        f"{table(['', *names], compared)}\n\nWhether and why the candidate is better met early is discussed in "
        f"[docs/ranking.md](../../docs/ranking.md#what-the-forms-are-worth)."
    )
    compared_to_interactions = _compare(parsed, models[INTERACTIONS], models[INTERLEAVED])
    (target,) = (one for one in compared_to_interactions if (one.task, one.name) == ("liked", "ne"))
    figures |= {
        f"target_aware_ne_difference{suffix}": target.difference,
        f"target_aware_is_better{suffix}": target.high < 0,
    }
    findings.add(title, text, **figures)


def _figures(parsed: Any, found: Predictions) -> dict[str, dict[str, float]]:
    summaries = summarise(parsed, found.predicted_nT, found.labels_nT, found.users_n, samples=1)
    return {one.name: {name: figure.value for name, figure in one.figures.items()} for one in summaries}


def _compare(parsed: Any, before: Model, after: Model) -> list[TaskDifference]:
    first, second = before.mean(), after.mean()
    assert np.array_equal(first.events_n, second.events_n)
    compared = compare_predictions(
        parsed, first.predicted_nT, second.predicted_nT, first.labels_nT, first.users_n, samples=RESAMPLES
    )
    wanted = (("liked", "ne"), ("liked", "gauc"), ("rating", "mse"))
    return [one for task, name in wanted for one in compared if (one.task, one.name) == (task, name)]


def _difference(one: TaskDifference) -> str:
    return f"{one.difference:+.4f} ({one.low:+.4f} … {one.high:+.4f})"


if __name__ == "__main__":
    sys.exit(run("ranking", main))
