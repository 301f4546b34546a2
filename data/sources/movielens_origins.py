"""Where MovieLens-100K is obtained: a path the user gives, the cache, GroupLens, or a PyPI wheel that carries it.

What comes from the network or the cache is used only if its content has the published checksum, so it does
not matter which origin answered. What the user gives is read as it is.
"""

from __future__ import annotations

import hashlib
import io
import queue
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from common.errors import InputError
from common.files import write_folder_aside
from data.sources.movielens import CONTENT_SHA256, LAYOUTS, NAME, USERS_SHA256, Layout, MovieLens, RawFiles

T = TypeVar("T")

GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_MD5 = "0e33842e24a9c977be4e0107933c0723"
"""Published beside the archive; the content's SHA-256 is checked after it."""

WHEEL = "recbole==1.2.1"
WHEEL_PATTERN = "recbole-1.2.1-*.whl"
WHEEL_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}

ANSWER_LIMIT_S = 5.0
"""From asking GroupLens to the first byte of an answer, name resolution included."""
DOWNLOAD_LIMIT_S = 60.0
PIP_LIMIT_S = 300.0

_ADVICE = "give the unzipped ml-100k folder or ml-100k.zip as `path=…`"


class _Origin(NamedTuple):
    name: str
    fetch: Callable[[], RawFiles]
    keep: bool


def load(path: Path | None, cache: Path, with_users: bool = False) -> MovieLens:
    """The data set, from `path` if given, else from the first origin that has it whole; says on stderr from where.

    Args:
        path: the unzipped ml-100k folder, ml-100k.zip, or a folder with RecBole's files.
        cache: folder for what was downloaded and verified.
        with_users: read what is known of users too.

    Raises:
        InputError: `path` is malformed, or no origin has the data.
    """
    if path is not None:
        data = MovieLens.parse(read_path(path, with_users=with_users))
        published = data.content_sha256() == CONTENT_SHA256 and data.users_sha256() in (None, USERS_SHA256)
        _say(f"read from {path}, {'the published data set' if published else 'NOT the published data set, used as is'}")
        return data
    cached = cache / f"{NAME}-{CONTENT_SHA256[:8]}"
    origins = [
        _Origin(GROUPLENS_URL, lambda: _from_grouplens(with_users), keep=True),
        _Origin(f"the PyPI wheel {WHEEL}", lambda: _from_wheel(with_users), keep=True),
    ]
    if cached.exists():
        origins.insert(0, _Origin(f"the cache {cached}", lambda: read_path(cached, with_users=with_users), keep=False))
    failures: list[str] = []
    for origin in origins:
        try:
            raw = origin.fetch()
            data = _verified(raw)
        except InputError as error:
            failures.append("; ".join(error.faults))
            continue
        if origin.keep:
            _keep(raw, cached)
        _say(f"from {origin.name}, SHA-256 verified" + (f" ({'; '.join(failures)})" if failures else ""))
        return data
    raise InputError(f"{NAME} could not be obtained: {'; '.join(failures)}; {_ADVICE}")


def read_path(
    path: Path, layouts: Sequence[Layout] = LAYOUTS, advice: str = _ADVICE, with_users: bool = False
) -> RawFiles:
    """The files of one layout from a folder or an archive.

    Args:
        layouts: those that may be there.
        advice: what to say where they are not.
        with_users: the file of users must be there too, and is read.

    Raises:
        InputError: nothing there, or not all files.
    """
    if path.is_dir():
        names = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
        shown = {name: str(file) for name, file in names.items()}
        return _pick(str(path), shown, lambda name: names[name].read_bytes(), layouts, advice, with_users)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {advice}")
    return _read_archive(path.read_bytes(), str(path), layouts, advice, with_users=with_users)


def _read_archive(
    content: bytes, place: str, layouts: Sequence[Layout] = LAYOUTS, advice: str = _ADVICE, *, with_users: bool
) -> RawFiles:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {PurePosixPath(member).name: member for member in archive.namelist()}
            shown = {name: f"{place}: {member}" for name, member in members.items()}
            return _pick(place, shown, lambda name: archive.read(members[name]), layouts, advice, with_users)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{place}: not a whole zip archive ({error}); {advice}") from None


