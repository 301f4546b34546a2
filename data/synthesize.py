"""Make an event log by rule, to train and measure on where no real one is at hand.

    python -m data.synthesize kind=yambda out=logs/yambda
    python -m data.synthesize kind=yambda out=logs/small users=200 items=20000 median_history=300
    python -m data.synthesize kind=dirichlet out=logs/dirichlet

yambda: Yambda's files at any size, with published lengths of histories and structure worth learning: genres, careers,
sessions, repeats, recommendations, skips, likes. The defaults are the 50M part's users and items. It is no copy of
Yambda: figures measured on it say nothing of figures on the real one.
dirichlet: the stream of the HSTU paper's Appendix C.

One configuration gives one log, bit by bit, on any number of cores. `out` holds `synthesis.json`, which says how it
was made; a folder without one is never replaced.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import run_entry, to_plain
from common.errors import InputError
from common.files import write_folder_aside, write_json_atomically
from common.progress import format_seconds
from data.synthetic.config import YAMBDA, SynthesizeConfig
from data.synthetic.dirichlet import write_dirichlet
from data.synthetic.yambda import write_yambda

MANIFEST_FILE = "synthesis.json"
FORMAT_VERSION = 1
"""Raised when a configuration begins to give another log than before."""


def synthesize(config: SynthesizeConfig) -> dict[str, Any]:
    """Write the log and print what was made.

    Returns:
        A summary: out, kind, seed, counts, seconds.

    Raises:
        InputError: `out` holds something that is not ours.
    """
    start = time.monotonic()
    out = Path(config.out).expanduser()
    check_replaceable(out)
    with write_folder_aside(out) as folder:
        counts = write_yambda(config, folder) if config.kind == YAMBDA else write_dirichlet(config, folder)
        # Equal configurations give equal folders, wherever these lie.
        plain = {name: value for name, value in to_plain(config).items() if name != "out"}
        manifest = {"format_version": FORMAT_VERSION, "config": plain, "counts": counts}
        write_json_atomically(folder / MANIFEST_FILE, manifest)
    seconds = time.monotonic() - start
    print(_table(out, config, counts, seconds))
    return {"out": str(out), "kind": config.kind, "seed": config.seed, **counts, "seconds": round(seconds, 3)}


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but what this command wrote.

    Raises:
        InputError: `out` is a file, or a folder with other things in it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(
            f"{out}: exists and is not a folder; `out` must name a new folder or an earlier output to replace"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).exists():
        raise InputError(
            f"{out}: exists and was not made by this command (it has no {MANIFEST_FILE}); "
            "name another folder or empty it"
        )


def prepare_command(out: Path, config: SynthesizeConfig) -> str:
    """The command that makes an event store of the log."""
    if config.kind == YAMBDA:
        keys = [f"path={out}", f"size={config.size}", f"kind={config.kinds[0]}"]
    else:
        keys = [f"path={out / 'log.parquet'}"]
        keys += [f"columns.{name}={name}" for name in ("user", "item", "timestamp")]
        keys += [f"catalogue.path={out / 'items.parquet'}", "catalogue.item=item", "catalogue.artist=artist"]
        # All of a record shares one timestamp, so an item drawn twice is the same row twice, and meant so.
        keys += ["duplicates=keep", "split.kind=held-out-users", "split.test_share=0.1"]
    source = "yambda" if config.kind == YAMBDA else "table"
    words = ["python", "-m", "data.prepare", f"source={source}", *keys, f"out=stores/{out.name}"]
    return shlex.join(words)


def _table(out: Path, config: SynthesizeConfig, counts: dict[str, int], seconds: float) -> str:
    lines = [f"{out}: synthetic log, kind {config.kind}, seed {config.seed}, made in {format_seconds(seconds)}"]
    lines += [f"  {name.replace('_', ' '):<24} {count:,}" for name, count in counts.items()]
    return "\n".join([*lines, "Prepare it with", f"  {prepare_command(out, config)}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m data.synthesize`."""
    return run_entry("data.synthesize", "synthesize", SynthesizeConfig, synthesize, argv)


if __name__ == "__main__":
    sys.exit(main())
