"""What the ranks of a training are at, by its folder: `python -m trainer.watch runs/NAME`

Reads `heartbeat.json`, which the training writes every `watch.heartbeat_s` seconds. Exit status: 0 it is at work, has
ended, or was stopped and has saved; 4 it has ended otherwise, or has written nothing for too long; 2 there is no
training to be seen. So it serves as the liveness probe of whatever starts jobs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import InputError, Lost
from common.faults import report_faults
from common.files import read_json_object
from common.progress import format_seconds
from sharding.ranks.config import BEATS_TO_SILENCE, HEARTBEAT

GRACE_S = 30.0
"""Beyond three beats, for file systems and clocks that lag."""

_WELL = ("ended", "stopped")


def describe(beats: dict[str, Any], now: datetime) -> tuple[str, int]:
    """The table of ranks, and the exit status."""
    age_s = (now - datetime.fromisoformat(beats["written_at"])).total_seconds()
    state, status = beats["state"], 0
    silent = state == "running" and age_s > BEATS_TO_SILENCE * beats["heartbeat_s"] + GRACE_S
    if silent or state not in ("running", *_WELL):
        status = Lost.status
    rate = f", {beats['steps_per_s']:g} steps/s" if beats["steps_per_s"] else ""
    end = "" if beats["status"] is None else f" with status {beats['status']}"
    lines = [
        f"{state}{end}: step {beats['step']} of about {beats['expected_steps']}{rate}; written "
        f"{format_seconds(max(age_s, 0))} ago"
        f"{', which is too long: nobody is at work, or the disk is out of reach' if silent else ''}",
        f"{'rank':>6}  {'host':20}  {'pid':>8}  {'phase':10}  {'epoch':>5}  {'step':>8}  since step  since beat",
    ]
    for rank in beats["ranks"]:
        note = "waits for the others" if rank["waiting"] else rank["ended"]
        lines.append(
            f"{rank['rank']:>6}  {rank['host']:20}  {rank['pid']:>8}  {rank['phase']:10}  {rank['epoch']:>5}  "
            f"{rank['step']:>8}  {rank['since_step_s']:>8} s  {rank['since_beat_s']:>8} s  {note}".rstrip()
        )
    return "\n".join(lines), status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    path = parser.parse_args(argv).run / HEARTBEAT
    try:
        beats = read_json_object(path, "the heartbeat of a training")
        text, status = describe(beats, datetime.now(UTC))
    except (KeyError, TypeError, ValueError) as error:
        faults = error.faults if isinstance(error, InputError) else (f"{path}: is not a heartbeat: {error!r}",)
        report_faults("trainer.watch", faults)
        return 2
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