def _pick(
    place: str,
    names: dict[str, str],
    read: Callable[[str], bytes],
    layouts: Sequence[Layout],
    advice: str,
    with_users: bool,
) -> RawFiles:
    """The first layout of which `names` (file name → name for messages) has all files that are asked for."""
    for layout in layouts:
        if names.keys() >= set(_files(layout, with_users)):
            return RawFiles(
                read(layout.ratings_file),
                names[layout.ratings_file],
                read(layout.items_file),
                names[layout.items_file],
                layout,
                read(layout.users.name) if with_users else None,
                names.get(layout.users.name, ""),
            )
    wanted = " or ".join(" and ".join(_files(layout, with_users)) for layout in layouts)
    present = [file for layout in layouts for file in _files(layout, with_users) if file in names]
    raise InputError(
        f"{place}: has {' and '.join(present) if present else 'none of the files'}, expected {wanted}; {advice}"
    )


def _files(layout: Layout, with_users: bool) -> list[str]:
    return [layout.ratings_file, layout.items_file, *([layout.users.name] if with_users else [])]


def _verified(raw: RawFiles) -> MovieLens:
    data = MovieLens.parse(raw)
    found = data.content_sha256()
    if found != CONTENT_SHA256:
        raise InputError(
            f"{raw.ratings_name} and {raw.items_name}: wrong checksum: content SHA-256 is {found}, "
            f"the published data set's is {CONTENT_SHA256}"
        )
    if data.users_sha256() not in (None, USERS_SHA256):
        raise InputError(
            f"{raw.users_name}: wrong checksum: content SHA-256 is {data.users_sha256()}, that of the published "
            f"data set's users is {USERS_SHA256}"
        )
    return data


def _from_grouplens(with_users: bool) -> RawFiles:
    try:
        response = _within(ANSWER_LIMIT_S, lambda: urllib.request.urlopen(GROUPLENS_URL, timeout=ANSWER_LIMIT_S))
        with response:
            content: bytes = _within(DOWNLOAD_LIMIT_S, response.read)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise InputError(f"{GROUPLENS_URL}: no answer ({reason})") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != GROUPLENS_MD5:
        raise InputError(f"{GROUPLENS_URL}: wrong checksum: MD5 is {found}, the published one is {GROUPLENS_MD5}")
    return _read_archive(content, GROUPLENS_URL, with_users=with_users)


def _from_wheel(with_users: bool) -> RawFiles:
    """Through pip, so that the user's index and proxy settings are honoured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", folder, WHEEL]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise InputError(f"pip download {WHEEL}: not done within {PIP_LIMIT_S:.0f} s") from None
        wheels = sorted(Path(folder).glob(WHEEL_PATTERN))
        if result.returncode != 0 or not wheels:
            reason = (result.stderr.strip() or "no wheel came").splitlines()[-1]
            raise InputError(f"pip download {WHEEL}: {reason}")
        raw = _read_archive(wheels[0].read_bytes(), f"the wheel {wheels[0].name}", with_users=with_users)
    for name, content in _contents(raw):
        found = hashlib.sha256(content).hexdigest()
        expected = WHEEL_SHA256.get(name)
        if found != expected:
            raise InputError(
                f"the wheel {wheels[0].name}: {name}: wrong checksum: SHA-256 is {found}, expected {expected}"
            )
    return raw


def _contents(raw: RawFiles) -> list[tuple[str, bytes]]:
    """Name and content of each file."""
    contents = (raw.ratings, raw.items, *([raw.users] if raw.users is not None else []))
    return list(zip(_files(raw.layout, raw.users is not None), contents, strict=True))


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError: a name server that does not answer heeds no socket timeout."""
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"not within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _keep(raw: RawFiles, cached: Path) -> None:
    try:
        with write_folder_aside(cached) as folder:
            for name, content in _contents(raw):
                (folder / name).write_bytes(content)
    except OSError as error:
        # The data are at hand: a cache that cannot be written costs a download next time, not this run.
        _say(f"could not be cached in {cached}: {error.strerror or error}")


def _say(message: str) -> None:
    print(f"{NAME}: {message}", file=sys.stderr)
