"""All items of a catalogue coded, part by part, so that a killed fit goes on where it stopped.

A work folder beside the code table holds what is done: the fitted quantiser, and the codes of each part of the items.
k-means repeats its bits only on one machine and number of threads, so it is the quantiser that was kept, not one fitted
again, that codes the parts that are missing: the codes are those of a fit that was never interrupted.

n items that have a vector · C code levels of the quantiser · D vector width.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.files import fsync_path, read_json_object, write_folder_aside, write_json_atomically
from common.progress import Progress
from semantic_ids.quantizers.base import Codes, Quantizer
from semantic_ids.vectors.base import ItemVectors

PART_ROWS = 2**17
"""Items of a part: a second or two of work, and tens of megabytes of vectors."""

ERROR_SAMPLE = 50_000
"""Vectors that reconstruction errors are measured on."""

_QUANTIZER, _SETTINGS = "quantizer", "settings.json"


@dataclass(frozen=True)
class WorkFolder:
    """What of a fit is done."""

    path: Path

    def quantizer(self, kind: type[Quantizer], fit: Callable[[], Quantizer]) -> Quantizer:
        """The quantiser that a former run has fitted; where none has, `fit` is called and its result kept."""
        folder = self.path / _QUANTIZER
        if folder.exists():
            arrays = {file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))}
            return kind.load(arrays, read_json_object(folder / _SETTINGS, "settings of a quantiser"))
        quantizer = fit()
        with write_folder_aside(folder) as aside:
            for name, array in quantizer.arrays().items():
                np.save(aside / f"{name}.npy", array, allow_pickle=False)
            write_json_atomically(aside / _SETTINGS, quantizer.settings())
        return quantizer

    def encode(self, quantizer: Quantizer, vectors: ItemVectors) -> Codes:
        """The quantiser's codes [n, C] of all items; parts that a former run has coded are read."""
        codes_nC = np.empty((len(vectors), quantizer.num_levels), np.uint16)
        with Progress("code items", len(vectors), "items") as progress:
            for part, begin in enumerate(range(0, len(vectors), PART_ROWS)):
                end = min(begin + PART_ROWS, len(vectors))
                codes_nC[begin:end] = self._part(part, quantizer, vectors, begin, end)
                progress.advance(end - begin)
        return codes_nC

    def _part(self, part: int, quantizer: Quantizer, vectors: ItemVectors, begin: int, end: int) -> Codes:
        file = self.path / f"part-{part:06d}.npy"
        if file.exists():
            codes_mC: Codes = np.load(file, allow_pickle=False)
            assert codes_mC.shape == (end - begin, quantizer.num_levels), codes_mC.shape
            return codes_mC
        codes_mC = quantizer.encode(vectors.block(begin, end))
        aside = file.with_suffix(".writing")
        with aside.open("wb") as stream:
            np.save(stream, codes_mC, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
        fsync_path(self.path)
        return codes_mC


@contextmanager
def work_folder(out: Path, key: dict[str, Any]) -> Iterator[WorkFolder]:
    """The folder of what is done of the fit that `key` names; removed when the block ends without an error.

    It lies beside `out`, as `.NAME.fitting`. What another key has left there is removed. A fault of the user's input
    removes it too: there is nothing to go on with. Anything else, Ctrl-C and a kill among them, leaves it.

    Raises:
        InputError: another fit writes the same code table.
    """
    path = out.parent / f".{out.name}.fitting"
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path, out):
        if not (path / "key.json").exists() or read_json_object(path / "key.json", "what a fit is of") != key:
            for entry in path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_json_atomically(path / "key.json", key)
        try:
            yield WorkFolder(path)
        except InputError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path)


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{out}: another semantic_ids.fit is writing it; wait for it, or name another `out`") from None
    try:
        yield
    finally:
        os.close(descriptor)


def relative_errors(
    quantizer: Quantizer, vectors_nD: npt.NDArray[np.float32], codes_nC: Codes
) -> npt.NDArray[np.float64]:
    """[C]: Σ‖x - x̂_l‖² / Σ‖x‖², where x̂_l is what the first l codes tell of x; zeros for vectors of zeros."""
    total = float(np.square(vectors_nD, dtype=np.float64).sum())
    errors_C = np.zeros(quantizer.num_levels)
    for level in range(quantizer.num_levels if total > 0 else 0):
        lost_nD = vectors_nD - quantizer.reconstruct(codes_nC[:, : level + 1])
        errors_C[level] = float(np.square(lost_nD, dtype=np.float64).sum()) / total
    return errors_C
