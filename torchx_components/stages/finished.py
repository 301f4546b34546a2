"""The record by which a finished stage is known.

It stands beside what the stage made, `.NAME.STAGE.json`: not within, since a run folder holds nothing but a run's files
and a store is replaced as a whole; and not in a file of all stages, since two runs may share a store. It holds the
resolved configuration, traces of what the stage read when it began, and traces of what it had made when it ended well.
A stage is done when all three are as they were. Anything else, a changed key, a newer log, a store that somebody has
replaced or cut, makes it run again; the stages after it run again if what they read has changed by that.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchx_components.stages.catalogue import Stage

Traces = dict[str, str]
"""File → a mark of its content."""

_WHOLE_BYTES = 1 << 20
"""Files up to this size are marked by their bytes, larger ones by size and time of the last change."""


def traces(place: str, patterns: tuple[str, ...]) -> Traces:
    """Marks of the files at `place` (a file, a folder, a glob) that matter; none of what is not there, or a URL."""
    found: Traces = {}
    for root in map(Path, sorted(glob.glob(str(Path(place).expanduser()))) or [place]):  # noqa: PTH207
        if root.is_file():
            found[str(root)] = _mark(root)
            continue
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            if path.is_file():
                found[str(path)] = _mark(path)
    return found


def _mark(path: Path) -> str:
    status = path.stat()
    if status.st_size > _WHOLE_BYTES:
        return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


class Finished:
    """Whether a stage is done, and what says so.

    Args:
        stage: which.
        config: resolved, as `--print-config` gives it.
    """

    def __init__(self, stage: Stage, config: Mapping[str, Any]) -> None:
        self.out = Path(str(value_at(config, stage.out)))
        own = self.out.expanduser().absolute()
        self.file = own.parent / f".{own.name}.{stage.name}.json"
        events = value_at(config, "events") or "test"
        self._made = tuple(pattern.format("" if events == "test" else f"-{events}") for pattern in stage.made)
        self._stage, self._config = stage, config
        self._read: dict[str, Traces] = {}

    def why_not(self) -> str:
        """What the stage has to run for; empty where it is done. What it reads is looked at here, before it begins."""
        self._read = {
            key: traces(place, patterns)
            for key, patterns in self._stage.read.items()
            if (place := value_at(self._config, key))
        }
        try:
            record = json.loads(self.file.read_text(encoding="utf-8"))
            config, read, made = (record[name] for name in ("config", "read", "made"))
        except (OSError, ValueError, KeyError, TypeError):
            return "not done before"
        if config != self._config:
            return _difference(config, self._config)
        for key, now in self._read.items():
            if read.get(key) != now:
                return f"what `{key}` names ({value_at(self._config, key)}) is not what was read the last time"
        if not made or made != traces(str(self.out), self._made):
            return f"{self.out} is not what was made the last time"
        return ""

    def keep(self) -> None:
        """Record that the stage has ended well."""
        record = {"config": self._config, "read": self._read, "made": traces(str(self.out), self._made)}
        aside = self.file.with_name(f"{self.file.name}.writing")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.file)


def _difference(before: Any, now: Any, path: str = "") -> str:
    """The first key at which two configurations differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*now, *before]:
            if before.get(name) != now.get(name):
                return _difference(before.get(name), now.get(name), f"{path}.{name}" if path else name)
    return f"`{path}` was {json.dumps(before)} and is {json.dumps(now)}"
