from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from serving.engines.faiss_indexes import HNSW, INNER_PRODUCT, IVFPQ, KINDS, L2, IndexConfig, VectorIndex
from serving.engines.index_files import INDEX, MANIFEST, open_index, save_index


def vectors(columns: int = 1500, seed: int = 0) -> np.ndarray:
    vectors_nD = np.random.default_rng(seed).normal(size=(columns, 8)).astype(np.float32)
    vectors_nD[5] = vectors_nD[1]
    return vectors_nD


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", [L2, INNER_PRODUCT])
def test_what_is_read_back_finds_the_same(kind: str, metric: str, tmp_path: Path) -> None:
    config = IndexConfig(kind=kind)
    built = VectorIndex(vectors(), config, metric)
    save_index(built, tmp_path / "index")
    opened = open_index(tmp_path / "index", vectors(), config, metric)
    assert (opened.kind, opened.notes) == (built.kind, built.notes)
    exclusions = built.exclusions(np.repeat(np.arange(9), 400), np.tile(np.arange(400), 9))
    for found, expected in zip(
        opened.search(vectors(9, seed=1), 30, exclusions), built.search(vectors(9, seed=1), 30, exclusions), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_an_index_searched_otherwise_is_the_same_index(tmp_path: Path) -> None:
    save_index(VectorIndex(vectors(), IndexConfig(kind=HNSW, ef_search=9)), tmp_path / "index")
    assert open_index(tmp_path / "index", vectors(), IndexConfig(kind=HNSW, ef_search=99)).config.ef_search == 99


def test_the_index_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_index(VectorIndex(vectors(), IndexConfig(kind=IVFPQ)), folder)
    with pytest.raises(InputError) as raised:
        open_index(folder, vectors(seed=1), IndexConfig(kind=IVFPQ, bits=5))
    assert ["was built with" in fault or "other vectors" in fault for fault in raised.value.faults] == [True, True]
    with pytest.raises(InputError, match="was built with"):
        open_index(folder, vectors(), IndexConfig(kind=IVFPQ), INNER_PRODUCT)


def test_faiss_reads_no_file_whose_checksum_is_not_the_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    save_index(VectorIndex(vectors()), folder)
    content = (folder / INDEX).read_bytes()
    monkeypatch.setattr("serving.engines.index_files.faiss.read_index", lambda name: pytest.fail("was read"))
    (folder / INDEX).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        open_index(folder, vectors(), IndexConfig())
    (folder / INDEX).unlink()
    with pytest.raises(InputError, match="no such file"):
        open_index(folder, vectors(), IndexConfig())
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(InputError, match="version 2"):
        open_index(folder, vectors(), IndexConfig())
