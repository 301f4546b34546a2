"""The layout of a checkpoint on disk, and a trained model read back from one, on any number of ranks.

    runs/NAME/checkpoints/step-00000120/
        manifest.json    what it is: step, model, vocabulary, fingerprints of store and codes, metrics
        state/           tables, dense parameters and optimizer states (torch.distributed.checkpoint)

A checkpoint becomes visible by one rename when all of it is on the disk. DCP's own index (`state/.metadata`) is a
pickle: open only checkpoints that you or people you trust have written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.config import from_plain
from common.errors import InputError
from common.files import read_json_object
from data.event_store import EventStore
from model.config import ModelConfig, Vocabulary
from model.embeddings import CODE_TABLE, INITIAL_STD, build_embeddings, draw_rows, rows_from_codebooks
from model.recommender import Recommender
from semantic_ids.codes.code_table import CodeTable
from sharding.apply import shard_model
from sharding.planner import row_wise_plan
from sharding.world import World

FORMAT = "segue-checkpoint"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
STATE = "state"


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint says of itself."""

    format: str
    format_version: int
    step: int
    epoch: int
    world_size: int
    store: str
    """Path of the event store, as the run was given it."""
    codes: str
    """Path of the code table, as the run was given it."""
    store_fingerprint: str
    codes_fingerprint: str
    model: dict[str, Any]
    """`ModelConfig` as plain values."""
    vocabulary: dict[str, int]
    """`Vocabulary` as plain values."""
    best: str
    """Name of the checkpoint with the best validation so far; it may be this one."""
    progress: dict[str, Any]
    """What the trainer needs to go on: best validation so far, validations without improvement."""
    metrics: dict[str, float]
    """Validation metrics at this step."""


def step_folder(step: int) -> str:
    """Name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{MANIFEST}"))


def find_checkpoint(run: Path, which: str) -> Path:
    """A run's `best` (by validation), `latest`, or named checkpoint.

    Raises:
        InputError: there is no such checkpoint; the message lists those there are.
    """
    whole = list_checkpoints(run)
    if not whole:
        raise InputError(
            f"{run / 'checkpoints'}: holds no checkpoint; train first: python -m trainer.train … run={run}"
        )
    if which == "latest":
        return whole[-1]
    name = which
    if which == "best":
        name = read_manifest(whole[-1]).best
    for path in whole:
        if path.name == name:
            return path
    names = ", ".join(path.name for path in whole)
    raise InputError(f"{run / 'checkpoints' / name}: no such checkpoint; there are best, latest, {names}")


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Read and check a checkpoint's manifest.

    Raises:
        InputError: it is not a manifest of this format.
    """
    file = checkpoint / MANIFEST
    content = read_json_object(file, "the manifest of a checkpoint")
    names = {leaf.name for leaf in dataclasses.fields(CheckpointManifest)}
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{file}: format {content.get('format')!r} version {content.get('format_version')!r}, "
            f"this release reads {FORMAT!r} version {FORMAT_VERSION}"
        )
    if names != set(content):
        raise InputError(f"{file}: keys differ from the format's: {', '.join(sorted(names ^ set(content)))}")
    return CheckpointManifest(**content)


def check_belongs(manifest: CheckpointManifest, checkpoint: Path, store: EventStore, codes: CodeTable) -> None:
    """Refuse a checkpoint that was trained on another store or with other codes.

    Raises:
        InputError: naming both fingerprints.
    """
    faults = []
    for what, trained, given in (
        ("event store", manifest.store_fingerprint, store.fingerprint),
        ("code table", manifest.codes_fingerprint, codes.fingerprint),
    ):
        if trained != given:
            faults.append(
                f"{checkpoint}: trained with the {what} {trained}, but {given} was given; "
                f"give the one it was trained with, or train again"
            )
    if faults:
        raise InputError(*faults)


def build_sharded(
    config: ModelConfig,
    vocabulary: Vocabulary,
    world: World,
    *,
    seed: int,
    learning_rate: float = 0.0,
    epsilon: float = 1e-8,
    codebooks_CVd: Tensor | None = None,
) -> DistributedModelParallel:
    """A recommender with its tables row-wise over the ranks, freshly initialised: the same on any number of ranks.

    With `codebooks_CVd` the code table and the heads start from the quantiser's codebooks instead of noise.
    """
    torch.manual_seed(seed)
    tables = build_embeddings(config, vocabulary, seed, torch.device("meta"))
    model = Recommender(config, tables, vocabulary)
    code_rows = None
    if codebooks_CVd is not None:
        noise = draw_rows(seed, CODE_TABLE, 0, vocabulary.levels * vocabulary.codes, config.width, INITIAL_STD)
        code_rows = rows_from_codebooks(codebooks_CVd, config.width, noise)
        model.tower.heads.start_from(code_rows)
    model.tower.to(world.device)

    def starting_rows(table: str, start: int, stop: int, width: int) -> Tensor:
        if table == CODE_TABLE and code_rows is not None:
            return code_rows[start:stop]
        return draw_rows(seed, table, start, stop, width, INITIAL_STD)

    return shard_model(
        model,
        row_wise_plan(model, world),
        world,
        learning_rate=learning_rate,
        epsilon=epsilon,
        draw_rows=starting_rows,
    )


def load_state(state: dict[str, Any], checkpoint: Path) -> None:
    """Fill `state` (parameters, tables, optimizer states, as sharded here) in place from a checkpoint.

    Raises:
        InputError: the files are damaged or do not fit the model.
    """
    try:
        dcp.load(state, checkpoint_id=str(checkpoint / STATE))
    except (dcp.api.CheckpointException, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{checkpoint / STATE}: cannot be read: {' '.join(str(error).split())[:400]}") from None


def load_model(checkpoint: Path, world: World, attention_backend: str = "") -> DistributedModelParallel:
    """The trained model of a checkpoint, for inference, whatever number of ranks wrote it.

    Args:
        attention_backend: in the place of the one that it was trained with.

    Raises:
        InputError: that backend does not compute the model's kind of attention.
    """
    manifest = read_manifest(checkpoint)
    plain = manifest.model
    if attention_backend:
        plain = plain | {"attention": plain["attention"] | {"backend": attention_backend}}
    config = from_plain(ModelConfig, plain, str(checkpoint / MANIFEST))
    model = build_sharded(config, Vocabulary(**manifest.vocabulary), world, seed=0)
    load_state({"model": model.state_dict()}, checkpoint)
    model.eval()
    return model
