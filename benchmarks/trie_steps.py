"""The prefix trie at the size of a catalogue: building it, and a step of constrained decoding beside the usual ways.

What `benchmarks.semantic_ids` calls: codes with the shape of a fitted catalogue's, and two measurements.

n items · C code levels · V codes per level · G tuples in use · M nodes of a level.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from common.memory import peak_bytes, resident_bytes
from common.seeding import derive_seed
from semantic_ids.codes.trie import CodeTrie, build_trie
from semantic_ids.codes.trie_steps import LogProbabilities, TrieSteps

Codes = npt.NDArray[np.uint16]

P = ParamSpec("P")
T = TypeVar("T")

SKEW = (0.5, 0.9, 0.9)
"""Of the first levels: the r-th most frequent code after a prefix has weight r^-skew. Later levels are uniform, as
residuals of residuals are."""

RELATED = 0.12
"""Share of items that begin as another item does: other releases and versions of a recording. To how many levels is
drawn evenly from 3 to C; so with eight levels one in six of them, 2 % of all, shares the whole tuple."""

SET_TUPLES = 500_000
"""Tuples whose prefixes the Python set holds: all of a large catalogue would take tens of GB."""
SET_BEAMS, SCAN_BEAMS = 20, 3
"""Beams of a level that the slow ways are timed on; a time per beam needs no more."""
BEAMS_PER_USER = 50
REPEATS = 7


def clustered_codes(n: int, C: int, V: int, seed: int) -> Codes:
    """Codes [n, C] as of a large music catalogue: uneven first levels, nearly unique prefixes from the fourth on.

    Which codes are frequent depends on the prefix. No row is all zero.
    """
    random = np.random.default_rng(derive_seed(seed, "clustered codes"))
    codes_nC = np.empty((n, C), np.uint16)
    prefix_n = np.zeros(n, np.uint64)
    for level in range(C):
        weights_V = np.arange(1, V + 1) ** -(SKEW[level] if level < len(SKEW) else 0.0)
        rank_n = np.searchsorted(np.cumsum(weights_V / weights_V.sum())[:-1], random.random(n, np.float32))
        # A prefix's number, well mixed, turns the ranks into codes of its own.
        codes_nC[:, level] = (rank_n + (prefix_n >> np.uint64(40)).astype(np.int64)) % V
        prefix_n = (prefix_n + codes_nC[:, level] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    related = random.random(n) < RELATED
    if related.any() and not related.all():
        originals = np.flatnonzero(~related)
        copies = np.flatnonzero(related)
        like = originals[random.integers(0, len(originals), len(copies))]
        shared = random.integers(min(3, C), C + 1, len(copies))
        for level in range(C):
            rows = copies[shared > level]
            codes_nC[rows, level] = codes_nC[like[shared > level], level]
    codes_nC[~codes_nC.any(axis=1), -1] = 1
    return codes_nC


# ── building ─────────────────────────────────────────────────────────────────────────────────────────────


def build_and_measure(codes_NC: Codes, plays_N: npt.NDArray[np.int64], V: int, folder: Path) -> dict[str, Any]:
    """Build, save into `folder`, open again.

    Returns:
        `trie_build_seconds`, of them `trie_build_cpu_seconds` at work; `trie_build_extra_bytes`, the largest resident
        set while building beyond what was resident before, the trie itself included; `trie_save_seconds`,
        `trie_open_seconds`, `trie_disk_bytes`; `trie_bytes_per_item`, on disk, and `trie_plain_bytes_per_item`, had
        every level plain offsets of 4 bytes a node; `trie_nodes` and `trie_forms` by level; `trie_shared_share`, of
        known items those beyond one a tuple.
    """
    resident = _reset_peak()
    cpu = time.process_time()
    seconds, trie = _timed(build_trie, codes_NC, plays_N, V)
    cpu = time.process_time() - cpu
    extra = peak_bytes() - resident
    save_seconds, _ = _timed(trie.save, folder)
    open_seconds, _ = _timed(CodeTrie.open, folder)
    disk = sum(file.stat().st_size for file in folder.iterdir())
    known = max(len(trie.leaf_items), 1)
    offsets = (*trie.child_offsets, trie.leaf_offsets)
    plain = disk + sum(4 * (each.rows + 1) - each.num_bytes for each in offsets)
    return {
        "trie_build_seconds": seconds,
        "trie_build_cpu_seconds": cpu,
        "trie_build_extra_bytes": extra,
        "trie_save_seconds": save_seconds,
        "trie_open_seconds": open_seconds,
        "trie_disk_bytes": disk,
        "trie_bytes_per_item": disk / known,
        "trie_plain_bytes_per_item": plain / known,
        "trie_nodes": [len(codes) for codes in trie.codes],
        "trie_forms": [each.form for each in offsets],
        "trie_shared_share": 1 - trie.num_leaves / known,
    }


def _reset_peak() -> int:
    """Bytes resident now, which Linux is asked to forget any former peak for."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak_bytes()  # a peak that cannot be forgotten is where the count begins
    return resident_bytes()


