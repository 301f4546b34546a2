"""A refit that keeps the labels of an older code table where it can.

k-means numbers its centroids as it pleases. Two fits of nearly one catalogue therefore give nearly the same groups of
items under other numbers, and a model trained on the older numbers would have to learn them all anew. Here the new
codes of each level are given the labels of the older table, so that most items keep their code. Levels are matched one
by one: a residual quantiser has one codebook a level, whatever the codes before it, so what a level is called changes
nothing about another.

The order of a refit, and why. The all-zero tuple means *unknown item*; `Quantizer.encode` never gives it, by a rule on
labels: a vector whose nearest codes are all zero takes the nearest other code of the last level. Relabelling moves that
rule to other vectors. Those that were led away from the tuple of zeros under the new fit's own labels may have their
nearest code back, and those whose tuple is called all zero now must be led away. So codes must not be relabelled and
kept. In this order rule and labels agree, for the items of the fit and for all that come later:

1. `codes = quantizer.encode(vectors)` of the items that both tables have, under the new fit's own labels;
2. `permutations = match_labels(...)` of these and the older table's codes;
3. `quantizer = relabel(quantizer, permutations)`: the same quantiser, its codebook rows in another order;
4. `codes = quantizer.encode(vectors)` of all items, which are the codes that are written.

The codes of steps 1 and 4 differ by more than labels only for items of the two tuples told of above. For the same
reason the last level is matched without the items whose codes before it are all zero, on either side: some of them were
led away, and counted they would pull two labels apart that belong together. With one level alone there is no telling
which they are, and all count.

C code levels · V codes per level · m items of both tables · n items · d width of the space that is quantised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from common.errors import InputError
from semantic_ids.codes.code_table import known_rows
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer

Labels = npt.NDArray[np.int64]
"""[C, V]: at each level, the label that every code takes; a permutation of 0 … V-1 a level."""

MOST_CODES = 8192
"""Codes per level that can be matched: the tables of a level are [V, V] numbers, 0.5 GB each at so many."""


def common_items(old_ids: pa.Array, new_ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places [m] of the items that stand in both lists of ids, in the old list and in the new, which ascends."""
    found = pc.index_in(new_ids, value_set=old_ids)
    new_places = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    old_places = found.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
    return old_places, new_places


def check_matchable(old_codebooks_CVd: Codebooks, new_codebooks_CVd: Codebooks) -> None:
    """Labels are exchanged one for one, so both fits must have the same shape.

    Raises:
        InputError: other levels, codes or width, or more codes than can be matched.
    """
    faults = [
        f"the older code table has {old} {what} and this fit has {new}; labels can be kept only where both agree: "
        f"set {setting}, or leave out refit_of"
        for what, setting, old, new in zip(
            ("code levels", "codes a level", "numbers in a codebook row"),
            (
                f"levels={old_codebooks_CVd.shape[0]}",
                f"codes={old_codebooks_CVd.shape[1]}",
                "the vectors' settings as they were",
            ),
            old_codebooks_CVd.shape,
            new_codebooks_CVd.shape,
            strict=True,
        )
        if old != new
    ]
    if new_codebooks_CVd.shape[1] > MOST_CODES:
        faults.append(
            f"`codes` is {new_codebooks_CVd.shape[1]}, and labels can be matched for at most {MOST_CODES} codes a "
            "level; leave out refit_of, or set fewer codes"
        )
    if faults:
        raise InputError(*faults)


def match_labels(
    old_codes_mC: Codes, new_codes_mC: Codes, new_codebooks_CVd: Codebooks, old_codebooks_CVd: Codebooks
) -> Labels:
    """The relabelling of the new codes under which most items keep the code of each level.

    Of relabellings that keep equally many, the one whose codebook rows lie nearest to the older rows of their labels
    (least sum of squared distances); so codes that no item carries find their counterparts too.

    Args:
        old_codes_mC: the items' codes in the older table, the quantiser's own levels alone.
        new_codes_mC: codes of the same items, row by row, under the new fit's own labels. Items that are unknown
            (all zero) on either side do not count, nor at the last level those that a rule may have led there.
        new_codebooks_CVd: rows of the new codes.
        old_codebooks_CVd: rows of the older ones.

    Returns:
        [C, V]: new code v of level c is to be called `[c, v]`.

    Raises:
        InputError: see `check_matchable`.
    """
    check_matchable(old_codebooks_CVd, new_codebooks_CVd)
    levels, codes, _ = new_codebooks_CVd.shape
    assert old_codes_mC.shape == new_codes_mC.shape == (len(old_codes_mC), levels), "rows of the same items, C codes"
    both_m = known_rows(old_codes_mC) & known_rows(new_codes_mC)
    labels_CV = np.empty((levels, codes), np.int64)
    for level in range(levels):
        if 0 < level == levels - 1:
            both_m &= known_rows(old_codes_mC[:, :level]) & known_rows(new_codes_mC[:, :level])
        kept_VV = _contingency(new_codes_mC[both_m, level], old_codes_mC[both_m, level], codes)
        apart_VV = cdist(new_codebooks_CVd[level], old_codebooks_CVd[level], "sqeuclidean")
        # All V of them sum to less than one half: nearness decides between equal numbers of items, never against one.
        farthest = float(apart_VV.max())
        if farthest > 0:
            kept_VV -= apart_VV / (farthest * 2 * codes)
        labels_CV[level] = linear_sum_assignment(kept_VV, maximize=True)[1]
    return labels_CV


