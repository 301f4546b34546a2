"""The files of a code table: what they are called, what must be in them, and what damage is told.

A table is a folder:

    manifest.json         what the table says of itself
    codes.parquet         item_id, codes, training_plays: one row an item, in dense order
    codebooks.npy         float32 [C, V, d]
    quantizer/NAME.npy    what codes items of later days; absent for plain item ids
    trie/                 the prefix trie of the known items (`trie.py`)
    report.html           for people; the only file that the manifest does not vouch for

N items in the catalogue · C code levels · V codes per level · d codebook width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.files import fingerprint_of, read_json_object, sha256_of_file
from data import schema
from data.event_store import EventStore
from data.parquet_io import damage_told, open_parquet, parquet_blocks
from semantic_ids.quantizers.base import MAX_CODES, Codebooks, Codes, Quantizer

FORMAT = "segue-code-table"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CODES = "codes.parquet"
CODEBOOKS = "codebooks.npy"
QUANTIZER = "quantizer"
TRIE = "trie"
REPORT = "report.html"

PLAIN_IDS = "item"
"""Stands for the quantiser in the manifest where every item has a code of its own."""

BLOCK_ROWS = 2**20
"""Rows of a row group, and of what is read or written at a time."""

_AGAIN = "run semantic_ids.fit again"


@dataclass(frozen=True)
class Manifest:
    """What a code table says of itself."""

    format: str
    format_version: int
    fingerprint: str
    """Of everything else in the manifest, the files' SHA-256 included."""
    store_fingerprint: str
    levels: int
    codes: int
    dimensions: int
    """Width d of the codebooks."""
    quantizer: str
    """As in the configuration of semantic_ids.fit; `item`: plain item ids."""
    quantizer_settings: dict[str, Any]
    """What the quantiser needs beside its arrays."""
    embeddings: str
    """`content`, `collaborative`, `blended`, or `random`: plain item ids."""
    settings: dict[str, Any]
    """How the table was fitted."""
    counts: dict[str, int]
    """`items`, `known`, `unknown`."""
    diagnostics: dict[str, Any]
    files: dict[str, dict[str, Any]]
    """`bytes` and `sha256` by name within the folder."""

    def expected_fingerprint(self) -> str:
        """What `fingerprint` must be."""
        content = dataclasses.asdict(self)
        del content["fingerprint"]
        return fingerprint_of(content)


def known_rows(codes_NC: Codes) -> npt.NDArray[np.bool_]:
    """Which rows [N] are not all zero."""
    # A reduction over a handful of neighbours is slow; a pass over each column is not.
    known_N = np.zeros(len(codes_NC), bool)
    for code_N in codes_NC.T:
        known_N |= code_N != 0
    return known_N


def read_manifest(path: Path) -> Manifest:
    """What the table in folder `path` says of itself, held against its own fingerprint; files are not looked at.

    Raises:
        InputError: there is no whole manifest of this version.
    """
    file = path / MANIFEST
    content = read_json_object(file, "the manifest of a code table, which semantic_ids.fit writes")
    for key, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        if key not in content:
            raise InputError(
                f"{file}: has no `{key}`, so it is not the manifest of a code table; run semantic_ids.fit to write one"
            )
        if content[key] != expected:
            raise InputError(f"{file}: `{key}` is {content[key]!r}, expected {expected!r}; {_AGAIN}")
    named = {leaf.name for leaf in dataclasses.fields(Manifest)}
    faults = [f"{file}: `{key}` is missing; {_AGAIN}" for key in sorted(named - set(content))]
    faults += [f"{file}: unknown key `{key}`; {_AGAIN}" for key in sorted(set(content) - named)]
    if faults:
        raise InputError(*faults)
    manifest = Manifest(**content)
    if manifest.fingerprint != manifest.expected_fingerprint():
        raise InputError(
            f"{file}: says fingerprint {manifest.fingerprint}, but its content gives {manifest.expected_fingerprint()}:"
            f" it was changed after it was written; {_AGAIN}"
        )
    return manifest


