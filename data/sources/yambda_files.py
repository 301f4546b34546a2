"""The files of Yambda: where they lie, which columns they have, and of which type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from common.errors import InputError
from data.parquet_io import open_parquet
from data.sources.item_vectors import is_vector

FLAT, SEQUENTIAL = "flat", "sequential"
LAYOUTS = (FLAT, SEQUENTIAL)
EMBEDDINGS = ("embed", "normalized_embed")
MULTI_EVENT_TYPES = ("listen", "dislike", "like", "undislike", "unlike")

FILES: dict[str, tuple[str, ...]] = {
    "listens": ("listen",),
    "likes": ("like",),
    "dislikes": ("dislike",),
    "unlikes": ("unlike",),
    "undislikes": ("undislike",),
    "multi_event": MULTI_EVENT_TYPES,
}
"""KIND → the event types in its file."""

PLAYED_RATIO, TRACK_LENGTH = "played_ratio_pct", "track_length_seconds"
PLAYED = (PLAYED_RATIO, TRACK_LENGTH)
PLAYED_KINDS = ("listens", "multi_event")
"""Those whose files have the two play columns."""

_TYPES: dict[str, pa.DataType] = {
    "uid": pa.uint32(),
    "timestamp": pa.uint32(),
    "item_id": pa.uint32(),
    "is_organic": pa.uint8(),
    PLAYED_RATIO: pa.uint16(),
    TRACK_LENGTH: pa.uint32(),
    "artist_id": pa.uint32(),
    "album_id": pa.uint32(),
}

_PLURALS = {"item_id": "item_ids", "timestamp": "timestamps"}
"""Sequential files are described with these names and published with the others; both are read."""


@dataclass(frozen=True)
class Paths:
    """The files of one run over Yambda; None where an optional one is absent."""

    events: Path
    artists: Path | None
    albums: Path | None
    embeddings: Path | None
    size: str
    layout: str


def find_files(root: Path, kind: str, size: str | None, layout: str | None) -> Paths:
    """Locate the files under `root`.

    Args:
        size: may be None where only one is there.
        layout: may be None: where both hold the file, flat is read.

    Raises:
        InputError: nothing there, or several sizes to choose from.
    """
    asked = (layout,) if layout is not None else LAYOUTS
    sizes = {name: _folders(root / name) for name in asked}
    everything = sorted({found for names in sizes.values() for found in names})
    where = " or ".join(f"{name}/SIZE" for name in asked)
    if not everything:
        raise InputError(
            f"{root}: has no folder {where}; `path` must be the root of Yambda, which holds flat/50m, sequential/50m "
            "and the like"
        )
    if size is None and len(everything) > 1:
        raise InputError(f"{root}: holds {', '.join(everything)}; say which with size=…")
    chosen = size if size is not None else everything[0]
    holding = [name for name in asked if chosen in sizes[name]]
    if not holding:
        raise InputError(f"{root}: has no {chosen}; it holds {', '.join(everything)}")
    candidates = {name: root / name / chosen / f"{kind}.parquet" for name in holding}
    there = [name for name, path in candidates.items() if path.exists()]
    if not there:
        raise InputError(f"{candidates[holding[0]]}: no such file; kind={kind} is read from it")

    def optional(name: str) -> Path | None:
        return root / name if (root / name).exists() else None

    return Paths(
        events=candidates[there[0]],
        artists=optional("artist_item_mapping.parquet"),
        albums=optional("album_item_mapping.parquet"),
        embeddings=optional("embeddings.parquet"),
        size=chosen,
        layout=there[0],
    )


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def checked_columns(path: Path, columns: Sequence[str], lists: bool, faults: list[str]) -> dict[str, str]:
    """Check that a file has these columns, of the published type, and at least one row.

    Args:
        columns: names as in the flat layout.
        lists: whether each but `uid` must be a list of such values, as in the sequential layout.
        faults: those found are added here.

    Returns:
        Name in the flat layout → name in the file.
    """
    try:
        file = open_parquet(path)
    except InputError as error:
        faults += error.faults
        return {}
    found = file.schema_arrow
    names = {name: _PLURALS[name] if lists and _PLURALS.get(name) in found.names else name for name in columns}
    faults += _column_faults(path, found, names, lists)
    if file.metadata.num_rows == 0:
        faults.append(f"{path}: has no rows, expected at least one")
    return names


def _column_faults(path: Path, found: pa.Schema, names: Mapping[str, str], lists: bool) -> list[str]:
    """Columns that are missing or of another dtype. Others may stand beside them."""
    faults = []
    for name, actual in names.items():
        index = found.get_field_index(actual)
        if index < 0:
            wanted = f"`{name}` or `{_PLURALS[name]}`" if lists and name in _PLURALS else f"`{name}`"
            faults.append(f"{path}: column {wanted} is missing; the file has {', '.join(found.names)}")
            continue
        dtype, of = found.field(index).type, ""
        if lists and name != "uid":
            of = "a list of "
            dtype = dtype.value_type if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) else pa.null()
        if not _fits(name, dtype):
            faults.append(
                f"{path}: column `{actual}` is {found.field(index).type}, must be {of}{_rule(name)}; cast it before "
                "preparing"
            )
    return faults


def _rule(name: str) -> str:
    if name in EMBEDDINGS:
        return "a list of float32 or float64"
    return "string or an enum of strings" if name == "event_type" else str(_TYPES[name])


def _fits(name: str, dtype: pa.DataType) -> bool:
    if name in EMBEDDINGS:
        return is_vector(dtype)
    if name == "event_type":
        return _is_text(dtype.value_type if pa.types.is_dictionary(dtype) else dtype)
    return bool(dtype == _TYPES[name])


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))
