"""How well codes use their room: numbers for the manifest, a table for the eye, and sentences that say what is wrong.

Utilisation alone hides the hourglass (arXiv 2407.21488), middle levels whose codes are all in use while a few hold most
items; hence entropy, Gini coefficient and the deviation of the counts beside it.

C code levels · Q levels of the quantiser, C or C - 1 · V codes per level · n known items · W words of a packed tuple.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HOURGLASS = 0.05
"""Of log₂ V: a middle level whose entropy is lower than the first's and the last's by more is a waist. At V = 1024 that
is half a bit, as much as 30% fewer codes in even use."""
DEAD_SHARE = 0.1
"""A level with a greater share of codes that nobody carries has too many of them."""
OVERFIT = 1.25
"""Held-out over fitted error of the last level: beyond it codebooks remember their sample."""
POOR_ERROR = 0.5
"""Relative error: beyond it codes leave out more of the vectors than they hold."""
STILL_FALLING = (0.1, 0.75)
"""More error left than the first, and less than the second of what the level before left: another level would help."""
SATURATED = 0.99
"""Share of the tuples that a shorter prefix tells apart already: the levels after it are hardly needed."""

_BLOCK = 1 << 20
_WORD_BITS = 64
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def diagnose(
    codes_nC: npt.NDArray[np.integer],
    group_sizes: Ints,
    codes: int,
    errors_C: Floats,
    num_items: int,
    *,
    errors_held_out_C: Floats | None = None,
) -> dict[str, Any]:
    """Figures of the known items' codes, JSON-like. Ten million tuples of eight codes take seconds.

    Args:
        codes_nC: codes of the known items.
        group_sizes: how many items share each tuple in use.
        codes: V.
        errors_C: [Q], relative squared reconstruction error after each level of the quantiser, on vectors of the fit;
            empty for plain item ids, which have no quantiser: an error of 0, and no findings.
        num_items: items in the catalogue, unknown ones too.
        errors_held_out_C: [Q], likewise, on vectors that the fit has not seen.

    Returns:
        `levels`: a dict a level, see `_level`. `unique_prefixes` of a level counts the distinct beginnings of tuples up
        to it, `error_decay` is the error over that of the level before. A level that the quantiser does not have adds
        nothing to a vector, so its error is that of the level before.
        `unique_tuples`, `collision_rate` (share of known items that share their tuple), `largest_group`,
        `group_histogram` (tuples, and items, by how many items share one), `unknown_share`, `known`, and `findings`:
        sentences on an hourglass and on codebooks that look too small or too large, none where nothing is amiss.
    """
    known, num_levels = codes_nC.shape
    assert num_levels - 1 <= len(errors_C) <= num_levels, (len(errors_C), num_levels)
    assert errors_held_out_C is None or len(errors_held_out_C) == len(errors_C)
    prefixes_C = unique_prefixes(codes_nC, codes)
    levels = []
    for level, (counts_V, prefixes) in enumerate(zip(code_counts(codes_nC, codes), prefixes_C.tolist(), strict=True)):
        errors = _level_errors(errors_C, level)
        if errors_held_out_C is not None and len(errors_held_out_C):
            errors["relative_error_held_out"] = float(errors_held_out_C[min(level, len(errors_C) - 1)])
        levels.append({**_level(counts_V, known), "unique_prefixes": int(prefixes), **errors})
    shared = int(group_sizes[group_sizes > 1].sum())
    figures: dict[str, Any] = {
        "levels": levels,
        "known": known,
        "unique_tuples": len(group_sizes),
        "collision_rate": shared / known if known else 0.0,
        "largest_group": int(group_sizes.max(initial=0)),
        "group_histogram": _group_histogram(group_sizes),
        "unknown_share": (num_items - known) / num_items if num_items else 0.0,
    }
    return {**figures, "findings": _findings(figures, codes, len(errors_C)) if known else []}


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────


def code_counts(codes_nC: npt.NDArray[np.integer], codes: int) -> Ints:
    """How many items carry each code of each level: int64 [C, V]."""
    counts_CV = np.zeros((codes_nC.shape[1], codes), np.int64)
    for begin in range(0, len(codes_nC), _BLOCK):
        for level, codes_b in enumerate(codes_nC[begin : begin + _BLOCK].T):
            counts_CV[level] += np.bincount(codes_b, minlength=codes)
    return counts_CV


def unique_prefixes(codes_nC: npt.NDArray[np.integer], codes: int) -> Ints:
    """How many distinct beginnings of 1 … C codes there are: int64 [C]."""
    known, num_levels = codes_nC.shape
    bits = max((codes - 1).bit_length(), 1)
    a_word = _WORD_BITS // bits
    words_Wn = [_pack(codes_nC[:, first : first + a_word], bits) for first in range(0, num_levels, a_word)]
    _sort_together(words_Wn)
    counts_C = np.full(num_levels, min(known, 1), np.int64)
    for begin in range(0, max(known - 1, 0), _BLOCK):
        end = min(begin + _BLOCK, known - 1)
        # Neighbours in order differ within a prefix exactly where a new one begins.
        differs = np.zeros(end - begin, bool)
        for word, first in zip(words_Wn, range(0, num_levels, a_word), strict=True):
            changed = word[begin + 1 : end + 1] ^ word[begin:end]
            here = min(a_word, num_levels - first)
            for level in range(here):
                shifted = changed >> np.uint64(bits * (here - 1 - level))
                counts_C[first + level] += np.count_nonzero(differs | (shifted != 0))
            differs |= changed != 0
    return counts_C


def _pack(codes_nl: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint64]:
    """Codes beside one another in a word, the first in the highest bits, so that words order as tuples do."""
    packed_n = np.zeros(len(codes_nl), np.uint64)
    for begin in range(0, len(codes_nl), _BLOCK):
        packed_b = packed_n[begin : begin + _BLOCK]
        for codes_b in codes_nl[begin : begin + _BLOCK].T:
            packed_b <<= np.uint64(bits)
            packed_b |= codes_b.astype(np.uint64)
    return packed_n


def _sort_together(words_Wn: list[npt.NDArray[np.uint64]]) -> None:
    """Sort tuples of words in place; one word alone needs no permutation, which is many times as fast."""
    if len(words_Wn) == 1:
        words_Wn[0].sort()
        return
    order = np.argsort(words_Wn[0])
    # Few tuples share their first word, so sorting by the others is left to those that do.
    same = words_Wn[0][order[1:]] == words_Wn[0][order[:-1]]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    order[tied] = order[tied][np.lexsort([word[order[tied]] for word in reversed(words_Wn)])]
    for index, word in enumerate(words_Wn):
        words_Wn[index] = word[order]


def usage_curves(codes_nC: npt.NDArray[np.integer], codes: int, points: int = 60) -> dict[str, Any]:
    """Share of the items on the most used code of each level, on the second, and so on, at log-spaced ranks.

    Returns:
        `ranks`: at most `points` whole numbers from 1 to V; `shares`: a list a level of as many, 0 for a dead code.
    """
    ranks = np.unique(np.rint(np.geomspace(1, codes, points)).astype(np.int64))
    falling_CV = np.sort(code_counts(codes_nC, codes), axis=1)[:, ::-1]
    return {"ranks": ranks.tolist(), "shares": (falling_CV[:, ranks - 1] / max(len(codes_nC), 1)).tolist()}


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────


def _level(counts_V: Ints, known: int) -> dict[str, Any]:
    """Of one level: how evenly its codes are used. All zeros, and every code dead, where no item is known."""
    codes = len(counts_V)
    rank_V = np.arange(1, codes + 1)
    rising_V = np.sort(counts_V)
    items = max(known, 1)
    share = counts_V[counts_V > 0] / items
    most_used = max(round(codes / 100), 1)
    deviation = float(counts_V.std())
    return {
        "utilisation": len(share) / codes,
        "dead_codes": codes - len(share),
        "entropy_bits": float(-(share * np.log2(share)).sum()) + 0.0,  # + 0.0: a single code in use gives -0.0
        "gini": float(((2 * rank_V - codes - 1) * rising_V).sum() / (codes * items)),
        "largest_code_share": int(rising_V[-1]) / items,
        "top_1_percent_share": int(rising_V[-most_used:].sum()) / items,
        "count_deviation": deviation,
        "count_deviation_relative": deviation * codes / items,
    }


def _level_errors(errors_Q: Floats, level: int) -> dict[str, Any]:
    if not len(errors_Q):
        return {"relative_error": 0.0, "error_decay": 0.0}
    error_of_level = [1.0, *errors_Q.tolist()]
    if level >= len(errors_Q):
        return {"relative_error": error_of_level[-1], "error_decay": 1.0}
    before, error = error_of_level[level : level + 2]
    # Nothing is left to fall where the level before left nothing.
    return {"relative_error": error, "error_decay": error / before if before > 0 else 0.0}


def _group_histogram(group_sizes: Ints) -> list[dict[str, int]]:
    """Tuples that 1, 2, 3–5, 6–10, 11–20, … items share, and their items; the last bin ends at the largest group."""
    largest = int(group_sizes.max(initial=0))
    bounds = [0, *itertools.takewhile(lambda step: step < largest, _STEPS), largest]
    if largest == 0:
        return []
    place = np.searchsorted(bounds, group_sizes) - 1
    tuples = np.bincount(place, minlength=len(bounds) - 1)
    items = np.bincount(place, weights=group_sizes, minlength=len(bounds) - 1)
    return [
        {"from": low + 1, "to": high, "tuples": int(tuples[index]), "items": int(items[index])}
        for index, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


# ── what they mean ───────────────────────────────────────────────────────────────────────────────────────


def _findings(figures: dict[str, Any], codes: int, num_quantised: int) -> list[str]:
    levels = figures["levels"][:num_quantised]
    return [*_hourglass(levels, codes), *_underfit(levels), *_oversized(levels, figures["unique_tuples"])]


def _hourglass(levels: Sequence[dict[str, Any]], codes: int) -> list[str]:
    """One sentence if the narrowest middle level lies below both ends by more than `HOURGLASS` · log₂ V bits."""
    entropies = [row["entropy_bits"] for row in levels]
    if len(entropies) < 3:
        return []
    waist = min(range(1, len(entropies) - 1), key=entropies.__getitem__)
    margin = HOURGLASS * float(np.log2(codes))
    if entropies[waist] >= min(entropies[0], entropies[-1]) - margin:
        return []
    return [
        f"Hourglass: level {waist + 1} has {entropies[waist]:.2f} bits of entropy, more than {margin:.2f} (5% of"
        f" log₂ V) below the first ({entropies[0]:.2f}) and the last ({entropies[-1]:.2f}): few of its codes hold most"
        " items, so predictions pass through a narrow waist."
    ]


def _underfit(levels: Sequence[dict[str, Any]]) -> list[str]:
    if not levels:
        return []
    error, decay = levels[-1]["relative_error"], levels[-1]["error_decay"]
    least, most = STILL_FALLING
    if error > POOR_ERROR:
        return [
            f"Codebooks look underfit: {error:.0%} of the squared vectors are left after the last level, more than"
            f" {POOR_ERROR:.0%}; more levels or more codes would tell items apart better."
        ]
    if error > least and decay < most:
        return [
            f"Codebooks look underfit: the last level still takes away {1 - decay:.0%} of the error before it (more"
            f" than {1 - most:.0%}), and {error:.0%} is left; one more level would help."
        ]
    return []


def _oversized(levels: Sequence[dict[str, Any]], unique_tuples: int) -> list[str]:
    sentences = []
    wasteful = [str(level) for level, row in enumerate(levels, start=1) if 1 - row["utilisation"] > DEAD_SHARE]
    if wasteful:
        sentences.append(
            f"Codebooks look oversized: more than {DEAD_SHARE:.0%} of the codes are carried by no item at"
            f" level{'s' if len(wasteful) > 1 else ''} {', '.join(wasteful)}; fewer codes would do."
        )
    fitted = levels[-1]["relative_error"] if levels else 0.0
    held_out = levels[-1].get("relative_error_held_out") if levels else None
    if held_out is not None and fitted > 0 and held_out > OVERFIT * fitted:
        sentences.append(
            f"Codebooks look oversized for their sample: vectors that the fit has not seen keep {held_out / fitted:.2f}"
            f" times the error of those it has (more than {OVERFIT}); fit on more vectors, or with fewer codes."
        )
    enough = [level for level, row in enumerate(levels, 1) if row["unique_prefixes"] >= SATURATED * unique_tuples]
    if unique_tuples > 1 and enough and enough[0] < len(levels):
        sentences.append(
            f"The first {enough[0]} of {len(levels)} levels already tell apart {SATURATED:.0%} of the tuples: the"
            " levels after them refine vectors, but hardly separate items."
        )
    return sentences


def format_diagnostics(figures: dict[str, Any], codes: int) -> str:
    """The figures as a table, one line a level, a line on the tuples, and the findings."""
    held_out = any("relative_error_held_out" in row for row in figures["levels"])
    lines = [
        "level   used   dead   entropy (bits)   gini   deviation   top 1%   largest code     prefixes   error left"
        "   of before" + ("   held out" if held_out else "")
    ]
    for level, row in enumerate(figures["levels"], start=1):
        entropy = f"{row['entropy_bits']:>5.2f} of {np.log2(codes):>5.2f}"
        last = f" {row['relative_error_held_out']:>10.4f}" if held_out else ""
        lines.append(
            f"{level:>5} {row['utilisation']:>6.1%} {row['dead_codes']:>6}   {entropy} {row['gini']:>6.3f}"
            f" {row['count_deviation_relative']:>10.2f}× {row['top_1_percent_share']:>8.2%}"
            f" {row['largest_code_share']:>14.2%} {row['unique_prefixes']:>12,} {row['relative_error']:>12.4f}"
            f" {row['error_decay']:>11.1%}{last}"
        )
    lines.append(
        f"{figures['unique_tuples']} distinct tuples; {figures['collision_rate']:.2%} of known items share theirs,"
        f" at most {figures['largest_group']} items one tuple; {figures['unknown_share']:.2%} of items are unknown"
    )
    return "\n".join([*lines, *figures["findings"]])
