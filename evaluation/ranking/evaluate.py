"""The evaluation of a model that predicts actions: its predictions of held-out events, beside a baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import write_json_atomically, write_text_atomically
from data.event_store import EventStore
from data.loader import item_features
from data.ranking.config import ActionsConfig
from data.ranking.tasks import Labels, parse_tasks
from data.schema import PLAYED_RATIO
from data.split import training_events
from data.store_columns import event_columns
from evaluation.config import EvaluateConfig
from evaluation.outputs import FIGURES, REPORT, output_path
from evaluation.ranking.comparison import compare_predictions
from evaluation.ranking.files import PREDICTIONS, PredictionFile, read_predictions, write_predictions
from evaluation.ranking.intervals import summarise
from evaluation.ranking.logistic import columns_of, logistic_predictions
from evaluation.ranking.metrics import gain
from evaluation.ranking.predictions import Predictions, held_out_windows, predict_events
from evaluation.ranking.report import differences_of, format_tasks, render_ranking_report, summary_of_tasks
from evaluation.ranking.validation import one_bin_loader
from evaluation.subject import Subject
from serving.checkpoints.manifest import step_folder
from serving.checkpoints.model import load_model, run_storage
from sharding.world import World, alone

OF_LISTS = (
    *("protocol", "filter_history", "deny", "engines", "baselines", "beams", "candidates", "depth", "index"),
    *("baseline", "guardrails", "id_baseline", "ablations"),
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
    whole = config.tables == "whole" or (
        config.tables == "auto" and subject.table_bytes <= config.whole_tables_gb * 1e9
    )
    own = alone(world) if whole else world
    model = load_model(run_storage(subject.run, config.checkpoints), subject.chain, own, config.attention_backend)
    cfg = model.module.tower.cfg
    windows = held_out_windows(store, config.events, cfg.max_history)
    if not len(windows):
        raise InputError(
            f"{store.path}: its split, {store.split_config.kind}, holds out no {config.events} event that has a past; "
            f"there is nothing to evaluate"
        )
    hashed = cfg.items.kind == "hashed"
    codes = subject.codes
    features = item_features(store, codes.codes_NC, codes.codes_per_level, cfg.qr_remainders, keys=hashed)
    loader = one_bin_loader(store, features, windows, cfg, tokens=max(config.tokens, cfg.max_tokens))
    found = predict_events(model.module.predict, loader, store, world, label="evaluate")
    return None if found is None else _write(subject, cfg.output.actions, found, reference)


def _reference(subject: Subject) -> PredictionFile:
    """What another run predicted of the same events.

    Raises:
        InputError: it was not evaluated, or on other events.
    """
    config = subject.config
    path = output_path(Path(config.against), PREDICTIONS, config.events)
    reference = read_predictions(path)
    here = about(subject)
    faults = [
        f"{path}: its {name} is {reference.about.get(name)!r}, here it is {value!r}; only evaluations of the same "
        "events can be compared"
        for name, value in here.items()
        if reference.about.get(name) != value
    ]
    tasks = tuple(subject.manifest.model["output"]["actions"]["tasks"])
    if reference.tasks != tasks:
        faults.append(f"{path}: its tasks are {list(reference.tasks)}, here they are {list(tasks)}")
    if faults:
        raise InputError(*faults)
    return reference


def about(subject: Subject) -> dict[str, Any]:
    """What another evaluation must have in common to be comparable."""
    return {
        "store_fingerprint": subject.store.fingerprint,
        "split": subject.store.split_config.kind,
        "events": subject.config.events,
    }


def baseline_predictions(store: EventStore, actions: ActionsConfig, found: Predictions) -> np.ndarray:
    """Those of `evaluation.ranking.logistic`, of the same events."""
    tasks = parse_tasks(actions.tasks)
    labels = Labels(tasks, store.event_types, has_played=store.has_column(PLAYED_RATIO))
    labels_ET = labels.of(event_columns(store), np.arange(store.num_events))
    fit_E = training_events(store.offsets, store.split())
    return logistic_predictions(tasks, columns_of(store, labels_ET), fit_E, found.events_n)


def _write(
    subject: Subject, actions: ActionsConfig, found: Predictions, reference: PredictionFile | None
) -> dict[str, Any]:
    """All files or none: the page is made before any is written."""
    config, manifest, store = subject.config, subject.manifest, subject.store
    tasks = parse_tasks(actions.tasks)
    models = {actions.form: found.predicted_nT, "logistic": baseline_predictions(store, actions, found)}
    summary: dict[str, Any] = {
        **about(subject),
        "checkpoint": step_folder(manifest.step),
        "epoch": manifest.epoch,
        "codes_fingerprint": manifest.codes_fingerprint,
        "form": actions.form,
        "predictions": len(found),
        "users": len(np.unique(found.users_n)),
        "gain": gain(tasks, found.predicted_nT, found.labels_nT, found.users_n, actions.loss_weights),
        "models": {
            name: summary_of_tasks(
                summarise(
                    tasks, predicted_nT, found.labels_nT, found.users_n, samples=config.bootstrap, seed=config.seed
                )
            )
            for name, predicted_nT in models.items()
        },
    }
    if reference is not None:
        summary["against"] = _against(subject, actions, found, reference)
    paths = [output_path(subject.run, name, config.events) for name in (FIGURES, REPORT, PREDICTIONS)]
    page = render_ranking_report(subject.run, summary)
    write_predictions(paths[2], found, actions.tasks, about(subject))
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
        f"{one.task} {one.name} went from {one.before:.4f} to {one.after:.4f} ({one.low:+.4f} … {one.high:+.4f})"
        for one in worse
    ]
    return {"run": config.against, "differences": differences_of(compared), "fallen": fallen}
