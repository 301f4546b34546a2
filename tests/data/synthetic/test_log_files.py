from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synthetic.config import KINDS
from data.synthetic.log_files import EVENT_TYPES, RowGroupWriter, flat_table, sequential_schema, sequential_table
from tests.data.synthetic.helpers import USERS, catalogue, heard

UIDS = (np.arange(USERS) * 3 + 50).astype(np.uint32)


def expected_rows(kind: str) -> list[tuple[object, ...]]:
    """Rows of a flat file by (uid, timestamp): uid, timestamp, item, organic, ratio, length, type."""
    made, raw_N = heard(), catalogue().raw_N
    rows: list[tuple[object, ...]] = []
    if kind in ("listens", "multi_event"):
        columns = (UIDS[made.user_E], made.tick_E * 5, raw_N[made.item_E], made.organic_E, made.ratio_E)
        rows += zip(
            *(c.tolist() for c in columns), (made.length_E * 5).tolist(), ["listen"] * len(made.item_E), strict=True
        )
    for name in EVENT_TYPES[1:]:
        if kind in (f"{name}s", "multi_event"):
            one = made.reactions[name]
            columns = (UIDS[one.user], one.tick * 5, raw_N[one.item], one.organic)
            rows += [(*row, None, None, name) for row in zip(*(c.tolist() for c in columns), strict=True)]
    return sorted(rows, key=lambda row: (row[0], row[1], EVENT_TYPES.index(str(row[6]))))


@pytest.mark.parametrize("kind", KINDS)
def test_flat_rows_are_the_events_by_user_and_time(kind: str) -> None:
    table = flat_table(heard(), kind, UIDS, catalogue().raw_N)
    expected = expected_rows(kind)
    names = ["uid", "timestamp", "item_id", "is_organic", "played_ratio_pct", "track_length_seconds", "event_type"]
    width = {"listens": 6, "multi_event": 7}.get(kind, 4)
    assert table.column_names == names[:width]
    types = [pa.uint32(), pa.uint32(), pa.uint32(), pa.uint8(), pa.uint16(), pa.uint32()]
    assert table.schema.types == [*types, pa.dictionary(pa.int8(), pa.string())][:width]
    assert list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)) == [
        row[:width] for row in expected
    ]


@pytest.mark.parametrize("plural", [False, True])
@pytest.mark.parametrize("kind", ["listens", "dislikes", "multi_event"])
def test_sequential_rows_are_users_with_lists_of_the_same_events(kind: str, plural: bool) -> None:
    flat = flat_table(heard(), kind, UIDS, catalogue().raw_N)
    table = sequential_table(flat, kind, plural)
    assert table.schema == sequential_schema(kind, plural)
    assert ("item_ids" in table.column_names, "timestamps" in table.column_names) == (plural, plural)
    table.validate(full=True)
    groups = [(uid, list(rows)) for uid, rows in groupby(flat.to_pylist(), key=lambda row: row["uid"])]
    assert table.column("uid").to_pylist() == [uid for uid, _ in groups]
    renamed = {"timestamp": "timestamps", "item_id": "item_ids"} if plural else {}
    for name in flat.column_names[1:]:
        expected = [[row[name] for row in rows] for _, rows in groups]
        assert table.column(renamed.get(name, name)).to_pylist() == expected


def test_a_block_without_events_of_a_kind_has_no_rows() -> None:
    none = flat_table(heard(), "dislikes", UIDS, catalogue().raw_N).slice(0, 0)
    assert sequential_table(none, "dislikes", plural=False).num_rows == 0


@given(sizes=st.lists(st.integers(0, 25), max_size=8), rows=st.integers(1, 30))
@settings(deadline=None)
def test_row_groups_are_equal_whatever_is_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int
) -> None:
    path = tmp_path_factory.mktemp("groups") / "file.parquet"
    values = np.arange(sum(sizes), dtype=np.uint32)
    schema = pa.schema([("uid", pa.uint32())])
    with RowGroupWriter(path, schema, rows) as writer:
        for size, last in zip(sizes, np.cumsum(sizes), strict=True):
            writer.write(pa.table([values[last - size : last]], schema=schema))
    assert writer.count == len(values)
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    whole, rest = divmod(len(values), rows)
    assert groups == [rows] * whole + [rest] * (rest > 0)
    np.testing.assert_array_equal(file.read().column("uid").to_numpy(), values)


def test_row_groups_as_written(tmp_path: Path) -> None:
    schema = pa.schema([("uid", pa.uint32())])
    with RowGroupWriter(tmp_path / "file.parquet", schema, None) as writer:
        for size in (3, 0, 5):
            writer.write(pa.table([np.arange(size, dtype=np.uint32)], schema=schema))
    file = pq.ParquetFile(tmp_path / "file.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [3, 5]
