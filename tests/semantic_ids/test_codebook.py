"""The code table: the reserved tuple, the order of colliding items, and what damage is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.config import option, run_entry
from common.errors import InputError
from common.files import fingerprint_of, sha256_of_file
from data.event_store import EventStore
from semantic_ids.codebook import (
    CODEBOOKS,
    CODES,
    MANIFEST,
    CodeTable,
    order_items,
    reserve_zero_tuple,
    unused_tuple,
    write_code_table,
)
from semantic_ids.residual_quantizer import decode


@st.composite
def code_tuples(draw):
    """Few tuples to choose from, so that all zeros is nearly always taken and often everything is."""
    levels, codes = draw(st.sampled_from([(1, 2), (2, 2), (1, 4), (3, 2), (2, 4)]))
    row = st.lists(st.integers(0, codes - 1), min_size=levels, max_size=levels)
    return np.array(draw(st.lists(row, min_size=1, max_size=24)), np.int64), codes


def all_tuples(levels: int, codes: int) -> np.ndarray:
    return np.stack(np.unravel_index(np.arange(codes**levels), (codes,) * levels), axis=1)


@given(code_tuples())
@example((all_tuples(2, 2), 2))
@example((all_tuples(2, 2)[:3], 2))
@settings(max_examples=300, deadline=None)
def test_no_known_item_carries_the_zero_tuple(case):
    codes_nC, num_codes = case
    codebooks = np.random.default_rng(0).standard_normal((codes_nC.shape[1], num_codes, 3)).astype(np.float32)
    taken = {tuple(row) for row in codes_nC.tolist()}
    if len(taken) == num_codes ** codes_nC.shape[1]:
        with pytest.raises(InputError, match=f"all {len(taken)} tuples of {codes_nC.shape[1]} levels × {num_codes}"):
            reserve_zero_tuple(codes_nC, codebooks)
        return
    codes, permuted = reserve_zero_tuple(codes_nC, codebooks)
    assert codes.any(axis=1).all()
    np.testing.assert_array_equal(decode(permuted, codes), decode(codebooks, codes_nC))
    # A relabelling: who shared codes still does, who did not still does not.
    assert len({tuple(row) for row in codes.tolist()}) == len(taken)
    if not (codes_nC == 0).all(axis=1).any():
        np.testing.assert_array_equal(codes, codes_nC)


@given(code_tuples())
@settings(max_examples=100, deadline=None)
def test_unused_tuple_is_the_first_that_nobody_has(case):
    codes_nC, num_codes = case
    taken = {tuple(row) for row in codes_nC.tolist()}
    free = [row for row in all_tuples(codes_nC.shape[1], num_codes).tolist() if tuple(row) not in taken]
    if free:
        assert unused_tuple(codes_nC, num_codes).tolist() == free[0]


def test_unused_tuple_where_tuples_do_not_fit_in_64_bits():
    codes_nC = np.zeros((3, 8), np.int64)
    codes_nC[1, 7] = 1
    codes_nC[2, 0] = 1023
    assert unused_tuple(codes_nC, 1024).tolist() == [0, 0, 0, 0, 0, 0, 0, 2]


def test_colliding_items_by_plays_then_index():
    codes_NC = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [1, 0], [0, 1], [1, 0]])
    order, offsets = order_items(codes_NC, np.array([1, 0, 3, 9, 1, 0, 3]), 2)
    assert order.tolist() == [1, 5, 2, 6, 0, 4]
    assert offsets.tolist() == [0, 2, 6]


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store(make_store) -> EventStore:
    return make_store([[0, 1, 2, 1, 3]], [[0]] * 4)


@pytest.fixture
def table(store: EventStore, tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    write_code_table(
        tmp_path / "codes",
        store_fingerprint=store.fingerprint,
        embeddings="collaborative",
        settings={"seed": 1},
        codes_NC=np.array([[3, 0, 1], [0, 0, 0], [0, 2, 0], [3, 0, 1]]),
        codebooks_CVd=generator.standard_normal((3, 4, 5)).astype(np.float32),
        training_plays_N=np.array([1, 0, 0, 2]),
        diagnostics={"levels": [0.1, 1 / 3]},
    )
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
    opened = CodeTable.open(table, store)
    assert opened.codes_NC.dtype == np.int64
    assert opened.codes_NC.tolist() == [[3, 0, 1], [0, 0, 0], [0, 2, 0], [3, 0, 1]]
    np.testing.assert_array_equal(
        opened.codebooks_CVd, np.random.default_rng(5).standard_normal((3, 4, 5)).astype(np.float32)
    )
    assert (opened.num_levels, opened.codes_per_level) == (3, 4)
    assert opened.known_N.tolist() == [True, False, True, True]
    assert opened.item_order.tolist() == [2, 3, 0]
    assert opened.group_offsets.tolist() == [0, 1, 3]
    assert opened.manifest.counts == {"items": 4, "known": 3, "unknown": 1}
    expected = opened.codebooks_CVd[0, 3] + opened.codebooks_CVd[1, 0] + opened.codebooks_CVd[2, 1]
    np.testing.assert_array_equal(opened.decode(np.array([3, 0, 1])), expected)


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


@pytest.mark.parametrize("name", [MANIFEST, CODES, CODEBOOKS])
def test_missing_file(table, store, name):
    (table / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        CodeTable.open(table, store)


@pytest.mark.parametrize("name", [CODES, CODEBOOKS])
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
        ('{"format": "segue-code-table", "format_version": 99}', "`format_version` is 99, expected 1"),
        ('{"format": "segue-code-table", "format_version": 1}', "`codes` is missing"),
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


def test_rows_out_of_order_and_too_few(table, store):
    whole = pq.read_table(table / CODES)
    for rows, fault in (([0, 2, 1, 3], r"row 1: `item` is 2, expected 1"), ([0, 1, 2], "has 3 rows, expected one")):
        pq.write_table(whole.take(rows), table / CODES)
        reseal(table, CODES)
        with pytest.raises(InputError, match=fault):
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


def test_fingerprint_does_not_depend_on_the_place(table, store, tmp_path):
    shutil.copytree(table, tmp_path / "moved")
    assert CodeTable.open(tmp_path / "moved", store).fingerprint == CodeTable.open(table, store).fingerprint
