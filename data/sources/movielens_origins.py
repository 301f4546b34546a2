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
from data.sources.movielens import CONTENT_SHA256, LAYOUTS, NAME, Layout, MovieLens, RawFiles

T = TypeVar("T")

GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_MD5 = "0e33842e24a9c977be4e0107933c0723"
"""Published beside the archive; the content's SHA-256 is checked after it."""

WHEEL = "recbole==1.2.1"
WHEEL_PATTERN = "recbole-1.2.1-*.whl"
WHEEL_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
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


def load(path: Path | None, cache: Path) -> MovieLens:
    """The data set, from `path` if given, else from the first origin that has it whole; says on stderr from where.

    Args:
        path: the unzipped ml-100k folder, ml-100k.zip, or a folder with RecBole's two files.
        cache: folder for what was downloaded and verified.

    Raises:
        InputError: `path` is malformed, or no origin has the data.
    """
    if path is not None:
        data = MovieLens.parse(read_path(path))
        published = data.content_sha256() == CONTENT_SHA256
        _say(f"read from {path}, {'the published data set' if published else 'NOT the published data set, used as is'}")
        return data
    cached = cache / f"{NAME}-{CONTENT_SHA256[:8]}"
    origins = [
        _Origin(GROUPLENS_URL, _from_grouplens, keep=True),
        _Origin(f"the PyPI wheel {WHEEL}", _from_wheel, keep=True),
    ]
    if cached.exists():
        origins.insert(0, _Origin(f"the cache {cached}", lambda: read_path(cached), keep=False))
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


def read_path(path: Path, layouts: Sequence[Layout] = LAYOUTS, advice: str = _ADVICE) -> RawFiles:
    """The two files of one layout from a folder or an archive.

    Args:
        layouts: those that may be there.
        advice: what to say where they are not.

    Raises:
        InputError: nothing there, or not both files.
    """
    if path.is_dir():
        names = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
        shown = {name: str(file) for name, file in names.items()}
        return _pick(str(path), shown, lambda name: names[name].read_bytes(), layouts, advice)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {advice}")
    return _read_archive(path.read_bytes(), str(path), layouts, advice)


def _read_archive(content: bytes, place: str, layouts: Sequence[Layout] = LAYOUTS, advice: str = _ADVICE) -> RawFiles:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {PurePosixPath(member).name: member for member in archive.namelist()}
            shown = {name: f"{place}: {member}" for name, member in members.items()}
            return _pick(place, shown, lambda name: archive.read(members[name]), layouts, advice)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{place}: not a whole zip archive ({error}); {advice}") from None


def _pick(
    place: str, names: dict[str, str], read: Callable[[str], bytes], layouts: Sequence[Layout], advice: str
) -> RawFiles:
    """The first layout of which `names` (file name → name for messages) has both files."""
    for layout in layouts:
        if layout.ratings_file in names and layout.items_file in names:
            return RawFiles(
                read(layout.ratings_file),
                names[layout.ratings_file],
                read(layout.items_file),
                names[layout.items_file],
                layout,
            )
    wanted = " or ".join(f"{layout.ratings_file} and {layout.items_file}" for layout in layouts)
    present = [file for layout in layouts for file in (layout.ratings_file, layout.items_file) if file in names]
    raise InputError(
        f"{place}: has {' and '.join(present) if present else 'none of the files'}, expected {wanted}; {advice}"
    )


def _verified(raw: RawFiles) -> MovieLens:
    data = MovieLens.parse(raw)
    found = data.content_sha256()
    if found != CONTENT_SHA256:
        raise InputError(
            f"{raw.ratings_name} and {raw.items_name}: wrong checksum: content SHA-256 is {found}, "
            f"the published data set's is {CONTENT_SHA256}"
        )
    return data


def _from_grouplens() -> RawFiles:
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
    return _read_archive(content, GROUPLENS_URL)


def _from_wheel() -> RawFiles:
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
        raw = _read_archive(wheels[0].read_bytes(), f"the wheel {wheels[0].name}")
    for name, content in ((raw.layout.ratings_file, raw.ratings), (raw.layout.items_file, raw.items)):
        found = hashlib.sha256(content).hexdigest()
        expected = WHEEL_SHA256.get(name)
        if found != expected:
            raise InputError(
                f"the wheel {wheels[0].name}: {name}: wrong checksum: SHA-256 is {found}, expected {expected}"
            )
    return raw


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
            (folder / raw.layout.ratings_file).write_bytes(raw.ratings)
            (folder / raw.layout.items_file).write_bytes(raw.items)
    except OSError as error:
        # The data are at hand: a cache that cannot be written costs a download next time, not this run.
        _say(f"could not be cached in {cached}: {error.strerror or error}")


def _say(message: str) -> None:
    print(f"{NAME}: {message}", file=sys.stderr)