def check_store(path: Path, manifest: Manifest, store: EventStore) -> None:
    """Refuse a table of another store.

    Raises:
        InputError: naming both fingerprints.
    """
    if manifest.store_fingerprint != store.fingerprint:
        raise InputError(
            f"{path}: these codes were fitted to the event store {manifest.store_fingerprint}, but {store.path} is the"
            f" event store {store.fingerprint}; codes name items of their own store only: run semantic_ids.fit on"
            f" {store.path}, or give the store that the codes were fitted to"
        )


def check_files(path: Path, manifest: Manifest) -> None:
    """Hold every file that the manifest names to its size and SHA-256, read as a stream.

    Raises:
        InputError: with every file that is absent or not as it was written.
    """
    faults = [
        f"{path / MANIFEST}: `files` does not name {name}; {_AGAIN}"
        for name in (CODES, CODEBOOKS)
        if name not in manifest.files
    ]
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            faults.append(f"{file}: no such file, though the manifest names it; {_AGAIN}")
        elif file.stat().st_size != expected["bytes"]:
            faults.append(f"{file}: has {file.stat().st_size} bytes, the manifest says {expected['bytes']}; {_AGAIN}")
        elif (found := sha256_of_file(file)) != expected["sha256"]:
            faults.append(f"{file}: has sha256 {found}, the manifest says {expected['sha256']}; {_AGAIN}")
    if faults:
        raise InputError(*faults)


def read_codes(file: Path, manifest: Manifest) -> tuple[Codes, npt.NDArray[np.int64]]:
    """Codes [N, C] and training plays [N], a block of rows at a time.

    Raises:
        InputError: other columns or rows than the manifest says, a null, a code that is V or more.
    """
    num_items = manifest.counts["items"]
    _check_codes_file(file, manifest.levels, num_items)
    codes_NC = np.empty((num_items, manifest.levels), np.uint16)
    training_plays_N = np.empty(num_items, np.int64)
    begin = 0
    for place, batch in parquet_blocks(file, ["codes", "training_plays"], BLOCK_ROWS):
        codes, plays = batch.column("codes"), batch.column("training_plays")
        flat = codes.flatten()
        if codes.null_count or flat.null_count or plays.null_count:
            raise InputError(f"{place.row(0)} to {place.first_row + len(batch) - 1}: a value is null; {_AGAIN}")
        codes_NC[begin : begin + len(batch)] = flat.to_numpy().reshape(-1, manifest.levels)
        training_plays_N[begin : begin + len(batch)] = plays.to_numpy()
        begin += len(batch)
    if int(codes_NC.max(initial=0)) >= manifest.codes:
        row, level = np.argwhere(codes_NC >= manifest.codes)[0]
        raise InputError(
            f"{file}, row {row}: `codes`[{level}] is {codes_NC[row, level]}, must be below {manifest.codes}"
        )
    known = int(known_rows(codes_NC).sum())
    if known != manifest.counts["known"]:
        raise InputError(
            f"{file}: {known} items have codes other than all zeros, the manifest says {manifest.counts['known']}"
        )
    return codes_NC, training_plays_N


def _check_codes_file(file: Path, levels: int, num_items: int) -> None:
    opened, arrow_schema = open_parquet(file), codes_schema(levels)
    if not opened.schema_arrow.equals(arrow_schema):
        found = "; ".join(f"{column.name}: {column.type}" for column in opened.schema_arrow)
        wanted = "; ".join(f"{column.name}: {column.type}" for column in arrow_schema)
        raise InputError(f"{file}: has the columns {found}, expected {wanted}; {_AGAIN}")
    if opened.metadata.num_rows != num_items:
        raise InputError(f"{file}: has {opened.metadata.num_rows} rows, expected one for each of {num_items} items")


def read_item_ids(file: Path, column: str) -> pa.ChunkedArray:
    """A column of strings, whole.

    Raises:
        InputError: damaged bytes.
    """
    with damage_told(file, f"column `{column}`"):
        return open_parquet(file).read(columns=[column]).column(column)


