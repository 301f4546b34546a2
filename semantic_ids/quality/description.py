"""All that is told of a code table when it is made: figures for the manifest, a page, text for the terminal.

N items in the catalogue · C code levels · Q levels of the quantiser · V codes per level · d codebook width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.event_store import EventStore
from semantic_ids.codes.code_table_files import known_rows
from semantic_ids.codes.tuples import order_items
from semantic_ids.quality.diagnostics import diagnose, format_diagnostics, usage_curves
from semantic_ids.quality.report import page
from semantic_ids.quality.unknown import format_unknown, unknown_figures
from semantic_ids.quantizers.base import Codebooks, Codes


@dataclass(frozen=True)
class Description:
    """What was measured.

    Args:
        diagnostics: JSON-like, for the manifest.
        summary: the part of it that a command prints as its summary.
        page: HTML.
    """

    diagnostics: dict[str, Any]
    summary: dict[str, Any]
    page: str


def describe_table(
    store: EventStore,
    *,
    codes_NC: Codes,
    plays_N: npt.NDArray[np.int64],
    codebooks_CVd: Codebooks,
    quantizer: str,
    embeddings: str,
    errors_C: npt.NDArray[np.float64],
    errors_held_out_C: npt.NDArray[np.float64] | None,
    seed: int,
    more: dict[str, Any],
    title: str,
) -> Description:
    """Measure a table that is about to be written.

    Args:
        quantizer: its name.
        embeddings: kind of the vectors.
        errors_C: [Q] relative squared errors on vectors of the fit; none for plain item ids.
        errors_held_out_C: [Q] likewise on others.
        seed: of what is drawn.
        more: figures that only the caller knows, as `report.page` takes them: neighbour overlap, drift, refit.
    """
    codes = codebooks_CVd.shape[1]
    known_N = known_rows(codes_NC)
    known_nC = codes_NC[known_N]
    _, group_offsets = order_items(codes_NC, plays_N, codes)
    figures = diagnose(
        known_nC, np.diff(group_offsets), codes, errors_C, len(codes_NC), errors_held_out_C=errors_held_out_C
    )
    diagnostics = {
        **figures,
        "usage": usage_curves(known_nC, codes),
        "unknown": unknown_figures(store, known_N, seed=seed),
        **more,
    }
    known = int(known_N.sum())
    shown = {
        "counts": {"items": len(codes_NC), "known": known, "unknown": len(codes_NC) - known},
        "codes": codes,
        "dimensions": codebooks_CVd.shape[2],
        "quantizer": quantizer,
        "embeddings": embeddings,
        "store_fingerprint": store.fingerprint,
        "diagnostics": diagnostics,
    }
    summary = figures | {name: more[name] for name in ("neighbour_overlap", "moved") if name in more}
    return Description(diagnostics, summary, page(title, shown))


def format_description(described: Description, codes: int) -> str:
    """For the terminal."""
    lines = [format_diagnostics(described.diagnostics, codes)]
    overlap = described.diagnostics.get("neighbour_overlap")
    if overlap:
        lines.append(
            f"{overlap['overlap']:.1%} of an item's {overlap['k']} nearest of {overlap['database']:,} items are still"
            " among them after quantisation"
        )
    lines.append(format_unknown(described.diagnostics["unknown"]))
    return "\n".join(lines)
