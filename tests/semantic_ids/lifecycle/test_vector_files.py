from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semantic_ids.lifecycle import vector_files
from semantic_ids.lifecycle.vector_files import VectorFiles

ROWS, WIDTH = 40, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 rows in three files of uneven row groups, the second empty."""
    ids = pa.array([f"{row}" for row in range(ROWS)]).dictionary_encode()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(ROWS * WIDTH, dtype=np.float32)), WIDTH)
    table = pa.table({"track": ids, "vector": vectors})
    for name, begin, end, group in (("a", 0, 17, 5), ("b", 17, 17, 5), ("c", 17, ROWS, 9)):
        pq.write_table(table.slice(begin, end - begin), tmp_path / f"{name}.parquet", row_group_size=group)
    return tmp_path


@pytest.mark.parametrize("block_rows", [1, 4, 1000])
def test_any_range_of_rows(folder: Path, block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_files, "BLOCK_BYTES", 4 * WIDTH * block_rows)
    files = VectorFiles(folder, "track", "vector", WIDTH)
    assert (files.rows, files.id_type) == (ROWS, pa.string())
    whole = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    for begin in range(0, ROWS + 1, 8):
        for end in range(begin, ROWS + 1, 9):
            blocks = list(files.blocks(begin, end))
            assert [row for block in blocks for row in block.ids.to_pylist()] == [str(row) for row in range(begin, end)]
            assert np.array_equal(
                np.concatenate([whole[:0], *(block.vectors_nD for block in blocks)]), whole[begin:end]
            )
            assert all(str(block.first_row) == block.ids[0].as_py() for block in blocks)
            assert all(len(block.ids) <= block_rows for block in blocks)


def test_places_of_rows(folder: Path) -> None:
    files = VectorFiles(folder, "track", "vector", WIDTH)
    expected = [f"{folder / 'a.parquet'}: row group {row // 5}, row {row % 5}" for row in range(17)]
    expected += [f"{folder / 'c.parquet'}: row group {row // 9}, row {row % 9}" for row in range(23)]
    assert [files.place(row) for row in range(ROWS)] == expected


def test_a_part_of_a_block(folder: Path) -> None:
    (block, *_) = VectorFiles(folder, "track", "vector", WIDTH).blocks(5, 10)
    part = block.part(1, 3)
    assert (part.first_row, part.ids.to_pylist(), part.vectors_nD[:, 0].tolist()) == (6, ["6", "7"], [18, 21])


def test_sources_tell_a_file_from_another(folder: Path) -> None:
    before = VectorFiles(folder, "track", "vector", WIDTH).sources
    assert [source["name"] for source in before] == ["a.parquet", "b.parquet", "c.parquet"]
    assert before == VectorFiles(folder, "track", "vector", WIDTH).sources
    rows = pq.read_table(folder / "c.parquet")
    pq.write_table(rows, folder / "c.parquet", row_group_size=8)
    after = VectorFiles(folder, "track", "vector", WIDTH).sources
    assert after[:2] == before[:2]
    assert after[2] != before[2]
