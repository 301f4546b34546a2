"""How much memory this process has, and had at most."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Memory that the process has now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that the process has had.

    Read from /proc: `getrusage` tells at least what the process had from which this one was started by vfork.
    """
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
