"""A log of each rank, appended to at every start: `RUN/logs/rank-00000.log`."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import platform
import re
import signal
import sys
import time
from pathlib import Path
from typing import TextIO, cast

import torch

from sharding.world import World

LOGGER = logging.getLogger("segue")
"""What ranks write to their logs by; it writes nowhere else, and nowhere at all where there is no log."""
LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False
LOGGER.addHandler(logging.NullHandler())

LOG_INTERVAL_S = 30.0
"""Between lines of steps: three hundred kilobytes a day."""

_LARGEST = 2**24
"""Bytes from which on a log is set aside at the next start, as `….log.1`, and the one set aside before is dropped."""


def is_log(name: str) -> bool:
    """Whether a file of that name is the log of a rank."""
    return re.fullmatch(r"(evaluate-)?rank-\d{5,}\.log(\.1)?", name) is not None


class _Log(logging.FileHandler):
    """A file that may fail: on a full disk training goes on without it, and it is said once."""

    said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        if not self.said:
            self.said = True
            print(f"warning: {self.baseFilename}: cannot be written: {sys.exception()}", file=sys.stderr)


class RankLog:
    """The log of this rank, open from its making to `close`.

    In it go what LOGGER is told, warnings and the warnings of libraries, the stacks of all threads on SIGUSR1
    (`kill -USR1 PID`), and where Python was at a fatal signal. The terminal hears of warnings as before.

    Args:
        role: in the name of the file, `evaluate-` before the rank.
    """

    def __init__(self, folder: Path, world: World, role: str = "") -> None:
        path = folder / f"{role}rank-{world.rank:05d}.log"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LARGEST:
            path.replace(path.with_name(f"{path.name}.1"))
        self._file = _Log(path, encoding="utf-8")
        form = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        form.converter = time.gmtime
        self._file.setFormatter(form)
        root = logging.getLogger()
        self._of_root: list[logging.Handler] = [self._file]
        if not root.handlers:  # the root logger's own resort, which a handler takes from it
            terminal = logging.StreamHandler()
            terminal.setLevel(logging.WARNING)
            self._of_root.append(terminal)
        for handler in self._of_root:
            root.addHandler(handler)
        LOGGER.addHandler(self._file)
        logging.captureWarnings(True)
        self._stream = cast(TextIO, self._file.stream)
        faulthandler.register(signal.SIGUSR1, file=self._stream, all_threads=True)
        self._enabled = not faulthandler.is_enabled()
        if self._enabled:
            faulthandler.enable(file=self._stream)
        LOGGER.info(
            "start: host %s, pid %d, rank %d of %d, %s, torch %s, restart %s",
            platform.node(),
            os.getpid(),
            world.rank,
            world.size,
            torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type,
            torch.__version__,
            os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )

    def dump_stacks(self) -> None:
        """Write where each thread is."""
        with contextlib.suppress(OSError):
            self._file.flush()
        faulthandler.dump_traceback(file=self._stream, all_threads=True)

    def close(self) -> None:
        """Leave logging and signals as they were."""
        if self._enabled:
            faulthandler.disable()
        faulthandler.unregister(signal.SIGUSR1)
        logging.captureWarnings(False)
        for handler in self._of_root:
            logging.getLogger().removeHandler(handler)
        LOGGER.removeHandler(self._file)
        with contextlib.suppress(OSError):  # of a full disk, as has been said
            self._file.close()
