"""A fit that keeps the labels of an older code table where it can: `semantic_ids.fit refit_of=codes/older`.

New codebooks start where the older codes say, so that most groups of items stay together, and are then matched with the
older labels item by item (`matching.py`). Content vectors of both tables lie in one space, so the older codebooks are
themselves the start. Collaborative and blended vectors do not (the axes of a factorisation are those of one store), so
there the start is the mean of what the new vectors of the items of each older code leave over, level after level.

m items of both tables · C code levels · V codes per level · D vector width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.errors import InputError
from common.seeding import derive_seed
from data.event_store import EventStore
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.lifecycle.matching import changed, changed_rows, check_matchable, common_items, match_labels, relabel
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer, Vectors

Items = npt.NDArray[np.int64]


class OlderTable:
    """The table whose labels are to be kept."""

    def __init__(self, path: Path, quantizer: str) -> None:
        """Open it.

        Raises:
            InputError: it is not a whole code table, or was made by another kind of quantiser.
        """
        self.table = CodeTable.open_alone(path)
        found = self.table.manifest.quantizer
        if found != quantizer:
            raise InputError(
                f"{path}: was fitted with quantizer={found}, and this fit is to be one with {quantizer}; labels can be"
                f" kept only within one kind: set quantizer={found}, or leave out refit_of"
            )

    @property
    def fingerprint(self) -> str:
        """Of the table."""
        return self.table.fingerprint

    def start(self, store: EventStore, items_n: Items, vectors_nD: Vectors, kind: str, seed: int) -> Codebooks:
        """Codebooks [C, V, D] to start from.

        Args:
            items_n: dense indices in `store`.
            vectors_nD: theirs, of the new fit.
            kind: of these vectors.

        Raises:
            InputError: the older table's content vectors have another width.
        """
        older = self.table.quantizer
        if kind == "content" and self.table.manifest.embeddings == "content":
            if older.vector_width != vectors_nD.shape[1]:
                raise InputError(
                    f"{self.table.path}: was fitted to content vectors of {older.vector_width} numbers, and those of"
                    f" {store.path} have {vectors_nD.shape[1]}; leave out refit_of"
                )
            return older.codebooks_CVd
        codes_mC, places = self._known(store, items_n)
        return means_of_codes(codes_mC, vectors_nD[places], older.codes_per_level, seed)

    def keep_labels(self, quantizer: Quantizer, store: EventStore, items_n: Items, vectors_nD: Vectors) -> Quantizer:
        """The quantiser with its codes named as in the older table, as far as that can be.

        Raises:
            InputError: other levels or codes.
        """
        check_shapes(self.table.quantizer.codebooks_CVd, quantizer.codebooks_CVd)
        codes_mC, places = self._known(store, items_n)
        older_CVd = self.table.quantizer.codebooks_CVd
        if older_CVd.shape != quantizer.codebooks_CVd.shape or self.table.manifest.embeddings != "content":
            # Rows of another space cannot be compared; only what the items say can.
            older_CVd = np.zeros_like(quantizer.codebooks_CVd)
        labels_CV = match_labels(codes_mC, quantizer.encode(vectors_nD[places]), quantizer.codebooks_CVd, older_CVd)
        return relabel(quantizer, labels_CV)

    def _known(self, store: EventStore, items_n: Items) -> tuple[Codes, Items]:
        """The quantiser's own codes [m, C] of those items that the table knows, and their places in `items_n`."""
        old_places, new_places = common_items(self.table.item_ids, store.item_ids.take(pa.array(items_n)))
        known_m = self.table.known_N[old_places]
        levels = self.table.quantizer.num_levels
        return self.table.codes_NC[old_places[known_m], :levels], new_places[known_m]

    def compared(self, store: EventStore, codes_NC: Codes) -> dict[str, Any]:
        """How many items have another tuple now, for the manifest: `refit` and `refit_figures`."""
        old_places, new_places = common_items(self.table.item_ids, store.item_ids)
        levels = min(self.table.num_levels, codes_NC.shape[1])
        figures = changed(self.table.codes_NC[old_places, :levels], codes_NC[new_places, :levels])
        return {"refit": [list(row) for row in changed_rows(figures)], "refit_figures": figures}


def check_shapes(old_CVd: Codebooks, new_CVd: Codebooks) -> None:
    """Levels and codes must agree; widths need not, since items are matched, not rows.

    Raises:
        InputError: they do not.
    """
    check_matchable(old_CVd, np.broadcast_to(np.float32(0), (*new_CVd.shape[:2], old_CVd.shape[2])))


def means_of_codes(codes_mC: Codes, vectors_mD: Vectors, codes: int, seed: int) -> Codebooks:
    """[C, V, D]: the mean of what vectors of each code leave over, a level after the other; random where none are."""
    generator = np.random.default_rng(derive_seed(seed, "start of a refit"))
    residual_mD, codebooks = vectors_mD.astype(np.float64), []
    for code_m in codes_mC.T:
        counts_V = np.bincount(code_m, minlength=codes)
        sums_VD = np.zeros((codes, residual_mD.shape[1]))
        np.add.at(sums_VD, code_m, residual_mD)
        means_VD = sums_VD / np.maximum(counts_V, 1)[:, None]
        empty = np.flatnonzero(counts_V == 0)
        if len(residual_mD):
            means_VD[empty] = residual_mD[generator.integers(len(residual_mD), size=len(empty))]
        codebooks.append(means_VD.astype(np.float32))
        residual_mD -= means_VD[code_m]
    return np.stack(codebooks)
