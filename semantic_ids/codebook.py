"""The code table: which codes every item carries, and the codebooks that decode them.

Two rules hold for every table:
- The all-zero tuple means *unknown item*, and no known item carries it. Quantisation alone does not give that, so
  labels are exchanged: a tuple t that no known item has is found, and at each level labels 0 and t_l swap places, in
  the codes and in the codebook rows alike. Items that had the all-zero tuple now have t; decoding is unchanged.
- Items that share all codes have a defined order: more training plays first, then the lower item index.

A table is a folder: `manifest.json`, `codes.parquet` (one row an item, in dense order), `codebooks.npy`.

N items in the catalogue · n known items · C code levels · V codes per level · d vector width · G tuples in use.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import fingerprint_of, read_json_object, sha256_of_file, write_folder_aside, write_json_atomically
from data.event_store import EventStore
from data.parquet_io import damage_told, open_parquet
from semantic_ids.residual_quantizer import check_codes_per_level, decode

FORMAT = "segue-code-table"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CODES = "codes.parquet"
CODEBOOKS = "codebooks.npy"

Codes = npt.NDArray[np.int64]
Codebooks = npt.NDArray[np.float32]


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
    embeddings: str
    """`content`, `collaborative`, or `random`: plain item ids."""
    settings: dict[str, Any]
    """How the table was fitted."""
    counts: dict[str, int]
    """`items`, `known`, `unknown`."""
    diagnostics: dict[str, Any]
    files: dict[str, dict[str, Any]]
    """`bytes` and `sha256` by name."""

    def expected_fingerprint(self) -> str:
        """What `fingerprint` must be."""
        content = dataclasses.asdict(self)
        del content["fingerprint"]
        return fingerprint_of(content)


@dataclass(frozen=True, eq=False)
class CodeTable:
    """An opened code table."""

    manifest: Manifest
    codes_NC: Codes
    """Codes of every item; the all-zero row of an unknown one."""
    codebooks_CVd: Codebooks
    training_plays_N: npt.NDArray[np.int64]

    @staticmethod
    def open(path: Path, store: EventStore) -> CodeTable:
        """Read and check a table.

        Raises:
            InputError: the folder is not a whole, undamaged code table, or belongs to another store.
        """
        return _open(Path(path), store)

    @property
    def num_levels(self) -> int:
        """C."""
        return self.manifest.levels

    @property
    def codes_per_level(self) -> int:
        """V."""
        return self.manifest.codes

    @property
    def fingerprint(self) -> str:
        """Names the table: equal content, equal fingerprint."""
        return self.manifest.fingerprint

    @cached_property
    def known_N(self) -> npt.NDArray[np.bool_]:
        """Which items have codes of their own."""
        return np.asarray(self.codes_NC.any(axis=1))

    @cached_property
    def _groups(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return order_items(self.codes_NC, self.training_plays_N, self.codes_per_level)

    @property
    def item_order(self) -> npt.NDArray[np.int64]:
        """Known items [n] by codes; items that share all codes by more training plays, then by lower index."""
        return self._groups[0]

    @property
    def group_offsets(self) -> npt.NDArray[np.int64]:
        """[G + 1]: items that share tuple g are item_order[group_offsets[g] : group_offsets[g + 1]]."""
        return self._groups[1]

    def decode(self, codes_xC: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Approximate vectors [..., d] of codes [..., C]. What the unknown tuple decodes to means nothing."""
        return decode(self.codebooks_CVd, codes_xC)


