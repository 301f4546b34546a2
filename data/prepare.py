"""Make an event store from an event log.

    python -m data.prepare source=movielens-100k out=stores/ml-100k
    python -m data.prepare source=yambda path=yambda size=50m kind=listens out=stores/yambda-50m-listens

MovieLens-100K is obtained by itself: from the cache, GroupLens, or the PyPI wheel recbole==1.2.1, whichever
has it, checked by SHA-256; `path` names a copy of yours instead. Yambda is read from the files under `path`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.config import REQUIRED, option, run_entry
from common.errors import InputError
from common.progress import format_seconds
from data import schema
from data.manifest import Manifest
from data.sources import movielens, movielens_origins, yambda, yambda_files
from data.sources.base import Source
from data.store_writer import write_event_store

SOURCES = (movielens.NAME, yambda.NAME)


@dataclass
class PrepareConfig:
    """The keys of `data.prepare`."""

    source: str = option(REQUIRED, "where the events come from", choices=SOURCES)
    out: str = option(REQUIRED, "folder of the event store to write; an existing store there is replaced")
    path: str | None = option(
        None,
        "movielens-100k: the unzipped folder or ml-100k.zip, obtained where not given; "
        "yambda (required): the root of the data set",
    )
    cache: str | None = option(
        None, "movielens-100k: folder for verified downloads, $XDG_CACHE_HOME/segue or ~/.cache/segue where not given"
    )
    size: str | None = option(None, "yambda: 50m, 500m or 5b; may be left out where `path` holds only one")
    kind: str | None = option(None, f"yambda (required): which file, one of {', '.join(yambda_files.FILES)}")

    def __post_init__(self) -> None:
        """Check which keys the source takes."""
        takes = {movielens.NAME: {"path", "cache"}, yambda.NAME: {"path", "size", "kind"}}[self.source]
        needs = {movielens.NAME: set(), yambda.NAME: {"path", "kind"}}[self.source]
        given = {key for key in ("path", "cache", "size", "kind") if getattr(self, key) is not None}
        faults = [f"`{key}` means nothing to source={self.source}; leave it out" for key in sorted(given - takes)]
        faults += [f"`{key}` is required by source={self.source}" for key in sorted(needs - given)]
        if self.source == yambda.NAME and self.kind is not None and self.kind not in yambda_files.FILES:
            faults.append(f"`kind` is {self.kind!r}, expected one of {', '.join(yambda_files.FILES)}")
        if not self.out:
            faults.append("`out` is empty; name a folder")
        if faults:
            raise InputError(*faults)


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write the store and print what was made.

    Returns:
        A summary: store, fingerprint, source, counts, event types with their counts, time range, seconds.

    Raises:
        InputError: a fault in the source, or `out` holds something that is not a store.
    """
    start = time.monotonic()
    out = Path(config.out).expanduser()
    check_replaceable(out)
    manifest = write_event_store(_open_source(config), out)
    seconds = time.monotonic() - start
    print(_table(out, manifest, seconds))
    return {
        "store": str(out),
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
        **manifest.counts,
        "event_types": dict(zip(manifest.event_types, manifest.event_type_counts, strict=True)),
        "time_range": list(manifest.time_range),
        "seconds": round(seconds, 3),
    }


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but an event store: a mistyped `out` must not cost a home folder.

    Raises:
        InputError: `out` is a file, or a folder with other things in it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(
            f"{out}: exists and is not a folder; `out` must name a new folder or an event store to replace"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / schema.MANIFEST_FILE).exists():
        raise InputError(
            f"{out}: exists and is not an event store (it has no {schema.MANIFEST_FILE}); "
            "name another folder or empty it"
        )


def _open_source(config: PrepareConfig) -> Source:
    path = Path(config.path).expanduser() if config.path is not None else None
    if config.source == movielens.NAME:
        return movielens_origins.load(path, _cache_folder(config.cache))
    assert path is not None
    assert config.kind is not None
    return yambda.Yambda(path, config.kind, config.size)


def _cache_folder(given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "segue"


def _table(out: Path, manifest: Manifest, seconds: float) -> str:
    first, last = manifest.time_range
    times = f"{first:,} … {last:,} s"
    if manifest.source["name"] == movielens.NAME:
        days = [datetime.fromtimestamp(second, tz=UTC).date().isoformat() for second in (first, last)]
        times = " … ".join(days)
    rows = [(name, f"{count:,}") for name, count in manifest.counts.items()]
    rows += [
        (f"  {name}", f"{count:,}")
        for name, count in zip(manifest.event_types, manifest.event_type_counts, strict=True)
    ]
    rows += [("time", times), ("fingerprint", manifest.fingerprint)]
    lines = [f"{out}: event store of {' '.join(manifest.source.values())}, made in {format_seconds(seconds)}"]
    return "\n".join(lines + [f"  {name:<14} {value}" for name, value in rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m data.prepare`."""
    return run_entry("data.prepare", "prepare", PrepareConfig, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
