"""A code of its own for every item: plain item ids in the form of semantic ids, one level.

What sequence models without semantic ids do, hence the baseline that says what sharing codes gains or costs; one
output of the model for each item, so for catalogues of some ten thousand items at most. Code 0 means the unknown item.

N items · V codes, one for each item and one for the unknown one · d vector width.
"""

from __future__ import annotations

import numpy as np

from common.errors import InputError
from semantic_ids.quantizers.base import MAX_CODES, Codebooks, Codes

WIDTH = 64
"""Numbers of the random vector that stands for an item where one is asked for: to start tables, to search by FAISS."""


def item_codes(num_items: int) -> Codes:
    """Codes [N, 1]: 1 … N.

    Raises:
        InputError: more items than codes have room for.
    """
    if num_items >= MAX_CODES:
        raise InputError(
            f"quantizer=item: the store has {num_items:,} items, and a level has at most {MAX_CODES - 1:,} codes "
            "beside that of the unknown item; use quantizer=residual-kmeans"
        )
    return np.arange(1, num_items + 1, dtype=np.uint16)[:, None]


def random_codebook(num_items: int, seed: int) -> Codebooks:
    """Unit vectors [1, V, d]: no item is like another."""
    vectors_Vd = np.random.default_rng(seed).standard_normal((num_items + 1, WIDTH))
    vectors_Vd /= np.linalg.norm(vectors_Vd, axis=1, keepdims=True)
    return vectors_Vd[None].astype(np.float32)
