"""The library of this folder's kernels, and how to do without it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from common.native import compiled

_without = 0


def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be built, or nobody wants them: PyTorch's operators then do the same."""
    return None if _without else compiled(__package__)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Within, there is no library: PyTorch's operators do all, as they do on a GPU."""
    global _without
    _without += 1
    try:
        yield
    finally:
        _without -= 1
