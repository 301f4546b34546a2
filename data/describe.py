"""Say and draw what is in an event store: `python -m data.describe store=stores/ml-100k`

Prints histories, time, gaps, popularity and what is missing as tables, and writes a self-contained HTML page with
charts beside the store, or where `out` says. All events are counted; memory holds a block of users and
some counts an item.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import REQUIRED, option, run_entry
from common.errors import InputError
from common.files import write_text_atomically
from data.describe_page import render_page
from data.describe_tables import make_tables
from data.event_store import EventStore
from data.manifest import read_manifest
from data.statistics import gather


@dataclass
class DescribeConfig:
    """The keys of `data.describe`."""

    store: str = option(REQUIRED, "folder of the event store")
    page: bool = option(True, "write the HTML page; false prints the tables only")
    out: str | None = option(None, "the page, a .html file; STORE.describe.html beside the store where not given")

    def __post_init__(self) -> None:
        """Check what the keys say of each other."""
        faults = []
        if not self.store:
            faults.append("`store` is empty; name the folder of an event store")
        if self.out is not None and not self.page:
            faults.append("`out` means nothing with page=false; leave one of them out")
        if self.out is not None and Path(self.out).suffix.lower() not in (".html", ".htm"):
            faults.append(f"`out` is {self.out!r}, expected a file that ends in .html")
        if faults:
            raise InputError(*faults)


def describe(config: DescribeConfig) -> dict[str, Any]:
    """Print the tables and write the page.

    Returns:
        A summary: store, fingerprint, source, counts, event types, time range, all figures, page, seconds.

    Raises:
        InputError: no store, a damaged one, one without events, or a page that cannot be written.
    """
    start = time.monotonic()
    folder = Path(config.store).expanduser()
    out = _page_path(folder, config.out) if config.page else None
    _check(folder, out)
    store = EventStore.open(folder)
    figures = gather(store)
    manifest = store.manifest
    tables = make_tables(manifest, figures)
    if out is not None:  # before anything is printed, so that a fault stands alone
        write_text_atomically(out, render_page(_named(folder).name, manifest, figures, tables))
    print(f"{folder}: event store of {' '.join(manifest.source.values())}\n")
    print("\n\n".join(table.to_text() for table in tables.values()))
    if out is not None:
        print(f"\nwritten: {out}")
    return {
        "store": str(folder),
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
        **manifest.counts,
        "event_types": dict(zip(manifest.event_types, manifest.event_type_counts, strict=True)),
        **({"series": manifest.series} if manifest.series else {}),
        "time_range": list(manifest.time_range),
        "duplicates": manifest.duplicates,
        **dataclasses.asdict(figures),
        "page": str(out) if out is not None else None,
        "seconds": round(time.monotonic() - start, 3),
    }


def _named(folder: Path) -> Path:
    """The folder by a name of its own: `.` and `..` have none to put a page beside."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def _page_path(folder: Path, given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    named = _named(folder)
    return named.with_name(f"{named.name}.describe.html")


def _check(folder: Path, out: Path | None) -> None:
    """What can be told before the store is read: all of it at once."""
    faults: list[str] = []
    try:
        read_manifest(folder)
    except InputError as error:
        faults += error.faults
    if out is not None:
        faults += _page_faults(folder, out)
    if faults:
        raise InputError(*faults)


def _page_faults(folder: Path, out: Path) -> list[str]:
    if out.resolve().is_relative_to(folder.resolve()):
        return [
            f"{out}: lies inside the event store {folder}, which holds nothing but its own files; name another place"
        ]
    if out.is_dir():
        return [f"{out}: is a folder, expected a file to write the page to"]
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir():
        return [f"{out}: cannot be written, since {parent} is not a folder; name another place"]
    if not os.access(parent, os.W_OK | os.X_OK):
        return [f"{out}: cannot be written, since nothing may be added to {parent}; name another place with `out`"]
    return []


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m data.describe`."""
    return run_entry("data.describe", "describe", DescribeConfig, describe, argv)


if __name__ == "__main__":
    sys.exit(main())
