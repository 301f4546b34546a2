"""Whether new items still look like those that a quantiser was fitted to, or a refit is due.

A frozen quantiser codes whatever it is given. When a catalogue moves away from the one of the fit, new items are
approximated worse, crowd on few codes or land on codes that no model has learnt from. Each figure here is set beside
the same figure of the table's own items, and beside what sampling alone would give at so few new items, so that a small
batch does not cry wolf: a threshold counts as passed only where chance does not explain the excess.

- Error: Σ‖x - x̂‖² / Σ‖x‖² of the new items over that of the fit (held-out vectors where the table has them, since
  vectors of the fit are coded a little better than any later ones).
- Divergence of a level: Jensen–Shannon, in bits, between the codes of the new items and of the table's, both halves
  weighing one half; 0 = alike, 1 = nothing in common. What sampling alone gives is found by permutation: both sets are
  put together and as many items as are new are drawn from them without replacement, some hundred times.
- Rare codes of a level: those that fewer than `RARE` of an even share of the table's items carry, dead ones included.
- Collisions: new items whose tuple an item of the table has.

All codes are those of the tables on the quantiser's own levels: where tuples were re-assigned, that is so on both
sides, and a level that only tells items apart says nothing of drift.

C levels of the quantiser · V codes per level · k new items with codes · m known items of the table · S drawings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.seeding import derive_seed
from semantic_ids.codes.tuples import order_items
from semantic_ids.quantizers.base import Codes

Counts = npt.NDArray[np.int64]

ERROR_RATIO = 1.25
"""Over the fit's error. A level of a usual fit takes away a quarter to a half of the error before it: a quarter more
error is about what leaving out the last level would do."""
DIVERGENCE_BITS = 0.1
"""Above sampling, at the first level. Two halves of one catalogue have none; 0.1 bit is what it gives when a
fifth of the items move from all codes alike to codes of their own: coarse groups are no longer those of the fit."""
DEEPER_DIVERGENCE_BITS = 0.2
"""Likewise at later levels, which code what the levels before left over: there shares move more for less reason."""
RARE = 0.1
"""Of an even share: a code so rare in the table has had little to learn from."""
RARE_SHARE = 0.05
"""New items on rare codes of a level, above the table's own share: one item in twenty."""
COLLISION_SHARE = 0.1
"""New items that share a tuple with the table, above the rate within the table: they are told apart worse than the
items of the fit, one in ten more."""
UNKNOWN_SHARE = 0.1
"""New items without codes, above the table's own share. It asks for vectors, not for a refit."""
LEAST_ITEMS = 100
"""New items with codes, below which nothing is advised."""
STANDARD_ERRORS = 2.0
"""By how many a share or an error must pass its threshold."""

_MOST_DRAWINGS = 200
_DRAWN_NUMBERS = 2**20
"""Drawings times codes: with many codes a divergence is a sum of many terms and varies little, so fewer will do."""


@dataclass
class ErrorSums:
    """Relative squared error of vectors and their approximations, gathered block by block."""

    count: int = 0
    error: float = 0.0
    norm: float = 0.0
    _error_squared: float = 0.0
    _norm_squared: float = 0.0
    _product: float = 0.0

    def add(self, vectors_nD: npt.NDArray[np.float32], approximate_nD: npt.NDArray[np.float32]) -> None:
        """Count a block of vectors [n, D] and what their codes stand for."""
        vectors = vectors_nD.astype(np.float64)
        errors_n = np.square(vectors - approximate_nD).sum(axis=1)
        norms_n = np.square(vectors).sum(axis=1)
        self.count += len(vectors)
        self.error += float(errors_n.sum())
        self.norm += float(norms_n.sum())
        self._error_squared += float(errors_n @ errors_n)
        self._norm_squared += float(norms_n @ norms_n)
        self._product += float(errors_n @ norms_n)

    @property
    def relative(self) -> float:
        """Σ‖x - x̂‖² / Σ‖x‖²; 0 of nothing."""
        return self.error / self.norm if self.norm > 0 else 0.0

    @property
    def standard_error(self) -> float:
        """Of `relative`, as a ratio of two sums over items drawn at random (linearised); 0 below two vectors."""
        if self.count < 2 or self.norm == 0:
            return 0.0
        ratio = self.relative
        squares = self._error_squared - 2 * ratio * self._product + ratio * ratio * self._norm_squared
        return float(np.sqrt(max(squares, 0.0) * self.count / (self.count - 1)) / self.norm)


