"""Memory that is freed stays with the process, on Linux with glibc.

A training step frees as much as it takes, in blocks of megabytes, and the next step takes the same again. By default
glibc gives such blocks back to the kernel at once, which then has to map and clear them anew: a third of a step's time
on a CPU. Kept, they cost what the process has at its peak, which it will need again anyway.
"""

from __future__ import annotations

import ctypes
import os

SWITCH = "SEGUE_KEEP_MEMORY"
_OF_GLIBC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")

# malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = -1
_AT_ONCE = 64 * 2**20
"""Bytes that the heap grows by."""


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed; whether it does.

    Left alone where somebody has told glibc what to do by its own variables, and with `SEGUE_KEEP_MEMORY=off`.
    """
    if os.environ.get(SWITCH, "on") == "off" or any(name in os.environ for name in _OF_GLIBC):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AT_ONCE))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
