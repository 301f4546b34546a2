"""Codes of any number of rows, written part by part, so that a killed encoding goes on where it stopped.

A folder:

    segue-codes.json      which code table, which columns, which files, how far
    part-000000.parquet   item id (in its own type), codes fixed_size_list<uint16, C>; `part_rows` rows each, the last
                          one fewer

Tuples are the quantiser's own: what a code table does to tell its items apart (a level more, tuples re-assigned) means
something within one catalogue only. A vector of zeros, or none, gives the all-zero tuple: unknown.

A part is written aside, flushed and renamed, so that each part that is there is whole. It is a function of the code
table and of its rows: an encoding that was killed and run again leaves the same bytes as one that was not. Each part
tells the digest of the ids and vectors that it was made of. Where the source files are not those that the folder was
begun with (name, size, digest of the footer), they are read again as far as parts exist and held against these digests:
a file that has only grown goes on with new parts, another one is refused.

C code levels · D vector width · n rows of a block · r rows of a part.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.files import fsync_path, read_json_object, write_json_atomically
from common.progress import Progress
from data.parquet_io import open_parquet, parquet_blocks, parquet_writer
from semantic_ids.codes.code_table import CodeTable, known_rows
from semantic_ids.lifecycle.seen_ids import SeenIds, first_repeat, names_of
from semantic_ids.lifecycle.vector_files import Block, VectorFiles
from semantic_ids.quantizers.base import Codes, Quantizer

FORMAT = "segue-codes"
FORMAT_VERSION = 1
MANIFEST = "segue-codes.json"

_REMAINS = re.compile(rf"\.({re.escape(MANIFEST)}\.writing-[a-z0-9_]{{8}}|part-\d{{6,}}\.parquet\.writing)")
"""What a killed run may leave beside whole files."""
_DIGEST, _UNKNOWN = b"segue.digest", b"segue.unknown"


@dataclass(frozen=True)
class Part:
    """A part that is there."""

    rows: int
    unknown: int
    digest: str


def check_folder(out: Path) -> None:
    """Refuse an output folder that holds something else.

    Raises:
        InputError: `out` is a file, or a folder with other things in it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: exists and is not a folder; `out` must name a new folder or one to go on with")
    if out.is_dir() and not (out / MANIFEST).exists() and any(not _REMAINS.fullmatch(p.name) for p in out.iterdir()):
        raise InputError(f"{out}: exists and holds no codes (it has no {MANIFEST}); name another folder or empty it")


