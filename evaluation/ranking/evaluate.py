"""The evaluation of a model that predicts actions: its predictions of held-out events, beside a baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import write_json_atomically, write_text_atomically
from data.ranking.config import ActionsConfig
from data.ranking.tasks import parse_tasks
from data.split import training_mask
from evaluation.config import EvaluateConfig
from evaluation.outputs import FIGURES, PREDICTIONS, REPORT, faults_of_reference, output_path, reference_path
from evaluation.ranking.comparison import compare_predictions
from evaluation.ranking.files import PredictionFile, read_predictions, write_predictions
from evaluation.ranking.intervals import summarise
from evaluation.ranking.logistic import columns_of, logistic_predictions
from evaluation.ranking.metrics import gain_of
from evaluation.ranking.predictions import Predictions, held_out_windows
from evaluation.ranking.predictor import Predictor
from evaluation.ranking.report import differences_of, format_tasks, render_ranking_report, summary_of_tasks
from evaluation.subject import Subject
from serving.checkpoints.manifest import step_folder
from serving.checkpoints.model import features_of
from sharding.world import World

LOGISTIC = "logistic"
"""Name of the baseline."""

OF_LISTS = (
    *("protocol", "filter_history", "deny", "engines", "baselines", "beams", "candidates", "depth", "index"),
    *("baseline", "guardrails", "id_baseline", "ablations", "restart"),
)
"""Options that speak of lists, which a model that predicts actions does not make."""


def refuse_lists(config: EvaluateConfig) -> None:
    """Hold an evaluation of predicted actions to the options that it has.

    Raises:
        InputError: naming each that was given otherwise than it stands.
    """
    usual = EvaluateConfig(run=config.run)
    given = [name for name in OF_LISTS if getattr(config, name) != getattr(usual, name)]
    if given:
        raise InputError(
            *(
                f"`{name}` is about lists, but the model of {config.run} predicts actions: leave it out"
                for name in given
            )
        )


def evaluate_ranking(subject: Subject, world: World) -> dict[str, Any] | None:
    """Predict the held-out events and write `metrics.json`, `report.html` and `predictions.parquet`. Collective.

    Returns:
        What `metrics.json` holds, on rank 0; None elsewhere.

    Raises:
        InputError: nothing is held out, an option speaks of lists, or `against` was evaluated otherwise.
    """
    config, store = subject.config, subject.store
    refuse_lists(config)
    reference = _reference(subject) if config.against else None
    windows = held_out_windows(store, config.events, subject.manifest.model["max_history"])
    if not len(windows):
        raise InputError(
            f"{store.path}: its split, {store.split_config.kind}, holds out no {config.events} event that has a past; "
            f"there is nothing to evaluate"
        )
    model, _ = subject.load_model(world)
    cfg = model.module.tower.cfg
    features, tokens = features_of(store, subject.codes, cfg), max(config.tokens, cfg.max_tokens)
    found = Predictor(model, features, store, world, windows, tokens=tokens).predict(label="evaluate")
    return None if found is None else _write(subject, cfg.output.actions, found, reference)


def _reference(subject: Subject) -> PredictionFile:
    """What another run predicted of the same events.

    Raises:
        InputError: it was not evaluated, or on other events.
    """
    config = subject.config
    path = reference_path(Path(config.against), PREDICTIONS, config.events)
    reference = read_predictions(path)
    faults = faults_of_reference(path, reference.about, subject.about())
    tasks = tuple(subject.manifest.model["output"]["actions"]["tasks"])
    if reference.tasks != tasks:
        faults.append(f"{path}: its tasks are {list(reference.tasks)}, here they are {list(tasks)}")
    if faults:
        raise InputError(*faults)
    return reference


def _write(
    subject: Subject, actions: ActionsConfig, found: Predictions, reference: PredictionFile | None
) -> dict[str, Any]:
    """All files or none: the page is made before any is written."""
    config, manifest, store = subject.config, subject.manifest, subject.store
    tasks = parse_tasks(actions.tasks)
    columns, fit_E = columns_of(store, actions.tasks), training_mask(store.offsets, store.split())
    baseline_nT = logistic_predictions(tasks, columns, fit_E, found.events_n)
    summaries = {
        name: summarise(tasks, said_nT, found.labels_nT, found.users_n, samples=config.bootstrap, seed=config.seed)
        for name, said_nT in ((actions.form, found.predicted_nT), (LOGISTIC, baseline_nT))
    }
    summary: dict[str, Any] = {
        **subject.about(),
        "checkpoint": step_folder(manifest.step),
        "epoch": manifest.epoch,
        "codes_fingerprint": manifest.codes_fingerprint,
        "form": actions.form,
        "predictions": len(found),
        "users": len(np.unique(found.users_n)),
        "gain": gain_of([one.values for one in summaries[actions.form]], actions.loss_weights),
        "models": {name: summary_of_tasks(of_model) for name, of_model in summaries.items()},
    }
    if reference is not None:
        summary["against"] = _against(subject, actions, found, reference)
    paths = [output_path(subject.run, name, config.events) for name in (FIGURES, REPORT, PREDICTIONS)]
    page = render_ranking_report(subject.run, summary)
    write_predictions(paths[2], found, actions.tasks, subject.about())
    write_json_atomically(paths[0], summary)
    write_text_atomically(paths[1], page)
    print(format_tasks(summary))
    print(f"\nwritten: {paths[0]}, {paths[1]}")
    return summary


def _against(subject: Subject, actions: ActionsConfig, found: Predictions, reference: PredictionFile) -> dict[str, Any]:
    """This model's predictions beside the reference's, event by event."""
    config, before = subject.config, reference.predictions
    if not np.array_equal(before.events_n, found.events_n):
        raise InputError(f"{config.against}: predicted other events: evaluate it again, with the same `events`")
    compared = compare_predictions(
        parse_tasks(actions.tasks),
        before.predicted_nT,
        found.predicted_nT,
        found.labels_nT,
        found.users_n,
        samples=config.bootstrap,
        seed=config.seed,
    )
    worse = [one for one in compared if one.verdict == "worse"]
    fallen = [
        f"{one.task} {one.name} went from {one.before:.4f} to {one.after:.4f} ({one.low:+.4f} … {one.high:+.4f}, "
        f"p {one.p_holm:.4f})"
        for one in worse
    ]
    return {"run": config.against, "differences": differences_of(compared), "fallen": fallen}
