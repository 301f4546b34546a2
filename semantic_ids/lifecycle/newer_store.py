"""A code table for a newer event store, by the quantiser of an older table, frozen.

Only content vectors can be coded so. The axes of collaborative and blended vectors are those of one factorisation of
one store's events: in a newer store the same item has another vector in another space, and old codebooks mean nothing
there. Such a table can be carried over only where nothing needs coding.

N items of the newer store · k items that are coded · n items that have a vector · C levels of the table · Q levels of
the quantiser · V codes per level · D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.progress import Progress
from data.event_store import EventStore
from data.training_events import training_events
from semantic_ids.codes.code_table import CodeTable, known_rows, write_code_table
from semantic_ids.codes.collisions import COLLISIONS, resolve
from semantic_ids.encoding import ERROR_SAMPLE, relative_errors
from semantic_ids.lifecycle.drift import ErrorSums, drift, drift_rows, format_drift
from semantic_ids.lifecycle.matching import common_items
from semantic_ids.quality.description import describe_table, format_description
from semantic_ids.quantizers.base import Codes, Quantizer
from semantic_ids.vectors.base import ItemVectors
from semantic_ids.vectors.content import ContentVectors

Indices = npt.NDArray[np.int64]

_BLOCK_BYTES = 2**24


class ChosenVectors(ItemVectors):
    """The vectors of some items of another source."""

    def __init__(self, vectors: ItemVectors, places_k: Indices) -> None:
        """Name their places in the other source, ascending."""
        self._vectors, self._places_k = vectors, places_k
        self.items_n = vectors.items_n[places_k]

    @property
    def width(self) -> int:
        """D."""
        return self._vectors.width

    def rows(self, places_m: Indices) -> npt.NDArray[np.float32]:
        """See `ItemVectors.rows`."""
        return self._vectors.rows(self._places_k[places_m])


@dataclass(frozen=True, eq=False)
class _New:
    """What came of the items that were not known before."""

    items_k: Indices
    codes_kC: Codes
    errors: ErrorSums


def encode_store(table: CodeTable, store: EventStore, out: Path) -> dict[str, Any]:
    """Code the items of `store`, write a code table of it, print how good it is and how far new items drifted.

    Raises:
        InputError: what the user can mend, found before anything is written.
    """
    quantizer, how = table.quantizer, _collisions(table)
    plays_N = training_events(store).plays_N
    codes_NC, new_N = _kept_codes(table, store)
    kept_N = known_rows(codes_NC)
    vectors = _content(table, store, plays_N, kept_N)
    new = _code_new(table, how, vectors, kept_N, plays_N)
    codes_NC[new.items_k] = new.codes_kC
    new_N[new.items_k] = True  # items that were unknown and have a vector now count as new ones
    levels = quantizer.num_levels
    drifted = drift(
        new.codes_kC[:, :levels],
        table.codes_NC[table.known_N, :levels],
        table.codes_per_level,
        errors=new.errors,
        diagnostics=table.manifest.diagnostics,
        num_new=int(new_N.sum()),
    )
    described = describe_table(
        store,
        codes_NC=codes_NC,
        plays_N=plays_N,
        codebooks_CVd=table.codebooks_CVd,
        quantizer=table.manifest.quantizer,
        embeddings=table.manifest.embeddings,
        errors_C=_errors(table, vectors, codes_NC),
        errors_held_out_C=None,
        seed=_seed(table),
        more={"drift": [list(row) for row in drift_rows(drifted)], "drift_figures": drifted},
        title=f"Semantic ids of {out.name}, by the quantiser of {table.fingerprint}",
    )
    written = write_code_table(
        out,
        store=store,
        embeddings=table.manifest.embeddings,
        quantizer=quantizer,
        codebooks_CVd=table.codebooks_CVd,
        settings={**table.manifest.settings, "encoded_from": table.fingerprint},
        codes_NC=codes_NC,
        training_plays_N=plays_N,
        diagnostics=described.diagnostics,
        report=described.page,
    )
    counts = {"kept": int(kept_N.sum()), "coded": len(new.items_k)}
    print(
        f"{out}: codes {written.fingerprint} of store {store.fingerprint}: {counts['kept']:,} items as in"
        f" {table.fingerprint}, {counts['coded']:,} coded by its quantiser, {written.manifest.counts['unknown']:,}"
        " unknown"
    )
    print(format_description(described, table.codes_per_level))
    print(format_drift(drifted))
    summary = {"out": str(out), "fingerprint": written.fingerprint, **counts, **written.manifest.counts}
    return {**summary, **described.summary, "drift": drifted}


def _seed(table: CodeTable) -> int:
    return int(table.manifest.settings.get("seed", 0))


def _collisions(table: CodeTable) -> str:
    """What the table does about items that share a tuple."""
    how = table.manifest.settings.get("collisions", "none")
    added = table.num_levels - table.quantizer.num_levels
    if how not in COLLISIONS or added != (how in ("extra-level", "random-level")):
        raise InputError(
            f"{table.path}: says collisions={how!r} and has {added} levels more than its quantiser, which do not go "
            "together; run semantic_ids.fit again"
        )
    return str(how)


def _kept_codes(table: CodeTable, store: EventStore) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """The table's tuples [N, C] in the order of the newer store, zeros where it has none; items [N] not in it."""
    codes_NC = np.zeros((store.num_items, table.num_levels), np.uint16)
    old_places, new_places = common_items(table.item_ids, store.item_ids)
    codes_NC[new_places] = table.codes_NC[old_places]
    new_N = np.ones(store.num_items, bool)
    new_N[new_places] = False
    return codes_NC, new_N


