"""Make an event store from an event log.

    python -m data.prepare source=movielens-100k out=stores/ml-100k
    python -m data.prepare source=yambda path=yambda size=50m kind=listens out=stores/yambda-50m-listens
    python -m data.prepare source=table path='logs/*.csv' columns.user=uid columns.item=song columns.timestamp=time \\
        out=stores/mine

MovieLens-100K is obtained by itself: from the cache, GroupLens, or the PyPI wheel recbole==1.2.1, whichever
has it, checked by SHA-256; `path` names a copy of yours instead. MovieLens-1M is read from `path`, Yambda from the
files under it, in either layout. A table is any log in Parquet or CSV, rows in any order; keys say which columns mean
what. `series` adds slow series of the users, as `series=[demographics,preferred_artist]`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import REQUIRED, group, option, run_entry
from common.errors import InputError
from common.progress import format_seconds
from data import duplicates
from data.event_store import EventStore
from data.manifest import Manifest
from data.output_folder import check_apart, check_replaceable, check_space, claimed, scratch_beside
from data.series import choices, preferred_artist
from data.series_writer import SeriesRequest, day_of
from data.sources import movielens, movielens_1m, movielens_origins, table, yambda, yambda_files
from data.sources.base import Source, UserSeries
from data.sources.movielens_users import DEMOGRAPHICS
from data.sources.table_config import TableCatalogue, TableColumns, TableConfig, TableEmbeddings, TableSeries
from data.sources.table_values import TIME_UNITS
from data.split import SplitConfig
from data.store_writer import write_event_store

PREFERRED_ARTIST_DAYS = 30

SOURCES = (movielens.NAME, movielens_1m.NAME, yambda.NAME, table.NAME)

_TAKES = {
    movielens.NAME: ("path", "cache"),
    movielens_1m.NAME: ("path",),
    yambda.NAME: ("path", "size", "kind", "layout", "min_played_ratio", "embedding"),
    table.NAME: ("path", "columns", "catalogue", "embeddings", "timestamp_unit", "separator", "sorted", "series_file"),
}
"""Source → its keys and groups of keys; `source`, `out` and what is in none of these are for all."""

_NEEDS = {
    movielens.NAME: (),
    movielens_1m.NAME: ("path",),
    yambda.NAME: ("path", "kind"),
    table.NAME: ("path", "columns.user", "columns.item", "columns.timestamp"),
}


_SERIES: dict[str, tuple[str, ...]] = {
    movielens.NAME: DEMOGRAPHICS,
    movielens_1m.NAME: DEMOGRAPHICS,
    yambda.NAME: (),
    table.NAME: (choices.FILE,),
}
"""Source → the slow series that it tells of beside its events."""


@dataclass
class PrepareConfig:
    """The keys of `data.prepare`."""

    source: str = option(REQUIRED, "where the events come from", choices=SOURCES)
    out: str = option(REQUIRED, "folder of the event store to write; an existing store there is replaced")
    path: str | None = option(
        None,
        "movielens-100k: the unzipped folder or ml-100k.zip, obtained where not given; "
        "movielens-1m (required): the unzipped folder or ml-1m.zip; "
        "yambda (required): the root of the data set; "
        "table (required): file, folder or glob of .parquet, .csv, .csv.gz, .tsv or .tsv.gz",
    )
    cache: str | None = option(
        None, "movielens-100k: folder for verified downloads, $XDG_CACHE_HOME/segue or ~/.cache/segue where not given"
    )
    size: str | None = option(None, "yambda: 50m, 500m or 5b; may be left out where `path` holds only one")
    kind: str | None = option(None, "yambda (required): which file", choices=tuple(yambda_files.FILES))
    layout: str | None = option(
        None, "yambda: which of the two to read, flat where both are there", choices=yambda_files.LAYOUTS
    )
    min_played_ratio: int | None = option(
        None, "yambda: leave out listens of which less was played, in percent; 50 is its Listen+", minimum=0
    )
    embedding: str | None = option(
        None,
        f"yambda: which column of its embeddings, {yambda_files.EMBEDDINGS[0]} where not given",
        choices=yambda_files.EMBEDDINGS,
    )
    columns: TableColumns = group(TableColumns, "table: which column of the log says what")
    timestamp_unit: str | None = option(
        None, "table: what a number in the timestamp column counts since 1970, s where not given", choices=TIME_UNITS
    )
    separator: str | None = option(None, "table: between values of CSV, a comma or tab by the suffix where not given")
    sorted: bool = option(False, "table: each user's rows stand together, in order of time, so that nothing is sorted")
    catalogue: TableCatalogue = group(TableCatalogue, "table: where its items are described")
    embeddings: TableEmbeddings = group(TableEmbeddings, "table: where content embeddings of its items are")
    series: list[str] = option(
        [],
        "slow series of users to keep in the store. preferred_artist: any source that tells artists; demographics, or "
        f"some of {', '.join(DEMOGRAPHICS)}: MovieLens; file: a table, as `series_file` says",
    )
    series_file: TableSeries = group(TableSeries, "table: where slow series of its users are")
    preferred_artist_days: int | None = option(
        None, f"length of the periods of preferred_artist, {PREFERRED_ARTIST_DAYS} where not given", minimum=1
    )
    duplicates: str | None = option(
        None,
        "what to do with events that say the same as another in every column; where not given, refuse for a table, "
        "keep for the other sources",
        choices=duplicates.RULES,
    )
    split: SplitConfig = group(SplitConfig, "which events are held out; a property of the store")

    def __post_init__(self) -> None:
        """Check which keys the source takes."""
        of_sources = {key for keys in _TAKES.values() for key in keys}
        given = dict(_given(self))
        faults = [
            f"`{key}` means nothing to source={self.source}; leave it out"
            for key in sorted(given)
            if key.split(".")[0] in of_sources and key.split(".")[0] not in _TAKES[self.source]
        ]
        faults += [f"`{key}` is required by source={self.source}" for key in _NEEDS[self.source] if key not in given]
        if self.min_played_ratio is not None and self.kind not in (*yambda_files.PLAYED_KINDS, None):
            faults.append(f"`min_played_ratio` means nothing to kind={self.kind}, which has no played ratio")
        if self.separator is not None and len(self.separator.replace("\\t", "\t")) != 1:
            faults.append(f"`separator` is {self.separator!r}, must be one character (\\t for a tab)")
        faults += choices.choice_faults(self.series, _SERIES[self.source], self.source)
        if self.source == table.NAME and choices.FILE in self.series and self.series_file.path is None:
            faults.append(f"`series_file.path` is required where `series` names {choices.FILE}")
        if self.source == table.NAME and choices.FILE not in self.series and self.series_file.path is not None:
            faults.append(f"`series_file` means nothing where `series` does not name {choices.FILE}; add it")
        if self.preferred_artist_days is not None and preferred_artist.NAME not in self.series:
            faults.append(
                f"`preferred_artist_days` means nothing where `series` does not name {preferred_artist.NAME}; add it, "
                "or leave the days out"
            )
        if not self.out:
            faults.append("`out` is empty; name a folder")
        if faults:
            raise InputError(*faults)


def _given(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that were set to something, groups' keys with dots."""
    for leaf in dataclasses.fields(config):
        value = getattr(config, leaf.name)
        if dataclasses.is_dataclass(value):
            yield from _given(value, f"{prefix}{leaf.name}.")
        elif value is not None and value is not False and value != "":
            yield f"{prefix}{leaf.name}", value


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write the store and print what was made.

    Returns:
        A summary: store, fingerprint, source, counts, event types with their counts, series, time range, what was left
        out, the split and how many users its test asks, seconds.

    Raises:
        InputError: a fault in the source, or `out` cannot be written.
    """
    start = time.monotonic()
    out = Path(config.out).expanduser()
    check_replaceable(out)
    check_apart(out, [Path(path).expanduser() for path in _inputs(config)])
    with scratch_beside(out) as scratch:
        source = _open_source(config, scratch)
        check_space(out, source.least_bytes)
        with claimed(out):
            rule = config.duplicates or (duplicates.REFUSE if config.source == table.NAME else duplicates.KEEP)
            manifest = write_event_store(source, out, config.split, rule, _series_request(config, source))
    left_out = {what: count for what, count in source.left_out.items() if count}
    asked = int(EventStore.open(out, verify=False).split().test.asked_U.sum())
    seconds = time.monotonic() - start
    print(_table(out, manifest, left_out, asked, seconds))
    return {
        "store": str(out),
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
        **manifest.counts,
        "event_types": dict(zip(manifest.event_types, manifest.event_type_counts, strict=True)),
        **({"series": manifest.series} if manifest.series else {}),
        "time_range": list(manifest.time_range),
        "left_out": left_out,
        "duplicates": manifest.duplicates,
        "split": manifest.split,
        "test_users": asked,
        "seconds": round(seconds, 3),
    }


def _inputs(config: PrepareConfig) -> list[str]:
    paths = (config.path, config.catalogue.path, config.embeddings.path, config.series_file.path)
    return [path for path in paths if path is not None]


def _open_source(config: PrepareConfig, scratch: Path) -> Source:
    with_users = bool(choices.resolved(config.series, _SERIES[config.source]))
    if config.source == movielens.NAME:
        path = Path(config.path).expanduser() if config.path is not None else None
        return movielens_origins.load(path, _cache_folder(config.cache), with_users)
    assert config.path is not None
    if config.source == movielens_1m.NAME:
        return movielens_1m.load(Path(config.path).expanduser(), with_users)
    if config.source == table.NAME:
        how = TableConfig(
            path=config.path,
            columns=config.columns,
            catalogue=config.catalogue,
            embeddings=config.embeddings,
            series=config.series_file,
            timestamp_unit=config.timestamp_unit or TIME_UNITS[0],
            separator=config.separator.replace("\\t", "\t") if config.separator is not None else None,
            sorted=config.sorted,
        )
        return table.Table(how, scratch)
    assert config.kind is not None
    return yambda.Yambda(
        Path(config.path).expanduser(),
        config.kind,
        config.size,
        config.layout,
        config.min_played_ratio,
        config.embedding or yambda_files.EMBEDDINGS[0],
    )


def _series_request(config: PrepareConfig, source: Source) -> SeriesRequest:
    names = choices.resolved(config.series, _SERIES[config.source])
    given: UserSeries | None = None
    if isinstance(source, table.Table):
        given = source.series
    elif isinstance(source, movielens.MovieLens) and names:
        given = source.demographics(names)
    days = (config.preferred_artist_days or PREFERRED_ARTIST_DAYS) if preferred_artist.NAME in config.series else None
    return SeriesRequest(given, days)


def _cache_folder(given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "segue"


_NOBODY_ASKED = (
    "nobody is asked, so that nothing can be evaluated: their histories are too short for this split, or end before "
    "its test; change split.kind or its periods, or prepare a longer log"
)
_DONE = {duplicates.DROP: "left out", duplicates.KEEP: "kept"}


def _table(out: Path, manifest: Manifest, left_out: dict[str, int], asked: int, seconds: float) -> str:
    def times(first: int, last: int) -> str:
        if manifest.source["name"] == yambda.NAME:  # whose seconds count from an origin of its own
            return f"{first:,} … {last:,} s"
        return f"{day_of(first)} … {day_of(last)}"

    rows = [(name, f"{count:,}") for name, count in manifest.counts.items()]
    rows += [
        (f"  {name}", f"{count:,}")
        for name, count in zip(manifest.event_types, manifest.event_type_counts, strict=True)
    ]
    rows += [
        (f"  {name}", f"{of['values']:,} values" + (f", {times(of['first'], of['last'])}" if "first" in of else ""))
        for name, of in manifest.series.items()
    ]
    rows += [
        ("time", times(*manifest.time_range)),
        *(("left out", f"{count:,} {what}") for what, count in left_out.items()),
    ]
    found, rule = manifest.duplicates["found"], manifest.duplicates["rule"]
    if found:
        rows.append(("duplicates", f"{found:,} events say the same as another; {_DONE[rule]}"))
    rows.append(("split", f"{manifest.split['kind']}; every event was held against it, none leaks"))
    rows.append(("test", f"{asked:,} of {manifest.counts['users']:,} users are asked" if asked else _NOBODY_ASKED))
    rows += [("fingerprint", manifest.fingerprint)]
    lines = [f"{out}: event store of {' '.join(manifest.source.values())}, made in {format_seconds(seconds)}"]
    width = max(14, *(len(name) for name, _ in rows))
    return "\n".join(lines + [f"  {name:<{width}} {value}" for name, value in rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m data.prepare`."""
    return run_entry("data.prepare", "prepare", PrepareConfig, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
