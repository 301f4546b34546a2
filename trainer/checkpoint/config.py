"""Options of a run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from serving.checkpoints.row_formats import STATE_FORMATS, VALUE_FORMATS


@dataclass
class CheckpointConfig:
    """What is saved, when, how and where. None of it changes the course of an uninterrupted run."""

    path: str = option("", "folder or URL (s3://bucket/name) of the checkpoints; the run's own folder if empty")
    every: int = option(500, "steps between checkpoints, beside one at each validation; 0: only those", minimum=0)
    base_every: int = option(
        0, "a checkpoint that many steps after the last base is a base; 0: by chain_share alone", minimum=0
    )
    chain_share: float = option(
        1.0, "a base follows when the deltas since the last one have grown beyond this share of it", minimum=0
    )
    keep: int = option(
        2, "newest checkpoints to keep, beside the best by validation and all that these are made from", minimum=1
    )
    values: str = option(
        "float32",
        "rows of deltas; float32 restores bit for bit, int8 and int4 quantise row by row. Bases are always float32",
        choices=VALUE_FORMATS,
    )
    states: str = option(
        "float32", "optimizer states of rows in deltas; bases are always float32", choices=STATE_FORMATS
    )
    wait: bool = option(False, "wait for each checkpoint to be on the disk before training goes on")
