"""The code table: what is written is read again, with the quantiser that codes later items, and what damage is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.config import option, run_entry
from common.errors import InputError
from common.files import fingerprint_of, sha256_of_file
from data.event_store import EventStore
from semantic_ids.codes import code_table, code_table_files
from semantic_ids.codes.code_table import CodeTable, check_replaceable, write_code_table
from semantic_ids.codes.code_table_files import CODEBOOKS, CODES, MANIFEST, known_rows
from semantic_ids.quantizers.base import Quantizer, sum_of_rows


class Stub(Quantizer):
    """Knows its codebooks and a number; codes nothing."""

    name = "stub of test_code_table"

    def __init__(self, codebooks_CVd: np.ndarray, number: int) -> None:
        self.codebooks_CVd, self.number = codebooks_CVd, number

    @property
    def vector_width(self):
        return self.codebooks_CVd.shape[2]

    def encode(self, vectors_nD):
        raise NotImplementedError

    def project(self, vectors_nD):
        return vectors_nD

    def reconstruct(self, codes_nl):
        return sum_of_rows(self.codebooks_CVd, codes_nl)

    def arrays(self):
        return {"codebooks": self.codebooks_CVd, "mean": self.codebooks_CVd[0, 0]}

    def settings(self):
        return {"number": self.number}

    @classmethod
    def load(cls, arrays, settings):
        assert set(arrays) == {"codebooks", "mean"}
        return cls(arrays["codebooks"], settings["number"])


def test_known_rows():
    codes_NC = np.array([[0, 0, 0], [0, 0, 65535], [256, 0, 0], [0, 1, 0]], np.uint16)
    assert known_rows(codes_NC).tolist() == [False, True, True, True]
    assert known_rows(codes_NC[:0]).tolist() == []


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store(make_store) -> EventStore:
    return make_store([[0, 1, 2, 1, 3]], [[0]] * 4)


CODES_NC = np.array([[3, 0, 1], [0, 0, 0], [0, 2, 0], [3, 0, 1]], np.uint16)
CODEBOOKS_CVD = np.random.default_rng(5).standard_normal((3, 4, 5)).astype(np.float32)
CODEBOOKS_CVD[2] = 0  # a level that the quantiser does not have
PLAYS_N = np.array([1, 0, 0, 2])


def write(path: Path, store: EventStore, **changes: object) -> CodeTable:
    given: dict[str, object] = {
        "embeddings": "collaborative",
        "quantizer": Stub(CODEBOOKS_CVD[:2], 7),
        "codebooks_CVd": CODEBOOKS_CVD,
        "settings": {"seed": 1},
        "codes_NC": CODES_NC,
        "training_plays_N": PLAYS_N,
        "diagnostics": {"levels": [0.1, 1 / 3]},
    }
    return write_code_table(path, store=store, **{**given, **changes})


@pytest.fixture
def table(store: EventStore, tmp_path: Path) -> Path:
    write(tmp_path / "codes", store)
    return tmp_path / "codes"


def rewrite(table: Path, **changes: object) -> None:
    """Change the manifest and give it the fingerprint that suits, so that later checks are reached."""
    content = json.loads((table / MANIFEST).read_text())
    content = {**content, **changes}
    content["fingerprint"] = fingerprint_of({key: value for key, value in content.items() if key != "fingerprint"})
    (table / MANIFEST).write_text(json.dumps(content))


def reseal(table: Path, name: str) -> None:
    """Make the manifest agree with a file that was replaced."""
    files = json.loads((table / MANIFEST).read_text())["files"]
    described = {"bytes": (table / name).stat().st_size, "sha256": sha256_of_file(table / name)}
    rewrite(table, files={**files, name: described})


def test_round_trip(table, store):
    for opened in (CodeTable.open(table, store), CodeTable.open_alone(table), write(table, store)):
        assert opened.path == table
        assert opened.codes_NC.dtype == np.uint16
        np.testing.assert_array_equal(opened.codes_NC, CODES_NC)
        np.testing.assert_array_equal(opened.codebooks_CVd, CODEBOOKS_CVD)
        np.testing.assert_array_equal(opened.training_plays_N, PLAYS_N)
        assert opened.item_ids.equals(pa.array(["item 0", "item 1", "item 2", "item 3"]))
        assert (opened.num_levels, opened.codes_per_level) == (3, 4)
        assert opened.known_N.tolist() == [True, False, True, True]
        assert opened.item_order.tolist() == [2, 3, 0]
        assert opened.group_offsets.tolist() == [0, 1, 3]
        assert opened.manifest.counts == {"items": 4, "known": 3, "unknown": 1}
        assert (opened.manifest.quantizer, opened.manifest.quantizer_settings) == (Stub.name, {"number": 7})
        expected = CODEBOOKS_CVD[0, 3] + CODEBOOKS_CVD[1, 0]
        np.testing.assert_array_equal(opened.decode(np.array([3, 0, 1])), expected)


def test_quantizer_comes_back(table, store):
    quantizer = CodeTable.open(table, store).quantizer
    assert isinstance(quantizer, Stub)
    assert quantizer.number == 7
    np.testing.assert_array_equal(quantizer.codebooks_CVd, CODEBOOKS_CVD[:2])


def test_plain_item_ids_have_no_quantizer(store, tmp_path):
    write(tmp_path / "codes", store, quantizer=None)
    opened = CodeTable.open(tmp_path / "codes", store)
    assert opened.manifest.quantizer == "item"
    assert not (tmp_path / "codes" / "quantizer").exists()
    with pytest.raises(InputError, match=r"plain item ids .*have no quantiser.*=residual-kmeans"):
        _ = opened.quantizer


def test_quantizer_that_nobody_knows(table, store):
    rewrite(table, quantizer="of tomorrow")
    with pytest.raises(InputError, match="`quantizer` is 'of tomorrow', which this release does not know"):
        _ = CodeTable.open(table, store).quantizer


@pytest.mark.parametrize(("levels", "codes"), [(1, 4), (2, 3)])
def test_quantizer_of_another_table(table, store, levels, codes):
    np.save(table / "quantizer" / "codebooks.npy", CODEBOOKS_CVD[:levels, :codes])
    reseal(table, "quantizer/codebooks.npy")
    with pytest.raises(InputError, match=f"a quantiser of {levels} levels × {codes} codes, but the table has 3 × 4"):
        _ = CodeTable.open(table, store).quantizer


@pytest.mark.parametrize("name", ["rq-vae", "residual-kmeans", "faiss"])
def test_quantizers_are_found_by_the_name_in_the_configuration(name, tmp_path):
    assert code_table_files._quantizer_class(name, tmp_path).name == name


def test_blocks_are_laid_end_to_end(make_store, tmp_path, monkeypatch):
    for module in (code_table, code_table_files):
        monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    generator = np.random.default_rng(2)
    codes_NC, plays_N = generator.integers(0, 4, (11, 3)).astype(np.uint16), generator.integers(0, 99, 11)
    store = make_store([[0, 1, 2, 1, 3]], [[0]] * 11)
    write(tmp_path / "codes", store, codes_NC=codes_NC, training_plays_N=plays_N)
    file = pq.ParquetFile(tmp_path / "codes" / CODES)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [3, 3, 3, 2]
    opened = CodeTable.open(tmp_path / "codes", store)
    np.testing.assert_array_equal(opened.codes_NC, codes_NC)
    np.testing.assert_array_equal(opened.training_plays_N, plays_N)
    assert opened.item_ids.equals(store.item_ids)


def test_codes_up_to_the_largest(make_store, tmp_path):
    store = make_store([[0, 1, 2]], [[0]] * 3)
    codes_NC = np.array([[65535], [0], [1]], np.uint16)
    codebooks_CVd = np.random.default_rng(0).standard_normal((1, 65536, 2)).astype(np.float32)
    plays_N = np.zeros(3, np.int64)
    write(
        tmp_path / "codes", store, quantizer=None, codes_NC=codes_NC, codebooks_CVd=codebooks_CVd,
        training_plays_N=plays_N,
    )  # fmt: skip
    np.testing.assert_array_equal(CodeTable.open(tmp_path / "codes", store).codes_NC, codes_NC)


def test_the_manifest_vouches_for_all_files_but_the_report(store, tmp_path):
    table = write(tmp_path / "codes", store, report="<p>für Menschen</p>")
    there = {path.relative_to(table.path).as_posix() for path in table.path.rglob("*") if path.is_file()}
    assert set(table.manifest.files) == there - {MANIFEST, "report.html"}
    assert {CODES, CODEBOOKS, "quantizer/codebooks.npy", "quantizer/mean.npy"} < set(table.manifest.files)
    assert any(name.startswith("trie/") for name in table.manifest.files)
    assert (table.path / "report.html").read_text(encoding="utf-8") == "<p>für Menschen</p>"
    (table.path / "report.html").unlink()
    assert CodeTable.open(table.path, store).fingerprint == table.fingerprint


def test_equal_content_has_equal_bytes(table, store, tmp_path):
    again = write(tmp_path / "again", store)
    for name in [MANIFEST, *again.manifest.files]:
        assert (tmp_path / "again" / name).read_bytes() == (table / name).read_bytes()


def test_codes_of_another_store(table, store, make_store):
    other = make_store([[0, 1, 2, 3]], [[0]] * 4)
    with pytest.raises(InputError) as caught:
        CodeTable.open(table, other)
    (fault,) = caught.value.faults
    for told in (store.fingerprint, other.fingerprint, str(table), str(other.path), "run semantic_ids.fit"):
        assert told in fault


@dataclasses.dataclass
class OpenConfig:
    store: str = option("", "a store")
    codes: str = option("", "its codes")
    out: str = option("", "what a command would write")


def test_codes_of_another_store_end_a_command_with_status_2(table, store, make_store, tmp_path, capsys):
    def work(config: OpenConfig) -> dict[str, object]:
        opened = CodeTable.open(Path(config.codes), EventStore.open(Path(config.store)))
        Path(config.out).write_text(opened.fingerprint)
        return {}

    other = make_store([[0, 1, 2, 3]], [[0]] * 4)
    out = tmp_path / "out"
    argv = [f"store={other.path}", f"codes={table}", f"out={out}"]
    assert run_entry("reader", "train", OpenConfig, work, argv) == 2
    told = capsys.readouterr().err
    assert store.fingerprint in told
    assert other.fingerprint in told
    assert not out.exists()
    assert run_entry("reader", "train", OpenConfig, work, [f"store={store.path}", *argv[1:]]) == 0


@pytest.mark.parametrize("name", [MANIFEST, CODES, CODEBOOKS, "quantizer/mean.npy"])
def test_missing_file(table, store, name):
    (table / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        CodeTable.open(table, store)


@pytest.mark.parametrize("name", [CODES, CODEBOOKS, "quantizer/codebooks.npy"])
def test_damaged_files(table, store, name):
    whole = (table / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (table / name).write_bytes(bytes(flipped))
    with pytest.raises(InputError, match=f"{name}: has sha256 .* the manifest says"):
        CodeTable.open(table, store)


@pytest.mark.parametrize("name", [CODES, CODEBOOKS])
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_files_cut_short(table, store, name, kept):
    whole = (table / name).read_bytes()
    (table / name).write_bytes(whole[:kept])
    with pytest.raises(InputError, match=f"{name}: has {len(whole[:kept])} bytes, the manifest says {len(whole)}"):
        CodeTable.open(table, store)
    reseal(table, name)  # a manifest that believes in the short file does not save it
    with pytest.raises(InputError, match=name):
        CodeTable.open(table, store)


def test_both_damaged_files_are_told_at_once(table, store):
    (table / CODES).write_bytes(b"")
    (table / CODEBOOKS).unlink()
    with pytest.raises(InputError) as caught:
        CodeTable.open(table, store)
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "cannot be read as the manifest of a code table"),
        ("[]", "expected a JSON object"),
        ("{}", "has no `format`"),
        ('{"format": "segue-code-table", "format_version": 99}', "`format_version` is 99, expected 2"),
        ('{"format": "segue-code-table", "format_version": 1}', "is 1, expected 2; run semantic_ids.fit again"),
        ('{"format": "segue-code-table", "format_version": 2}', "`codes` is missing"),
    ],
)
def test_damaged_manifest(table, store, text, fault):
    (table / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=fault):
        CodeTable.open(table, store)


def test_edited_manifest(table, store):
    content = json.loads((table / MANIFEST).read_text())
    content["codes"] = 8
    (table / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json: says fingerprint .* it was changed"):
        CodeTable.open(table, store)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"codes": 2}, r"codes\.parquet, row 0: `codes`\[0\] is 3, must be below 2"),
        ({"levels": 2}, r"codes\.parquet: has the columns .*\[3\].* expected .*\[2\]"),
        ({"dimensions": 6}, r"codebooks\.npy: holds float32 \(3, 4, 5\), expected float32 \(3, 4, 6\)"),
        ({"counts": {"items": 4, "known": 4, "unknown": 0}}, "3 items have codes other than all zeros.* says 4"),
    ],
)
def test_manifest_that_the_files_contradict(table, store, changes, fault):
    rewrite(table, **changes)
    with pytest.raises(InputError, match=fault):
        CodeTable.open(table, store)


def test_manifest_that_forgets_a_file(table, store):
    rewrite(table, files={CODEBOOKS: json.loads((table / MANIFEST).read_text())["files"][CODEBOOKS]})
    with pytest.raises(InputError, match=r"manifest\.json: `files` does not name codes\.parquet"):
        CodeTable.open(table, store)


def test_rows_out_of_order_and_too_few(table, store):
    whole = pq.read_table(table / CODES)
    for rows, fault in (
        ([0, 2, 1, 3], r"row 1: `item_id` is item 2, expected item 1, item 1 of "),
        ([0, 1, 2], "has 3 rows, expected one for each of 4 items"),
    ):
        pq.write_table(whole.take(rows), table / CODES)
        reseal(table, CODES)
        with pytest.raises(InputError, match=fault):
            CodeTable.open(table, store)


def test_rows_out_of_order_where_an_id_is_missing(table, store):
    whole = pq.read_table(table / CODES)
    ids = pa.array(["item 0", "item 1", None, "item 3"])
    pq.write_table(whole.set_column(0, "item_id", ids), table / CODES)
    reseal(table, CODES)
    with pytest.raises(InputError, match="row 2: `item_id` is None, expected item 2"):
        CodeTable.open(table, store)


def test_nulls_among_codes(table, store):
    whole = pq.read_table(table / CODES)
    codes = pa.array([[3, 0, 1], [0, None, 0], [0, 2, 0], [3, 0, 1]], whole.schema.field("codes").type)
    for column, values in ((1, codes), (2, pa.array([1, 0, None, 2]))):
        pq.write_table(whole.set_column(column, whole.schema.field(column), values), table / CODES)
        reseal(table, CODES)
        with pytest.raises(InputError, match=r"codes\.parquet: row group 0, row 0 to 3: a value is null"):
            CodeTable.open(table, store)


def test_codebooks_are_never_unpickled(table, store):
    with (table / CODEBOOKS).open("wb") as file:
        np.save(file, np.array([{"harm": 1}], dtype=object), allow_pickle=True)
    reseal(table, CODEBOOKS)
    with pytest.raises(InputError, match=r"codebooks\.npy: not a readable NumPy file"):
        CodeTable.open(table, store)


def test_codebooks_that_are_not_finite(table, store):
    codebooks = np.load(table / CODEBOOKS)
    codebooks[1, 2, 3] = np.inf
    np.save(table / CODEBOOKS, codebooks)
    reseal(table, CODEBOOKS)
    with pytest.raises(InputError, match="not finite"):
        CodeTable.open(table, store)


def test_doubles_among_the_quantizers_arrays(table, store):
    np.save(table / "quantizer" / "mean.npy", np.zeros(5))
    reseal(table, "quantizer/mean.npy")
    with pytest.raises(InputError, match=r"quantizer/mean\.npy: does not hold an array of float32"):
        _ = CodeTable.open(table, store).quantizer


def test_what_may_be_replaced(table, tmp_path):
    check_replaceable(table)
    check_replaceable(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(InputError, match="is not a code table, so it is not replaced"):
            check_replaceable(path)


def test_fingerprint_does_not_depend_on_the_place(table, store, tmp_path):
    shutil.copytree(table, tmp_path / "moved")
    assert CodeTable.open(tmp_path / "moved", store).fingerprint == CodeTable.open(table, store).fingerprint