def _contingency(new_m: npt.NDArray[np.uint16], old_m: npt.NDArray[np.uint16], codes: int) -> npt.NDArray[np.float64]:
    """[V, V]: how many items have a new code (row) and an old one (column)."""
    pairs = np.bincount(new_m.astype(np.int64) * codes + old_m, minlength=codes * codes)
    return pairs.reshape(codes, codes).astype(np.float64)


def relabel_codes(codes_nC: Codes, labels_CV: Labels) -> Codes:
    """Codes under their new labels; for looking, not for writing (see the order of a refit above)."""
    relabelled_nC = np.empty_like(codes_nC)
    for level, labels_V in enumerate(labels_CV):
        relabelled_nC[:, level] = labels_V.astype(codes_nC.dtype)[codes_nC[:, level]]
    return relabelled_nC


def relabel(quantizer: Quantizer, labels_CV: Labels) -> Quantizer:
    """The same quantiser with its codebook rows under their new labels; what else it is made of knows no labels."""
    rows_CVd = np.empty_like(quantizer.codebooks_CVd)
    np.put_along_axis(rows_CVd, labels_CV[:, :, None], quantizer.codebooks_CVd, axis=1)
    renamed = type(quantizer).load({**quantizer.arrays(), "codebooks": rows_CVd}, quantizer.settings())
    assert np.array_equal(renamed.codebooks_CVd, rows_CVd), "a quantiser must be loaded from the array `codebooks`"
    return renamed


# ── what a refit changed ─────────────────────────────────────────────────────────────────────────────────


def changed(old_codes_mC: Codes, new_codes_mC: Codes) -> dict[str, Any]:
    """How far two tables name the same items alike, JSON-like.

    Args:
        old_codes_mC: tuples of the items that both tables have, the all-zero one where an item is unknown.
        new_codes_mC: the newer tuples of the same items, row by row, of equally many levels.

    Returns:
        `items` m; `known_in_both`, `became_known`, `became_unknown`; of the items known in both, `changed` (another
        tuple) with its share and, by level, `changed` (another code) and `prefix_changed` (another code up to and with
        this level), each with its share.
    """
    assert old_codes_mC.shape == new_codes_mC.shape, (old_codes_mC.shape, new_codes_mC.shape)
    was_m, is_m = known_rows(old_codes_mC), known_rows(new_codes_mC)
    both_m = was_m & is_m
    known = int(np.count_nonzero(both_m))
    other_prefix_k = np.zeros(known, bool)
    levels = []
    for level in range(old_codes_mC.shape[1]):
        other_k = old_codes_mC[both_m, level] != new_codes_mC[both_m, level]
        other_prefix_k |= other_k
        levels.append({**_counted("changed", other_k), **_counted("prefix_changed", other_prefix_k)})
    return {
        "items": len(was_m),
        "known_in_both": known,
        "became_known": int((is_m & ~was_m).sum()),
        "became_unknown": int((was_m & ~is_m).sum()),
        **_counted("changed", other_prefix_k),
        "levels": levels,
    }


def _counted(name: str, which_k: npt.NDArray[np.bool_]) -> dict[str, Any]:
    count = int(which_k.sum())
    return {name: count, f"{name}_share": count / len(which_k) if len(which_k) else 0.0}


def format_changed(figures: dict[str, Any]) -> str:
    """The figures of `changed` as a table, one line a level, and a line on the tuples."""
    lines = ["level   other code   other prefix"]
    lines += [
        f"{level:>5} {row['changed_share']:>12.2%} {row['prefix_changed_share']:>14.2%}"
        for level, row in enumerate(figures["levels"], start=1)
    ]
    lines.append(
        f"{figures['changed']} of {figures['known_in_both']} items known before and now have another tuple "
        f"({figures['changed_share']:.2%}); {figures['became_known']} became known, {figures['became_unknown']} unknown"
    )
    return "\n".join(lines)


def changed_rows(figures: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures of `changed` for the report: label, value, threshold (there is none), what it means."""
    known = figures["known_in_both"]
    rows = [
        ("items in both tables", f"{figures['items']:,}", "", f"{known:,} of them known before and now"),
        ("another tuple", f"{figures['changed_share']:.2%}", "", f"{figures['changed']:,} items"),
        ("known now, unknown before", f"{figures['became_known']:,}", "", ""),
        ("unknown now, known before", f"{figures['became_unknown']:,}", "", ""),
    ]
    return rows + [
        (f"another code at level {level}", f"{row['changed_share']:.2%}", "", f"{row['changed']:,} items")
        for level, row in enumerate(figures["levels"], start=1)
    ]
