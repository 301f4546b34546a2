"""A run's folder: begun, gone on with, or refused; and which settings decide the course of a run."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from common.config import load_resolved, to_plain, to_yaml
from common.errors import InputError
from common.files import write_text_atomically
from common.storage import Storage
from evaluation.outputs import all_outputs
from evaluation.ranking.streaming import FIGURES as STREAM_FIGURES
from evaluation.ranking.streaming import FOLDER as STREAM_FOLDER
from serving.checkpoints.chain import Checkpoints, Link, agreed
from sharding.planning.plan_files import PLAN, PLAN_PAGE
from sharding.ranks.config import HEARTBEAT, LOGS, WatchConfig
from sharding.ranks.rank_log import is_log
from sharding.world import World
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import TrainConfig

_RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    *all_outputs(),
    STREAM_FOLDER,
    STREAM_FIGURES,
    PLAN,
    PLAN_PAGE,
    "checkpoints",
    "tensorboard",
    LOGS,
    HEARTBEAT,
)
"""All that a run folder may hold: what starting anew removes, and nothing else."""

_MAY_CHANGE_ON_RESUME = {
    "run",
    "resume",
    "overwrite",
    "debug",
    "max_steps",
    "log_every",
    "patience",
    "validate_every",
    "batch.workers",
    *(f"checkpoint.{leaf.name}" for leaf in dataclasses.fields(CheckpointConfig)),
    *(f"watch.{leaf.name}" for leaf in dataclasses.fields(WatchConfig)),
}


def prepare_run_folder(config: TrainConfig, storage: Storage, world: World) -> list[Link]:
    """Write `config.yaml` into the run folder; returns the chain to resume from, if any.

    Raises:
        InputError: the folder holds a run and neither `resume` nor `overwrite` was asked for, or the run to be
            resumed was configured differently, or the folder holds what is not a run's.
    """
    run = Path(config.run)
    names = agreed(Checkpoints(storage).names())
    if config.resume == "true" or (config.resume == "auto" and names):
        chain, passed = Checkpoints(storage).newest_whole_chain()
        _check_samecourse(config, run)
        for fault in passed if world.is_main else []:
            print(f"warning: {fault}; going on from {chain[-1].name}", file=sys.stderr)
        return chain
    if names and not config.overwrite:
        raise InputError(
            f"{storage.url}: already holds {len(names)} checkpoints; go on with resume=true, start anew with "
            f"overwrite=true, or choose another run=…"
        )
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file, expected the folder of a run; choose another run=…")
    foreign = sorted(path.name for path in run.iterdir() if not _is_of_a_run(path.name)) if run.exists() else []
    if (run / LOGS).is_dir():  # many things have a folder of that name
        foreign += sorted(f"{LOGS}/{path.name}" for path in (run / LOGS).iterdir() if not is_log(path.name))
    if foreign:
        raise InputError(f"{run}: holds {foreign[0]}, which is not a run's; choose another run=…, or move it away")
    dist.barrier()  # until every rank has looked, the folder must stay as it was
    if world.is_main:
        for folder in storage.folders():
            if folder.startswith("step-"):
                storage.remove_folder(folder)
        for path in list(run.iterdir()) if run.exists() else []:
            if _is_of_a_run(path.name):
                _remove(path)
        write_text_atomically(run / "config.yaml", to_yaml(config))
    dist.barrier()  # before any rank writes into it
    return []


def _is_of_a_run(name: str) -> bool:
    """Whether a run writes a file of that name, or a kill may have left it half-written."""
    return name in _RUN_FILES or any(name.startswith(f".{own}.writing-") for own in _RUN_FILES)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_samecourse(config: TrainConfig, run: Path) -> None:
    before, now = course(load_resolved(TrainConfig, run / "config.yaml")), course(config)
    faults = [
        f"{run / 'config.yaml'}: the run was started with {key}={before[key]}, now it is {now[key]}; "
        f"resume with the same value, or start another run"
        for key in before
        if before[key] != now[key]
    ]
    if faults:
        raise InputError(*faults)


def course(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the course of training, flat."""

    def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in tree.items():
            flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return flat

    flat = flatten(to_plain(config))
    return {
        key: value
        for key, value in flat.items()
        if key not in _MAY_CHANGE_ON_RESUME and not (key.startswith("sharding.") and key != "sharding.communication")
    }