def order_items(
    codes_NC: Codes, training_plays_N: npt.NDArray[np.int64], codes_per_level: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Known items sorted by codes, then more plays, then lower index; and where each tuple's group begins [G + 1]."""
    known_n = np.flatnonzero(codes_NC.any(axis=1))
    codes_nC = codes_NC[known_n]
    words = _pack(codes_nC, codes_per_level)
    # lexsort is stable and `known_n` ascends, so equal keys stay in order of item index.
    order = np.lexsort([-training_plays_N[known_n], *reversed(words)])
    starts = np.zeros(len(order), bool)
    starts[:1] = True
    for word in words:
        starts[1:] |= word[order][1:] != word[order][:-1]
    return known_n[order], np.append(np.flatnonzero(starts), len(order))


def reserve_zero_tuple(codes_nC: Codes, codebooks_CVd: Codebooks) -> tuple[Codes, Codebooks]:
    """Exchange labels so that no known item carries the all-zero tuple; decoding is unchanged.

    Raises:
        InputError: all V^C tuples are in use, so none is left to mean "unknown".
    """
    free_C = unused_tuple(codes_nC, codebooks_CVd.shape[1])
    codes, codebooks = codes_nC.copy(), codebooks_CVd.copy()
    for level, label in enumerate(free_C):
        exchange = np.arange(codebooks.shape[1])
        exchange[[0, label]] = label, 0
        codes[:, level] = exchange[codes_nC[:, level]]
        codebooks[level] = codebooks_CVd[level][exchange]  # an exchange is its own inverse
    return codes, codebooks


def unused_tuple(codes_nC: Codes, codes_per_level: int) -> Codes:
    """The lexicographically first tuple [C] that no row has.

    Raises:
        InputError: every tuple is in use.
    """
    num_levels = codes_nC.shape[1]
    words = _pack(codes_nC, codes_per_level)
    used_GC = codes_nC[np.lexsort(list(reversed(words)))]
    repeats = (used_GC[1:] == used_GC[:-1]).all(axis=1)
    used_GC = used_GC[np.append(True, ~repeats)] if len(used_GC) else used_GC
    # Read as numbers in base V, sorted distinct tuples are 0, 1, 2 … until the first gap.
    counting_GC = _digits(np.arange(len(used_GC) + 1), codes_per_level, num_levels)
    gaps = np.flatnonzero((used_GC != counting_GC[:-1]).any(axis=1))
    if len(gaps):
        first: Codes = counting_GC[gaps[0]]
        return first
    if len(used_GC) < codes_per_level**num_levels:
        following: Codes = counting_GC[-1]
        return following
    raise InputError(
        f"all {len(used_GC)} tuples of {num_levels} levels × {codes_per_level} codes are carried by items, and one must"
        f" stay free to mean an unknown item; set `levels` to {num_levels + 1} or `codes` to {2 * codes_per_level}"
    )


def write_code_table(
    path: Path,
    *,
    store_fingerprint: str,
    embeddings: str,
    settings: dict[str, Any],
    codes_NC: Codes,
    codebooks_CVd: Codebooks,
    training_plays_N: npt.NDArray[np.int64],
    diagnostics: dict[str, Any],
) -> CodeTable:
    """Write a table, whole or not at all; a table that stood there is replaced."""
    num_items, num_levels = codes_NC.shape
    _, num_codes, width = codebooks_CVd.shape
    known = int(codes_NC.any(axis=1).sum())
    columns = pa.table(
        {
            "item": pa.array(np.arange(num_items, dtype=np.uint32)),
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes_NC.astype(np.uint16).ravel()), num_levels),
            "training_plays": pa.array(training_plays_N.astype(np.int64)),
        },
        schema=_codes_schema(num_levels),
    )
    with write_folder_aside(path) as aside:
        pq.write_table(columns, aside / CODES)
        np.save(aside / CODEBOOKS, codebooks_CVd, allow_pickle=False)
        manifest = Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            fingerprint="",
            store_fingerprint=store_fingerprint,
            levels=num_levels,
            codes=num_codes,
            dimensions=width,
            embeddings=embeddings,
            settings=settings,
            counts={"items": num_items, "known": known, "unknown": num_items - known},
            diagnostics=diagnostics,
            files={
                name: {"bytes": (aside / name).stat().st_size, "sha256": sha256_of_file(aside / name)}
                for name in (CODES, CODEBOOKS)
            },
        )
        manifest = dataclasses.replace(manifest, fingerprint=manifest.expected_fingerprint())
        write_json_atomically(aside / MANIFEST, dataclasses.asdict(manifest))
    return CodeTable(manifest, codes_NC, codebooks_CVd, training_plays_N)


