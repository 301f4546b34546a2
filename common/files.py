"""Files that are either whole or absent, and fingerprints that tell which is which."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import InputError


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def write_folder_aside(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends without an error.

    Everything in it is fsynced before it is renamed, so `target` is never there in part. An error or Ctrl-C removes
    the aside folder and leaves an existing `target` as it was. A process killed outright (SIGKILL, a power cut) leaves
    `.NAME.writing-…` behind, and in the instant between two renames the former content in `.NAME.retired-…/old`.

    Raises:
        InputError: something that is not a folder stands at `target`, or the disk is full.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(
            f"{target}: exists and is not a folder, and would be replaced by one; move it, or name another"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.writing-", dir=target.parent))
    try:
        aside.chmod(0o755)
        yield aside
        for path in aside.rglob("*"):
            fsync_path(path)
        fsync_path(aside)
        _replace_folder(aside, target)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            # Of a write to an open file, the operating system does not tell the name.
            raise InputError(
                f"{target}: cannot be written: {error.strerror}; nothing of it was left behind, make room or name "
                "another place"
            ) from None
        raise


def _replace_folder(aside: Path, target: Path) -> None:
    """Rename `aside` over `target`; a folder cannot be renamed over a full one, so the old one steps aside."""
    if not target.exists():
        aside.rename(target)
        fsync_path(target.parent)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.retired-", dir=target.parent))
    target.rename(retired / "old")
    try:
        aside.rename(target)
    except BaseException:
        (retired / "old").rename(target)
        retired.rmdir()
        raise
    fsync_path(target.parent)
    shutil.rmtree(retired)


@contextmanager
def write_file_aside(target: Path) -> Iterator[Path]:
    """Yield an empty file beside `target` that becomes `target` when the block ends without an error.

    A reader sees the former file or the new one, never a part. A process killed outright leaves `.NAME.writing-…`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.writing-", dir=target.parent)
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        fsync_path(aside)
        aside.chmod(0o644)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_path(target.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the former file or the new one, never a part."""
    with write_file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` names it in the fault ("the manifest of an event store").

    Raises:
        InputError: the file is absent, is not JSON, or is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should hold {what}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as {what}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a JSON object ({what})")
    return content


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(content: Any) -> str:
    """A short stable name (16 hexadecimal digits) for JSON-like content: equal content, equal fingerprint."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
