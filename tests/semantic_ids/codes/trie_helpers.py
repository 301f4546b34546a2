"""Catalogues of codes, and their prefixes and groups by dictionaries and sets."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

Catalogue = tuple[np.ndarray, np.ndarray, int]


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Codes, plays and V: shared tuples, unknown items, one level, one item, nothing known."""
    levels, codes = draw(st.integers(1, 4)), draw(st.sampled_from([2, 3, 4]))
    items = draw(st.sampled_from([0, 1, 2, 30]))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    codes_NC = random.integers(0, codes, (items, levels))
    codes_NC[random.random(items) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return codes_NC.astype(np.uint16), random.integers(0, 3, items), codes


def long_tails(items: int, levels: int, codes: int, seed: int = 0) -> Catalogue:
    """Items that hardly share more than their first code, so that deep levels have a form of their own."""
    random = np.random.default_rng(seed)
    codes_NC = random.integers(0, codes, (items, levels))
    codes_NC[: items // 50] = codes_NC[-(items // 50) :]  # shared tuples …
    codes_NC[: items // 100, 3:] = 0  # … and prefixes shared to the third level
    return codes_NC.astype(np.uint16), random.integers(0, 3, items), codes


def prefixes_of(codes_NC: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Distinct prefixes of the known items by length, each list ascending; the first holds the empty one."""
    known = [tuple(row) for row in codes_NC.tolist() if any(row)]
    return [[()], *(sorted({row[: level + 1] for row in known}) for level in range(codes_NC.shape[1]))]


def groups_of(codes_NC: np.ndarray, plays_N: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Items by tuple, tuples ascending; more played ones first, then lower indices."""
    groups: dict[tuple[int, ...], list[int]] = {prefix: [] for prefix in prefixes_of(codes_NC)[-1]}
    for item in sorted(range(len(codes_NC)), key=lambda item: (-plays_N[item], item)):
        if codes_NC[item].any():
            groups[tuple(codes_NC[item].tolist())].append(item)
    return groups
