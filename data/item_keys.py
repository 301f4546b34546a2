"""A number for each item that is the same in every store: what tables know items by that outlive a store.

Dense indices are a store's own: a newer one, with more items, may number all of them anew.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash

_BLOCK = 65_536
"""Ids turned into Python's strings at a time."""


def item_keys(item_ids: pa.Array) -> np.ndarray:
    """XXH3's 64 bits of each raw id, int64 [N]. Of ten million ids, two are alike in one of 370,000 catalogues."""
    keys_N = np.empty(len(item_ids), dtype=np.uint64)
    for begin in range(0, len(item_ids), _BLOCK):
        ids = item_ids.slice(begin, _BLOCK).to_pylist()
        keys_N[begin : begin + len(ids)] = [xxhash.xxh3_64_intdigest(raw.encode()) for raw in ids]
    return keys_N.view(np.int64)