def check_replaceable(path: Path) -> None:
    """Refuse an output folder that holds something else than a code table.

    Raises:
        InputError: writing a table there would remove what is not one.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if (path / MANIFEST).is_file() and read_json_object(path / MANIFEST, "a manifest").get("format") == FORMAT:
        return
    raise InputError(
        f"{path}: exists and is not a code table, so it is not replaced; choose another `out`, or remove it"
    )


_AGAIN = "run semantic_ids.fit again"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────


def _open(path: Path, store: EventStore) -> CodeTable:
    manifest = _read_manifest(path)
    if manifest.store_fingerprint != store.fingerprint:
        raise InputError(
            f"{path}: these codes were fitted to the event store {manifest.store_fingerprint}, but {store.path} is the"
            f" event store {store.fingerprint}; codes name items of their own store only: run semantic_ids.fit on"
            f" {store.path}, or give the store that the codes were fitted to"
        )
    _check_files(path, manifest)
    codes_NC, training_plays_N = _read_codes(path / CODES, manifest, store.num_items)
    codebooks_CVd = _read_codebooks(path / CODEBOOKS, manifest)
    return CodeTable(manifest, codes_NC, codebooks_CVd, training_plays_N)


def _read_manifest(path: Path) -> Manifest:
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


def _check_files(path: Path, manifest: Manifest) -> None:
    faults = []
    for name in (CODES, CODEBOOKS):
        file, expected = path / name, manifest.files[name]
        if not file.is_file():
            faults.append(f"{file}: no such file, though the manifest names it; {_AGAIN}")
        elif file.stat().st_size != expected["bytes"]:
            faults.append(f"{file}: has {file.stat().st_size} bytes, the manifest says {expected['bytes']}; {_AGAIN}")
        elif (found := sha256_of_file(file)) != expected["sha256"]:
            faults.append(f"{file}: has sha256 {found}, the manifest says {expected['sha256']}; {_AGAIN}")
    if faults:
        raise InputError(*faults)


def _read_codes(file: Path, manifest: Manifest, num_items: int) -> tuple[Codes, npt.NDArray[np.int64]]:
    with damage_told(file):
        table = open_parquet(file).read()
    schema = _codes_schema(manifest.levels)
    if not table.schema.equals(schema):
        found = "; ".join(f"{column.name}: {column.type}" for column in table.schema)
        wanted = "; ".join(f"{column.name}: {column.type}" for column in schema)
        raise InputError(f"{file}: has the columns {found}, expected {wanted}; {_AGAIN}")
    if table.num_rows != num_items or any(column.null_count for column in table.columns):
        raise InputError(
            f"{file}: has {table.num_rows} rows, expected one, without nulls, for each of {num_items} items"
        )
    item_N = table["item"].to_numpy()
    codes_NC = table["codes"].combine_chunks().flatten().to_numpy().reshape(-1, manifest.levels).astype(np.int64)
    if (misplaced := np.flatnonzero(item_N != np.arange(num_items))).size:
        row = misplaced[0]
        raise InputError(f"{file}, row {row}: `item` is {item_N[row]}, expected {row}: one row an item in dense order")
    if (beyond := np.argwhere(codes_NC >= manifest.codes)).size:
        row, level = beyond[0]
        raise InputError(
            f"{file}, row {row}: `codes`[{level}] is {codes_NC[row, level]}, must be below {manifest.codes}"
        )
    known = int(codes_NC.any(axis=1).sum())
    if known != manifest.counts["known"]:
        raise InputError(
            f"{file}: {known} items have codes other than all zeros, the manifest says {manifest.counts['known']}"
        )
    return codes_NC, table["training_plays"].to_numpy()


def _read_codebooks(file: Path, manifest: Manifest) -> Codebooks:
    try:
        codebooks = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: not a readable NumPy file: {error}; {_AGAIN}") from None
    check_codes_per_level(manifest.codes)
    expected = (manifest.levels, manifest.codes, manifest.dimensions)
    if codebooks.dtype != np.float32 or codebooks.shape != expected:
        raise InputError(f"{file}: holds {codebooks.dtype} {codebooks.shape}, expected float32 {expected}; {_AGAIN}")
    if not np.isfinite(codebooks).all():
        raise InputError(f"{file}: holds a value that is not finite; {_AGAIN}")
    return np.asarray(codebooks, np.float32)


def _codes_schema(levels: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("item", pa.uint32()),
            pa.field("codes", pa.list_(pa.uint16(), levels)),
            pa.field("training_plays", pa.int64()),
        ]
    )


# ── tuples as numbers ────────────────────────────────────────────────────────────────────────────────────


def _pack(codes_nC: Codes, codes_per_level: int) -> list[npt.NDArray[np.uint64]]:
    """Tuples as words of as many codes as fit in 64 bits, most significant first: few sort keys instead of C."""
    bits = (codes_per_level - 1).bit_length()
    together = 64 // bits
    words = []
    for start in range(0, codes_nC.shape[1], together):
        word = np.zeros(len(codes_nC), np.uint64)
        for code_n in codes_nC[:, start : start + together].T:
            word = (word << np.uint64(bits)) | code_n.astype(np.uint64)
        words.append(word)
    return words


def _digits(numbers: npt.NDArray[np.int64], base: int, count: int) -> npt.NDArray[np.int64]:
    """The last `count` digits of numbers in a base, most significant first."""
    digits = np.empty((len(numbers), count), np.int64)
    for place in reversed(range(count)):
        numbers, digits[:, place] = np.divmod(numbers, base)
    return digits
