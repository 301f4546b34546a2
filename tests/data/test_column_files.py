from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.column_files import ColumnWriter, forget_pages, open_column, read_block


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=9), max_size=6),
    st.sampled_from(["u1", "u2", "u4", "i8"]),
    st.data(),
)
def test_a_column_appended_to_is_the_array_that_numpy_would_save(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], dtype: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("column")
    blocks = [np.array(part).astype(dtype) for part in parts]
    with ColumnWriter(folder / "a.npy", np.dtype(dtype)) as writer:
        for block in blocks:
            writer.append(block)
    whole = np.concatenate([*blocks, np.zeros(0, dtype)])
    np.save(folder / "b.npy", whole)
    assert (folder / "a.npy").read_bytes() == (folder / "b.npy").read_bytes()
    np.testing.assert_array_equal(open_column(folder / "a.npy", np.dtype(dtype), len(whole)), whole)
    first = data.draw(st.integers(0, len(whole)))
    rows = data.draw(st.integers(0, len(whole) - first))
    np.testing.assert_array_equal(
        read_block(folder / "a.npy", np.dtype(dtype), first, rows), whole[first : first + rows]
    )


def test_a_writer_that_fails_does_not_claim_rows(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with ColumnWriter(tmp_path / "a.npy", np.dtype("u4")) as writer:
            writer.append(np.arange(5, dtype="u4"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert np.load(tmp_path / "a.npy").shape == (0,)


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_pages_that_were_read_are_let_go_of(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4 << 20, 8), np.float32))
    before = resident_bytes()
    column = open_column(tmp_path / "a.npy", np.dtype("f4"), 4 << 20, 8)
    assert column.sum(dtype=np.float64) == 8 * (4 << 20)
    assert resident_bytes() - before > 100 << 20
    forget_pages(column[10:])
    assert resident_bytes() - before < 10 << 20
    np.testing.assert_array_equal(column[-5:], np.ones((5, 8)))
    forget_pages(np.ones(3))  # nothing to let go of
