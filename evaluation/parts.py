"""What an evaluation has found so far, on the disk, so that one that was ended goes on where it was.

The requests are cut into bins that depend on the requests alone, never on the number of ranks, and a part holds whole
bins: any ranks may go on with what other ranks have left.

R requests · T targets · K places of a list that are kept.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]
"""What was found of one bin, by name; every bin of an evaluation has the same names."""

_KEY, _BINS = "evaluation", "bin"
_SECONDS_BETWEEN = 20.0


class Parts:
    """Bins done, in files of a folder.

    Args:
        folder: where; None keeps everything in memory alone.
        key: fingerprint of what is evaluated and how; files of another are of no use and are passed over.
        rank: of who writes; part of the names of its files.
    """

    def __init__(self, folder: Path | None, key: str, rank: int) -> None:
        self.folder, self.key, self.rank = folder, key, rank
        self.kept: dict[int, Arrays] = {}
        self._unwritten: list[int] = []
        self._written_at = time.monotonic()

    def read(self) -> set[int]:
        """Take over what an earlier evaluation with the same key has left, in good order; returns its bins."""
        if self.folder is None or not self.folder.is_dir():
            return set()
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                self.kept |= self._content(path)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                warnings.warn(f"{path}: passed over, it cannot be read: {error}", stacklevel=2)
        return set(self.kept)

    def _content(self, path: Path) -> dict[int, Arrays]:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get(_KEY) != self.key:
                return {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {int(number): _cut(arrays, int(number)) for number in arrays.pop(_BINS)}

    def add(self, number: int, found: Arrays) -> None:
        """Keep what was found of a bin, and write it before long."""
        assert number not in self.kept, number
        self.kept[number] = found
        self._unwritten.append(number)
        if time.monotonic() - self._written_at > _SECONDS_BETWEEN:
            self.write()

    def write(self) -> None:
        """Write what is not yet on the disk. A part that cannot be written costs a restart its time, and no more."""
        self._written_at = time.monotonic()
        if self.folder is None or not self._unwritten:
            return
        path = self.folder / f"part-{self.rank:05d}-{self._unwritten[0]:08d}.safetensors"
        aside = path.with_suffix(".writing")
        arrays = {
            f"{number}/{name}": np.ascontiguousarray(array)
            for number in self._unwritten
            for name, array in self.kept[number].items()
        }
        arrays[_BINS] = np.array(self._unwritten, np.int64)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(save(arrays, {_KEY: self.key}))
            aside.replace(path)
            self._unwritten = []
        except OSError as error:
            warnings.warn(f"{path}: what was evaluated so far cannot be kept: {error}", stacklevel=2)

    def remove(self) -> None:
        """Forget the files: the evaluation is complete."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)


def _cut(arrays: Arrays, number: int) -> Arrays:
    prefix = f"{number}/"
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(f"it names bin {number} and holds nothing of it")
    return found


def joined(bins: Iterable[Arrays]) -> Arrays:
    """Several bins as one: each array end to end.

    Raises:
        InputError: there is none.
    """
    parts: Sequence[Arrays] = list(bins)
    if not parts:
        raise InputError("there is nothing to evaluate")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
