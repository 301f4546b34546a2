"""Give every item of an event store its semantic id: vectors, quantiser, codes, code table, report.

python -m semantic_ids.fit store=stores/ml-100k out=codes/ml-100k levels=4 codes=256

Codebooks are fitted to a sample of the items that have a vector; then all of them are coded, part by part. A fit that
was killed goes on where it stopped when it is run again. With quantizer=item each item has a code of its own instead:
plain item ids. With refit_of=codes/older, codes keep the labels of an older table where they can.
"""

from __future__ import annotations

import common.startup  # noqa: F401  # isort: skip

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import run_entry
from data.event_store import EventStore
from data.training_events import training_events
from semantic_ids.codes.code_table import check_replaceable, write_code_table
from semantic_ids.codes.collisions import resolve
from semantic_ids.codes.item_ids import item_codes, random_codebook
from semantic_ids.config import PLAIN, FitIdsConfig
from semantic_ids.encoding import ERROR_SAMPLE, WorkFolder, relative_errors, work_folder
from semantic_ids.lifecycle.matching import format_changed
from semantic_ids.lifecycle.refit import OlderTable
from semantic_ids.quality.description import describe_table, format_description
from semantic_ids.quality.neighbours import DATABASE, NEIGHBOURS, QUERIES, neighbour_overlap
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer
from semantic_ids.quantizers.faiss_reference import FaissResidual, fit_faiss
from semantic_ids.quantizers.residual_kmeans import ResidualKMeans, fit_residual_kmeans
from semantic_ids.quantizers.rq_vae import RqVae
from semantic_ids.quantizers.rq_vae_training import fit_rq_vae
from semantic_ids.vectors.base import ItemVectors
from semantic_ids.vectors.choose import item_vectors

_KINDS: dict[str, type[Quantizer]] = {kind.name: kind for kind in (ResidualKMeans, RqVae, FaissResidual)}


@dataclass(frozen=True, eq=False)
class Coded:
    """Items and their codes.

    Args:
        kind: of the vectors: content, collaborative, blended, random.
        quantizer: None for plain item ids.
        codes_NC: the all-zero row of an unknown item.
        codebooks_CVd: of all levels.
        settings: what the codes depend on beside the store.
        diagnostics: what can be told of the quantiser alone.
    """

    kind: str
    quantizer: Quantizer | None
    codes_NC: Codes
    codebooks_CVd: Codebooks
    settings: dict[str, Any]
    diagnostics: dict[str, Any]
    errors_C: npt.NDArray[np.float64]
    errors_held_out_C: npt.NDArray[np.float64] | None = None


def fit(config: FitIdsConfig) -> dict[str, Any]:
    """Fit a code table, write it, print how good it is.

    Raises:
        InputError: what the user can mend, found before anything is written.
    """
    out = Path(config.out)
    check_replaceable(out)
    store = EventStore.open(Path(config.store))
    plays_N = training_events(store).plays_N
    if config.quantizer == PLAIN:
        return _write(out, store, _plain_ids(store, config), plays_N, config)
    older = None if config.refit_of is None else OlderTable(Path(config.refit_of), config.quantizer)
    vectors = item_vectors(store, config.embeddings, config.vectors)
    vectors.check()
    for said in vectors.notes():
        print(said)
    key = {**dataclasses.asdict(config), "store": store.fingerprint, "refit_of": older and older.fingerprint, "out": ""}
    with work_folder(out, key) as work:
        return _write(out, store, _quantise(store, vectors, plays_N, config, older, work), plays_N, config)


def _write(
    out: Path, store: EventStore, coded: Coded, plays_N: npt.NDArray[np.int64], config: FitIdsConfig
) -> dict[str, Any]:
    described = describe_table(
        store,
        codes_NC=coded.codes_NC,
        plays_N=plays_N,
        codebooks_CVd=coded.codebooks_CVd,
        quantizer=config.quantizer,
        embeddings=coded.kind,
        errors_C=coded.errors_C,
        errors_held_out_C=coded.errors_held_out_C,
        seed=config.seed,
        more=coded.diagnostics,
        title=f"Semantic ids of {out.name}",
    )
    table = write_code_table(
        out,
        store=store,
        embeddings=coded.kind,
        quantizer=coded.quantizer,
        codebooks_CVd=coded.codebooks_CVd,
        settings=coded.settings,
        codes_NC=coded.codes_NC,
        training_plays_N=plays_N,
        diagnostics=described.diagnostics,
        report=described.page,
    )
    print(
        f"{out}: codes {table.fingerprint} of store {store.fingerprint},"
        f" from {coded.kind} vectors of {table.manifest.dimensions} numbers; pictures in {out / 'report.html'}"
    )
    print(format_description(described, table.codes_per_level))
    if "refit_figures" in coded.diagnostics:
        print(format_changed(coded.diagnostics["refit_figures"]))
    return {
        "out": str(out),
        "fingerprint": table.fingerprint,
        "quantizer": config.quantizer,
        "embeddings": coded.kind,
        **table.manifest.counts,
        **described.summary,
    }


