"""Every kind of storage is held to one set of rules; S3 is a real server over HTTP."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import s3fs
import xxhash

from common import storage as storage_module
from common.errors import InputError
from common.storage import LocalStorage, RemoteStorage, Storage, local_copies, open_storage
from tests.s3_server import s3_bucket  # noqa: F401 — asked for by name

Open = Callable[[], Storage]
KINDS = ("local", "file", "memory", "s3")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same empty place again and again."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        url = f"{request.getfixturevalue('s3_bucket')}/{name}/run"
    else:
        url = {
            "local": str(tmp_path / name / "run"),
            "file": f"file://{tmp_path / name / 'run'}",
            "memory": f"memory://{name}/run",
        }[request.param]
    return lambda: open_storage(url)


def write(storage: Storage, name: str, *pieces: bytes) -> tuple[int, str]:
    with storage.create(name) as sink:
        for piece in pieces:
            sink.write(piece)
    return sink.size, sink.digest


def read(storage: Storage, name: str) -> bytes:
    with storage.open(name) as file:
        return file.read()


def test_what_is_written_is_read_back_with_its_size_and_digest(place: Open) -> None:
    storage = place()
    content = os.urandom(3_000_000)
    for name, pieces in {
        "step-1/whole": [content],
        "step-1/pieces": [content[:1], content[1:70_000], b"", content[70_000:]],
        "step-2/empty": [],
        "top": [b"x"],
    }.items():
        expected = b"".join(pieces)
        assert write(storage, name, *pieces) == (len(expected), xxhash.xxh3_128(expected).hexdigest())
        assert storage.size_and_digest(name) == (len(expected), xxhash.xxh3_128(expected).hexdigest())
        assert read(place(), name) == expected
    assert storage.folders() == ["step-1", "step-2"]
    assert storage.files("step-1") == ["pieces", "whole"]
    assert storage.files("step-2") == ["empty"]


def test_a_file_longer_than_a_block_goes_up_and_comes_back_in_parts(
    place: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "BLOCK_BYTES", 5 * 2**20)  # the least that S3 takes as a part
    content = os.urandom(12 * 2**20 + 7)
    storage = place()
    assert write(storage, "step-1/long", content[: 2**20], content[2**20 :])[0] == len(content)
    assert storage.size_and_digest("step-1/long") == (len(content), xxhash.xxh3_128(content).hexdigest())


def test_writing_again_replaces(place: Open) -> None:
    storage = place()
    write(storage, "step-1/a", b"a longer content")
    write(storage, "step-1/a", b"short")
    assert read(storage, "step-1/a") == b"short"
    for content in (b"first, and longer", b"second", b""):
        storage.replace("step-1/manifest.json", content)
        assert read(place(), "step-1/manifest.json") == content
    assert storage.files("step-1") == ["a", "manifest.json"], "nothing else is left"
    storage.replace("step-2/manifest.json", b"alone")
    assert storage.folders() == ["step-1", "step-2"]


def test_what_is_missing_is_a_file_not_found(place: Open) -> None:
    storage = place()
    write(storage, "step-1/a", b"a")
    for name in ("step-1/b", "step-2/a", "manifest.json"):
        with pytest.raises(FileNotFoundError):
            storage.open(name)
        with pytest.raises(FileNotFoundError):
            storage.size_and_digest(name)


def test_an_empty_place_has_nothing_and_nothing_can_be_removed_from_it(place: Open) -> None:
    storage = place()
    assert storage.folders() == []
    assert storage.files("step-1") == []
    storage.remove("step-1/a")
    storage.remove_folder("step-1")
    assert storage.folders() == []


def test_files_and_folders_are_removed(place: Open) -> None:
    storage = place()
    for name in ("step-1/a", "step-1/b", "step-2/a", "step-10/a"):
        write(storage, name, b"content")
    storage.remove("step-1/a")
    assert storage.files("step-1") == ["b"]
    storage.remove_folder("step-1")
    assert storage.folders() == ["step-10", "step-2"], "a folder whose name begins alike stays"
    assert storage.files("step-1") == []
    with pytest.raises(FileNotFoundError):
        storage.open("step-1/b")
    assert read(storage, "step-10/a") == b"content"


def test_what_another_process_writes_and_removes_is_seen(place: Open) -> None:
    """Listings are cached by fsspec: a storage that has looked must look again."""
    ours, theirs = place(), place()
    if hasattr(theirs, "_fs") and isinstance(theirs._fs, s3fs.S3FileSystem):
        theirs._fs = s3fs.S3FileSystem(skip_instance_cache=True)
        assert theirs._fs is not ours._fs  # type: ignore[attr-defined]
    assert (ours.folders(), ours.files("step-1")) == ([], [])
    write(theirs, "step-1/a", b"a")
    assert (ours.folders(), ours.files("step-1")) == (["step-1"], ["a"])
    assert read(ours, "step-1/a") == b"a"
    write(theirs, "step-1/a", b"a longer one")
    write(theirs, "step-1/b", b"b")
    assert ours.size_and_digest("step-1/a")[0] == len(b"a longer one")
    assert ours.files("step-1") == ["a", "b"]
    write(theirs, "step-1/c", b"c")
    ours.remove_folder("step-1")
    assert (theirs.folders(), theirs.files("step-1")) == ([], [])


def test_a_local_copy_has_the_content_and_does_not_outlive_the_block(place: Open) -> None:
    storage = place()
    write(storage, "step-1/a", b"one")
    write(storage, "step-2/a", b"two")
    with local_copies() as copies:
        paths = [storage.copy_here(name, copies) for name in ("step-1/a", "step-2/a", "step-1/a")]
        assert [path.read_bytes() for path in paths] == [b"one", b"two", b"one"]
        if isinstance(storage, LocalStorage):
            assert paths[0] == storage.root / "step-1" / "a", "nothing is copied that is here already"
    assert not copies.exists()
    assert read(storage, "step-1/a") == b"one"


def test_messages_name_the_place(place: Open) -> None:
    storage = place()
    assert storage.where("step-1/a") == f"{storage.url}/step-1/a"


def test_hidden_folders_and_files_beside_folders_are_not_listed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for name in (".hidden/a", "step-1/a"):
        write(storage, name, b"a")
    write(storage, "top", b"a")
    assert storage.folders() == ["step-1"]


def test_a_replace_that_fails_leaves_the_former_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path)
    storage.replace("step-1/manifest.json", b"former")

    def full(_path: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        storage.replace("step-1/manifest.json", b"new")
    assert read(storage, "step-1/manifest.json") == b"former"
    assert storage.files("step-1") == ["manifest.json"]


def test_a_sink_is_closed_even_where_its_fsync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    sink = open_storage(tmp_path).create("a")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"), sink:
        sink.write(b"a")
    assert sink._file.closed


def test_a_place_of_no_known_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nonsense://a/b: not a place to keep checkpoints"):
        open_storage("nonsense://a/b")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"s3://bucket/a: not a place .*pip install -e '\.\[s3\]'"):
        open_storage("s3://bucket/a")


def test_a_bucket_that_is_not_there_is_a_fault_and_is_not_made(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("s3_bucket")
    storage = open_storage("s3://mistyped-bucket/run")
    with pytest.raises(OSError, match="bucket"), storage.create("step-1/x") as sink:
        sink.write(b"lost")
    assert not s3fs.S3FileSystem(skip_instance_cache=True).exists("mistyped-bucket")


def test_an_object_store_that_does_not_answer_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs={"connect_timeout": 1})
    filesystem.retries = 1
    storage = RemoteStorage("s3://somewhere/run", filesystem, "somewhere/run")
    with pytest.raises(OSError, match="somewhere/run"):
        storage.folders()
