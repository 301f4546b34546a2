"""What damaged, inconsistent and hostile input ends with: status 2, one message with place and rule, nothing left."""

from __future__ import annotations

import fcntl
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import output_folder
from data.event_store import EventStore
from data.prepare import main

ROOT = Path(__file__).parents[2]
PLAYED = {"played_ratio_pct": pa.uint16(), "track_length_seconds": pa.uint32()}
FLAT: dict[str, tuple[list[Any], pa.DataType]] = {
    "uid": ([1, 1, 1, 2, 2, 3, 3, 3], pa.uint32()),
    "timestamp": ([5, 5, 10, 0, 5, 5, 10, 15], pa.uint32()),
    "item_id": ([10, 11, 12, 10, 12, 11, 11, 10], pa.uint32()),
    "is_organic": ([0, 1, 0, 1, 1, 0, 0, 1], pa.uint8()),
    "played_ratio_pct": ([100, 50, None, 7, 100, 130, 0, 99], pa.uint16()),
    "track_length_seconds": ([200, 195, None, 200, 90, 195, 195, 200], pa.uint32()),
    "event_type": (["listen", "listen", "like", "listen", "listen", "listen", "listen", "listen"], pa.string()),
}
EVENTS, LISTS = "flat/50m/multi_event.parquet", "sequential/50m/multi_event.parquet"
ARTISTS, ALBUMS, VECTORS = "artist_item_mapping.parquet", "album_item_mapping.parquet", "embeddings.parquet"
MAPS = {ARTISTS: "artist_id", ALBUMS: "album_id"}


def write(path: Path, columns: dict[str, tuple[list[Any], pa.DataType]], row_group_size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array(values, type=dtype) for name, (values, dtype) in columns.items()})
    pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True)


def sequential() -> dict[str, tuple[list[Any], pa.DataType]]:
    bounds = [(0, 3), (3, 5), (5, 8)]
    lists = {
        name: ([values[first:last] for first, last in bounds], pa.list_(dtype))
        for name, (values, dtype) in FLAT.items()
    }
    return lists | {"uid": ([1, 2, 3], pa.uint32())}


def vectors() -> dict[str, tuple[list[Any], pa.DataType]]:
    return {
        "item_id": ([10, 11, 12, 99], pa.uint32()),
        "embed": ([[1.0, 2.0], [3.0, 4.0], None, [0.0, 0.0]], pa.list_(pa.float64())),
    }


def write_yambda(root: Path) -> None:
    """A sound data set in both layouts."""
    write(root / EVENTS, FLAT)
    write(root / LISTS, sequential(), row_group_size=2)
    for file, name in MAPS.items():
        write(root / file, {name: ([1, 2, 3], pa.uint32()), "item_id": ([10, 11, 12], pa.uint32())})
    write(root / VECTORS, vectors(), row_group_size=2)


LOG = """user,item,time,type,organic,seconds
ann,a,10,play,1,200
bob,b,11,play,0,
ann,b,12,like,,180
bob,a,13,play,1,60
"""
TABLE_KEYS = ("columns.user=user", "columns.item=item", "columns.timestamp=time", "columns.event_type=type")
ALL_KEYS = (*TABLE_KEYS, "columns.organic=organic", "columns.duration=seconds")

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """How to spoil the input in a folder, which keys to give, and what must be told of it.

    `told` may hold {root} for the folder.
    """

    make: Make
    keys: tuple[str, ...]
    told: str


def yambda(make: Make, told: str, *keys: str, layout: str = "flat") -> Case:
    def spoil(root: Path) -> None:
        write_yambda(root / "in")
        make(root / "in")

    return Case(spoil, ("source=yambda", "path={root}/in", "kind=multi_event", f"layout={layout}", *keys), told)


def lists(make: Make, told: str) -> Case:
    return yambda(make, told, layout="sequential")


def table(make: Make, told: str, *keys: str, path: str = "log.csv") -> Case:
    return Case(make, ("source=table", f"path={{root}}/{path}", *(keys or ALL_KEYS)), told)


def put(file: str, content: bytes | str) -> Make:
    def make(root: Path) -> None:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def both(*makes: Make) -> Make:
    def make(root: Path) -> None:
        for one in makes:
            one(root)

    return make