def _timed(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[float, T]:
    start = time.perf_counter()
    done = work(*args, **kwargs)
    return time.perf_counter() - start, done


# ── a step ───────────────────────────────────────────────────────────────────────────────────────────────


def measure_steps(trie: CodeTrie, beams: int = 1000, seed: int = 0) -> dict[str, Any]:
    """A step at every level from beams at prefixes of items drawn evenly, 50 beams a user (at the root, one).

    The trie's step finds the valid codes AND keeps the best 50 of each user; the other two only find the codes. The
    model's log-probabilities are there before the clock starts. Medians of 7 runs; of the slow ways, means over a few
    beams of each level: the set holds the prefixes of at most 500,000 tuples, which favours it (fewer cache misses),
    the scan reads all tuples.

    Returns:
        Microseconds a beam, averaged over levels: `trie_step_us_per_beam`, of these `trie_gather_us_per_beam` for
        finding codes and nodes alone, `prefix_set_us_per_beam`, `catalogue_scan_us_per_beam`;
        `trie_step_us_per_beam_by_level`; `prefix_set_tuples`; and how many times the trie is faster,
        `trie_over_set`, `trie_over_scan`.
    """
    random = np.random.default_rng(derive_seed(seed, "beams of the trie"))
    leaves = trie.leaf_offsets.rows_of(random.integers(0, len(trie.leaf_items), beams))
    prefixes = trie.tuples(leaves)
    step, gather = _trie_times(trie, prefixes, seed)
    members = random.choice(trie.num_leaves, min(SET_TUPLES, trie.num_leaves), replace=False)
    by_set = _set_times(trie.tuples(np.sort(members)), trie.codes_per_level, random)
    by_scan = _scan_times(trie, prefixes[:SCAN_BEAMS])
    trie_us, set_us, scan_us = (statistics.mean(times) * 1e6 for times in (step, by_set, by_scan))
    return {
        "trie_step_us_per_beam": trie_us,
        "trie_gather_us_per_beam": statistics.mean(gather) * 1e6,
        "prefix_set_us_per_beam": set_us,
        "catalogue_scan_us_per_beam": scan_us,
        "trie_step_us_per_beam_by_level": [round(seconds * 1e6, 3) for seconds in step],
        "prefix_set_tuples": len(members),
        "trie_over_set": set_us / trie_us,
        "trie_over_scan": scan_us / trie_us,
    }


def _trie_times(trie: CodeTrie, prefixes: Codes, seed: int) -> tuple[list[float], list[float]]:
    """Seconds a beam of a whole step, and of finding the continuations, by level."""
    steps = TrieSteps(trie)
    generator = torch.Generator().manual_seed(derive_seed(seed, "log-probabilities"))
    whole, gather = [], []
    for level in range(trie.num_levels):
        nodes = torch.from_numpy(trie.find(prefixes[:, :level]))
        width = min(BEAMS_PER_USER, len(nodes)) if level else 1
        nodes_Bb = nodes[: len(nodes) // width * width].view(-1, width).sort(dim=1).values
        logits = torch.randn(*nodes_Bb.shape, trie.codes_per_level, generator=generator)
        log_p_BbV, scores_Bb = logits.log_softmax(-1), torch.zeros(nodes_Bb.shape)
        step = _median(steps.best, level, nodes_Bb, scores_Bb, _copies_of(log_p_BbV.flatten(0, 1)), BEAMS_PER_USER)
        found = _median(steps.continuations, level, nodes_Bb.flatten(), log_p_BbV.flatten(0, 1))
        whole.append(step / nodes_Bb.numel())
        gather.append(found / nodes_Bb.numel())
    return whole, gather


def _copies_of(log_p_TV: torch.Tensor) -> LogProbabilities:
    """Copies, as a step may overwrite what it is given; so the time of a step has that of a copy in it."""
    return lambda first, stop: log_p_TV[first:stop].clone()


def _median(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    work(*args, **kwargs)  # once for memory that is not yet mapped
    return statistics.median(_timed(work, *args, **kwargs)[0] for _ in range(REPEATS))


def _set_times(tuples_GC: Codes, V: int, random: np.random.Generator) -> list[float]:
    """Seconds a beam, by level, of testing V continuations against a Python set of prefixes."""
    asked = random.choice(len(tuples_GC), min(SET_BEAMS, len(tuples_GC)), replace=False)
    times = []
    for level in range(tuples_GC.shape[1]):
        prefixes = set(map(tuple, tuples_GC[:, : level + 1].tolist()))
        beams = list(map(tuple, tuples_GC[asked, :level].tolist()))
        seconds, _ = _timed(_codes_in_set, prefixes, beams, V)
        times.append(seconds / len(beams))
    return times


def _codes_in_set(prefixes: set[tuple[int, ...]], beams: list[tuple[int, ...]], V: int) -> list[list[int]]:
    return [[code for code in range(V) if (*beam, code) in prefixes] for beam in beams]


def _scan_times(trie: CodeTrie, prefixes: Codes) -> list[float]:
    """Seconds a beam, by level, of comparing every tuple with the prefix; found must be what the trie finds."""
    tuples_GC = trie.tuples(np.arange(trie.num_leaves))
    steps = TrieSteps(trie)
    times = []
    for level in range(trie.num_levels):
        seconds, found = _timed(_codes_by_scan, tuples_GC, level, prefixes[:, :level])
        valid = steps.mask(level, torch.from_numpy(trie.find(prefixes[:, :level])))
        assert [codes.tolist() for codes in found] == [row.nonzero()[:, 0].tolist() for row in valid], level
        times.append(seconds / len(prefixes))
    return times


def _codes_by_scan(tuples_GC: Codes, level: int, beams: Codes) -> list[Codes]:
    return [np.unique(tuples_GC[(tuples_GC[:, :level] == beam).all(axis=1), level]) for beam in beams]
