"""Safetensors files written as their content comes, so that what is larger than memory can be saved.

The library's own writer wants all tensors at once. Reading is the library's (`safetensors.safe_open`): it checks the
header and maps the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.storage import Sink

_NAMES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint8": "U8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}
_BYTES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "U8": 1, "I16": 2, "I32": 4, "I64": 8, "BOOL": 1}


@dataclass(frozen=True)
class Layout:
    """Name, type (as torch and NumPy call it: `float32`, `bfloat16` …) and shape of a tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return _BYTES[_NAMES[self.dtype]] * int(np.prod(self.shape, dtype=np.int64))


class TensorFileWriter:
    """Writes the tensors of a safetensors file one after another, each in as many pieces as its writer likes.

    Args:
        sink: where to.
        layouts: all tensors, in the order in which they will be written.
        metadata: texts for the file's header.
    """

    def __init__(self, sink: Sink, layouts: list[Layout], metadata: dict[str, str] | None = None) -> None:
        self._sink, self._left = sink, list(layouts)
        self._missing = layouts[0].size if layouts else 0
        sink.write(_header(layouts, metadata or {}))

    def write(self, name: str, piece: np.ndarray) -> None:
        """Append contiguous values (bfloat16 as 16-bit patterns) to the tensor whose turn it is."""
        while self._left and not self._missing and self._left[0].name != name:
            self._next()
        assert self._left, f"{name}: nothing is left to write"
        assert self._left[0].name == name, f"{name} is written out of turn"
        assert piece.nbytes <= self._missing, f"{name}: more values than announced"
        if piece.nbytes:
            self._sink.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
        self._missing -= piece.nbytes

    def _next(self) -> None:
        self._left.pop(0)
        self._missing = self._left[0].size if self._left else 0

    def finish(self) -> None:
        """Check that all that was announced has been written."""
        while self._left and not self._missing:
            self._next()
        assert not self._left, f"{self._left[0].name}: {self._missing} bytes are missing"


def _header(layouts: list[Layout], metadata: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for layout in layouts:
        begin, end = end, end + layout.size
        entries[layout.name] = {
            "dtype": _NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins aligned
    return len(text).to_bytes(8, "little") + text
