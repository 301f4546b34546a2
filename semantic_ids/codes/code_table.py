"""The code table: which codes every item carries, the codebooks behind them, and the quantiser that gave them.

Two rules hold for every table:
- The all-zero tuple means *unknown item*, and no known item carries it; quantisers never give it.
- Items that share all codes have a defined order: more training plays first, then the lower item index.

A table may have one level more than its quantiser (a level that tells items apart; its codebook rows are zeros), and
an item's tuple may differ from what the quantiser gives its vector (`collisions.py`). Its files are those of
`code_table_files.py`.

N items in the catalogue · n known items · C code levels · V codes per level · d codebook width · G tuples in use.
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

from common.errors import InputError
from common.files import read_json_object, sha256_of_file, write_folder_aside, write_json_atomically
from data.event_store import EventStore
from data.parquet_io import parquet_writer
from semantic_ids.codes.code_table_files import (
    BLOCK_ROWS,
    CODEBOOKS,
    CODES,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    PLAIN_IDS,
    QUANTIZER,
    REPORT,
    TRIE,
    Manifest,
    check_files,
    check_item_ids,
    check_store,
    codes_schema,
    known_rows,
    read_codebooks,
    read_codes,
    read_item_ids,
    read_manifest,
    read_quantizer,
)
from semantic_ids.codes.trie import build_trie
from semantic_ids.codes.tuples import order_items
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer, sum_of_rows

__all__ = ["MANIFEST", "CodeTable", "Manifest", "check_replaceable", "known_rows", "read_manifest", "write_code_table"]


@dataclass(frozen=True, eq=False)
class CodeTable:
    """An opened code table."""

    manifest: Manifest
    path: Path
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
        path = Path(path)
        manifest = read_manifest(path)
        check_store(path, manifest, store)
        table = _read(path, manifest)
        check_item_ids(path / CODES, store)
        return table

    @staticmethod
    def open_alone(path: Path) -> CodeTable:
        """Read and check a table without the store that it was fitted to: for what codes vectors of any items.

        Raises:
            InputError: the folder is not a whole, undamaged code table.
        """
        path = Path(path)
        return _read(path, read_manifest(path))

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
    def item_ids(self) -> pa.Array:
        """Raw item ids, string [N], in dense order."""
        return read_item_ids(self.path / CODES, "item_id").combine_chunks()

    @cached_property
    def quantizer(self) -> Quantizer:
        """The quantiser that the table was fitted with.

        Raises:
            InputError: plain item ids have none; or its files do not belong together.
        """
        return read_quantizer(self.path, self.manifest)

    @cached_property
    def known_N(self) -> npt.NDArray[np.bool_]:
        """Which items have codes of their own."""
        return known_rows(self.codes_NC)

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
        """Sums of codebook rows [..., d] of codes [..., C]. What the unknown tuple decodes to means nothing."""
        assert codes_xC.shape[-1] == self.num_levels, (codes_xC.shape, self.num_levels)
        return sum_of_rows(self.codebooks_CVd, codes_xC)


def _read(path: Path, manifest: Manifest) -> CodeTable:
    check_files(path, manifest)
    codes_NC, training_plays_N = read_codes(path / CODES, manifest)
    return CodeTable(manifest, path, codes_NC, read_codebooks(path / CODEBOOKS, manifest), training_plays_N)


def write_code_table(
    path: Path,
    *,
    store: EventStore,
    embeddings: str,
    quantizer: Quantizer | None,
    codebooks_CVd: Codebooks,
    settings: dict[str, Any],
    codes_NC: Codes,
    training_plays_N: npt.NDArray[np.int64],
    diagnostics: dict[str, Any],
    report: str | None = None,
) -> CodeTable:
    """Write a table, whole or not at all; a table that stood there is replaced.

    Args:
        embeddings: kind of the vectors.
        quantizer: None for plain item ids.
        codebooks_CVd: of all levels; rows of zeros for a level that the quantiser does not have.
        settings: how the table was fitted, JSON-like.
        codes_NC: the all-zero row of an unknown item.
        report: an HTML page.
    """
    (num_items, num_levels), (_, num_codes, width) = codes_NC.shape, codebooks_CVd.shape
    assert codes_NC.dtype == np.uint16, codes_NC.dtype
    assert codebooks_CVd.dtype == np.float32, codebooks_CVd.dtype
    assert (num_items, num_levels) == (store.num_items, len(codebooks_CVd)), (codes_NC.shape, codebooks_CVd.shape)
    training_plays_N = training_plays_N.astype(np.int64, copy=False)
    known = int(known_rows(codes_NC).sum())
    with write_folder_aside(path) as aside:
        _write_codes(aside / CODES, store.item_ids, codes_NC, training_plays_N)
        np.save(aside / CODEBOOKS, codebooks_CVd, allow_pickle=False)
        _write_quantizer(aside / QUANTIZER, quantizer)
        build_trie(codes_NC, training_plays_N, num_codes).save(aside / TRIE)
        manifest = Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            fingerprint="",
            store_fingerprint=store.fingerprint,
            levels=num_levels,
            codes=num_codes,
            dimensions=width,
            quantizer=PLAIN_IDS if quantizer is None else quantizer.name,
            quantizer_settings={} if quantizer is None else quantizer.settings(),
            embeddings=embeddings,
            settings=settings,
            counts={"items": num_items, "known": known, "unknown": num_items - known},
            diagnostics=diagnostics,
            files=_described(aside),
        )
        manifest = dataclasses.replace(manifest, fingerprint=manifest.expected_fingerprint())
        write_json_atomically(aside / MANIFEST, dataclasses.asdict(manifest))
        if report is not None:
            (aside / REPORT).write_text(report, encoding="utf-8")
    return CodeTable(manifest, Path(path), codes_NC, codebooks_CVd, training_plays_N)


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


def _write_codes(file: Path, item_ids: pa.Array, codes_NC: Codes, training_plays_N: npt.NDArray[np.int64]) -> None:
    arrow_schema = codes_schema(codes_NC.shape[1])
    with parquet_writer(file, arrow_schema) as writer:
        for begin in range(0, len(codes_NC), BLOCK_ROWS):
            codes_bC = np.ascontiguousarray(codes_NC[begin : begin + BLOCK_ROWS])
            columns = [
                item_ids[begin : begin + BLOCK_ROWS],
                pa.FixedSizeListArray.from_arrays(pa.array(codes_bC.ravel()), codes_bC.shape[1]),
                pa.array(training_plays_N[begin : begin + BLOCK_ROWS]),
            ]
            writer.write_batch(pa.record_batch(columns, schema=arrow_schema), row_group_size=BLOCK_ROWS)


def _write_quantizer(folder: Path, quantizer: Quantizer | None) -> None:
    if quantizer is None:
        return
    folder.mkdir()
    for name, array in quantizer.arrays().items():
        assert name.replace("_", "").replace("-", "").isalnum(), name
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in files
    }
