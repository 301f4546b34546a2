"""What a checkpoint says of itself. A folder without a manifest that holds is no checkpoint.

    checkpoints/step-00000120/
        manifest.json                             written last, by one rename: it is what makes the rest count
        tables-00000-of-00002.TAG.safetensors     rows of rank 0's pieces of the tables; its random states; the owners
                                                  of its rows of a hashed table
        states-00000-of-00002.TAG.safetensors     optimizer states of the same rows
        dense.TAG.safetensors                     what all ranks have alike: dense parameters and their optimizers

A *base* holds every row, a *delta* the rows that have been looked up in training since its parent. TAG differs from
attempt to attempt, so a new writing of a step never touches the files of an older one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import xxhash

from common.errors import InputError
from common.storage import Storage

FORMAT = "segue-checkpoint"
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 2**20

BASE, DELTA = "base", "delta"

SELECTION_METRICS = ("ndcg@10", "gain")
"""Which validation metric chooses the best checkpoint: of a model that makes lists, and of one that ranks."""


def selection_metric(metrics: Mapping[str, float]) -> str:
    """The one that a validation gave; empty if it gave none."""
    return next((name for name in SELECTION_METRICS if name in metrics), "")


class Damage(Exception):
    """A file of a checkpoint is not as it was written. The message says which, what was found and what was expected."""


@dataclass(frozen=True)
class Shard:
    """A rectangle of a table in a checkpoint's files.

    Its tensors are `KEY.values` and, in a delta, `KEY.rows` (the table's row numbers, ascending) in file `tables`, and
    `KEY.NAME` in file `states` for each optimizer state.
    """

    key: str
    table: str
    tables: str
    """File of the values."""
    states: str
    """File of the optimizer states; empty where there are none."""
    first_row: int
    rows: int
    first_column: int
    columns: int
    stored: int
    """Rows stored: all of them in a base."""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds."""

    kind: str
    """`base` or `delta`."""
    step: int
    parent: str
    """Name of the checkpoint that a delta changes; empty for a base."""
    parent_state: str
    """`state` of that checkpoint."""
    state: str
    """Names what the checkpoint restores: kept when a chain is folded into a base, else new in every writing."""
    epoch: int
    world_size: int
    store: str
    """Path of the event store, as the run was given it."""
    codes: str
    """Path of the code table, as the run was given it."""
    store_fingerprint: str
    codes_fingerprint: str
    config_fingerprint: str
    """Of the settings that decide the course of training."""
    model: dict[str, Any]
    """`ModelConfig` as plain values."""
    vocabulary: dict[str, int]
    """`Vocabulary` as plain values."""
    meanings: dict[str, list[Any]]
    """What rows stand for: digest and number of artists and event types, digest of the codebooks."""
    tables: dict[str, list[int]]
    """Rows and width of every table."""
    value_format: str
    state_format: str
    shards: list[Shard]
    files: dict[str, dict[str, Any]]
    """Name → `bytes` and `xxh3_128` of every file."""
    random: list[str]
    """File with the random states of each rank."""
    dense: str
    """File with what all ranks have alike."""
    progress: dict[str, Any]
    """What the trainer needs to go on: where the loader is, best validation so far."""
    metrics: dict[str, float]
    """Validation metrics at this step; empty between validations."""

    @property
    def score(self) -> float:
        """The validation metric that chooses the best checkpoint; NaN where there is none."""
        return self.metrics.get(selection_metric(self.metrics), math.nan)

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(entry["bytes"] for entry in self.files.values())

    @property
    def touched(self) -> dict[str, int]:
        """Rows stored of each table; of a table in column pieces, those of the first."""
        counts = dict.fromkeys(self.tables, 0)
        for shard in self.shards:
            counts[shard.table] += shard.stored if shard.first_column == 0 else 0
        return counts


def step_folder(step: int) -> str:
    """Name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def blank_manifest(**constants: Any) -> Manifest:
    """A manifest with what a run's checkpoints have in common, and nothing of any one of them."""
    empty: dict[str, Any] = {"kind": BASE, "parent": "", "parent_state": "", "state": "", "dense": ""}
    empty |= {"step": 0, "epoch": 0, "value_format": "float32", "state_format": "float32", "shards": [], "random": []}
    return Manifest(**{**empty, "tables": {}, "files": {}, "progress": {}, "metrics": {}, **constants})


def encode_manifest(manifest: Manifest) -> bytes:
    """Its file: JSON with a checksum of itself."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    return (json.dumps(content | {"xxh3_128": _digest(content)}, indent=1) + "\n").encode()


def _digest(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(storage: Storage, name: str) -> Manifest:
    """Read and check the manifest of the checkpoint `name`.

    Raises:
        Damage: it is absent, incomplete, changed since it was written, or another checkpoint's.
        InputError: it is of another version of the format.
    """
    where = storage.where(f"{name}/{MANIFEST}")
    try:
        with storage.open(f"{name}/{MANIFEST}") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_MANIFEST_BYTES else None
    except FileNotFoundError:
        raise Damage(f"{where}: no such file") from None
    except OSError as error:
        raise Damage(f"{where}: cannot be read: {error}") from None
    except (ValueError, RecursionError):  # not JSON, or not text
        raise Damage(f"{where}: not a manifest: {len(text)} bytes that are not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Damage(f"{where}: not the manifest of a checkpoint")
    version, found = content.get("format_version"), content.pop("xxh3_128", None)
    expected = _digest(content)
    if version != FORMAT_VERSION and found in (None, expected):  # else the number itself may be the damage
        raise InputError(f"{where}: format version {version}, this release reads version {FORMAT_VERSION}; train again")
    if expected != found:
        raise Damage(f"{where}: its checksum is {expected}, it says {found}: changed since it was written")
    try:
        manifest = Manifest(**{key: content[key] for key in content.keys() - {"format", "format_version"}})
        manifest = dataclasses.replace(manifest, shards=[Shard(**shard) for shard in content["shards"]])
    except (TypeError, KeyError) as error:
        raise Damage(f"{where}: not the keys of a manifest: {error}") from None
    if step_folder(manifest.step) != name:
        raise Damage(f"{where}: the manifest of step {manifest.step}, in the folder of another step")
    outside = [file for file in manifest.files if file in ("", "..") or file != PurePath(file).name]
    if outside:
        raise Damage(f"{where}: names a file outside its folder: {outside[0]!r}")
    unlisted = sorted(_used(manifest) - manifest.files.keys())
    if unlisted:
        raise Damage(f"{where}: uses {unlisted[0]!r}, which its list of files lacks")
    return manifest


def _used(manifest: Manifest) -> set[str]:
    """Files that a restoring would open."""
    named = {manifest.dense, *manifest.random}
    return named.union(*({shard.tables, shard.states} for shard in manifest.shards)) - {""}
