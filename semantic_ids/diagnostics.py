"""How well codes use their room: numbers for the manifest, a table for the eye.

Utilisation alone hides the hourglass (arXiv 2407.21488), middle levels whose codes are all in use while a few hold most
items; hence entropy and Gini coefficient beside it.

C code levels · V codes per level · n known items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def diagnose(
    codes_nC: npt.NDArray[np.int64],
    group_sizes: npt.NDArray[np.int64],
    codes: int,
    errors_C: npt.NDArray[np.float64],
    num_items: int,
) -> dict[str, Any]:
    """Figures of the known items' codes, JSON-like.

    Args:
        codes_nC: codes of the known items.
        group_sizes: how many items share each tuple in use.
        errors_C: relative squared reconstruction error after each level.
        num_items: items in the catalogue, unknown ones too.
    """
    known = len(codes_nC)
    return {
        "levels": [_diagnose_level(codes_nC[:, level], codes, float(error)) for level, error in enumerate(errors_C)],
        "unique_tuples": len(group_sizes),
        "collision_rate": float(group_sizes[group_sizes > 1].sum() / known),
        "largest_group": int(group_sizes.max()),
        "unknown_share": (num_items - known) / num_items,
    }


def _diagnose_level(codes_n: npt.NDArray[np.int64], codes: int, error: float) -> dict[str, Any]:
    counts_V = np.bincount(codes_n, minlength=codes)
    share = counts_V[counts_V > 0] / len(codes_n)
    rank_V = np.arange(1, codes + 1)
    return {
        "utilisation": len(share) / codes,
        "dead_codes": codes - len(share),
        "entropy_bits": float(-(share * np.log2(share)).sum()) + 0.0,  # + 0.0: a single code in use gives -0.0
        "gini": float(((2 * rank_V - codes - 1) * np.sort(counts_V)).sum() / (codes * len(codes_n))),
        "largest_code_share": float(share.max()),
        "relative_error": error,
    }


def format_diagnostics(figures: dict[str, Any], codes: int) -> str:
    """The figures as a table, one line a level, and a line on the tuples."""
    lines = ["level   used   dead   entropy (bits)   gini   largest code   squared error left"]
    for level, row in enumerate(figures["levels"], start=1):
        entropy = f"{row['entropy_bits']:>5.2f} of {np.log2(codes):>5.2f}"
        lines.append(
            f"{level:>5} {row['utilisation']:>6.1%} {row['dead_codes']:>6}   {entropy} {row['gini']:>6.3f}"
            f" {row['largest_code_share']:>14.2%} {row['relative_error']:>20.4f}"
        )
    lines.append(
        f"{figures['unique_tuples']} distinct tuples; {figures['collision_rate']:.2%} of known items share theirs,"
        f" at most {figures['largest_group']} items one tuple; {figures['unknown_share']:.2%} of items are unknown"
    )
    return "\n".join(lines)
