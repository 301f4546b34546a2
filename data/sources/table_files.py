"""The files of a table: Parquet or CSV, one or many, read in blocks that know their place.

CSV has a header and is UTF-8; values in double quotes may hold separators and line breaks. All come as strings.
"""

from __future__ import annotations

import csv
import glob
import gzip
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.csv

from common.errors import InputError
from data.parquet_io import open_parquet, parquet_blocks

PARQUET = ".parquet"
SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
SUFFIXES = (PARQUET, *SEPARATORS)

BLOCK_ROWS = 2**18
BLOCK_BYTES = 2**23
"""Of CSV read at once; no line may be longer."""


_DAMAGE = (OSError, EOFError, zlib.error)
"""What reading a damaged file may raise, gzip's included."""


class RowPlace(Protocol):
    """Where a block of rows lies."""

    def row(self, index: int) -> str:
        """The place of one row of the block."""


@dataclass(frozen=True)
class LinePlace:
    """Where a block of a CSV file lies; lines are counted from 1, as editors do."""

    path: Path
    separator: str
    first_row: int

    def row(self, index: int) -> str:
        """The line on which a row begins, found by reading the file again: only a fault asks for it."""
        try:
            with _open_bytes(self.path) as file:
                lines = (number for number, _ in _records(file, self.separator))
                number = next(itertools.islice(lines, 1 + self.first_row + index, None))  # the header is the first
        except (*_DAMAGE, _LineFault, StopIteration):
            return f"{self.path}: row {self.first_row + index}"
        return f"{self.path}: line {number}"


Blocks = Iterator[tuple[RowPlace, pa.RecordBatch]]


@dataclass(frozen=True)
class TableFiles:
    """Files of one kind with the same columns, read one after another.

    Attributes:
        separator: between values of a line; None where the files are Parquet.
    """

    paths: tuple[Path, ...]
    separator: str | None

    @staticmethod
    def find(given: str, separator: str | None = None) -> TableFiles:
        """The files that a path, a folder or a glob names, in the order of their names.

        Args:
            separator: between values of a line, by the suffix where None; means nothing to Parquet.

        Raises:
            InputError: none there, of an unknown suffix, or Parquet and CSV together.
        """
        paths = _named(given)
        suffixes = {path: suffix_of(path) for path in paths}
        unknown = [path for path, suffix in suffixes.items() if suffix is None]
        if unknown:
            raise InputError(f"{unknown[0]}: is none of {', '.join(SUFFIXES)} by its name; rename it or name others")
        kinds = sorted({str(suffix) for suffix in suffixes.values()})
        if len({(suffix == PARQUET, SEPARATORS.get(suffix)) for suffix in kinds}) > 1:
            raise InputError(f"{given}: holds {' and '.join(kinds)} files; name one kind by a glob, as in *{kinds[0]}")
        if kinds[0] == PARQUET:
            return TableFiles(tuple(paths), None)
        return TableFiles(tuple(paths), separator or SEPARATORS[kinds[0]])

    def checked_types(self, columns: Sequence[str], faults: list[str]) -> dict[str, pa.DataType]:
        """Check that every file has these columns, of one type in all; returns the types (string in CSV).

        Args:
            faults: those found are added here.
        """
        types: dict[str, pa.DataType] = {}
        for path in self.paths:
            try:
                found = self._schema(path)
            except InputError as error:
                faults += error.faults
                continue
            for name in columns:
                if found.names.count(name) != 1:
                    what = "is missing" if name not in found.names else "stands there more than once"
                    faults.append(f"{path}: column `{name}` {what}; the file has {', '.join(found.names)}")
                elif types.setdefault(name, found.field(name).type) != found.field(name).type:
                    faults.append(
                        f"{path}: column `{name}` is {found.field(name).type}, but {types[name]} in {self.paths[0]}; "
                        "all files must have the same type"
                    )
        return types

    def _schema(self, path: Path) -> pa.Schema:
        if self.separator is None:
            return open_parquet(path).schema_arrow
        return pa.schema([(name, pa.string()) for name in _header(path, self.separator)])

    @property
    def num_rows(self) -> int | None:
        """Rows of all files; None where they are CSV, which does not say."""
        if self.separator is not None:
            return None
        return sum(int(open_parquet(path).metadata.num_rows) for path in self.paths)

    @property
    def num_bytes(self) -> int:
        """Size of all files on the disk."""
        return sum(path.stat().st_size for path in self.paths)

    def blocks(self, columns: Sequence[str]) -> Blocks:
        """All rows of all files, a block at a time.

        Raises:
            InputError: damaged bytes, or a line with too few or too many values.
        """
        for path in self.paths:
            if self.separator is None:
                yield from parquet_blocks(path, columns, BLOCK_ROWS)
            else:
                yield from _csv_blocks(path, columns, self.separator)