def _content(
    table: CodeTable, store: EventStore, plays_N: Indices, kept_N: npt.NDArray[np.bool_]
) -> ItemVectors | None:
    """The store's content vectors; None where there are none and none are needed."""
    kind = table.manifest.embeddings
    if kind != "content":
        has_vector_N = (plays_N > 0) | (np.diff(store.artist_offsets) > 0)
        if kind == "blended" and (content := store.embeddings()) is not None:
            has_vector_N[content[0]] = True
        waiting = int((has_vector_N & ~kept_N).sum())
        if waiting:
            raise InputError(
                f"{table.path}: was fitted to {kind} vectors, which exist in the space of one store alone, and "
                f"{waiting:,} items of {store.path} that it does not know would have such a vector: they cannot be "
                f"coded by it. Run semantic_ids.fit on {store.path} with refit_of={table.path}, which keeps labels "
                "where it can, or fit to content vectors"
            )
        return None
    if store.embeddings() is None:
        return None
    vectors = ContentVectors(store)
    if vectors.width != table.quantizer.vector_width:
        raise InputError(
            f"{store.path}: has content vectors of {vectors.width} numbers, and {table.path} codes vectors of "
            f"{table.quantizer.vector_width}; prepare the store with vectors from the same encoder, or fit anew"
        )
    vectors.check()
    return vectors


def _code_new(
    table: CodeTable, how: str, vectors: ItemVectors | None, kept_N: npt.NDArray[np.bool_], plays_N: Indices
) -> _New:
    places_k = np.zeros(0, np.int64) if vectors is None else np.flatnonzero(~kept_N[vectors.items_n])
    if vectors is None or not len(places_k):
        return _New(np.zeros(0, np.int64), np.zeros((0, table.num_levels), np.uint16), ErrorSums())
    chosen = ChosenVectors(vectors, places_k)
    own_kQ, errors = _quantise(table.quantizer, chosen)
    resolved = resolve(
        how,
        own_kQ,
        plays_N[chosen.items_n],
        table.quantizer,
        chosen,
        seed=_seed(table),
        # Of items that left the catalogue as well: a model has learnt what their tuples mean.
        fixed=table.codes_NC[table.known_N],
    )
    return _New(chosen.items_n, resolved.codes_nC, errors)


def _quantise(quantizer: Quantizer, vectors: ItemVectors) -> tuple[Codes, ErrorSums]:
    """The quantiser's own codes [n, Q] of all vectors, and how well they stand for them."""
    codes_nQ = np.empty((len(vectors), quantizer.num_levels), np.uint16)
    errors = ErrorSums()
    step = max(_BLOCK_BYTES // (4 * vectors.width), 1)
    with Progress("encode new items", len(vectors), "items") as progress:
        for begin in range(0, len(vectors), step):
            block_bD = vectors.block(begin, min(begin + step, len(vectors)))
            codes_bQ = quantizer.encode(block_bD)
            errors.add(block_bD, quantizer.reconstruct(codes_bQ))
            codes_nQ[begin : begin + step] = codes_bQ
            progress.advance(len(block_bD))
    return codes_nQ, errors


def _errors(table: CodeTable, vectors: ItemVectors | None, codes_NC: Codes) -> npt.NDArray[np.float64]:
    """Relative squared error [Q] of the tuples that items now have; the older table's where no vector is at hand."""
    levels = table.quantizer.num_levels
    if vectors is None:
        return np.array([row["relative_error"] for row in table.manifest.diagnostics["levels"][:levels]])
    places, sample_nD = vectors.sample(ERROR_SAMPLE, seed=0)
    codes_nQ = codes_NC[vectors.items_n[places], :levels]
    known_n = codes_nQ.any(axis=1)
    return relative_errors(table.quantizer, sample_nD[known_n], codes_nQ[known_n])
