"""One checkpoint, written whole or not at all: full disks, disks that cannot be written, and object stores."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from common.storage import LocalStorage, RemoteStorage, Sink, open_storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import MANIFEST, Damage, step_folder
from sharding.world import World, open_world
from tests.checkpoint_example import restore, save, train_rows, two_tables, watch, whole_state, write_chain
from tests.ranks import run_on_ranks
from tests.s3_server import s3_bucket  # noqa: F401 — asked for by name
from trainer.checkpoint.checkpointer import Checkpointer


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@contextmanager
def full_after(count: int) -> Iterator[None]:
    """A disk with room for that many more bytes."""
    left, write = [count], Sink.write

    def limited(sink: Sink, data: Any) -> None:
        view = memoryview(data).cast("B")
        if len(view) > left[0]:
            write(sink, view[: left[0]])  # a disk takes what it can
            left[0] = 0
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(view)
        write(sink, view)

    with mock.patch.object(Sink, "write", limited):
        yield


@contextmanager
def failing(kind: type[Any], method: str, only: str = "", after: bool = False) -> Iterator[None]:
    """A call on the storage that raises, for names that contain `only`; with `after`, when it has done its work."""
    original = getattr(kind, method)

    def failed(storage: Any, name: str, *arguments: Any) -> Any:
        if only not in name:
            return original(storage, name, *arguments)
        if after:
            original(storage, name, *arguments)
        raise PermissionError(errno.EACCES, "Permission denied")

    with mock.patch.object(kind, method, failed):
        yield


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_disk_that_is_full_at_any_byte_leaves_what_there_was(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    train_rows(model, world, 10)
    size = save(checkpointer, 10).size
    before, saved = files_of(tmp_path), whole_state(model)
    for step, room in enumerate((0, 5, 500, 2_000, size // 2, size * 3 // 4), start=11):
        train_rows(model, world, step)
        with full_after(room):
            outcome = save(checkpointer, step)
        assert outcome.error.startswith("rank 0: OSError: "), room
        assert "No space left" in outcome.error
        assert files_of(tmp_path) == before
        assert not (tmp_path / step_folder(step)).exists()
        assert not checkpointer.is_saved(step)
    same(whole_state(restore(world, tmp_path)), saved)
    assert save(checkpointer, 20).kind == "delta"
    same(whole_state(restore(world, tmp_path)), whole_state(model))
    assert Checkpoints(open_storage(tmp_path)).newest_whole_chain()[1] == []


def on_two_ranks(world: World, path: Path) -> None:
    """Each rank's disk is full once, then the manifest cannot be written, and then all is well again."""
    model = two_tables(world)
    checkpointer = watch(model, world, path, chain_share=1e9)
    train_rows(model, world, 10)
    save(checkpointer, 10)
    saved = whole_state(model)
    for step, unlucky in ((11, 0), (12, 1), (13, 2), (14, 3)):
        train_rows(model, world, step)
        if unlucky == 2:
            with failing(LocalStorage, "replace"):  # called on rank 0 alone
                outcome = save(checkpointer, step)
            assert outcome.error.startswith(f"{MANIFEST}: PermissionError")
        elif unlucky == 3:
            with full_after(100):
                outcome = save(checkpointer, step)
            assert "rank 0: OSError" in outcome.error
            assert "; rank 1: OSError" in outcome.error
        else:
            with full_after(3000 if world.rank == unlucky else 10**9):
                outcome = save(checkpointer, step)
            assert outcome.error.startswith(f"rank {unlucky}: OSError")
        assert [folder.name for folder in path.iterdir()] == [step_folder(10)]
    same(whole_state(restore(world, path)), saved)
    train_rows(model, world, 20)
    assert save(checkpointer, 20).kind == "delta"
    same(whole_state(restore(world, path)), whole_state(model))


def test_an_error_of_one_rank_is_the_outcome_of_all_and_nothing_is_lost(tmp_path: Path) -> None:
    run_on_ranks(2, on_two_ranks, tmp_path / "chain")


def test_a_place_that_cannot_be_written_is_an_outcome_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path / "file" / "chain")
    outcome = save(checkpointer, 10)
    assert outcome.error.startswith("rank 0: NotADirectoryError")
    assert f"warning: {tmp_path}/file/chain/{step_folder(10)}: cannot be written" in capsys.readouterr().out
    assert (tmp_path / "file").read_bytes() == b"in the way"
    (tmp_path / "file").unlink()
    assert save(checkpointer, 20).kind == "base"
    same(whole_state(restore(world, tmp_path / "file" / "chain")), whole_state(model))


