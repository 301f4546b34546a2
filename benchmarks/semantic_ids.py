"""Semantic ids beside FAISS, and at the size of a large catalogue.

    python -m benchmarks.semantic_ids [--quick]

Fitting and encoding 8 × 1024 codes of 128-wide clustered vectors, ours and FAISS's `ResidualQuantizer` in one run on
the same threads, FAISS set to its best: plain k-means (`train_type=0`), beam 1. Then a made-up catalogue of which 9.4
million items have a vector: the commands that users run, their time and memory, and the trie.

n vectors · D width · C levels · V codes a level · T turns · Q quantisers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import Findings, measure, run, table
from benchmarks.made_up_catalogue import write_store, write_vectors
from benchmarks.trie_steps import build_and_measure, clustered_codes, measure_steps
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.quantizers.base import Quantizer
from semantic_ids.quantizers.faiss_reference import FaissResidual, fit_faiss
from semantic_ids.quantizers.residual_kmeans import ResidualKMeans, fit_residual_kmeans

THREADS = 2
LEVELS, CODES, WIDTH = 8, 1024, 128
ITERATIONS = 10
"""Of both: FAISS's own default within a residual quantiser, and ours."""
SPREADS = (0.3, 0.6)
"""Of vectors around their cluster's centre, of the distance of centres from one another."""
BEAM = 4
QUICK_VECTORS, QUICK_ITEMS = 40_000, 1_000_000
"""Of a quick run: vectors to fit to, and tuples of the trie."""
ITEMS = 11_460_000
"""Of the made-up catalogue; 82% have a vector, as in Yambda: 9.4 million."""

Vectors = npt.NDArray[np.float32]


def clustered_vectors(n: int, spread: float, seed: int) -> Vectors:
    """2,000 Gaussian clusters with a decaying spectrum: the i-th direction has a standard deviation of i^-½."""
    centres_random, random = np.random.default_rng(7), np.random.default_rng(seed)
    spectrum_D = np.arange(1, WIDTH + 1) ** -0.5
    centres_kD = centres_random.standard_normal((2000, WIDTH)) * spectrum_D
    noise_nD = spread * random.standard_normal((n, WIDTH)) * spectrum_D
    return (centres_kD[random.integers(len(centres_kD), size=n)] + noise_nD).astype(np.float32)


def work(quick: bool, folder: Path, findings: Findings) -> None:
    """All of it."""
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    if quick:
        compare(QUICK_VECTORS, levels=4, spreads=SPREADS[:1], turns=3, findings=findings)
    else:
        compare(100_000, levels=LEVELS, spreads=SPREADS, turns=7, findings=findings)
    if quick:
        codes_nC = clustered_codes(QUICK_ITEMS, LEVELS, CODES, seed=0)
        measure_trie(codes_nC, np.zeros(len(codes_nC), np.int64), "made up to resemble a catalogue's", folder, findings)
    else:
        measure_catalogue(folder, findings)


# ── beside FAISS ─────────────────────────────────────────────────────────────────────────────────────────


