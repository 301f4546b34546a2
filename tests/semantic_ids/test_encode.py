from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.event_store import EventStore
from data.training_events import training_events
from semantic_ids.codes.code_table import CodeTable, write_code_table
from semantic_ids.codes.collisions import resolve
from semantic_ids.codes.tuples import order_items
from semantic_ids.encode import main
from semantic_ids.lifecycle import encoded_folder, vector_files
from semantic_ids.quality.diagnostics import diagnose
from semantic_ids.vectors.content import ContentVectors
from tests.semantic_ids.conftest import MakeStore
from tests.semantic_ids.plain_quantizer import plain_quantizer

ROOT = Path(__file__).parents[2]
WIDTH, LEVELS, CODES = 6, 3, 8
NUM_ITEMS = 60

Vectors = dict[int, np.ndarray]


def random_vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def embeddings(count: int, seed: int = 0) -> Vectors:
    """Items 3, 13, 23, … have none; 4 and 5 have the same."""
    vectors = random_vectors(count, seed)
    vectors[5] = vectors[4]
    return {item: vector for item, vector in enumerate(vectors) if item % 10 != 3}


def histories(count: int) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, count, 12).tolist() for _ in range(20)]


MakeTable = Callable[..., CodeTable]


@pytest.fixture(scope="module")
def make_table(tmp_path_factory: pytest.TempPathFactory) -> MakeTable:
    """A code table as semantic_ids.fit writes one."""

    def make(store: EventStore, collisions: str = "none", kind: str = "content") -> CodeTable:
        vectors = ContentVectors(store)
        quantizer = plain_quantizer(vectors.block(0, len(vectors)), LEVELS, CODES)
        own = quantizer.encode(vectors.block(0, len(vectors)))
        plays = training_events(store).plays_N
        resolved = resolve(collisions, own, plays[vectors.items_n], quantizer, vectors, seed=0)
        codes = np.zeros((store.num_items, resolved.codes_nC.shape[1]), np.uint16)
        codes[vectors.items_n] = resolved.codes_nC
        _, offsets = order_items(codes, plays, CODES)
        figures = diagnose(resolved.codes_nC, np.diff(offsets), CODES, np.array([0.8, 0.6, 0.5]), store.num_items)
        return write_code_table(
            tmp_path_factory.mktemp("codes") / "codes",
            store=store,
            embeddings=kind,
            quantizer=quantizer,
            codebooks_CVd=resolved.codebooks_CVd,
            settings={"seed": 0, "collisions": collisions},
            codes_NC=codes,
            training_plays_N=plays,
            diagnostics=figures,
        )

    return make


@pytest.fixture(scope="module")
def older(make_store: MakeStore) -> EventStore:
    return make_store(histories(NUM_ITEMS), [[] for _ in range(NUM_ITEMS)], embeddings(NUM_ITEMS))


@pytest.fixture(scope="module")
def table(make_table: MakeTable, older: EventStore) -> CodeTable:
    return make_table(older)


def encode(*keys: str) -> int:
    return main(list(keys))


def faults(capsys: pytest.CaptureFixture[str], *keys: str) -> str:
    """The text of a refused command."""
    capsys.readouterr()
    assert encode(*keys) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


# ── a newer store ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def newer(make_store: MakeStore) -> EventStore:
    """40 items more; vectors of the older ones have all changed, item 13 has one now, 65 has that of 70."""
    count = NUM_ITEMS + 40
    vectors = embeddings(count, seed=2)
    vectors[13] = random_vectors(1, 3)[0]
    vectors[65] = vectors[70]
    return make_store(histories(count), [[] for _ in range(count)], vectors)


