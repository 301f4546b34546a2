"""Codes made up for measuring, and what the measurements of a small trie hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import trie_steps
from benchmarks.trie_steps import build_and_measure, clustered_codes, measure_steps
from semantic_ids.codes.trie import CodeTrie


def test_codes_have_the_shape_of_a_music_catalogue() -> None:
    n = 200_000
    codes_nC = clustered_codes(n, 8, 1024, 0)
    assert (codes_nC.shape, codes_nC.dtype, int(codes_nC.max())) == ((n, 8), np.uint16, 1023)
    assert codes_nC.any(axis=1).all()
    unique = [len(np.unique(codes_nC[:, :level], axis=0)) for level in (1, 4, 8)]
    assert unique[0] == 1024
    assert unique[1] > 0.85 * n
    assert 0.01 < 1 - unique[2] / n < 0.04
    first = np.sort(np.bincount(codes_nC[:, 0]))[::-1]
    assert first[0] > 10 * np.median(first)
    np.testing.assert_array_equal(codes_nC, clustered_codes(n, 8, 1024, 0))
    assert (codes_nC != clustered_codes(n, 8, 1024, 1)).any()


@pytest.mark.parametrize(("n", "C", "V"), [(0, 3, 4), (1, 1, 2), (50, 2, 2), (1_000, 5, 65536)])
def test_codes_of_any_size(n: int, C: int, V: int) -> None:
    codes_nC = clustered_codes(n, C, V, 0)
    assert codes_nC.shape == (n, C)
    assert (codes_nC < V).all()
    assert codes_nC.any(axis=1).all()


def test_figures_of_a_small_trie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie_steps, "SET_TUPLES", 300)
    codes_nC = clustered_codes(2_000, 4, 64, 0)
    built = build_and_measure(codes_nC, np.zeros(2_000, np.int64), 64, tmp_path / "trie")
    trie = CodeTrie.open(tmp_path / "trie")
    assert built["trie_nodes"] == [len(np.unique(codes_nC[:, : level + 1], axis=0)) for level in range(4)]
    assert built["trie_disk_bytes"] == sum(file.stat().st_size for file in (tmp_path / "trie").iterdir())
    assert built["trie_bytes_per_item"] == built["trie_disk_bytes"] / 2_000
    assert built["trie_bytes_per_item"] < built["trie_plain_bytes_per_item"]
    assert built["trie_shared_share"] == pytest.approx(1 - trie.num_leaves / 2_000)
    assert built["trie_build_extra_bytes"] >= 0

    measured = measure_steps(trie, beams=60, seed=0)
    assert measured["prefix_set_tuples"] == 300
    assert len(measured["trie_step_us_per_beam_by_level"]) == 4
    assert all(figure > 0 for name, figure in measured.items() if name.endswith("us_per_beam"))
    assert measured["trie_over_set"] == measured["prefix_set_us_per_beam"] / measured["trie_step_us_per_beam"]
