"""Tensor files are read back by the safetensors library itself, whatever the pieces they were written in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from common.storage import open_storage
from common.tensor_files import Layout, TensorFileWriter

DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "int16", "int32", "int64", "bool")
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def values(layout: Layout, seed: int) -> np.ndarray:
    """Any bit patterns, of a bfloat16 as 16-bit numbers."""
    dtype = np.dtype({"bfloat16": "int16"}.get(layout.dtype, layout.dtype))
    count = int(np.prod(layout.shape))
    drawn = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    if layout.dtype == "bool":
        drawn &= 1
    return drawn.view(dtype).reshape(layout.shape)


def write(path: Path, layouts: list[Layout], pieces: list[tuple[str, np.ndarray]], finish: bool = True) -> None:
    with open_storage(path.parent).create(path.name) as sink:
        writer = TensorFileWriter(sink, layouts, {"made": "by a test"})
        for name, piece in pieces:
            writer.write(name, piece)
        if finish:
            writer.finish()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back_bit_for_bit(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = data.draw(st.lists(NAMES, unique=True, max_size=5))
    layouts = [Layout(name, data.draw(st.sampled_from(DTYPES)), data.draw(SHAPES)) for name in names]
    expected = {layout.name: values(layout, seed) for seed, layout in enumerate(layouts)}
    pieces = []
    for name, whole in expected.items():
        flat = whole.reshape(-1)
        cuts = sorted(data.draw(st.lists(st.integers(0, flat.size), max_size=3)))
        pieces += [(name, piece) for piece in np.split(flat, cuts) if piece.size or data.draw(st.booleans())]
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    write(path, layouts, pieces)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(names)
        assert file.metadata() == {"made": "by a test"}
        for layout in layouts:
            found = file.get_tensor(layout.name)
            assert (str(found.dtype), tuple(found.shape)) == (f"torch.{layout.dtype}", layout.shape)
            assert found.reshape(-1).view(torch.uint8).numpy().tobytes() == expected[layout.name].tobytes()
    if all(layout.dtype != "bfloat16" for layout in layouts):  # NumPy has none
        loaded = safetensors.numpy.load_file(path)
        for layout in layouts:
            assert loaded[layout.name].tobytes() == expected[layout.name].tobytes()
            assert loaded[layout.name].shape == layout.shape


def test_data_begins_aligned_and_pieces_need_not_lie_in_one_run(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float64).reshape(4, 6)
    for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"):
        path = tmp_path / name
        write(path, [Layout(name, "float64", (6, 4))], [(name, whole.T[:2]), (name, whole.T[2:])])
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0
        assert np.array_equal(safetensors.numpy.load_file(path)[name], whole.T)


def test_a_file_without_tensors_and_one_of_empty_tensors_can_be_opened(tmp_path: Path) -> None:
    empty = [Layout("first", "float32", (0, 8)), Layout("second", "int32", (0,))]
    last = np.ones(3, np.uint8)
    for name, layouts, pieces in (
        ("none", [], []),
        ("empty", empty, []),  # never written, since there is nothing to write
        ("around", [empty[0], Layout("middle", "uint8", (3,)), empty[1]], [("middle", last)]),
    ):
        write(tmp_path / name, layouts, pieces)
        with safe_open(tmp_path / name, framework="pt") as file:
            shapes = {key: tuple(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
        assert shapes == {layout.name: layout.shape for layout in layouts}


def test_misuse_is_caught(tmp_path: Path) -> None:
    layouts = [Layout("a", "float32", (2,)), Layout("b", "float32", (2,))]
    one, two = np.zeros(1, np.float32), np.zeros(2, np.float32)
    for pieces, finish, message in (
        ([("b", two)], False, "b is written out of turn"),
        ([("a", one), ("b", two)], False, "b is written out of turn"),
        ([("a", two), ("b", one), ("a", one)], False, "a is written out of turn"),
        ([("a", two), ("a", one)], False, "a: more values than announced"),
        ([("a", one), ("a", two)], False, "a: more values than announced"),
        ([("a", two), ("c", one)], False, "c is written out of turn"),
        ([("a", two), ("b", two), ("c", one)], False, "nothing is left"),
        ([("a", two), ("b", one)], True, "b: 4 bytes are missing"),
        ([("a", two)], True, "b: 8 bytes are missing"),
        ([], True, "a: 8 bytes are missing"),
    ):
        with pytest.raises(AssertionError, match=message):
            write(tmp_path / "file", layouts, pieces, finish)
