from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from common.errors import InputError
from common.files import (
    fingerprint_of,
    read_json_object,
    sha256_of_file,
    write_folder_aside,
    write_json_atomically,
    write_text_atomically,
)


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_store(target: Path, content: str) -> None:
    with write_folder_aside(target) as folder:
        (folder / "a").write_text(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text(content)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "store"
    with write_folder_aside(target) as folder:
        assert folder.parent == target.parent  # the same file system
        (folder / "a").write_text("1")
        assert not target.exists()
    assert tree(tmp_path) == {"deep/store/a": "1"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "left over").write_text("old")
    write_store(target, "new")
    assert tree(tmp_path) == {"store/a": "new", "store/sub/b": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there_before", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException], there_before: bool) -> None:
    if there_before:
        write_store(tmp_path / "store", "old")
    before = tree(tmp_path)
    with pytest.raises(error), write_folder_aside(tmp_path / "store") as folder:  # noqa: PT012
        (folder / "a").write_text("new")
        raise error
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["store"] if there_before else [])


def test_an_error_while_replacing_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "store", "old")
    before = tree(tmp_path)
    rename = Path.rename

    def fail_on_the_new_one(path: Path, target: Path) -> Path:
        if ".writing-" in path.name:
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(OSError, match="no"):
        write_store(tmp_path / "store", "new")
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_is_told_by_the_folder_that_was_to_be_written(tmp_path: Path) -> None:
    write_store(tmp_path / "store", "before")

    def fill() -> None:
        with write_folder_aside(tmp_path / "store"), Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"more than there is room for")

    with pytest.raises(InputError, match=r"store: cannot be written: No space left on device; nothing of it was left"):
        fill()
    assert tree(tmp_path) == {"store/a": "before", "store/sub/b": "before"}


def test_a_file_or_link_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(InputError, match="exists and is not a folder"):
            write_store(tmp_path / name, "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    renamed_after: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced.append((status.st_dev, status.st_ino))

    def record_rename(path: Path, target: Path) -> Path:
        renamed_after.append(len(synced))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    write_store(tmp_path / "store", "new")

    def identity(path: Path) -> tuple[int, int]:
        return path.stat().st_dev, path.stat().st_ino

    (before_rename,) = renamed_after
    content = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert {identity(path) for path in content} == set(synced[:before_rename])
    assert synced[before_rename:] == [identity(tmp_path)]  # the new name itself


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text_atomically(path, "old")
    write_text_atomically(path, "néw")
    assert path.read_bytes() == "néw".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "x" * 100_000 + "\udc80")
    assert tree(tmp_path) == {"deep/x.txt": "néw"}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json_atomically(path, {"b": [1, 2.5, None], "a": "é"})
    assert read_json_object(path, "a test") == {"b": [1, 2.5, None], "a": "é"}
    with pytest.raises(TypeError):
        write_json_atomically(path, {"x": object()})
    assert read_json_object(path, "a test") == {"b": [1, 2.5, None], "a": "é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; it should hold a manifest"),
        (b"", "cannot be read as a manifest: Expecting value"),
        (b'{"a": 1', "cannot be read as a manifest"),
        (b"\xff\xfe", "cannot be read as a manifest"),
        (b"[1]", "holds a list, expected a JSON object"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json_object(path, "a manifest")
    assert str(caught.value).startswith(f"{path}: {message}")


def test_hash_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_fingerprints() -> None:
    assert fingerprint_of({"a": 1, "b": [1.5, "é", None]}) == "20f1b42e50ed254c"  # artefacts on disks carry such
    assert fingerprint_of({"b": 2, "a": 1}) == fingerprint_of({"a": 1, "b": 2})
    distinct = [{}, [], {"a": 1}, {"a": 2}, {"a": "1"}, {"a": [1]}, {"b": 1}, [1, 2], [2, 1], [12], "12", None]
    assert len({fingerprint_of(content) for content in distinct}) == len(distinct)
    content = {"x": [1, {"y": 2}]}
    assert fingerprint_of(json.loads(json.dumps(content))) == fingerprint_of(content)
