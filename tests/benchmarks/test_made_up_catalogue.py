"""A store with more items than events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.made_up_catalogue import write_store, write_vectors


def test_store_and_file_hold_the_same_vectors(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", 3000, 16)
    write_vectors(tmp_path / "vectors.parquet", 3000, 16)
    items, vectors = store.embeddings()  # type: ignore[misc]
    assert store.num_items == 3000
    np.testing.assert_array_equal(items, [item for item in range(3000) if item % 100 < 82])
    told = pq.read_table(tmp_path / "vectors.parquet")
    np.testing.assert_array_equal(told["item_id"].to_numpy(), items)
    np.testing.assert_array_equal(np.stack(told["embed"].to_numpy()), vectors)
    again = write_store(tmp_path / "again", 3000, 16)
    assert again.fingerprint == store.fingerprint
