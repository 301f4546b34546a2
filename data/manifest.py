"""The manifest of an event store: what is in it, and a fingerprint by which later artefacts name it."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import fingerprint_of, read_json_object, sha256_of_file
from data import schema


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        fingerprint: of everything else here, hence of all files' bytes: equal content, equal fingerprint.
        source: the source's description.
        counts: how many users, events, items, artists, albums and embeddings.
        event_types: names, in the order of the indices in the `event_type` column.
        event_type_counts: events of each type.
        optional_columns: which of `schema.OPTIONAL_COLUMNS` are present.
        titles, albums: whether items have them.
        embedding_width: D of the content embeddings, None where there are none.
        time_range: first and last timestamp, seconds.
        duplicates: what was done with events that say the same twice ("keep", "drop", "refuse"), and their number.
        split: which events are held out, the keys of `data.split.SplitConfig`.
        files: name → {"bytes", "sha256"}.
        series: name → {"values"}, how many it has, in the order in which `series.parquet` numbers them; those with
            entries say the seconds of the "first" and the "last", and `preferred_artist` its "days" as well. Without
            series the file has no such key, and is what it was before there were any.
    """

    format_version: int
    fingerprint: str
    source: dict[str, str]
    counts: dict[str, int]
    event_types: tuple[str, ...]
    event_type_counts: tuple[int, ...]
    optional_columns: tuple[str, ...]
    titles: bool
    albums: bool
    embedding_width: int | None
    time_range: tuple[int, int]
    duplicates: dict[str, Any]
    split: dict[str, Any]
    files: dict[str, dict[str, Any]]
    series: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As written to the file."""
        content = dataclasses.asdict(self)
        if not self.series:
            del content["series"]
        return content


def seal(folder: Path, files: tuple[str, ...], **content: Any) -> Manifest:
    """Describe a finished store: hash its files, then everything said of it (no series: leave `series` out)."""
    described = {
        "format_version": schema.FORMAT_VERSION,
        **content,
        "files": describe_files(folder, files),
    }
    return Manifest(fingerprint=fingerprint_of(described), **described)


def describe_files(folder: Path, files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files of a store, by name; hashed by two threads."""
    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(sha256_of_file, [folder / name for name in files]))
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(files, digests, strict=True)
    }


def read_manifest(folder: Path) -> Manifest:
    """Read and check a store's manifest, without opening the files it names.

    Raises:
        InputError: no such folder, not a store, another format version, or a manifest changed by hand.
    """
    path = folder / schema.MANIFEST_FILE
    if not path.exists():
        what = "has no manifest" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; an event store is made by `python -m data.prepare source=… out={folder}`")
    content = read_json_object(path, "the manifest of an event store")
    version = content.get("format_version")
    if version != schema.FORMAT_VERSION:
        raise InputError(
            f"{path}: `format_version` is {version!r}, this code reads version {schema.FORMAT_VERSION}; "
            "prepare the store again from its source"
        )
    expected = {field.name for field in dataclasses.fields(Manifest)}
    faults = [f"{path}: lacks `{name}`" for name in sorted(expected - {"series"} - content.keys())]
    faults += [f"{path}: unknown key `{name}`" for name in sorted(content.keys() - expected)]
    if faults:
        raise InputError(*faults)
    found = fingerprint_of({key: value for key, value in content.items() if key != "fingerprint"})
    if found != content["fingerprint"]:
        raise InputError(
            f"{path}: its content has fingerprint {found}, but it says {content['fingerprint']!r}: it was changed "
            "after it was written; prepare the store again"
        )
    lists = ("event_types", "event_type_counts", "optional_columns", "time_range")
    fields: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in content.items()}
    return Manifest(**fields)