def check_item_ids(file: Path, store: EventStore) -> None:
    """Hold the rows of a table to the dense order of the store.

    Raises:
        InputError: naming the first row that is another item's.
    """
    # Not through `store.item_ids`, which would keep them all for as long as the store is open.
    found, expected = read_item_ids(file, "item_id"), read_item_ids(store.path / schema.ITEMS_FILE, schema.ITEM)
    if not found.equals(expected):
        row = pc.index(pc.fill_null(pc.equal(found, expected), False), False).as_py()
        raise InputError(
            f"{file}, row {row}: `item_id` is {found[row]}, expected {expected[row]}, item {row} of {store.path}:"
            f" one row an item in dense order; {_AGAIN}"
        )


def read_codebooks(file: Path, manifest: Manifest) -> Codebooks:
    """Codebooks [C, V, d].

    Raises:
        InputError: not finite float32 of the shape that the manifest says.
    """
    codebooks = _read_array(file)
    expected = (manifest.levels, manifest.codes, manifest.dimensions)
    if not 2 <= manifest.codes <= MAX_CODES:
        raise InputError(f"{file.parent / MANIFEST}: `codes` is {manifest.codes}, must be from 2 to {MAX_CODES}")
    if codebooks.shape != expected:
        raise InputError(f"{file}: holds float32 {codebooks.shape}, expected float32 {expected}; {_AGAIN}")
    return codebooks


def _read_array(file: Path) -> npt.NDArray[np.float32]:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: not a readable NumPy file: {error}; {_AGAIN}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise InputError(f"{file}: does not hold an array of float32; {_AGAIN}")
    if not np.isfinite(array).all():
        raise InputError(f"{file}: holds a value that is not finite; {_AGAIN}")
    return array


def codes_schema(levels: int) -> pa.Schema:
    """Columns of `codes.parquet`."""
    return pa.schema(
        [
            pa.field("item_id", pa.string()),
            pa.field("codes", pa.list_(pa.uint16(), levels)),
            pa.field("training_plays", pa.int64()),
        ]
    )


def read_quantizer(path: Path, manifest: Manifest) -> Quantizer:
    """The quantiser of the table in folder `path`.

    Raises:
        InputError: there is none, this release does not know it, or its files do not belong together.
    """
    if manifest.quantizer == PLAIN_IDS:
        raise InputError(
            f"{path}: plain item ids (quantizer={PLAIN_IDS}) have no quantiser, so nothing but their own items can be"
            " coded; fit a table with quantizer=residual-kmeans"
        )
    files = [path / name for name in manifest.files if name.startswith(f"{QUANTIZER}/")]
    kind = _quantizer_class(manifest.quantizer, path / MANIFEST)
    quantizer = kind.load({file.stem: _read_array(file) for file in files}, manifest.quantizer_settings)
    if quantizer.codes_per_level != manifest.codes or manifest.levels - quantizer.num_levels not in (0, 1):
        raise InputError(
            f"{path / QUANTIZER}: holds a quantiser of {quantizer.num_levels} levels × {quantizer.codes_per_level}"
            f" codes, but the table has {manifest.levels} × {manifest.codes}; {_AGAIN}"
        )
    return quantizer


def _quantizer_class(name: str, file: Path) -> type[Quantizer]:
    # Imported on demand: they bring torch or FAISS, and whoever reads codes alone need not wait for those.
    if name == "faiss":
        from semantic_ids.quantizers import faiss_reference  # noqa: F401
    elif name == "rq-vae":
        from semantic_ids.quantizers import rq_vae  # noqa: F401
    elif name == "residual-kmeans":
        from semantic_ids.quantizers import residual_kmeans  # noqa: F401
    kinds = Quantizer.__subclasses__()
    while kinds:
        kind = kinds.pop()
        if getattr(kind, "name", None) == name:  # those between have none
            return kind
        kinds += kind.__subclasses__()
    raise InputError(f"{file}: `quantizer` is {name!r}, which this release does not know; {_AGAIN}")