def drift(
    new_codes_kC: Codes,
    table_codes_mC: Codes,
    codes: int,
    *,
    errors: ErrorSums,
    diagnostics: dict[str, Any],
    num_new: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of the new items against the table, JSON-like, with a verdict.

    Args:
        new_codes_kC: tuples of the new items that have one, on the quantiser's own levels.
        table_codes_mC: likewise, of the known items of the table.
        codes: V.
        errors: of the new items' vectors.
        diagnostics: the table's, from its manifest (`diagnose`).
        num_new: new items, unknown ones too.
        seed: of the drawings that tell what sampling gives.

    Returns:
        `new_items`, `coded`; `unknown_share`; `relative_error` with `relative_error_deviation` (its standard error) and
        `error_ratio` (null where the fit left no error, or none is known); `levels`: `divergence_bits`,
        `expected_bits` and `highest_bits` by sampling alone, `rare_share`; `collision_rate`; each with the table's own
        figure as `table_…`; `findings`, what passed its threshold; `advice` on what a refit would not mend; `verdict`.
    """
    num_levels = table_codes_mC.shape[1]
    fit_error = _fit_error(diagnostics, num_levels)
    collisions, table_collisions = _collision_rates(new_codes_kC, table_codes_mC, codes)
    figures: dict[str, Any] = {
        "new_items": num_new,
        "coded": len(new_codes_kC),
        "unknown_share": 1 - len(new_codes_kC) / num_new if num_new else 0.0,
        "table_unknown_share": float(diagnostics.get("unknown_share", 0.0)),
        "relative_error": errors.relative,
        "relative_error_deviation": errors.standard_error,
        "table_relative_error": fit_error,
        "error_ratio": errors.relative / fit_error if fit_error else None,
        "levels": [
            _level(new_codes_kC[:, level], table_codes_mC[:, level], codes, derive_seed(seed, "drift", level))
            for level in range(num_levels)
        ],
        "collision_rate": collisions,
        "table_collision_rate": table_collisions,
    }
    findings = _findings(figures)
    return {**figures, "findings": findings, "advice": _advice(figures), "verdict": _verdict(figures, findings)}


def _fit_error(diagnostics: dict[str, Any], num_levels: int) -> float | None:
    before = diagnostics.get("drift_figures", {}).get("table_relative_error")
    if before is not None:  # a table that was itself made by encoding: the error of the fit is handed on
        return float(before)
    levels = diagnostics.get("levels", [])
    if len(levels) < num_levels:
        return None
    last = levels[num_levels - 1]
    error = last.get("relative_error_held_out", last.get("relative_error"))
    return None if error is None else float(error)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────


def _level(
    new_k: npt.NDArray[np.uint16], table_m: npt.NDArray[np.uint16], codes: int, seed: int
) -> dict[str, float | int]:
    new_V, table_V = np.bincount(new_k, minlength=codes), np.bincount(table_m, minlength=codes)
    by_chance_S = divergence_by_chance(new_V, table_V, seed)
    rare_V = table_V < RARE * len(table_m) / codes
    return {
        "divergence_bits": float(divergence_bits(new_V, table_V)),
        "expected_bits": float(by_chance_S.mean()),
        "highest_bits": float(by_chance_S.max()),
        "dead_share": _share(int(new_V[table_V == 0].sum()), len(new_k)),
        "rare_share": _share(int(new_V[rare_V].sum()), len(new_k)),
        "table_rare_share": _share(int(table_V[rare_V].sum()), len(table_m)),
    }


def divergence_bits(new_xV: Counts, table_xV: Counts) -> npt.NDArray[np.float64]:
    """Jensen–Shannon divergence [...] in bits of two sets of counts [..., V]; 0 where one of them is empty."""
    p, q = (counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1) for counts in (new_xV, table_xV))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = [np.where(side > 0, side * np.log2(side / middle), 0.0).sum(axis=-1) for side in (p, q)]
    empty = (new_xV.sum(axis=-1) == 0) | (table_xV.sum(axis=-1) == 0)
    return np.asarray(np.where(empty, 0.0, np.clip((bits[0] + bits[1]) / 2, 0.0, 1.0)))


def divergence_by_chance(new_V: Counts, table_V: Counts, seed: int) -> npt.NDArray[np.float64]:
    """Divergences [S] when as many items as are new are drawn from all items together: what sampling alone gives."""
    drawings = int(np.clip(_DRAWN_NUMBERS // len(new_V), 8, _MOST_DRAWINGS))
    together_V = new_V + table_V
    generator = np.random.default_rng(seed)
    drawn_SV = generator.multivariate_hypergeometric(together_V, int(new_V.sum()), size=drawings, method="marginals")
    return divergence_bits(drawn_SV, together_V - drawn_SV)


def _collision_rates(new_codes_kC: Codes, table_codes_mC: Codes, codes: int) -> tuple[float, float]:
    """Share of the new items whose tuple an item of the table has; share of the table's that another one has."""
    together_xC = np.concatenate([table_codes_mC, new_codes_kC])
    order, offsets = order_items(together_xC, np.zeros(len(together_xC), np.int64), codes)
    if not len(order):
        return 0.0, 0.0
    of_table = np.add.reduceat((order < len(table_codes_mC)).astype(np.int64), offsets[:-1])
    new = np.diff(offsets) - of_table
    return (
        _share(int(new[of_table > 0].sum()), len(new_codes_kC)),
        _share(int(of_table[of_table > 1].sum()), len(table_codes_mC)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# ── verdict ──────────────────────────────────────────────────────────────────────────────────────────────


def _passes(share: float, table_share: float, threshold: float, count: int) -> bool:
    """Whether a share lies above the table's by more than the threshold, and by more than chance may add."""
    chance = STANDARD_ERRORS * float(np.sqrt(share * (1 - share) / count)) if count else 0.0
    return share - table_share > threshold + chance


def _error_passes(figures: dict[str, Any]) -> bool:
    fit_error = figures["table_relative_error"]
    if not fit_error:
        return False
    least = figures["relative_error"] - STANDARD_ERRORS * figures["relative_error_deviation"]
    return bool(least > ERROR_RATIO * fit_error)


def _unknown_passes(figures: dict[str, Any]) -> bool:
    return _passes(figures["unknown_share"], figures["table_unknown_share"], UNKNOWN_SHARE, figures["new_items"])


def _allowed_bits(level: int) -> float:
    return DIVERGENCE_BITS if level == 1 else DEEPER_DIVERGENCE_BITS


def _diverges(level: int, row: dict[str, float]) -> bool:
    excess = row["divergence_bits"] - row["expected_bits"]
    return excess > _allowed_bits(level) and row["divergence_bits"] > row["highest_bits"]


def _findings(figures: dict[str, Any]) -> list[str]:
    """What speaks for a refit, one clause each."""
    count = figures["coded"]
    found = []
    if _error_passes(figures):
        found.append(f"new items are approximated {figures['error_ratio']:.2f} times as badly as those of the fit")
    for level, row in enumerate(figures["levels"], start=1):
        if _diverges(level, row):
            found.append(
                f"codes of level {level} are used otherwise ({row['divergence_bits']:.2f} bits apart, "
                f"{row['expected_bits']:.2f} by sampling alone)"
            )
        if _passes(row["rare_share"], row["table_rare_share"], RARE_SHARE, count):
            found.append(f"{row['rare_share']:.0%} of the new items are on codes of level {level} that hardly any had")
    if _passes(figures["collision_rate"], figures["table_collision_rate"], COLLISION_SHARE, count):
        found.append(
            f"{figures['collision_rate']:.0%} of the new items share a tuple with the table, "
            f"{figures['table_collision_rate']:.0%} of the table's own do"
        )
    return found


def _advice(figures: dict[str, Any]) -> list[str]:
    if _unknown_passes(figures):
        return [
            f"{figures['unknown_share']:.0%} of the new items have no vector and stay unknown, which no refit mends: "
            "give them vectors"
        ]
    return []


def _verdict(figures: dict[str, Any], findings: list[str]) -> str:
    if figures["coded"] < LEAST_ITEMS:
        return f"no refit needed: {figures['coded']} new items with codes are too few to tell (below {LEAST_ITEMS})"
    return f"refit advised: {'; '.join(findings)}" if findings else "no refit needed"


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────


def drift_rows(figures: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures for a table: label, value, threshold, verdict; the last row is the verdict on them all."""
    count = figures["coded"]
    rows = [
        ("new items", f"{figures['new_items']:,}", "", f"{count:,} with codes"),
        (
            "unknown",
            f"{figures['unknown_share']:.2%}",
            f"{figures['table_unknown_share']:.2%} + {UNKNOWN_SHARE:.0%}",
            _said(
                _passes(figures["unknown_share"], figures["table_unknown_share"], UNKNOWN_SHARE, figures["new_items"])
            ),
        ),
        _error_row(figures),
        (
            "tuple shared with the table",
            f"{figures['collision_rate']:.2%}",
            f"{figures['table_collision_rate']:.2%} + {COLLISION_SHARE:.0%}",
            _said(_passes(figures["collision_rate"], figures["table_collision_rate"], COLLISION_SHARE, count)),
        ),
    ]
    for level, row in enumerate(figures["levels"], start=1):
        rows.append(
            (
                f"level {level}: divergence",
                f"{row['divergence_bits']:.3f} bits",
                f"{row['expected_bits']:.3f} by sampling + {_allowed_bits(level)}",
                _said(_diverges(level, row)),
            )
        )
        rows.append(
            (
                f"level {level}: on rare codes",
                f"{row['rare_share']:.2%}, {row['dead_share']:.2%} on dead ones",
                f"{row['table_rare_share']:.2%} + {RARE_SHARE:.0%}",
                _said(_passes(row["rare_share"], row["table_rare_share"], RARE_SHARE, count)),
            )
        )
    return [*rows, ("verdict", "", "", "; ".join([figures["verdict"], *figures["advice"]]))]


def _error_row(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    value = f"{figures['relative_error']:.4f} ± {figures['relative_error_deviation']:.4f}"
    if figures["error_ratio"] is None:
        return "relative squared error", value, "", "the fit has no error to compare with"
    threshold = f"{ERROR_RATIO} × {figures['table_relative_error']:.4f}"
    return "relative squared error", value, threshold, _said(_error_passes(figures))


def _said(passed: bool) -> str:
    return "passed" if passed else "kept"


def format_drift(figures: dict[str, Any]) -> str:
    """The figures as a table, the advice, and the verdict as the last line."""
    rows = [("drift of new items", "value", "threshold", ""), *drift_rows(figures)[:-1]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "   ".join([label.ljust(widths[0]), value.rjust(widths[1]), threshold.rjust(widths[2]), said]).rstrip()
        for label, value, threshold, said in rows
    ]
    return "\n".join([*lines, *figures["advice"], figures["verdict"]])
