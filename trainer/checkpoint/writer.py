"""Full checkpoints through torch.distributed.checkpoint: written aside by all ranks, made visible by one rename."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed import DistributedModelParallel

from common.errors import InputError
from common.files import fsync_path, write_json_atomically
from serving.checkpoints import MANIFEST, STATE, CheckpointManifest, list_checkpoints, step_folder
from sharding.world import World
from trainer.optimizers import Optimizers


def training_state(model: DistributedModelParallel, optimizers: Optimizers) -> dict[str, Any]:
    """Everything that a step changes, as live tensors of this rank: what is loaded into them is in effect.

    Rates follow from the step, randomness and batches too, so none of them is here. Before loading, the optimizers
    must have made their states (`Optimizers.make_states`): a state that does not exist yet cannot be filled.
    """
    return {
        "model": model.state_dict(),
        **optimizers.state(),
    }


def write_checkpoint(run: Path, manifest: CheckpointManifest, state: dict[str, Any], world: World) -> Path:
    """Write a checkpoint with all ranks; on return it is on the disk and visible, or an error was raised.

    An error on any rank leaves the earlier checkpoints and no part of this one.

    Raises:
        InputError: a rank could not write, for example because the disk is full.
    """
    target = run / "checkpoints" / step_folder(manifest.step)
    aside = target.with_name(f".{target.name}.writing")
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    try:
        dcp.save(state, checkpoint_id=str(aside / STATE))
    except CheckpointException as error:
        shutil.rmtree(aside, ignore_errors=True)
        causes = {f"rank {rank}: {cause[0]}" for rank, cause in error.failures.items()}
        raise InputError(
            f"{target}: cannot be written ({'; '.join(sorted(causes))}); free space or choose another run"
        ) from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if world.is_main:
        for path in (aside / STATE).iterdir():
            fsync_path(path)
        write_json_atomically(aside / MANIFEST, dataclasses.asdict(manifest))
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        fsync_path(target.parent)
    dist.barrier()
    return target


def remove_old(run: Path, best: str, keep: int) -> None:
    """Keep the newest `keep` checkpoints and the best."""
    for path in list_checkpoints(run)[:-keep]:
        if path.name != best:
            shutil.rmtree(path)
