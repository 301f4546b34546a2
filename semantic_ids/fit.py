"""Give every item of an event store its semantic id: vectors, residual quantisation, code table.

python -m semantic_ids.fit store=stores/ml-100k out=codes/ml-100k levels=4 codes=256

With quantizer=item each item has a code of its own instead: plain item ids.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import REQUIRED, group, option, run_entry
from data.event_store import EventStore
from semantic_ids.codebook import Codebooks, Codes, check_replaceable, order_items, reserve_zero_tuple, write_code_table
from semantic_ids.diagnostics import diagnose, format_diagnostics
from semantic_ids.embeddings import EMBEDDINGS, CollaborativeConfig, TrainingEvents, item_vectors, training_events
from semantic_ids.item_ids import item_codes, random_codebook
from semantic_ids.residual_quantizer import check_codes_per_level, fit_residual_quantizer


@dataclass
class FitIdsConfig:
    """Section `fit_ids`."""

    store: str = option(REQUIRED, "folder of the event store")
    out: str = option(REQUIRED, "folder of the code table to write; a code table that stands there is replaced")
    quantizer: str = option(
        "residual-kmeans",
        "residual-kmeans: codes of similar items are alike; item: each item has a code of its own, one level, for "
        "small catalogues and comparisons (levels, codes, embeddings, beam and iterations then mean nothing)",
        choices=("residual-kmeans", "item"),
    )
    levels: int = option(8, "code levels C", minimum=1)
    codes: int = option(
        1024, "codes per level V, a power of two, at most the number of items that have a vector", minimum=2
    )
    embeddings: str = option(
        "auto", "item vectors; auto = content where the store has them, else collaborative", choices=EMBEDDINGS
    )
    collaborative: CollaborativeConfig = group(CollaborativeConfig, "how collaborative vectors are derived")
    beam: int = option(1, "partial codes kept in quantisation; 1 is greedy", minimum=1)
    iterations: int = option(25, "k-means iterations a level", minimum=1)
    seed: int = option(1, "seed of k-means")

    def __post_init__(self) -> None:
        """Refuse a number of codes that FAISS cannot pack into bits."""
        check_codes_per_level(self.codes)


def fit(config: FitIdsConfig) -> dict[str, Any]:
    """Fit a code table, write it, print how good it is.

    Raises:
        InputError: what the user can mend, found before anything is written.
    """
    out = Path(config.out)
    check_replaceable(out)
    store = EventStore.open(Path(config.store))
    events = training_events(store)
    coded = _plain_ids(store, config) if config.quantizer == "item" else _quantise(store, events, config)
    _, group_offsets = order_items(coded.codes_NC, events.plays_N, coded.codes_per_level)
    known_nC = coded.codes_NC[coded.codes_NC.any(axis=1)]
    diagnostics = diagnose(known_nC, np.diff(group_offsets), coded.codes_per_level, coded.errors_C, store.num_items)
    table = write_code_table(
        out,
        store_fingerprint=store.fingerprint,
        embeddings=coded.kind,
        settings=_settings(config, coded.kind),
        codes_NC=coded.codes_NC,
        codebooks_CVd=coded.codebooks_CVd,
        training_plays_N=events.plays_N,
        diagnostics=diagnostics,
    )
    print(
        f"{out}: codes {table.fingerprint} of store {store.fingerprint},"
        f" from {coded.kind} vectors of {table.manifest.dimensions} numbers"
    )
    print(format_diagnostics(diagnostics, coded.codes_per_level))
    return {
        "out": str(out),
        "fingerprint": table.fingerprint,
        "embeddings": coded.kind,
        **table.manifest.counts,
        **diagnostics,
    }


@dataclass(frozen=True, eq=False)
class Coded:
    """Items and their codes.

    Args:
        kind: of the vectors: content, collaborative, random.
        codes_NC: the all-zero row of an unknown item.
        codebooks_CVd: what decodes them.
        errors_C: relative squared error after each level.
    """

    kind: str
    codes_NC: Codes
    codebooks_CVd: Codebooks
    errors_C: npt.NDArray[np.float64]

    @property
    def codes_per_level(self) -> int:
        """V."""
        return int(self.codebooks_CVd.shape[1])


def _quantise(store: EventStore, events: TrainingEvents, config: FitIdsConfig) -> Coded:
    vectors = item_vectors(store, config.embeddings, events, config.collaborative)
    quantizer = fit_residual_quantizer(
        vectors.vectors_nd,
        levels=config.levels,
        codes=config.codes,
        beam=config.beam,
        iterations=config.iterations,
        seed=config.seed,
    )
    raw_nC = quantizer.encode(vectors.vectors_nd)
    errors_C = quantizer.relative_errors(vectors.vectors_nd, raw_nC)
    codes_nC, codebooks_CVd = reserve_zero_tuple(raw_nC, quantizer.codebooks_CVd)
    codes_NC = np.zeros((store.num_items, config.levels), np.int64)
    codes_NC[vectors.items_n] = codes_nC
    return Coded(vectors.kind, codes_NC, codebooks_CVd, errors_C)


def _plain_ids(store: EventStore, config: FitIdsConfig) -> Coded:
    codes_NC = item_codes(store.num_items)
    return Coded("random", codes_NC, random_codebook(store.num_items, config.seed), np.zeros(1))


def _settings(config: FitIdsConfig, kind: str) -> dict[str, Any]:
    """What the codes depend on beside the store; paths are left out, so that a moved table keeps its fingerprint."""
    if config.quantizer == "item":
        return {"quantizer": "item", "seed": config.seed}
    settings: dict[str, Any] = {"beam": config.beam, "iterations": config.iterations, "seed": config.seed}
    if kind == "collaborative":
        settings["collaborative"] = dataclasses.asdict(config.collaborative)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_entry("semantic_ids.fit", "fit_ids", FitIdsConfig, fit, argv)


if __name__ == "__main__":
    sys.exit(main())