def compare(n: int, levels: int, spreads: tuple[float, ...], turns: int, findings: Findings) -> None:
    """Fit and encode with both."""
    rows, kept = [], []
    for spread in spreads:
        vectors, unseen = clustered_vectors(n, spread, seed=1), clustered_vectors(n // 5, spread, seed=2)
        keys: dict[str, Any] = {"levels": levels, "codes": CODES, "beam": 1, "iterations": ITERATIONS, "seed": 1}
        fits: dict[str, Callable[..., Quantizer]] = {"FAISS": fit_faiss, "ours": fit_residual_kmeans}
        seconds, quantizers = {}, {}
        for name, fit in fits.items():
            seconds[name], quantizers[name] = _timed(fit, vectors, **keys)
        errors = {
            name: [_error(quantizer, given) for given in (vectors, unseen)] for name, quantizer in quantizers.items()
        }
        rates, faster = _rates(quantizers["ours"].codebooks_CVd, vectors, turns)
        kept.append(
            {
                "fit_speedup_vs_faiss": seconds["FAISS"] / seconds["ours"],
                "encode_speedup_vs_faiss": faster[1],
                "beam_speedup_vs_faiss": faster[BEAM],
                "error_ratio_vs_faiss": max(
                    ours / theirs for ours, theirs in zip(errors["ours"], errors["FAISS"], strict=True)
                ),
                "encode_vectors_per_s": rates["ours", 1],
            }
        )
        for name in fits:
            rows.append(
                [spread, name, f"{seconds[name]:.1f}", f"{rates[name, 1]:,.0f}", f"{rates[name, BEAM]:,.0f}"]
                + [f"{error:.4f}" for error in errors[name]]
            )
    limits = _limits(levels)
    figures = {name: (max if name == "error_ratio_vs_faiss" else min)(one[name] for one in kept) for name in kept[0]}
    header = ["spread", "quantiser", "fit, s", "greedy, vectors/s", f"beam {BEAM}, vectors/s", "error", "error, unseen"]
    findings.add(
        f"Beside FAISS: {n:,} × {WIDTH}, {levels} × {CODES}",
        table(header, rows)
        + "\n\nErrors are Σ‖x - x̂‖² / Σ‖x‖², greedy. The figures are those of the worse spread, the error ratio of the "
        f"worse of seen and unseen vectors. Rates are medians of {turns} turns, the same codebooks in both, and both "
        "give the same tuples but where float32 cannot tell two apart. The products alone, "
        f"{levels} × {CODES} × {WIDTH} multiply-adds a vector, would allow {limits[torch.float32]:,.0f} vectors/s in "
        f"float32 and {limits[torch.bfloat16]:,.0f} in bfloat16 on {THREADS} threads.",
        **figures,
        share_of_float32_limit=figures["encode_vectors_per_s"] / limits[torch.float32],
        share_of_bf16_limit=figures["encode_vectors_per_s"] / limits[torch.bfloat16],
    )


def _timed(action: Callable[..., Any], *args: Any, **keys: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = action(*args, **keys)
    return time.perf_counter() - start, result


def _error(quantizer: Quantizer, vectors: Vectors) -> float:
    lost = vectors - quantizer.reconstruct(quantizer.encode(vectors))
    return float(np.square(lost, dtype=np.float64).sum() / np.square(vectors, dtype=np.float64).sum())


def _rates(
    codebooks: npt.NDArray[np.float32], vectors: Vectors, turns: int
) -> tuple[dict[tuple[str, int], float], dict[int, float]]:
    """Vectors coded a second, by whom and beam, and how many times ours is faster, by beam; medians over turns.

    Turn by turn, and compared within a turn: what else runs on the machine slows both.
    """
    rates: dict[tuple[str, int], float] = {}
    faster: dict[int, float] = {}
    for beam in (1, BEAM):
        part = vectors[: 40_000 // beam]
        coders = [FaissResidual(codebooks, beam=beam), ResidualKMeans(codebooks, beam=beam)]
        rates_TQ = np.array([[len(part) / _timed(coder.encode, part)[0] for coder in coders] for _ in range(turns)])
        rates["FAISS", beam], rates["ours", beam] = np.median(rates_TQ, axis=0).tolist()
        faster[beam] = float(np.median(rates_TQ[:, 1] / rates_TQ[:, 0]))
    return rates, faster


def _limits(levels: int) -> dict[torch.dtype, float]:
    """Vectors a second that products in this precision would allow, were there nothing else to do."""
    limits = {}
    for dtype in (torch.float32, torch.bfloat16):
        vectors, rows = torch.randn(2048, WIDTH).to(dtype), torch.randn(CODES, WIDTH).to(dtype)
        seconds = min(_timed(torch.mm, vectors, rows.T)[0] for _ in range(50))
        limits[dtype] = len(vectors) / seconds / levels
    return limits


# ── a large catalogue ────────────────────────────────────────────────────────────────────────────────────


def measure_catalogue(folder: Path, findings: Findings) -> None:
    """The commands, on a made-up catalogue."""
    vectors, store, codes = folder / "vectors.parquet", folder / "store", folder / "codes"
    write_store(store, ITEMS, WIDTH)
    write_vectors(vectors, ITEMS, WIDTH)
    commands = {
        "semantic_ids.fit": [f"store={store}", f"out={codes}"],
        "semantic_ids.encode": [f"codes={codes}", f"vectors={vectors}", f"out={folder / 'encoded'}"],
    }
    rows, measured = [], {}
    for entry, keys in commands.items():
        measured[entry] = measure(["-m", entry, *keys])
        rows.append([entry, f"{measured[entry].seconds:.0f}", f"{measured[entry].peak_gb:.2f}"])
    fitted, encoded = measured["semantic_ids.fit"].summary, measured["semantic_ids.encode"].summary
    rate = encoded["known"] / measured["semantic_ids.encode"].seconds
    size = sum(file.stat().st_size for file in codes.rglob("*") if file.is_file())
    findings.add(
        f"A catalogue of {fitted['items']:,} items, {fitted['known']:,} with a vector of {WIDTH} numbers",
        table(["command", "seconds", "peak memory, GB"], rows)
        + f"\n\nThe code table takes {size / fitted['items']:.1f} bytes an item on disk, ids and trie included. "
        f"`semantic_ids.fit` fits to a sample, codes all items, and measures: {fitted['unique_tuples']:,} distinct "
        f"tuples, {fitted['collision_rate']:.2%} of known items share theirs, at most {fitted['largest_group']} one "
        f"tuple; squared error left {fitted['levels'][-1]['relative_error']:.4f}. `semantic_ids.encode` codes the "
        f"vectors again, from Parquet to Parquet: {rate:,.0f} vectors/s from start to end.",
        catalogue_fit_seconds=measured["semantic_ids.fit"].seconds,
        catalogue_fit_peak_gb=measured["semantic_ids.fit"].peak_gb,
        catalogue_encode_vectors_per_s=rate,
        catalogue_encode_peak_gb=measured["semantic_ids.encode"].peak_gb,
    )
    opened = CodeTable.open_alone(codes)
    measure_trie(opened.codes_NC, opened.training_plays_N, "those of the catalogue above", folder, findings)


def measure_trie(
    codes_NC: npt.NDArray[np.uint16], plays_N: npt.NDArray[np.int64], which: str, folder: Path, findings: Findings
) -> None:
    """Build it, take steps in it."""
    known = int(codes_NC.any(axis=1).sum())
    built = build_and_measure(codes_NC, plays_N, CODES, folder / "trie")
    steps = measure_steps(CodeTrie.open(folder / "trie"))
    by_level = ", ".join(f"{micros:.2g}" for micros in steps["trie_step_us_per_beam_by_level"])
    rows = [
        ["trie, whole step", f"{steps['trie_step_us_per_beam']:.1f}"],
        ["of which codes and nodes", f"{steps['trie_gather_us_per_beam']:.1f}"],
        ["Python set of prefixes, codes alone", f"{steps['prefix_set_us_per_beam']:.0f}"],
        ["scan of the catalogue, codes alone", f"{steps['catalogue_scan_us_per_beam']:,.0f}"],
    ]
    findings.add(
        f"Prefix trie of {known:,} items",
        table(["a step from 1,000 beams", "µs a beam, mean over levels"], rows)
        + f"\n\nCodes: {which}. Built in {built['trie_build_seconds']:.1f} s with "
        f"{built['trie_build_extra_bytes'] / 1e6:.0f} MB beyond the codes, {built['trie_disk_bytes'] / 1e6:.0f} MB on "
        f"disk, opened in {1e3 * built['trie_open_seconds']:.0f} ms. Nodes by level: "
        f"{', '.join(f'{n:,}' for n in built['trie_nodes'])}. A whole step "
        f"keeps the best 50 of each user; by level, from the root on, it takes {by_level} µs a beam: the first levels"
        f" have up to {CODES:,} children a node. The set holds the prefixes of "
        f"{steps['prefix_set_tuples']:,} tuples only and is timed on a few beams, which favours it.",
        trie_step_us_per_beam=steps["trie_step_us_per_beam"],
        trie_bytes_per_item=built["trie_bytes_per_item"],
        trie_build_seconds=built["trie_build_seconds"],
        trie_over_set=steps["trie_over_set"],
        trie_over_scan=steps["trie_over_scan"],
    )


def main() -> int:
    """Entry point."""
    return run("semantic_ids", work)


if __name__ == "__main__":
    sys.exit(main())