def suffix_of(path: Path) -> str | None:
    """The longest known suffix of a file's name."""
    return max((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), key=len, default=None)


def _named(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        found = [entry for entry in sorted(path.iterdir()) if suffix_of(entry) and entry.name[0] not in "._"]
        if not found:
            raise InputError(
                f"{path}: this folder holds no {', '.join(SUFFIXES)} file; files within its subfolders are named by a "
                f"glob, as in {path}/*/*.parquet"
            )
        return found
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: is a link that leads nowhere or back to itself; name the file itself")
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        matched = [Path(name) for name in sorted(glob.glob(str(path))) if not Path(name).is_dir()]  # noqa: PTH207
        if matched:
            return matched
        raise InputError(f"{path}: matches no file")
    raise InputError(f"{path}: no such file or folder")


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


class _LineFault(Exception):
    """Text that is no CSV: the line, and what is wrong with it."""


def _records(file: IO[bytes], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each row begins, and its values, the header first; empty lines are passed over.

    Slow, and made for faults: it says where things are, which Arrow does not.

    Raises:
        _LineFault: a line that cannot be read.
    """
    csv.field_size_limit(BLOCK_BYTES)
    reader = csv.reader(_text_lines(file), delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise _LineFault(f"line {number} cannot be read ({error}); is there a quote too many?") from None
        if values is None:
            return
        if values:
            yield number, values


def _text_lines(file: IO[bytes]) -> Iterator[str]:
    for number in itertools.count(1):
        line = file.readline(BLOCK_BYTES + 1)
        if not line:
            return
        if len(line) > BLOCK_BYTES:
            raise _LineFault(f"line {number} is longer than {BLOCK_BYTES:,} bytes; is it CSV?")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} of the line is {line[error.start]:#04x}"
            raise _LineFault(f"line {number} is not UTF-8 text ({byte})") from None


def _header(path: Path, separator: str) -> list[str]:
    """The names in the first line that is not empty."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a CSV file")
    try:
        with _open_bytes(path) as file:
            _, names = next(_records(file, separator), (0, []))
    except _LineFault as fault:
        raise InputError(f"{path}: {fault}") from None
    except _DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); copy or make it anew") from None
    if not names:
        raise InputError(f"{path}: is empty, expected a header and one line a row")
    return names


def _csv_blocks(path: Path, columns: Sequence[str], separator: str) -> Blocks:
    wanted = dict.fromkeys(columns)
    options = {
        "read_options": pa.csv.ReadOptions(block_size=BLOCK_BYTES),
        "parse_options": pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), include_columns=list(wanted), strings_can_be_null=False
        ),
    }
    first = 0
    try:
        with pa.input_stream(str(path)) as stream, pa.csv.open_csv(stream, **options) as reader:
            for batch in reader:
                if len(batch):
                    yield LinePlace(path, separator, first), batch
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        if "Empty CSV file" not in str(error):  # a header alone is a file without rows
            raise InputError(_csv_fault(path, separator, error)) from None


def _csv_fault(path: Path, separator: str, error: Exception) -> str:
    """What is wrong with the first line that cannot be read."""
    width = 0
    try:
        with _open_bytes(path) as file:
            for number, values in _records(file, separator):
                width = width or len(values)
                if len(values) != width:
                    return (
                        f"{path}: line {number} has {len(values)} values, the header has {width}, separated by "
                        f"{separator!r}"
                    )
    except _LineFault as fault:
        return f"{path}: {fault}"
    except _DAMAGE as damage:
        return f"{path}: is damaged ({' '.join(str(damage).split())}); copy or make it anew"
    return f"{path}: cannot be read as CSV ({' '.join(str(error).split())})"