def goes_on(world: World, path: Path, model: Any, checkpointer: Checkpointer, step: int) -> None:
    """The next checkpoint holds everything."""
    train_rows(model, world, step)
    assert not save(checkpointer, step).error
    same(whole_state(restore(world, path)), whole_state(model))


def test_a_manifest_that_arrived_though_its_writing_failed_does_not_outlive_its_files(
    world: World, tmp_path: Path
) -> None:
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    save(checkpointer, 10)
    train_rows(model, world, 20)
    with failing(LocalStorage, "replace", after=True):
        assert save(checkpointer, 20).error
    assert [folder.name for folder in tmp_path.iterdir()] == [step_folder(10)]
    assert Checkpoints(open_storage(tmp_path)).newest_whole_chain()[1] == []
    goes_on(world, tmp_path, model, checkpointer, 30)


def test_leftovers_that_cannot_be_removed_do_not_undo_a_checkpoint(world: World, tmp_path: Path) -> None:
    model = two_tables(world)
    folder = tmp_path / step_folder(10)
    folder.mkdir()
    (folder / "tables-00000-of-00001.old-1.safetensors").write_bytes(b"of a crash")
    checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    for method in ("remove", "files"):
        with failing(LocalStorage, method):
            save_all_the_same(checkpointer)
        same(whole_state(restore(world, tmp_path)), whole_state(model))
        checkpointer = watch(model, world, tmp_path, chain_share=1e9)
    goes_on(world, tmp_path, model, checkpointer, 20)


def save_all_the_same(checkpointer: Checkpointer) -> None:
    outcome = save(checkpointer, 10)
    assert not outcome.error


def test_a_step_written_again_leaves_the_new_files_alone_and_until_then_the_old_ones(
    world: World, tmp_path: Path
) -> None:
    model = two_tables(world)
    first = watch(model, world, tmp_path, chain_share=1e9)
    save(first, 10)
    base, _ = Checkpoints(open_storage(tmp_path)).newest_whole_chain()
    train_rows(model, world, 20)
    save(first, 20)
    before, saved = files_of(tmp_path), whole_state(model)
    (tmp_path / step_folder(20) / "tables-00009-of-00010.crashed-1.safetensors").write_bytes(b"of a crash")

    back = restore(world, tmp_path, step_folder(10))  # as after a fall-back
    second = watch(back, world, tmp_path, base, chain_share=1e9)
    train_rows(back, world, 21)
    with failing(LocalStorage, "replace"):
        assert save(second, 20).error
    assert {name: content for name, content in files_of(tmp_path).items() if "crashed" not in name} == before
    same(whole_state(restore(world, tmp_path)), saved)

    assert save(second, 20).kind == "delta"
    link = Checkpoints(open_storage(tmp_path)).link(step_folder(20))
    assert sorted([*link.manifest.files, MANIFEST]) == open_storage(tmp_path).files(link.name)
    assert not set(files_of(tmp_path)) & {name for name in before if step_folder(20) in name and MANIFEST not in name}
    same(whole_state(restore(world, tmp_path)), whole_state(back))


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_chains_lie_on_object_stores_as_they_do_here(
    world: World, kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    root = request.getfixturevalue("s3_bucket") if kind == "s3" else "memory:/"
    url = f"{root}/{uuid.uuid4().hex}/checkpoints"
    saved = write_chain(world, url)
    for step, state in saved.items():
        same(whole_state(restore(world, url, step_folder(step))), state)
    storage = open_storage(url)
    assert isinstance(storage, RemoteStorage)

    model = restore(world, url)
    chain, _ = Checkpoints(storage).newest_whole_chain()
    checkpointer = watch(model, world, url, chain, chain_share=1e9)
    train_rows(model, world, 50)
    with full_after(4000):
        assert save(checkpointer, 50).error
    with failing(RemoteStorage, "replace", after=True):  # an upload whose answer never came
        assert "PermissionError" in save(checkpointer, 50).error
    assert step_folder(50) not in storage.folders()
    goes_on(world, url, model, checkpointer, 60)  # type: ignore[arg-type]
    assert Checkpoints(open_storage(url)).names() == [step_folder(step) for step in (10, 20, 30, 40, 60)]

    name = Checkpoints(storage).link(step_folder(60)).manifest.dense
    storage.remove(f"{step_folder(60)}/{name}")
    chain, passed = Checkpoints(open_storage(url)).newest_whole_chain()
    assert chain[-1].name == step_folder(40)
    assert f"{url}/{step_folder(60)}/{name}: no such file" in passed[0]
    with pytest.raises(Damage, match="no such file"):
        Checkpoints(open_storage(url)).whole_chain(step_folder(60))
