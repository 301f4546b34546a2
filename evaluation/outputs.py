"""The files that an evaluation leaves in a run folder."""

from __future__ import annotations

from pathlib import Path

EVENTS = ("test", "validation")
"""The held-out events that can be asked for."""

RANKS, FIGURES, REPORT = "ranks.parquet", "metrics.json", "report.html"


def output_path(run: Path, file: str, events: str) -> Path:
    """Where `file` of an evaluation on those events lies: `metrics.json`, `metrics-validation.json`."""
    name = Path(file)
    return run / (file if events == "test" else f"{name.stem}-{events}{name.suffix}")


def all_outputs() -> tuple[str, ...]:
    """Names of what any evaluation may have left."""
    return tuple(output_path(Path(), file, events).name for events in EVENTS for file in (RANKS, FIGURES, REPORT))
