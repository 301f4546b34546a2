"""Progress of long work: one rewritten line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_TERMINAL_INTERVAL_S = 0.2
PLAIN_INTERVAL_S = 10.0
"""Between lines where there is no terminal to rewrite one on."""


def format_seconds(seconds: float) -> str:
    """`75.3` → `1m15s`; what takes under ten seconds keeps a decimal."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_count(count: float) -> str:
    """`1234567` → `1.23M`: three figures and a unit."""
    count = float(f"{count:.3g}")  # first, so that 999,999 becomes 1M, not 1000k
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


class Progress:
    """Count work done and say rate and time left. Writes to standard error, so `--json` output stays clean.

    Args:
        label: what is being done.
        total: how much there is, in `unit`s; None when unknown.
        unit: what is counted, in the plural.
        quiet: say nothing at all (ranks other than 0).
        stream: where to, standard error where not given.
    """

    def __init__(
        self, label: str, total: int | None, unit: str, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        """Start the clock."""
        self.label, self.total, self.unit, self.quiet = label, total, unit, quiet
        self.stream = stream or sys.stderr
        self.done = 0
        self.start = time.monotonic()
        self._terminal = self.stream.isatty()
        self._interval = _TERMINAL_INTERVAL_S if self._terminal else PLAIN_INTERVAL_S
        self._last = self.start

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Record that `amount` more units are done; `note` is appended to the line when one is written."""
        self.done += amount
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._write(now, note)

    def _write(self, now: float, note: str) -> None:
        if self.quiet:
            return
        elapsed = max(now - self.start, 1e-9)
        rate = self.done / elapsed
        line = f"{self.label}: {format_count(self.done)}"
        if self.total:
            line += f"/{format_count(self.total)}"
        line += f" {self.unit}, {format_count(rate)}/s"
        if self.total and rate > 0:
            line += f", {format_seconds(max(self.total - self.done, 0) / rate)} left"
        if note:
            line += f", {note}"
        self.stream.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        self.stream.flush()

    def __enter__(self) -> Progress:
        """For a last line, with the total and the time, when the work is done."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last line; after an error only clear the one that was being rewritten."""
        if self.quiet:
            return
        if self._terminal:
            self.stream.write("\r\x1b[2K")
        if kind is None:
            elapsed = time.monotonic() - self.start
            self.stream.write(f"{self.label}: {format_count(self.done)} {self.unit} in {format_seconds(elapsed)}\n")
        self.stream.flush()
