"""Indexes on disk: an index that took an hour to build is read back for the same vectors, and for no others.

n vectors · D vector width.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json_object, sha256_of_file, write_folder_aside, write_json_atomically
from serving.engines.exclusions import Floats
from serving.engines.faiss_indexes import VectorIndex
from serving.engines.index_building import L2, BuiltIndex, IndexConfig, as_built, faiss

FORMAT, FORMAT_VERSION = "segue-vector-index", 1
MANIFEST, INDEX = "index.json", "index.faiss"
WHAT = "the manifest of a vector index"

_OF_SEARCH = ("probes", "refine", "ef_search", "build_threads")
"""Options that leave the index as it is."""

_BLOCK_NUMBERS = 1 << 22


def save_index(index: VectorIndex, folder: Path) -> None:
    """Write an index as `index.faiss` and `index.json`, whole or not at all.

    Raises:
        InputError: something that is not a folder stands there, or the disk is full.
    """
    with write_folder_aside(folder) as aside:
        faiss.write_index(index.built.on_cpu, str(aside / INDEX))
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": index.kind,
            "vectors": vectors_fingerprint(index.vectors_GD),
            "settings": _settings(index.config, index.metric),
            "notes": index.notes,
            "sha256": sha256_of_file(aside / INDEX),
        }
        write_json_atomically(aside / MANIFEST, content)


def open_index(folder: Path, vectors_nD: Floats, config: IndexConfig, metric: str = L2) -> VectorIndex:
    """Read an index of just these vectors and settings.

    FAISS's reader trusts what it reads, so it is given no file whose checksum is not the manifest's. That is proof
    against damage and against files put in by mistake, not against somebody who can write the folder: as with a
    program, read indexes only from where you would run one.

    Args:
        vectors_nD: float32, a row a column, as the index was made of.
        config: may differ in how the index is searched.
        metric: `L2` or `INNER_PRODUCT`.

    Raises:
        InputError: the folder is no whole index, or one of other vectors or settings.
    """
    return VectorIndex(vectors_nD, config, metric, build=lambda distinct_GD: _read(folder, distinct_GD, config, metric))


def vectors_fingerprint(vectors_nD: Floats) -> str:
    """SHA-256 of vectors and their shape."""
    digest = hashlib.sha256(repr(vectors_nD.shape).encode())
    block = max(1, _BLOCK_NUMBERS // max(1, vectors_nD.shape[1]))
    for first in range(0, len(vectors_nD), block):
        digest.update(np.ascontiguousarray(vectors_nD[first : first + block], "<f4").data)
    return digest.hexdigest()


def _read(folder: Path, vectors_nD: Floats, config: IndexConfig, metric: str) -> BuiltIndex:
    manifest = read_json_object(folder / MANIFEST, WHAT)
    found = manifest.get("format"), manifest.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{folder / MANIFEST}: is of format {found[0]!r}, version {found[1]!r}, expected {FORMAT!r}, version"
            f" {FORMAT_VERSION}; build the index again"
        )
    faults = []
    if manifest.get("settings") != (settings := _settings(config, metric)):
        faults.append(f"{folder}: was built with {manifest.get('settings')}, but {settings} is asked for")
    if manifest.get("vectors") != vectors_fingerprint(vectors_nD):
        faults.append(f"{folder}: is the index of other vectors than these {len(vectors_nD)}; build it again")
    file = folder / INDEX
    if not file.is_file():
        faults.append(f"{file}: no such file; build the index again")
    elif sha256_of_file(file) != manifest.get("sha256"):
        faults.append(f"{file}: is damaged, its checksum is not the manifest's; build the index again")
    if faults:
        raise InputError(*faults)
    return as_built(manifest["kind"], faiss.read_index(str(file)), vectors_nD, list(manifest["notes"]))


def _settings(config: IndexConfig, metric: str) -> dict[str, Any]:
    """What makes an index what it is."""
    kept = {name: value for name, value in dataclasses.asdict(config).items() if name not in _OF_SEARCH}
    return {**kept, "metric": metric}