def cut(file: str, keep: int) -> Make:
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:keep]) and None


def flip(file: str, column: int = 0) -> Make:
    """One bit of the first page of a column's second row group."""

    def make(root: Path) -> None:
        where = pq.ParquetFile(root / file).metadata.row_group(1).column(column)
        content = bytearray((root / file).read_bytes())
        start = where.dictionary_page_offset or where.data_page_offset
        content[start + where.total_compressed_size - 1] ^= 4
        (root / file).write_bytes(content)

    return make


def folder_at(file: str) -> Make:
    def make(root: Path) -> None:
        (root / file).unlink(missing_ok=True)
        (root / file).mkdir()

    return make


def change(
    file: str,
    column: str,
    row: int | None,
    value: Any = None,
    dtype: pa.DataType | None = None,
    event: int | None = None,
) -> Make:
    """Another value in a row (or in an event of its list), or another dtype of the column."""

    def make(root: Path) -> None:
        old = pq.read_table(root / file)
        index = old.column_names.index(column)
        values = old.column(column).to_pylist()
        if row is not None and event is None:
            values[row] = value
        elif row is not None:
            values[row][event] = value
        new = pa.array(values, type=dtype or old.schema.field(index).type)
        size = pq.ParquetFile(root / file).metadata.row_group(0).num_rows
        pq.write_table(old.set_column(index, column, new), root / file, row_group_size=size)

    return make


def drop(file: str, column: str) -> Make:
    return lambda root: pq.write_table(pq.read_table(root / file).drop_columns([column]), root / file)


def line(number: int, text: str) -> Make:
    """The log with another line; lines are counted from 1."""
    lines = LOG.splitlines()
    lines[number - 1] = text
    return put("log.csv", "\n".join(lines) + "\n")


def parquet_log(**columns: Any) -> Make:
    made = {
        "user": ["a", "b"],
        "item": [1, 2],
        "time": [1, 2],
        "type": ["x", "y"],
        "organic": [1, 0],
        "seconds": [3, 4],
    }
    return lambda root: pq.write_table(pa.table(made | columns), root / "log.parquet")


def catalogue(text: str) -> Make:
    return both(put("log.csv", LOG), put("songs.csv", text))


CATALOGUE_KEYS = (*ALL_KEYS, "catalogue.path={root}/songs.csv", "catalogue.item=id", "catalogue.artist=by")
UNEQUAL = "the lists of a row must be equally long"
SORTED = "rows must be sorted by (uid, timestamp)"