def _quantise(
    store: EventStore,
    vectors: ItemVectors,
    plays_N: npt.NDArray[np.int64],
    config: FitIdsConfig,
    older: OlderTable | None,
    work: WorkFolder,
) -> Coded:
    sample, held_out = _drawn(vectors, config)
    quantizer = work.quantizer(_KINDS[config.quantizer], lambda: _fitted(store, vectors, sample, config, older))
    own_nC = work.encode(quantizer, vectors)
    resolved = resolve(config.collisions, own_nC, plays_N[vectors.items_n], quantizer, vectors, seed=config.seed)
    codes_NC = np.zeros((store.num_items, len(resolved.codebooks_CVd)), np.uint16)
    codes_NC[vectors.items_n] = resolved.codes_nC
    levels = quantizer.num_levels
    errors_C, errors_held_out_C = (
        None if places is None else relative_errors(quantizer, vectors.rows(places), resolved.codes_nC[places, :levels])
        for places in (sample[:: max(1, len(sample) // ERROR_SAMPLE)], held_out)
    )
    assert errors_C is not None
    diagnostics: dict[str, Any] = {
        "neighbour_overlap": {
            "overlap": neighbour_overlap(vectors, quantizer, resolved.codes_nC[:, :levels], seed=config.seed),
            "queries": min(QUERIES, len(vectors)),
            "database": min(DATABASE, len(vectors)),
            "k": NEIGHBOURS,
        },
        "moved": resolved.moved,
    }
    if older is not None:
        diagnostics |= older.compared(store, codes_NC)
    return Coded(
        kind=vectors.kind,
        quantizer=quantizer,
        codes_NC=codes_NC,
        codebooks_CVd=resolved.codebooks_CVd,
        settings={**config.settings(), **vectors.settings()},
        diagnostics=diagnostics,
        errors_C=errors_C,
        errors_held_out_C=errors_held_out_C,
    )


def _drawn(vectors: ItemVectors, config: FitIdsConfig) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Places of the items that codebooks are fitted to, and of some that they are not: None where all are needed."""
    generator = np.random.default_rng([config.seed, len(vectors)])
    if len(vectors) <= config.sample:
        return np.arange(len(vectors)), None
    drawn = generator.choice(len(vectors), min(len(vectors), config.sample + ERROR_SAMPLE), replace=False)
    return np.sort(drawn[: config.sample]), np.sort(drawn[config.sample :])


def _fitted(
    store: EventStore,
    vectors: ItemVectors,
    sample: npt.NDArray[np.int64],
    config: FitIdsConfig,
    older: OlderTable | None,
) -> Quantizer:
    sample_nD, levels, codes, seed = vectors.rows(sample), config.quantised_levels, config.codes, config.seed
    items_n = vectors.items_n[sample]
    if config.quantizer == "rq-vae":
        quantizer: Quantizer = fit_rq_vae(sample_nD, levels=levels, codes=codes, config=config.rq_vae, seed=seed)
    else:
        keys = {"levels": levels, "codes": codes, "beam": config.beam, "iterations": config.iterations, "seed": seed}
        if config.quantizer == "faiss":
            quantizer = fit_faiss(sample_nD, **keys)
        else:
            start_CVd = None if older is None else older.start(store, items_n, sample_nD, vectors.kind, seed)
            quantizer = fit_residual_kmeans(sample_nD, **keys, start_CVd=start_CVd)
    return quantizer if older is None else older.keep_labels(quantizer, store, items_n, sample_nD)


def _plain_ids(store: EventStore, config: FitIdsConfig) -> Coded:
    codes_NC = item_codes(store.num_items)
    codebook = random_codebook(store.num_items, config.seed)
    return Coded("random", None, codes_NC, codebook, config.settings(), {}, np.zeros(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_entry("semantic_ids.fit", "fit_ids", FitIdsConfig, fit, argv)


if __name__ == "__main__":
    sys.exit(main())
