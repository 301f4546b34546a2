"""Parts of a fit that was killed are gone on with, to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids import encoding
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.encoding import relative_errors, work_folder
from semantic_ids.fit import main
from tests.semantic_ids.conftest import MakeStore

ROOT = Path(__file__).parents[2]

KILLED = """
import sys
import numpy as np
from semantic_ids import encoding
from semantic_ids import fit
from semantic_ids.quantizers.residual_kmeans import ResidualKMeans
encoding.PART_ROWS = 8
encode, calls = ResidualKMeans.encode, 0
def slow(self, vectors):
    global calls
    calls += 1
    if calls > {after}:
        print("in the middle", flush=True)
        sys.stdin.read()
    return encode(self, vectors)
ResidualKMeans.encode = slow
fit.main({keys!r})
"""


def folder_bytes(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def keys(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    generator = np.random.default_rng(5)
    store = make_store([[0, 1, 2]], [[]] * 60, {item: generator.standard_normal(6) for item in range(60)})
    monkeypatch.setattr(encoding, "PART_ROWS", 8)
    return [f"store={store.path}", "levels=2", "codes=8"]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_killed_and_run_again_the_table_is_that_of_an_undisturbed_fit(
    keys: list[str], tmp_path: Path, after: int
) -> None:
    out, work, undisturbed = tmp_path / "a" / "codes", tmp_path / "a" / ".codes.fitting", tmp_path / "b" / "codes"
    code = KILLED.format(after=after, keys=[*keys, f"out={out}"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL
    for stream in (child.stdin, child.stdout):
        assert stream is not None
        stream.close()
    assert not out.exists()
    assert len(list(work.glob("part-*.npy"))) == after
    fitted = (work / "quantizer" / "codebooks.npy").read_bytes()
    assert main([*keys, f"out={out}"]) == 0
    assert main([*keys, f"out={undisturbed}"]) == 0
    assert (out / "codebooks.npy").read_bytes() == fitted
    assert folder_bytes(out) == folder_bytes(undisturbed)
    assert not work.exists()


def test_parts_that_are_there_are_read(keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semantic_ids.quantizers.residual_kmeans import ResidualKMeans

    encode, coded = ResidualKMeans.encode, []

    def stopped(self: ResidualKMeans, vectors: np.ndarray) -> np.ndarray:
        if len(coded) == 3:
            raise KeyboardInterrupt
        coded.append(len(vectors))
        return encode(self, vectors)

    monkeypatch.setattr(ResidualKMeans, "encode", stopped)
    assert main([*keys, f"out={tmp_path / 'codes'}"]) == 130
    monkeypatch.setattr(
        ResidualKMeans, "encode", lambda self, vectors: coded.append(len(vectors)) or encode(self, vectors)
    )
    assert main([*keys, f"out={tmp_path / 'codes'}"]) == 0
    assert coded == [8] * 7 + [4], "each part was coded once"


def test_what_another_fit_left_is_not_taken_over(keys: list[str], tmp_path: Path) -> None:
    def stopped() -> None:
        with work_folder(tmp_path / "codes", {"store": "another"}) as work:
            (work.path / "part-000000.npy").write_bytes(b"of another fit")
            (work.path / "quantizer").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (tmp_path / ".codes.fitting" / "part-000000.npy").exists()
    assert main([*keys, f"out={tmp_path / 'codes'}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_two_fits_of_one_table_at_once_are_refused(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "codes", {"a": 1}),
        pytest.raises(InputError, match=r"another semantic_ids\.fit is writing it"),
        work_folder(tmp_path / "codes", {"a": 1}),
    ):
        pass


def test_errors_are_those_written_out(keys: list[str], tmp_path: Path) -> None:
    assert main([*keys, f"out={tmp_path / 'codes'}"]) == 0
    quantizer = CodeTable.open_alone(tmp_path / "codes").quantizer
    vectors = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    codes = quantizer.encode(vectors)
    expected = []
    approximate = np.zeros((20, 6))
    for level in range(2):
        approximate = approximate + quantizer.codebooks_CVd[level][codes[:, level]]
        expected.append(np.square(vectors - approximate).sum() / np.square(vectors).sum())
    np.testing.assert_allclose(relative_errors(quantizer, vectors, codes), expected, rtol=1e-5)
    assert not relative_errors(quantizer, np.zeros((3, 6), np.float32), codes[:3]).any()
