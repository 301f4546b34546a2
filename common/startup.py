"""Imported first by entry points: a command starts and ends a second or two sooner.

Torch and TorchRec are some three thousand modules; Python's collector looks through their objects again and again while
they are imported, and once more when the process ends.
"""

from __future__ import annotations

import atexit
import gc

_USUAL = gc.get_threshold()
_WHILE_IMPORTING = (100_000, 20, 100)

gc.set_threshold(*_WHILE_IMPORTING)
atexit.register(gc.freeze)


def imports_are_done() -> None:
    """From here on the collector works as usual, and leaves what has been imported alone."""
    if gc.get_threshold() == _WHILE_IMPORTING:
        gc.set_threshold(*_USUAL)
        gc.freeze()