def encode_files(source: VectorFiles, table: CodeTable, out: Path, part_rows: int) -> dict[str, Any]:
    """Code all rows, or those that a former run did not get to.

    Ids must differ. A part's are compared with one another and with those of all parts before it, as long as these are
    at most `seen_ids.MOST_IDS`; ids beyond are compared within their part and with the first so many.

    Returns:
        `rows`, `known`, `unknown`, `parts`, and `kept`: parts that were there before.

    Raises:
        InputError: the folder was begun with another code table, other keys or other files; an id twice; or what
            `VectorFiles.blocks` finds. Parts before the fault stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        for remains in [path for path in out.iterdir() if _REMAINS.fullmatch(path.name)]:
            remains.unlink()
        begun = _begun(source, table, part_rows)
        parts = _parts_there(out, part_rows)
        _check_begun(out, begun)
        _check_source(out, begun, parts, source)
        kept = _kept(parts, source.rows, part_rows)
        write_json_atomically(out / MANIFEST, {**begun, "complete": False})
        finished = parts[:kept] + list(_write_parts(source, table.quantizer, out, kept, part_rows))
        unknown = sum(part.unknown for part in finished)
        counts = {"rows": source.rows, "known": source.rows - unknown, "unknown": unknown, "parts": len(finished)}
        write_json_atomically(out / MANIFEST, {**begun, "complete": True, "counts": counts})
    return {**counts, "kept": kept}


def part_file(out: Path, part: int) -> Path:
    """The file of a part."""
    return out / f"part-{part:06d}.parquet"


# ── what is there ────────────────────────────────────────────────────────────────────────────────────────


def _begun(source: VectorFiles, table: CodeTable, part_rows: int) -> dict[str, Any]:
    quantizer = table.quantizer
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "code_table": table.fingerprint,
        "quantizer": quantizer.name,
        "levels": quantizer.num_levels,
        "codes": quantizer.codes_per_level,
        "item": source.item,
        "item_type": str(source.id_type),
        "part_rows": part_rows,
        "sources": source.sources,
    }


def _check_begun(out: Path, begun: dict[str, Any]) -> None:
    """What a folder was begun with must be what it is to go on with; the sources are looked at elsewhere."""
    file = out / MANIFEST
    if not file.exists():
        return
    former = read_json_object(file, "the manifest of a folder of codes")
    if former.get("code_table") != begun["code_table"]:
        raise InputError(
            f"{out}: foreign codebook: the folder was begun with the code table {former.get('code_table')}, and "
            f"`codes` is the code table {begun['code_table']}; codes of two tables cannot stand in one folder: give "
            "the other table, or name another folder"
        )
    faults = [
        f"{out}: was begun with `{key}` {former.get(key)!r}, and is to go on with {begun[key]!r}; keep it, or name "
        "another folder"
        for key in begun
        if key != "sources" and former.get(key) != begun[key]
    ]
    if faults:
        raise InputError(*faults)


def _parts_there(out: Path, part_rows: int) -> list[Part]:
    """Parts from the first to the last without a gap, all but the last of `part_rows` rows."""
    parts: list[Part] = []
    while (not parts or parts[-1].rows == part_rows) and part_file(out, len(parts)).exists():
        file = part_file(out, len(parts))
        opened = open_parquet(file)
        noted = opened.schema_arrow.metadata or {}
        if _DIGEST not in noted or _UNKNOWN not in noted:
            raise InputError(f"{file}: was not written by semantic_ids.encode; remove it, or name another folder")
        parts.append(Part(opened.metadata.num_rows, int(noted[_UNKNOWN]), noted[_DIGEST].decode()))
    return parts


def _check_source(out: Path, begun: dict[str, Any], parts: list[Part], source: VectorFiles) -> None:
    """The rows of the parts must be the first rows of the source."""
    if not parts:
        return
    former = read_json_object(out / MANIFEST, "the manifest of a folder of codes").get("sources", [])
    if former == begun["sources"][: len(former)]:
        return
    there = sum(part.rows for part in parts)
    digests: list[_Digest] = []
    with Progress("compare with the parts there", there, "items") as progress:
        for index, block in _cut(source.blocks(0, there), begun["part_rows"]):
            if index == len(digests):
                digests.append(_Digest())
            digests[index].add(block, names_of(block.ids))
            progress.advance(len(block.ids))
    found = [digest.text() for digest in digests] + [""] * (len(parts) - len(digests))
    for index, (digest, part) in enumerate(zip(found, parts, strict=True)):
        if digest != part.digest:
            raise InputError(
                f"{out}: was begun with another source: {_told(former)}; {source.path} is {_told(begun['sources'])}"
                f" and does not begin with the rows that {part_file(out, index).name} was made of; name another folder"
            )


def _told(sources: list[dict[str, Any]]) -> str:
    first = ", ".join(f"{file['name']} ({file['bytes']} bytes, footer {file['footer']})" for file in sources[:3])
    return first + (f" and {len(sources) - 3} files more" if len(sources) > 3 else "")


def _kept(parts: list[Part], rows: int, part_rows: int) -> int:
    """How many parts stay: a short last one only where the source has no row more."""
    return sum(part.rows == min(part_rows, rows - index * part_rows) for index, part in enumerate(parts))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────


class _Digest:
    """Of ids and vectors, however they are cut into blocks."""

    def __init__(self) -> None:
        self._ids, self._vectors = hashlib.sha256(), hashlib.sha256()

    def add(self, block: Block, names_n: npt.NDArray[np.uint64]) -> None:
        self._ids.update(names_n.tobytes())
        self._vectors.update(np.ascontiguousarray(block.vectors_nD).data)

    def text(self) -> str:
        return hashlib.sha256(self._ids.digest() + self._vectors.digest()).hexdigest()


def _write_parts(source: VectorFiles, quantizer: Quantizer, out: Path, kept: int, part_rows: int) -> Iterator[Part]:
    seen, first = _seen(source, out, kept), min(kept * part_rows, source.rows)
    with Progress("encode", source.rows - first, "items") as progress:
        # One reading of the source, not one a part: a part may begin in the middle of a row group, which is read from
        # its beginning.
        for index, cut in groupby(_cut(source.blocks(first, source.rows), part_rows), key=lambda pair: pair[0]):
            ids, codes, names = [], [], []
            digest = _Digest()
            for _, block in cut:
                names.append(names_of(block.ids))
                ids.append(block.ids)
                codes.append(_encode(quantizer, block))
                digest.add(block, names[-1])
                progress.advance(len(block.ids))
            ids_r, codes_rC, names_r = pa.concat_arrays(ids), np.concatenate(codes), np.concatenate(names)
            _check_repeats(source, out, index * part_rows, part_rows, ids_r, names_r, seen)
            seen.add(names_r)
            part = Part(len(codes_rC), int((~known_rows(codes_rC)).sum()), digest.text())
            _write_part(part_file(out, index), source.item, ids_r, codes_rC, part)
            yield part


def _cut(blocks: Iterator[Block], part_rows: int) -> Iterator[tuple[int, Block]]:
    """Blocks cut where a part ends, each with the number of its part."""
    for block in blocks:
        end = block.first_row + len(block.ids)
        for index in range(block.first_row // part_rows, -(-end // part_rows)):
            first, last = max(index * part_rows, block.first_row), min((index + 1) * part_rows, end)
            yield index, block.part(first - block.first_row, last - block.first_row)


def _encode(quantizer: Quantizer, block: Block) -> Codes:
    known_n = block.vectors_nD.any(axis=1)
    codes_nC = np.zeros((len(block.ids), quantizer.num_levels), np.uint16)
    if known_n.any():
        codes_nC[known_n] = quantizer.encode(block.vectors_nD[known_n])
    return codes_nC


def _write_part(file: Path, item: str, ids_r: pa.Array, codes_rC: Codes, part: Part) -> None:
    levels = codes_rC.shape[1]
    schema = pa.schema(
        [pa.field(item, ids_r.type), pa.field("codes", pa.list_(pa.uint16(), levels))],
        metadata={_DIGEST: part.digest, _UNKNOWN: str(part.unknown)},
    )
    codes = pa.FixedSizeListArray.from_arrays(pa.array(codes_rC.ravel()), levels)
    aside = file.with_name(f".{file.name}.writing")
    try:
        with parquet_writer(aside, schema) as writer:
            writer.write_table(pa.table([ids_r, codes], schema=schema), row_group_size=len(ids_r))
        fsync_path(aside)
        aside.replace(file)
        fsync_path(file.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"{file}: cannot be written: {error.strerror or error}; the parts before it are whole: make room, and "
                "the same command goes on from here"
            ) from None
        raise


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Nobody else writes the folder; the lock is on the folder itself, so nothing is left when its holder is killed."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{out}: another semantic_ids.encode is writing it; wait for it, or name another folder"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────


def _seen(source: VectorFiles, out: Path, kept: int) -> SeenIds:
    """The ids of the parts that stay."""
    seen = SeenIds()
    for index in range(kept):
        ids = open_parquet(part_file(out, index)).read(columns=[source.item]).column(source.item)
        seen.add(names_of(ids.combine_chunks()))
    return seen


def _check_repeats(
    source: VectorFiles,
    out: Path,
    begin: int,
    part_rows: int,
    ids_r: pa.Array,
    names_r: npt.NDArray[np.uint64],
    seen: SeenIds,
) -> None:
    within = first_repeat(names_r, ids_r)
    found = None if within is None else (begin + within[0], begin + within[1])
    suspects = seen.suspects(names_r)
    if suspects.size:
        earlier = _row_before(source, out, begin // part_rows, part_rows, ids_r.take(pa.array(suspects)))
        if earlier is not None:
            again = begin + int(suspects[earlier[0]])
            found = min(found, (again, earlier[1])) if found else (again, earlier[1])
    if found is not None:
        again, first = found
        raise InputError(
            f"{source.place(again)}: column `{source.item}` is {ids_r[again - begin]}, as in {source.place(first)}; "
            "an item has one row: leave one of them out"
        )


def _row_before(source: VectorFiles, out: Path, parts: int, part_rows: int, ids: pa.Array) -> tuple[int, int] | None:
    """The first of some ids that stands in a part before, and in which row; parts are read again, to be sure."""
    rows = np.full(len(ids), -1)
    for index in range(parts):
        row = index * part_rows
        for _, batch in parquet_blocks(part_file(out, index), [source.item], 2**16):
            at = pc.index_in(ids, value_set=batch.column(source.item)).fill_null(-1).to_numpy()
            rows = np.where((rows < 0) & (at >= 0), row + at, rows)
            row += len(batch)
    there = np.flatnonzero(rows >= 0)
    return (int(there[0]), int(rows[there[0]])) if there.size else None
