"""Where a store is to be written: nothing of value is replaced, nobody else writes there, and there is room.

A process killed outright leaves hidden folders beside `out`; they are told from those of a living one by a lock, which
the operating system lets go of when its process ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError
from data import schema


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but an event store: a mistyped `out` must not cost a home folder.

    Raises:
        InputError: `out` is a file, or a folder with other things in it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(
            f"{out}: exists and is not a folder; `out` must name a new folder or an event store to replace"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / schema.MANIFEST_FILE).exists():
        raise InputError(
            f"{out}: exists and is not an event store (it has no {schema.MANIFEST_FILE}); "
            "name another folder or empty it"
        )


def check_apart(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write within what is read, and to replace it.

    Raises:
        InputError: `out` lies in a folder that is read, or holds something that is read.
    """
    target = _resolved(out)
    faults = []
    for given in inputs:
        path = _resolved(given)
        if path.is_dir() and target.is_relative_to(path):
            faults.append(f"{out}: lies inside {given}, which is read; name a folder outside of it as `out`")
        elif path.is_relative_to(target):
            faults.append(f"{given}: lies inside {out}, which would be replaced; name another folder as `out`")
    if faults:
        raise InputError(*faults)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link that leads back to itself; whoever reads it will say so
        return path.absolute()


def check_space(out: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Args:
        needed: bytes that are written beside `out` at the least.

    Raises:
        InputError: fewer are free.
    """
    beside = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(beside).free
    if free < needed:
        raise InputError(
            f"{out}: at least {needed / 1e9:,.3f} GB will be written here, but {beside} has {free / 1e9:,.3f} GB free; "
            "make room or name another place as `out`"
        )


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A path beside `out` at which a folder may be made; whatever is there at the end is removed, in any case."""
    folder = out.parent / f".{out.name}.sorting-{secrets.token_hex(4)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Nobody else writes `out` in the meantime; what a killed process left beside it is removed first.

    Raises:
        InputError: somebody else does.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.parent / f".{out.name}.lock"
    descriptor = _lock(lock, out)
    try:
        _clear_remains(out)
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is let go of, or it might be another's
        os.close(descriptor)


def _lock(lock: Path, out: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and lock.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(
                f"{out}: another data.prepare is writing it (and holds {lock}); wait for it, or name another folder"
            ) from None
        os.close(descriptor)  # its holder removed it between our opening and locking it: another try


def _clear_remains(out: Path) -> None:
    """Remove unfinished folders of killed processes, and put back a store that one of them was about to replace."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(writing|sorting|retired)-[a-z0-9_]{{8}}")
    for path in sorted(out.parent.iterdir()):
        matched = pattern.fullmatch(path.name)
        if not matched or path.is_symlink() or not path.is_dir():
            continue
        if matched[1] == "retired" and (path / "old").exists() and not out.exists():
            (path / "old").rename(out)
        shutil.rmtree(path)
        print(f"data.prepare: removed {path}, which a killed run had left", file=sys.stderr)