def test_items_of_a_newer_store(
    table: CodeTable, older: EventStore, newer: EventStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "newer"
    assert encode(f"codes={table.path}", f"store={newer.path}", f"out={out}", "--json") == 0
    told = capsys.readouterr().out.splitlines()
    made = CodeTable.open(out, newer)
    # Item by item: the tuple it had, else that of its vector, else none.
    vectors = dict(zip(*((array.tolist()) for array in newer.embeddings()), strict=True))
    expected = np.zeros((newer.num_items, LEVELS), np.uint16)
    for item in range(newer.num_items):
        if item < NUM_ITEMS and table.codes_NC[item].any():
            expected[item] = table.codes_NC[item]
        elif item in vectors:
            expected[item] = table.quantizer.encode(np.array([vectors[item]], np.float32))[0]
    assert np.array_equal(made.codes_NC, expected)
    assert made.codes_NC[13].any()
    assert not made.codes_NC[63].any()
    assert np.array_equal(made.training_plays_N, training_events(newer).plays_N)
    assert made.item_ids.to_pylist() == newer.item_ids.to_pylist()
    assert np.array_equal(made.quantizer.codebooks_CVd, table.quantizer.codebooks_CVd)
    assert made.manifest.settings == {**table.manifest.settings, "encoded_from": table.fingerprint}
    drifted = made.manifest.diagnostics["drift_figures"]
    assert (drifted["new_items"], drifted["coded"]) == (41, 37)
    assert drifted["verdict"] == "no refit needed: 37 new items with codes are too few to tell (below 100)"
    new = [item for item in range(newer.num_items) if item in vectors and (item == 13 or item >= NUM_ITEMS)]
    wide = np.array([vectors[item] for item in new], np.float64)
    left = np.square(wide - made.decode(made.codes_NC[new])).sum() / np.square(wide).sum()
    assert drifted["relative_error"] == pytest.approx(left)
    assert drifted["error_ratio"] == pytest.approx(left / 0.5)
    summary = json.loads(told[-1])
    assert (summary["kept"], summary["coded"], summary["unknown"]) == (54, 37, 9)
    assert summary["drift"] == drifted
    assert told[-2] == drifted["verdict"]
    assert made.manifest.diagnostics["drift"][-1][3] == drifted["verdict"]
    report = (out / "report.html").read_text()
    assert "Drift: do new items still fit?" in report
    assert drifted["verdict"] in report


@pytest.mark.parametrize("collisions", ["extra-level", "random-level", "reassign"])
def test_collisions_as_in_the_older_table(
    make_table: MakeTable, older: EventStore, newer: EventStore, tmp_path: Path, collisions: str
) -> None:
    table, out = make_table(older, collisions), tmp_path / "newer"
    assert encode(f"codes={table.path}", f"store={newer.path}", f"out={out}") == 0
    made = CodeTable.open(out, newer)
    known = np.flatnonzero(table.known_N)
    assert np.array_equal(made.codes_NC[known], table.codes_NC[known])
    coded = made.codes_NC[made.known_N]
    assert len(np.unique(coded, axis=0)) == len(coded) == 91
    assert np.array_equal(made.codebooks_CVd, table.codebooks_CVd)
    # And once more, from the table made: the error of the fit is handed on.
    again = tmp_path / "again"
    assert encode(f"codes={out}", f"store={newer.path}", f"out={again}") == 0
    third = CodeTable.open(again, newer)
    assert np.array_equal(third.codes_NC, made.codes_NC)
    drifts = [one.manifest.diagnostics["drift_figures"] for one in (made, third)]
    assert drifts[0]["table_relative_error"] == drifts[1]["table_relative_error"] == 0.5
    assert drifts[1]["new_items"] == 0


def test_a_store_of_other_items_is_drift(
    table: CodeTable, make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = NUM_ITEMS + 200
    vectors = {item: vector for item, vector in enumerate(5 + random_vectors(count, 4)) if item >= NUM_ITEMS}
    store = make_store(histories(count), [[] for _ in range(count)], vectors)
    assert encode(f"codes={table.path}", f"store={store.path}", f"out={tmp_path / 'out'}") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("refit advised: codes of level 1 are used otherwise")


def test_vectors_of_one_store_alone_are_refused(
    make_table: MakeTable, older: EventStore, newer: EventStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(older, kind="collaborative")
    keys = (f"codes={table.path}", f"out={tmp_path / 'out'}")
    told = faults(capsys, *keys, f"store={newer.path}")
    played = training_events(newer).plays_N > 0
    known = np.append(table.known_N, np.zeros(40, bool))
    assert f"{(played & ~known).sum()} items of {newer.path}" in told
    assert f"refit_of={table.path}" in told
    assert not (tmp_path / "out").exists()


def test_vectors_of_one_store_alone_with_nothing_to_code(
    make_table: MakeTable, make_store: MakeStore, tmp_path: Path
) -> None:
    vectors = {item: vector for item, vector in embeddings(NUM_ITEMS).items() if item < 50}
    played = [[item for item in row if item in vectors] for row in histories(NUM_ITEMS)]
    table = make_table(make_store(played, [[] for _ in range(NUM_ITEMS)], vectors), kind="collaborative")
    later = make_store(played, [[] for _ in range(NUM_ITEMS + 5)])
    assert encode(f"codes={table.path}", f"store={later.path}", f"out={tmp_path / 'out'}") == 0
    made = CodeTable.open(tmp_path / "out", later)
    assert np.array_equal(made.codes_NC, np.append(table.codes_NC, np.zeros((5, LEVELS), np.uint16), axis=0))
    assert made.manifest.diagnostics["drift_figures"]["unknown_share"] == 1


def test_a_store_of_another_width(
    table: CodeTable, make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store([[0, 1, 2]], [[], [], []], {0: np.ones(WIDTH + 1)})
    told = faults(capsys, f"codes={table.path}", f"store={store.path}", f"out={tmp_path / 'out'}")
    assert f"content vectors of {WIDTH + 1} numbers, and {table.path} codes vectors of {WIDTH}" in told


def test_plain_item_ids_code_nothing(older: EventStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_code_table(
        tmp_path / "plain",
        store=older,
        embeddings="random",
        quantizer=None,
        codebooks_CVd=np.zeros((1, NUM_ITEMS + 1, 4), np.float32),
        settings={},
        codes_NC=np.arange(1, NUM_ITEMS + 1, dtype=np.uint16)[:, None],
        training_plays_N=training_events(older).plays_N,
        diagnostics={},
    )
    file = write_vectors(tmp_path / "v.parquet", pa.array([1]), random_vectors(1, 0))
    for given in (f"store={older.path}", f"vectors={file}"):
        told = faults(capsys, f"codes={tmp_path / 'plain'}", given, f"out={tmp_path / 'out'}")
        assert "plain item ids" in told
    assert not (tmp_path / "out").exists()


def test_both_inputs_or_none(table: CodeTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = (f"codes={table.path}", f"out={tmp_path / 'out'}")
    assert "neither is given" in faults(capsys, *keys)
    assert "both are given" in faults(capsys, *keys, "store=a", "vectors=b")
    # Nothing of value is written over.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    full = (f"codes={table.path}", f"out={tmp_path / 'full'}")
    assert "not a code table" in faults(capsys, *full, f"store={tmp_path / 'none'}")
    assert "holds no codes" in faults(capsys, *full, f"vectors={tmp_path / 'none'}")
    assert "lies inside" in faults(capsys, f"codes={table.path}", f"out={table.path / 'x'}", "vectors=b.parquet")


# ── files of vectors ─────────────────────────────────────────────────────────────────────────────────────


def write_vectors(file: Path, ids: Any, vectors: Any, group: int = 100, kind: pa.DataType | None = None) -> Path:
    """A Parquet file; `vectors` None or lists."""
    lists = pa.array([None if row is None else np.asarray(row).tolist() for row in vectors], kind)
    table = pa.table({"item_id": ids, "embed": lists})
    pq.write_table(table, file, row_group_size=group)
    return file


F32 = pa.list_(pa.float32())


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_folder(folder: Path) -> tuple[list[Any], np.ndarray]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    whole = pa.concat_tables([one.replace_schema_metadata() for one in tables])
    codes = whole["codes"].combine_chunks().flatten().to_numpy().reshape(-1, LEVELS)
    return whole["item_id"].to_pylist(), codes


@pytest.mark.parametrize("vector_type", [F32, pa.list_(pa.float64()), pa.list_(pa.float32(), WIDTH)])
@pytest.mark.parametrize("ids", [pa.array(np.arange(350) * 7 - 100), pa.array([f"é{i}" for i in range(350)])])
def test_rows_of_a_file(
    table: CodeTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ids: pa.Array,
    vector_type: pa.DataType,
) -> None:
    monkeypatch.setattr(vector_files, "BLOCK_BYTES", 4 * WIDTH * 33)
    vectors = random_vectors(350, 5)
    vectors[[7, 200]] = 0
    rows = [None if row in (8, 349) else vector for row, vector in enumerate(vectors)]
    file = write_vectors(tmp_path / "v.parquet", ids, rows, kind=vector_type)
    out = tmp_path / "out"
    assert encode(f"codes={table.path}", f"vectors={file}", f"out={out}", "part_rows=60", "--json") == 0
    expected = table.quantizer.encode(vectors)
    expected[[7, 8, 200, 349]] = 0
    found_ids, codes = read_folder(out)
    assert found_ids == ids.to_pylist()
    assert np.array_equal(codes, expected)
    assert [pq.read_metadata(path).num_rows for path in sorted(out.glob("part*"))] == [60] * 5 + [50]
    schema = pq.read_schema(out / "part-000000.parquet")
    assert (schema.field("item_id").type, schema.field("codes").type) == (ids.type, pa.list_(pa.uint16(), LEVELS))
    manifest = json.loads((out / "segue-codes.json").read_text())
    assert (manifest["code_table"], manifest["complete"]) == (table.fingerprint, True)
    counts = {"rows": 350, "known": 346, "unknown": 4, "parts": 6}
    assert manifest["counts"] == counts
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary == {"out": str(out), "code_table": table.fingerprint, **counts, "kept": 0}


def test_row_groups_and_files_mean_nothing(table: CodeTable, tmp_path: Path) -> None:
    vectors, ids = random_vectors(200, 6), pa.array(range(200), pa.uint32())
    (tmp_path / "many").mkdir()
    for name, begin, end, group in (("a", 0, 10, 3), ("b", 10, 10, 5), ("c", 10, 150, 140), ("d", 150, 200, 1)):
        write_vectors(tmp_path / "many" / f"{name}.parquet", ids[begin:end], vectors[begin:end], group, F32)
    one = write_vectors(tmp_path / "one.parquet", ids, vectors, 200)
    for source, out in ((tmp_path / "many", "from-many"), (one, "from-one")):
        assert encode(f"codes={table.path}", f"vectors={source}", f"out={tmp_path / out}", "part_rows=64") == 0
    of_many, of_one = folder_bytes(tmp_path / "from-many"), folder_bytes(tmp_path / "from-one")
    del of_many["segue-codes.json"], of_one["segue-codes.json"]
    assert of_many == of_one
    assert len(of_many) == 4


KILLED = """
import os, signal, sys
from semantic_ids import encode
from tests.semantic_ids.plain_quantizer import PlainQuantizer
own, blocks = PlainQuantizer.encode, 0
def slow(self, vectors):
    global blocks
    blocks += 1
    if blocks == {after}:
        print("in the middle", flush=True)
        signal.pause()
    return own(self, vectors)
PlainQuantizer.encode = slow
from semantic_ids.lifecycle import vector_files
vector_files.BLOCK_BYTES = 4 * {width} * 10
sys.exit(encode.main({keys!r}))
"""


@pytest.mark.parametrize("after", [1, 17])
def test_killed_and_run_again_the_bytes_are_those_of_an_undisturbed_run(
    table: CodeTable, tmp_path: Path, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_vectors(tmp_path / "v.parquet", pa.array(range(300)), random_vectors(300, 7))
    keys = [f"codes={table.path}", f"vectors={file}", "part_rows=50"]
    code = KILLED.format(after=after, width=WIDTH, keys=[*keys, f"out={tmp_path / 'killed'}"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL
    child.stdout.close()
    parts = len(list((tmp_path / "killed").glob("part-*")))
    assert parts == (after - 1) // 5
    assert json.loads((tmp_path / "killed" / "segue-codes.json").read_text())["complete"] is False
    # What a kill within the writing of a part and of the manifest leaves.
    (tmp_path / "killed" / f".part-{parts:06d}.parquet.writing").write_bytes(b"half")
    (tmp_path / "killed" / ".segue-codes.json.writing-abcd_123").write_bytes(b"half")
    assert encode(*keys, f"out={tmp_path / 'killed'}") == 0
    assert f"6 parts, {parts} of which were there" in capsys.readouterr().out
    assert encode(*keys, f"out={tmp_path / 'whole'}") == 0
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "whole")
    assert len(folder_bytes(tmp_path / "whole")) == 7


def test_done_again_nothing_is_written_anew(table: CodeTable, tmp_path: Path) -> None:
    file = write_vectors(tmp_path / "v.parquet", pa.array(range(130)), random_vectors(130, 8))
    keys = (f"codes={table.path}", f"vectors={file}", f"out={tmp_path / 'out'}", "part_rows=50")
    assert encode(*keys) == 0
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "out").glob("part*")}
    assert encode(*keys) == 0
    assert before == {path.name: (path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "out").glob("part*")}


@pytest.mark.parametrize("group", [100, 1000])
def test_a_longer_file_appends_parts(
    table: CodeTable, tmp_path: Path, group: int, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, file = random_vectors(270, 9), tmp_path / "v.parquet"
    keys = (f"codes={table.path}", f"vectors={file}", "part_rows=50")
    write_vectors(file, pa.array(range(120)), vectors[:120], group)
    assert encode(*keys, f"out={tmp_path / 'grown'}") == 0
    first = (tmp_path / "grown" / "part-000000.parquet").stat()
    write_vectors(file, pa.array(range(270)), vectors, group)
    assert encode(*keys, f"out={tmp_path / 'grown'}") == 0
    assert "6 parts, 2 of which were there" in capsys.readouterr().out
    assert (tmp_path / "grown" / "part-000000.parquet").stat().st_ino == first.st_ino
    assert encode(*keys, f"out={tmp_path / 'whole'}") == 0
    assert folder_bytes(tmp_path / "grown") == folder_bytes(tmp_path / "whole")


def test_another_source_is_refused(table: CodeTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors, file, out = random_vectors(120, 10), tmp_path / "v.parquet", tmp_path / "out"
    keys = (f"codes={table.path}", f"vectors={file}", f"out={out}", "part_rows=50")
    write_vectors(file, pa.array(range(120)), vectors)
    assert encode(*keys) == 0
    begun, size = folder_bytes(out), file.stat().st_size
    for changed in (110, 3):  # in the short last part, in the first
        vectors[changed] += 1
        write_vectors(file, pa.array(range(120)), vectors)
        told = faults(capsys, *keys)
        assert f"another source: v.parquet ({size} bytes, footer " in told
        assert f"rows that part-{changed // 50:06d}.parquet was made of" in told
    write_vectors(file, pa.array(range(70)), vectors[:70])
    assert "another source" in faults(capsys, *keys)
    assert folder_bytes(out) == begun


def test_a_foreign_codebook_and_other_keys_are_refused(
    table: CodeTable, make_table: MakeTable, older: EventStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_vectors(tmp_path / "v.parquet", pa.array(range(60)), random_vectors(60, 11))
    keys = (f"vectors={file}", f"out={tmp_path / 'out'}")
    assert encode(f"codes={table.path}", *keys, "part_rows=50") == 0
    begun = folder_bytes(tmp_path / "out")
    other = make_table(older, "extra-level")
    told = faults(capsys, f"codes={other.path}", *keys, "part_rows=50")
    assert "foreign codebook" in told
    assert table.fingerprint in told
    assert other.fingerprint in told
    assert "`part_rows` 50, and is to go on with 40" in faults(capsys, f"codes={table.path}", *keys, "part_rows=40")
    assert folder_bytes(tmp_path / "out") == begun


@pytest.mark.parametrize("text", [False, True])
def test_an_id_twice_names_both_rows(
    table: CodeTable, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bool
) -> None:
    vectors = random_vectors(200, 12)

    def told(numbers: list[int]) -> str:
        ids = pa.array([f"id {number}" for number in numbers] if text else numbers)
        file = write_vectors(tmp_path / "v.parquet", ids, vectors, 90)
        return faults(capsys, f"codes={table.path}", f"vectors={file}", f"out={tmp_path / 'out'}", "part_rows=50")

    # Within a part that a row group's end cuts; nothing of it is written, the part before it is.
    within = told([*range(95), 70, *range(96, 200)])
    file, shown = tmp_path / "v.parquet", "id 70" if text else "70"
    assert f"{file}: row group 1, row 5: column `item_id` is {shown}, as in {file}: row group 0, row 70" in within
    assert [path.name for path in (tmp_path / "out").glob("part*")] == ["part-000000.parquet"]
    # In a part of this run, and in one of a run before.
    later = told([*range(180), 130, *range(181, 200)])
    assert "row group 2, row 0: column" in later
    assert f"as in {file}: row group 1, row 40" in later
    before = told([*range(199), 7])
    assert "row group 2, row 19: column" in before
    assert f"as in {file}: row group 0, row 7" in before


def test_equal_hashes_of_different_ids_are_no_fault(
    table: CodeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded_folder, "names_of", lambda ids: np.zeros(len(ids), np.uint64))
    file = write_vectors(tmp_path / "v.parquet", pa.array([f"{i}" for i in range(60)]), random_vectors(60, 13))
    assert encode(f"codes={table.path}", f"vectors={file}", f"out={tmp_path / 'out'}", "part_rows=25") == 0


GOOD = np.ones(WIDTH)


@pytest.mark.parametrize(
    ("ids", "rows", "place", "rule"),
    [
        ([0, 1, 2], [GOOD, None, np.ones(WIDTH + 1)], "row group 1, row 0", f"has {WIDTH + 1} values, but the code"),
        ([0, 1, 2], [GOOD, GOOD * np.nan, GOOD], "row group 0, row 1", "not a finite float32"),
        ([0, 1, 2], [GOOD, GOOD, GOOD * 1e300], "row group 1, row 0", "not a finite float32"),
        ([0, 1, 2], [GOOD, [None, *GOOD[1:]], GOOD], "row group 0, row 1", "not a finite float32"),
        ([0, None, 2], [GOOD, GOOD, GOOD], "row group 0, row 1", "column `item_id` is null"),
        ([0.5, 1, 2], [GOOD, GOOD, GOOD], "v.parquet", "ids must be whole numbers or text"),
        ([0, 1, 2], ["a", "b", "c"], "v.parquet", "vectors must be lists of float or double"),
    ],
)
def test_rows_that_break_a_rule(
    table: CodeTable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ids: list[Any],
    rows: list[Any],
    place: str,
    rule: str,
) -> None:
    lists = pa.array([row if row is None or isinstance(row, str) else list(row) for row in rows])
    file = tmp_path / "v.parquet"
    pq.write_table(pa.table({"item_id": pa.array(ids), "embed": lists}), file, row_group_size=2)
    told = faults(capsys, f"codes={table.path}", f"vectors={file}", f"out={tmp_path / 'out'}")
    assert place in told
    assert rule in told
    assert not list((tmp_path / "out").glob("*part*"))


def test_files_that_cannot_be_read(table: CodeTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    keys = (f"codes={table.path}", f"out={tmp_path / 'out'}")
    assert "no such file" in faults(capsys, *keys, f"vectors={folder / 'none.parquet'}")
    assert "without a file *.parquet" in faults(capsys, *keys, f"vectors={folder}")
    wide = pa.list_(pa.float32(), WIDTH + 2)
    write_vectors(folder / "a.parquet", pa.array([1]), random_vectors(1, 0))
    write_vectors(folder / "b.parquet", pa.array(["1"]), random_vectors(1, 0))
    write_vectors(folder / "c.parquet", pa.array([2]), np.ones((1, WIDTH + 2)), kind=wide)
    (folder / "d.parquet").write_bytes(b"PAR1 and more")
    told = faults(capsys, *keys, f"vectors={folder}")
    assert "3 faults" in told
    assert "b.parquet: column `item_id` is string, and int64 in a.parquet" in told
    assert f"c.parquet: column `embed` has {WIDTH + 2} values, but the code table codes vectors of {WIDTH}" in told
    assert "d.parquet: damaged or not a Parquet file" in told
    told = faults(capsys, *keys, f"vectors={folder / 'a.parquet'}", "item=track", "vector=vec")
    assert "has no column `track`; its columns are item_id, embed. Set `item`" in told
    assert "has no column `vec`" in told


def test_a_full_disk(table: CodeTable, tmp_path: Path) -> None:
    """The limit on the size of a file stands for it."""
    vectors = random_vectors(3000, 14)
    file = write_vectors(tmp_path / "v.parquet", pa.array([f"an item {i * 7919}" for i in range(3000)]), vectors, 500)
    keys = [f"codes={table.path}", f"vectors={file}", f"out={tmp_path / 'out'}", "part_rows=2000"]
    code = (
        "import resource, sys\n"
        "from semantic_ids import encode\n"
        "import tests.semantic_ids.plain_quantizer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        f"sys.exit(encode.main({keys!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert "part-000000.parquet: cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["segue-codes.json"]
    assert encode(*keys) == 0


def test_two_at_a_time_are_refused(table: CodeTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_vectors(tmp_path / "v.parquet", pa.array(range(30)), random_vectors(30, 15))
    (tmp_path / "out").mkdir()
    keys = (f"codes={table.path}", f"vectors={file}", f"out={tmp_path / 'out'}")
    with encoded_folder._locked(tmp_path / "out"):
        assert "another semantic_ids.encode is writing it" in faults(capsys, *keys)
    assert encode(*keys) == 0


def test_an_empty_file(table: CodeTable, tmp_path: Path) -> None:
    file = write_vectors(tmp_path / "v.parquet", pa.array([], pa.int64()), [], kind=F32)
    out = tmp_path / "out"
    assert encode(f"codes={table.path}", f"vectors={file}", f"out={out}") == 0
    assert json.loads((out / "segue-codes.json").read_text())["counts"]["rows"] == 0
