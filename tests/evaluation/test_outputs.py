from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from evaluation.outputs import read_ranks, write_ranks
from evaluation.results import EngineResult, Evaluation, Targets

TARGETS = Targets(
    np.array([3, 3, 7]),
    np.array([10, 20, 10]),
    np.array([0, 2, 3, 6]),
    np.array([5, 1, 5, 0, 2, 9]),
    np.array([1, 2, 1, 1, 1, 4]),
)


def evaluation() -> Evaluation:
    engines = {
        name: EngineResult(np.array(places), np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float32))
        for name, places in {"exact": [1, 0, 7, 2, 3, 0], "mostpop": [0, 0, 0, 4, 0, 1]}.items()
    }
    return Evaluation(TARGETS, engines, 8, 10)


def test_ranks_come_back_as_they_were(tmp_path: Path) -> None:
    about = {"split": "temporal", "depth": 8}
    write_ranks(tmp_path / "ranks.parquet", evaluation(), about)
    ranks = read_ranks(tmp_path / "ranks.parquet")
    assert ranks.about == about
    for name in ("users_R", "times_R", "offsets_R1", "items_T", "counts_T"):
        found = getattr(ranks.targets, name)
        assert found.dtype == np.int64
        assert np.array_equal(found, getattr(TARGETS, name)), name
    assert list(ranks.places) == ["exact", "mostpop"]
    again = ranks.evaluation(10)
    assert again.depth == 8
    for name, engine in evaluation().engines.items():
        assert np.array_equal(again.engines[name].places_T, engine.places_T)
    assert (ranks.engine_like("mostpop"), ranks.engine_like("beam")) == ("mostpop", "exact")
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.parquet"]


def test_what_is_not_such_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; evaluate that run"):
        read_ranks(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match="cannot be read as the ranks of an evaluation"):
        read_ranks(tmp_path / "text.parquet")
    pq.write_table(pa.table({"item": [1], "exact": [1]}), tmp_path / "old.parquet")
    with pytest.raises(InputError, match="cannot be read as the ranks of an evaluation"):
        read_ranks(tmp_path / "old.parquet")
