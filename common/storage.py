"""A folder of files, on this machine or anywhere that fsspec reaches (`s3://bucket/path`, `memory://name`).

Names are relative, with `/` between folders. A file is written once, from front to back, and digested on the way; what
makes a set of files count is one small file, replaced whole by `replace`: a rename here, a single upload elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import fsspec
import xxhash

from common.errors import InputError
from common.files import fsync_path

BLOCK_BYTES = 8 * 2**20
"""Read or uploaded at a time."""

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
"""Where there are no folders to make, and making one would make a bucket of a mistyped name."""


class Sink:
    """A file being written: counts and digests (XXH3, 128 bits) what passes through.

    Attributes:
        size: bytes written.
    """

    def __init__(self, file: IO[bytes], *, sync: bool) -> None:
        self._file, self._sync, self._hash = file, sync, xxhash.xxh3_128()
        self.size = 0

    @property
    def digest(self) -> str:
        """Of everything written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> None:
        """Append a buffer of contiguous bytes."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size += len(view)
        while len(view):  # a raw file may take a part
            view = view[self._file.write(view) :]

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._sync:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


class Storage(ABC):
    """Where the files are.

    Attributes:
        url: as given, for messages.
    """

    url: str

    def where(self, name: str) -> str:
        """How to call a file in a message."""
        return f"{self.url.rstrip('/')}/{name}"

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted; hidden ones left out."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted, without the folder; empty if there is none."""

    @abstractmethod
    def create(self, name: str) -> Sink:
        """A new file in the place of any of that name; on the disk when the `with` block of the sink has ended."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a small file that is there whole or not at all, after everything written before it."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A file for reading.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; no fault if it is not there."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; no fault if it is not there."""

    @abstractmethod
    def copy_here(self, name: str, folder: Path) -> Path:
        """A local path of a file: its own, or that of a copy made in `folder`."""

    def size_and_digest(self, name: str) -> tuple[int, str]:
        """Read a whole file: bytes and digest.

        Raises:
            FileNotFoundError: there is none.
        """
        digest, size = xxhash.xxh3_128(), 0
        buffer = memoryview(bytearray(BLOCK_BYTES))
        with self.open(name) as file:
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                digest.update(buffer[:count])
                size += count
        return size, digest.hexdigest()


def open_storage(url: str | Path) -> Storage:
    """The folder at a path or URL; it need not exist.

    Raises:
        InputError: fsspec knows no such kind of place, or lacks the package for it.
    """
    text = str(url)
    if "://" not in text:
        return LocalStorage(Path(text))
    if text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    try:
        filesystem, root = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        hint = "; pip install -e '.[s3]' brings what s3:// needs" if text.startswith("s3:") else ""
        raise InputError(f"{text}: not a place to keep checkpoints: {error}{hint}") from None
    return RemoteStorage(text, filesystem, root)


class LocalStorage(Storage):
    """A folder on this machine: everything is fsynced, and visible by a rename."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    def folders(self) -> list[str]:
        """See `Storage`."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def files(self, folder: str) -> list[str]:
        """See `Storage`."""
        here = self.root / folder
        return sorted(path.name for path in here.iterdir() if path.is_file()) if here.is_dir() else []

    def create(self, name: str) -> Sink:
        """See `Storage`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return Sink(path.open("wb", buffering=0), sync=True)

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync_path(path.parent)  # the names of the files that are to count
        aside = path.with_name(f".{path.name}.writing")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)
        fsync_path(path.parent.parent)

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        return (self.root / name).open("rb")

    def remove(self, name: str) -> None:
        """See `Storage`."""
        (self.root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """See `Storage`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.root / folder)

    def copy_here(self, name: str, folder: Path) -> Path:  # noqa: ARG002 — it is here already
        """See `Storage`."""
        return self.root / name


class RemoteStorage(Storage):
    """A folder on an object store or another file system of fsspec's, where nothing can be renamed or fsynced."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        self.url, self.root, self._fs = url, root.rstrip("/"), filesystem

    @contextlib.contextmanager
    def _reaching(self, name: str) -> Iterator[str]:
        """The path of a file or folder there. What its library raises, whatever it is, becomes an OSError."""
        try:
            yield f"{self.root}/{name}".rstrip("/")
        except OSError:
            raise
        except Exception as error:  # without credentials, without an answer …: of no common class
            raise OSError(f"{self.where(name)}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        with self._reaching(folder) as path:
            self._fs.invalidate_cache()  # other processes write here too
            try:
                entries: list[dict[str, Any]] = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
            return [entry for entry in entries if entry["name"].rstrip("/") != path]

    def folders(self) -> list[str]:
        """See `Storage`."""
        found = (entry["name"] for entry in self._entries("") if entry["type"] == "directory")
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def files(self, folder: str) -> list[str]:
        """See `Storage`."""
        found = (entry["name"] for entry in self._entries(folder) if entry["type"] == "file")
        return sorted(name.rsplit("/", 1)[-1] for name in found)

    def create(self, name: str) -> Sink:
        """See `Storage`."""
        with self._reaching(name) as path:
            if not _OBJECT_STORES & set(_names_of(self._fs.protocol)):
                self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            return Sink(self._fs.open(path, "wb", block_size=BLOCK_BYTES), sync=False)

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        with self._reaching(name) as path:
            self._fs.pipe_file(path, data)

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        with self._reaching(name) as path:
            self._fs.invalidate_cache()
            opened: IO[bytes] = self._fs.open(path, "rb", block_size=BLOCK_BYTES)
            return opened

    def remove(self, name: str) -> None:
        """See `Storage`."""
        with self._reaching(name) as path, contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def remove_folder(self, folder: str) -> None:
        """See `Storage`."""
        with self._reaching(folder) as path:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(path, recursive=True)
            self._fs.invalidate_cache()

    def copy_here(self, name: str, folder: Path) -> Path:
        """See `Storage`."""
        copy = folder / name.replace("/", "-")
        if not copy.exists():
            with self._reaching(name) as path:
                self._fs.get_file(path, str(copy))
        return copy


def _names_of(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else protocol


@contextlib.contextmanager
def local_copies() -> Iterator[Path]:
    """A folder for what `Storage.copy_here` fetches, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="segue-") as folder:
        yield Path(folder)