CASES: dict[str, Case] = {
    # ── files ──
    "cut short": yambda(cut(EVENTS, 300), "{root}/in/flat/50m/multi_event.parquet: damaged or not a Parquet file ("),
    "a bit flipped": yambda(
        flip(EVENTS),
        "{root}/in/flat/50m/multi_event.parquet: row group 1: damaged or not a Parquet file (could not verify page",
    ),
    "a bit flipped in a list": lists(
        flip(LISTS, 2), "{root}/in/sequential/50m/multi_event.parquet: row group 1: damaged"
    ),
    "a bit flipped in a map": yambda(flip(VECTORS), "{root}/in/embeddings.parquet: row group 1: damaged"),
    "0 bytes": yambda(
        put(EVENTS, ""), "{root}/in/flat/50m/multi_event.parquet: is empty (0 bytes), expected a Parquet"
    ),
    "no Parquet": yambda(put(EVENTS, LOG), "multi_event.parquet: damaged or not a Parquet file (Parquet magic bytes"),
    "a folder for a file": yambda(folder_at(EVENTS), "multi_event.parquet: is a folder, expected a Parquet file"),
    "a footer that claims gigabytes": yambda(
        lambda root: (root / EVENTS).write_bytes((root / EVENTS).read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1") and None,
        "{root}/in/flat/50m/multi_event.parquet: damaged or not a Parquet file (",
    ),
    # ── columns ──
    "column missing": yambda(
        drop(EVENTS, "is_organic"), "multi_event.parquet: column `is_organic` is missing; the file"
    ),
    "uid of int64 beyond 2**32": yambda(
        change(EVENTS, "uid", 7, 2**32 + 3, pa.int64()),
        "column `uid` is int64, must be uint32; cast it before preparing",
    ),
    "negative timestamp": yambda(
        change(EVENTS, "timestamp", 0, -5, pa.int64()), "column `timestamp` is int64, must be uint32; cast it"
    ),
    "played ratio over range": yambda(
        change(EVENTS, "played_ratio_pct", 4, 65535),
        "row group 1, row 0: column `played_ratio_pct` is 65535; out of range: must be below 65535, which stands for a",
    ),
    "played ratio of int32": yambda(
        change(EVENTS, "played_ratio_pct", 4, 65536, pa.int32()), "column `played_ratio_pct` is int32, must be uint16"
    ),
    # ── values, flat ──
    "null item": yambda(
        change(EVENTS, "item_id", 5),
        "{root}/in/flat/50m/multi_event.parquet: row group 1, row 1: column `item_id` is null",
    ),
    "uid comes back": yambda(
        change(EVENTS, "uid", 5, 1), f"row group 1, row 1: column `uid` is 1 after 2; a uid must not go down: {SORTED}"
    ),
    "uid comes back at a row group": yambda(
        change(EVENTS, "uid", 4, 1), f"row group 1, row 0: column `uid` is 1 after 2; a uid must not go down: {SORTED}"
    ),
    "time goes down": yambda(
        change(EVENTS, "timestamp", 6, 4),
        f"row group 1, row 2: column `timestamp` of uid 3 is 4 after 5; a user's timestamps must not go down: {SORTED}",
    ),
    "time goes down at a row group": yambda(
        change(EVENTS, "timestamp", 3, 6), "row group 1, row 0: column `timestamp` of uid 2 is 5 after 6; a user's"
    ),
    "unknown type": yambda(
        change(EVENTS, "event_type", 3, "skip"),
        "row group 0, row 3: column `event_type` is skip; must be one of listen,",
    ),
    "organic 7": yambda(
        change(EVENTS, "is_organic", 7, 7), "row group 1, row 3: column `is_organic` is 7; must be 0 or 1"
    ),
    "nothing is left": yambda(
        change(EVENTS, "event_type", 2, "listen"),
        "{root}/in/flat/50m/multi_event.parquet: no event is left: no listen has `played_ratio_pct` ≥ 200",
        "min_played_ratio=200",
    ),
    # ── values, sequential ──
    "user twice": lists(
        change(LISTS, "uid", 2, 2), "row group 1, row 0: column `uid` is 2 after 2; one row a user, and uids must rise"
    ),
    "lists of unequal length": lists(
        change(LISTS, "timestamp", 1, [0, 5, 10]),
        f"row group 0, row 1: list `timestamp` has 3 values, `item_id` has 2; {UNEQUAL}",
    ),
    "null list": lists(
        change(LISTS, "is_organic", 2),
        "row group 1, row 0: column `is_organic` is null; every row must have a value or a",
    ),
    "null within a list": lists(
        change(LISTS, "item_id", 0, None, event=2),
        "row group 0, row 0, event 2: column `item_id` is null; it must have",
    ),
    "time goes down in a list": lists(
        change(LISTS, "timestamp", 2, 4, event=1),
        "{root}/in/sequential/50m/multi_event.parquet: row group 1, row 0, event 1: column `timestamp` of uid 3 is",
    ),
    "organic 7 in a list": lists(
        change(LISTS, "is_organic", 1, 7, event=1),
        "row group 0, row 1, event 1: column `is_organic` is 7; must be 0 or 1",
    ),
    "no lists": lists(
        lambda root: write(root / LISTS, sequential() | {"is_organic": ([0, 1, 1], pa.uint8())}),
        "column `is_organic` is uint8, must be a list of uint8; cast it",
    ),
    "nothing but empty lists": lists(
        lambda root: write(
            root / LISTS,
            {name: ([1], kind) if name == "uid" else ([[]], kind) for name, (_, kind) in sequential().items()},
        ),
        "{root}/in/sequential/50m/multi_event.parquet: has no events, all lists are empty",
    ),
    # ── maps and embeddings ──
    "null in a map": yambda(
        change(ARTISTS, "artist_id", 1),
        "{root}/in/artist_item_mapping.parquet: row group 0, row 1: column `artist_id` is null",
    ),
    "map of another dtype": yambda(
        change(ALBUMS, "album_id", 1, 2**32, pa.int64()),
        "album_item_mapping.parquet: column `album_id` is int64, must be",
    ),
    "embedding of another width": yambda(
        change(VECTORS, "embed", 1, [1.0]),
        "{root}/in/embeddings.parquet: row group 0, row 1: column `embed` has 1 values, the first embedding has 2",
    ),
    "embedding with NaN": yambda(
        change(VECTORS, "embed", 2, [0.0, float("nan")]),
        "row group 1, row 0: column `embed` has a value that is not a finite",
    ),
    "embedding with an infinity": yambda(
        change(VECTORS, "embed", 0, [float("inf"), 0.0]), "row group 0, row 0: column `embed` has a value that is not a"
    ),
    "embedding beyond float32": yambda(
        change(VECTORS, "embed", 0, [0.0, 1e39]),
        "row group 0, row 0: column `embed` has a value that is not a finite float32",
    ),
    "null within an embedding": yambda(
        change(VECTORS, "embed", 0, [None, 0.0]), "row group 0, row 0: column `embed` has a value that is not a finite"
    ),
    "two embeddings of an item": yambda(
        change(VECTORS, "item_id", 3, 10),
        "row group 1, row 1: column `item_id` is 10, which has an embedding already; an",
    ),
    "embedding column missing": yambda(
        lambda root: None, "embeddings.parquet: column `normalized_embed` is missing", "embedding=normalized_embed"
    ),
    # ── table: which files ──
    "glob without a match": table(put("log.csv", LOG), "{root}/*.parquet: matches no file", path="*.parquet"),
    "no such file": table(put("log.csv", LOG), "{root}/lag.csv: no such file or folder", path="lag.csv"),
    "folder of something else": table(
        put("logs/a.txt", LOG), "{root}/logs: this folder holds no .parquet, .csv,", path="logs"
    ),
    "CSV and Parquet": table(
        both(put("log.csv", LOG), parquet_log()),
        "{root}/: holds .csv and .parquet files; name one kind by a glob",
        path="",
    ),
    "unknown suffix": table(put("log.json", LOG), "{root}/log.json: is none of .parquet, .csv,", path="log.json"),
    "link to itself": table(
        lambda root: (root / "log.csv").symlink_to("log.csv"),
        "{root}/log.csv: is a link that leads nowhere or back to itself",
    ),
    "link to itself within a folder": table(
        both(put("logs/a.csv", LOG), lambda root: (root / "logs" / "b.csv").symlink_to("b.csv")),
        "{root}/logs/b.csv: cannot be read",
        path="logs",
    ),
    "files of different columns": table(
        both(put("logs/a.csv", LOG), put("logs/b.csv", LOG.replace("type", "kind"))),
        "{root}/logs/b.csv: column `type` is missing; the file has user, item, time, kind, organic, seconds",
        path="logs",
    ),
    "files of different dtypes": table(
        both(
            parquet_log(),
            lambda root: (root / "log.parquet").rename(root / "a.parquet") and None,
            parquet_log(user=[1, 2]),
        ),
        "{root}/log.parquet: column `user` is int64, but string in {root}/a.parquet; all files must have the same type",
        path="*.parquet",
    ),
    # ── table: columns ──
    "column not there": table(
        put("log.csv", LOG.replace("item", "song")), "{root}/log.csv: column `item` is missing; the file"
    ),
    "column not there in Parquet": table(
        parquet_log(),
        "log.parquet: column `song` is missing; the file has user,",
        "columns.user=user",
        "columns.item=song",
        "columns.timestamp=time",
        path="log.parquet",
    ),
    "column twice": table(
        put("log.csv", LOG.replace("type", "user")),
        "log.csv: column `user` stands there more than once",
        *TABLE_KEYS[:3],
    ),
    "two roles of one column": table(
        put("log.csv", LOG),
        "`columns.item` is 'user', which `user` is as well; a column has one meaning",
        "columns.user=user",
        "columns.item=user",
        "columns.timestamp=time",
    ),
    "users of float": table(
        parquet_log(user=[1.0, 2.0]),
        "column `user` (user) is double, must be whole numbers or strings",
        path="log.parquet",
    ),
    "times of bool": table(
        parquet_log(time=[True, False]),
        "column `time` (timestamp) is bool, must be a timestamp, a number, or",
        path="log.parquet",
    ),
    "separator of Parquet": table(
        parquet_log(),
        "log.parquet: is Parquet, as all files here, for which `separator` means nothing",
        *ALL_KEYS,
        "separator=;",
        path="log.parquet",
    ),
    # ── table: CSV ──
    "empty CSV": table(put("log.csv", ""), "{root}/log.csv: is empty, expected a header and one line a row"),
    "header alone": table(
        put("log.csv", LOG.splitlines()[0] + "\n"), "{root}/log.csv: has no rows, expected at least one"
    ),
    "ragged line": table(
        line(3, "bob,b,11,play"), "{root}/log.csv: line 3 has 4 values, the header has 6, separated by ','"
    ),
    "ragged line after blank ones": table(
        line(3, "\n\nbob,b,11,play,0,5,6"), "{root}/log.csv: line 5 has 7 values, the header has 6, separated by ','"
    ),
    "ragged line after a line break within quotes": table(
        line(3, '"bob\nby",b,11,play,0,5\nbob,b'),
        "{root}/log.csv: line 5 has 2 values, the header has 6, separated by ','",
    ),
    "a quote too many": table(
        line(3, '"bob,b,11,play,0,5'), "{root}/log.csv: line 3 cannot be read (unexpected end of"
    ),
    "bad number after a line break within quotes": table(
        line(3, '"bob\nby",b,11,play,0,5m'), "{root}/log.csv: line 3: column `seconds` is '5m'; must be a number, or"
    ),
    "no UTF-8": table(
        put("log.csv", LOG.replace("bob,b", "bøb,b").encode("latin-1")),
        "log.csv: line 3 is not UTF-8 text (byte 1 of the line is 0xf8",
    ),
    "bad number": table(
        line(4, "ann,b,12,like,,3m"), "{root}/log.csv: line 4: column `seconds` is '3m'; must be a number, or"
    ),
    "bad number after a blank line": table(
        line(2, "\nann,a,10,play,1,3m"), "{root}/log.csv: line 3: column `seconds` is '3m'; must be a number, or empty"
    ),
    "bad time": table(
        line(5, "bob,a,noon,play,1,60"), "{root}/log.csv: line 5: column `time` is 'noon'; must be a number"
    ),
    "no time": table(line(5, "bob,a,,play,1,60"), "{root}/log.csv: line 5: column `time` is ''; must be a number"),
    "bad date": table(
        put("log.csv", LOG.replace(",10,", ",2024-02-30,").replace(",13,", ",2024-02-29T01:02:03Z,")),
        "log.csv: line 2: column `time` is '2024-02-30' (and 2 more rows of this block); must be a date and time as",
        *ALL_KEYS,
        "timestamp_unit=iso",
    ),
    "time before 1970": table(
        line(2, "ann,a,-1,play,1,9"), "log.csv: line 2: column `time` is '-1'; must be 0 … 4294967295, 1970"
    ),
    "milliseconds for seconds": table(
        line(3, "bob,b,1700000000000,play,0,"),
        "line 3: column `time` is '1700000000000'; must be 0 … 4294967295, 1970 to 2106 in s; is",
    ),
    "empty user": table(
        line(4, ",b,12,like,,180"), "log.csv: line 4: column `user` is empty; every row must have a value there"
    ),
    "empty type": table(
        line(4, "ann,b,12,,,180"), "log.csv: line 4: column `type` is empty; every row must have a value there"
    ),
    "is_organic 7": table(
        line(5, "bob,a,13,play,7,60"), "{root}/log.csv: line 5: column `organic` is '7'; must be 0 or 1"
    ),
    "negative duration": table(
        line(5, "bob,a,13,play,1,-1"), "log.csv: line 5: column `seconds` is '-1'; must be 0 … 4294967294"
    ),
    "257 types": table(
        put("log.csv", LOG + "".join(f"ann,a,{n},t{n},,\n" for n in range(255))),
        "{root}/log.csv: line 2 and on: column `type` has 257 different values by the end of this block, must",
    ),
    "gzip cut short": table(
        put("log.csv.gz", gzip.compress((LOG * 50).encode())[:-12]), "{root}/log.csv.gz: ", path="log.csv.gz"
    ),
    "no gzip": table(
        put("log.csv.gz", LOG), "{root}/log.csv.gz: cannot be read (Not a gzipped file", path="log.csv.gz"
    ),
    "a line that swells": table(
        put("log.csv.gz", gzip.compress(LOG.encode() + b"x" * 2**25, 1)),
        "{root}/log.csv.gz: line 6 is longer than 8,388,608 bytes; is it CSV?",
        path="log.csv.gz",
    ),
    "user comes back though sorted": table(
        put("log.csv", LOG),
        "log.csv: line 4: user ann comes back after rows of others; with sorted=true each",
        *ALL_KEYS,
        "sorted=true",
    ),
    "time goes down though sorted": table(
        put("log.csv", "user,item,time,type\na,x,5,p\na,x,6,p\na,x,4,p\n"),
        "log.csv: line 4: a time of user a is before the one in the row above; with sorted=true",
        *TABLE_KEYS,
        "sorted=true",
    ),
    # ── table: Parquet ──
    "null user": table(
        parquet_log(user=["a", None]),
        "log.parquet: row group 0, row 1: column `user` is null; every",
        path="log.parquet",
    ),
    "null time": table(
        parquet_log(time=[None, 2]), "row group 0, row 0: column `time` is null; every row must", path="log.parquet"
    ),
    "user beyond 2**63": table(
        parquet_log(user=pa.array([1, 2**63], pa.uint64())),
        "row 1: column `user` is 9223372036854775808; whole numbers must",
        path="log.parquet",
    ),
    "infinite time": table(
        parquet_log(time=[1.0, float("inf")]),
        "row group 0, row 1: column `time` is inf; must be 0 …",
        path="log.parquet",
    ),
    "a year too late": table(
        parquet_log(time=pa.array([0, 2**32], pa.timestamp("s"))),
        "row 1: column `time` is 2106-02-07 06:28:16; must lie between",
        path="log.parquet",
    ),
    "no UTF-8 in Parquet": table(
        lambda root: pq.write_table(
            pa.table({"user": pa.array([b"a", b"\xff"]).view(pa.string()), "item": [1, 2], "time": [1, 2]}),
            root / "log.parquet",
        ),
        "log.parquet: row group 0, row 1: column `user` is not UTF-8 text",
        *TABLE_KEYS[:3],
        path="log.parquet",
    ),
    "Parquet without rows": table(
        lambda root: pq.write_table(pa.table({"user": ["a"], "item": [1], "time": [1]}).slice(1), root / "log.parquet"),
        "{root}/log.parquet: has no rows, expected at least one",
        *TABLE_KEYS[:3],
        path="log.parquet",
    ),
    # ── table: catalogue and embeddings ──
    "catalogue without its column": table(
        catalogue("id,author\na,Ann\n"),
        "{root}/songs.csv: column `by` is missing; the file has id, author",
        *CATALOGUE_KEYS,
    ),
    "catalogue row without an item": table(
        catalogue("id,by\na,Ann\n,Zoë\n"),
        "{root}/songs.csv: line 3: column `id` is empty; every row must",
        *CATALOGUE_KEYS,
    ),
    "two titles": table(
        catalogue("id,by,title\na,Ann,One\na,Zoë,Two\n"),
        "{root}/songs.csv: line 3: column `title` is 'Two', but the item was 'One' before; all rows",
        *CATALOGUE_KEYS,
        "catalogue.title=title",
    ),
    "catalogue not there": table(put("log.csv", LOG), "{root}/songs.csv: no such file or folder", *CATALOGUE_KEYS),
    "embeddings are no Parquet": table(
        both(put("log.csv", LOG), put("e.parquet", "PAR1")),
        "{root}/e.parquet: damaged or not a Parquet file (",
        *ALL_KEYS,
        "embeddings.path={root}/e.parquet",
        "embeddings.item=id",
        "embeddings.vector=v",
    ),
    "embeddings all null": table(
        both(
            put("log.csv", LOG),
            lambda root: pq.write_table(
                pa.table({"id": ["a"], "v": pa.nulls(1, pa.list_(pa.float32()))}), root / "e.parquet"
            ),
        ),
        "{root}/e.parquet: column `v` is null in every row; leave the file out or give embeddings",
        *ALL_KEYS,
        "embeddings.path={root}/e.parquet",
        "embeddings.item=id",
        "embeddings.vector=v",
    ),
}


def assert_nothing_left(folder: Path) -> None:
    """Neither a store nor anything hidden beside where it would be."""
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_one_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = CASES[name]
    root = tmp_path / "given"
    root.mkdir()
    case.make(root)
    before = sorted(root.rglob("*"))
    keys = [key.replace("{root}", str(root)) for key in case.keys]
    assert main([*keys, f"out={tmp_path / 'out' / 'store'}"]) == 2
    told = capsys.readouterr().err
    assert case.told.replace("{root}", str(root)) in told
    assert [line.startswith("data.prepare: ") for line in told.splitlines()].count(True) == 1
    assert "faults" not in told
    assert "Traceback" not in told
    assert_nothing_left(tmp_path / "out")
    assert sorted(root.rglob("*")) == before


def test_the_cases_are_sound_but_for_their_fault(tmp_path: Path) -> None:
    """Or they would fail for another reason than the one that they are about."""
    write_yambda(tmp_path / "in")
    put("log.csv", LOG)(tmp_path)
    parquet_log()(tmp_path)
    for number, keys in enumerate(
        [
            ["source=yambda", f"path={tmp_path / 'in'}", "kind=multi_event"],
            ["source=yambda", f"path={tmp_path / 'in'}", "kind=multi_event", "layout=sequential"],
            ["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS],
            ["source=table", f"path={tmp_path / 'log.parquet'}", *ALL_KEYS],
        ]
    ):
        assert main([*keys, f"out={tmp_path / str(number)}"]) == 0


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_ends_otherwise(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(seed)
    write_yambda(tmp_path / "in")
    file = [EVENTS, LISTS, ARTISTS, VECTORS][seed % 4]
    content = bytearray((tmp_path / "in" / file).read_bytes())
    for place in random.integers(0, len(content), size=random.integers(1, 4)):
        content[place] = random.integers(256)
    (tmp_path / "in" / file).write_bytes(content)
    layout = "sequential" if file == LISTS else "flat"
    keys = ["source=yambda", f"path={tmp_path / 'in'}", "kind=multi_event", f"layout={layout}"]
    status = main([*keys, f"out={tmp_path / 'out' / 'store'}"])
    if status == 2:
        assert capsys.readouterr().err.count("data.prepare: ") == 1
        assert_nothing_left(tmp_path / "out")
    else:  # what was hit has no checksum, and does not matter
        assert status == 0
        EventStore.open(tmp_path / "out" / "store")


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["yambda", "table"])
def test_out_within_what_is_read(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_yambda(tmp_path / "in")
    put("in/logs/a.csv", LOG)(tmp_path)
    keys = {
        "yambda": [f"path={tmp_path / 'in'}", "kind=listens"],
        "table": [f"path={tmp_path / 'in' / 'logs'}", *ALL_KEYS],
    }[source]
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "in" / "logs" / "new" / "store"
    assert main([f"source={source}", *keys, f"out={out}"]) == 2
    assert f"data.prepare: {out}: lies inside {keys[0][5:]}, which is read" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_read_within_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("log.csv", LOG)(tmp_path)
    out = tmp_path / "store"
    assert main(["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS, f"out={out}"]) == 0
    (tmp_path / "log.csv").rename(out / "log.csv")
    assert main(["source=table", f"path={out / 'log.csv'}", *ALL_KEYS, f"out={out}"]) == 2
    assert f"{out / 'log.csv'}: lies inside {out}, which would be replaced" in capsys.readouterr().err
    assert (out / "log.csv").read_text() == LOG


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yambda(tmp_path / "in")
    (tmp_path / "in" / EVENTS).chmod(0)
    assert main(["source=yambda", f"path={tmp_path / 'in'}", "kind=multi_event", f"out={tmp_path / 'out'}"]) == 2
    assert f"{tmp_path / 'in' / EVENTS}: must not be read (permission denied)" in capsys.readouterr().err


def test_too_little_room_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yambda(tmp_path / "in")
    parquet_log()(tmp_path)
    out = tmp_path / "out" / "store"
    usage = output_folder.shutil.disk_usage(tmp_path)
    needed = {"yambda": 8 * (4 + 4 + 1 + 4 + 1 + 2), "table": 2 * (4 + 4 + 1) + 2 * (4 + 8 + 4 + 1)}
    for source, keys in {
        "yambda": [f"path={tmp_path / 'in'}", "kind=multi_event"],
        "table": [f"path={tmp_path / 'log.parquet'}", *TABLE_KEYS],
    }.items():
        monkeypatch.setattr(
            output_folder.shutil, "disk_usage", lambda _, room=needed[source] - 1: usage._replace(free=room)
        )
        assert main([f"source={source}", *keys, f"out={out}"]) == 2
        told = capsys.readouterr().err
        assert f"data.prepare: {out}: at least 0.000 GB will be written here, but {tmp_path} has 0.000 GB free" in told
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr(
            output_folder.shutil, "disk_usage", lambda _, room=needed[source]: usage._replace(free=room)
        )
        assert main([f"source={source}", *keys, f"out={tmp_path / source}"]) == 0


# ── processes that end ───────────────────────────────────────────────────────────────────────────────────


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("limit", [3000, 40_000])
def test_a_full_disk(tmp_path: Path, limit: int) -> None:
    """The limit on the size of a file stands for it: writing fails in the same way, for root as well."""
    rows = "".join(f"user-{n % 50},item-{n % 700},{n},play,,\n" for n in range(20_000))
    put("log.csv", LOG + rows)(tmp_path)
    keys = ["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS, f"out={tmp_path / 'out' / 'store'}"]
    done = run_python(
        "import resource, sys\n"
        "from data import prepare\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.exit(prepare.main({keys!r}))"
    )
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("data.prepare: ")]
    assert len(told) == 1
    assert "File too large" in told[0]
    assert "Traceback" not in done.stderr
    assert_nothing_left(tmp_path / "out")


def test_after_a_kill_the_next_run_clears_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("log.csv", LOG)(tmp_path)
    out = tmp_path / "out" / "store"
    keys = ["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS, f"out={out}"]
    killed = run_python(
        "import os, signal\n"
        "from data import prepare\n"
        "from data.sources.partitions import Partitions\n"
        "Partitions.sorted = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare.main({keys!r})"
    )
    assert killed.returncode == -signal.SIGKILL
    remains = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name.split("-")[0] for name in remains] == [".store.lock", ".store.sorting", ".store.writing"]
    others = tmp_path / "out" / ".another.writing-abcdefgh"
    others.mkdir()
    assert main(keys) == 0
    told = capsys.readouterr().err
    for name in remains[1:]:
        assert f"data.prepare: removed {tmp_path / 'out' / name}, which a killed run had left" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [others.name, "store"]
    EventStore.open(out)


def test_a_store_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    put("log.csv", LOG)(tmp_path)
    out = tmp_path / "out" / "store"
    keys = ["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS, f"out={out}"]
    assert main(keys) == 0
    former = EventStore.open(out).fingerprint
    # As a kill between the two renames leaves it.
    (tmp_path / "out" / ".store.retired-abcdefgh").mkdir()
    out.rename(tmp_path / "out" / ".store.retired-abcdefgh" / "old")
    line(4, "ann,b,12,like,,3m")(tmp_path)
    assert main(keys) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]
    assert EventStore.open(out).fingerprint == former


def test_two_at_a_time_do_not_disturb_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("log.csv", LOG)(tmp_path)
    out = tmp_path / "out" / "store"
    (tmp_path / "out" / ".store.writing-abcdefgh").mkdir(parents=True)
    lock = tmp_path / "out" / ".store.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS, f"out={out}"]) == 2
    assert f"data.prepare: {out}: another data.prepare is writing it (and holds {lock})" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".store.lock", ".store.writing-abcdefgh"]
    assert main(["source=table", f"path={tmp_path / 'log.csv'}", *ALL_KEYS, f"out={out}"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]
