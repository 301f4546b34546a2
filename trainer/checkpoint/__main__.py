"""Look after the checkpoints of a run: `python -m trainer.checkpoint COMMAND PATH …`

PATH is the folder of a run, or the folder or URL (s3://bucket/name) of its checkpoints. One process does it all; no
training needs to run, and one that runs is not disturbed. For compact, export and diff, checkpoints on an object store
are fetched into the temporary folder (TMPDIR), a whole chain at a time.

Exit status: 0 done; 1 `verify` found damage; 2 a fault of yours to mend; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import describe_os_error
from common.errors import InputError
from common.faults import report_faults
from common.noise import quiet_known_warnings
from common.storage import Storage, open_storage
from serving.checkpoints.model import run_storage
from trainer.checkpoint.tools.compacting import compact
from trainer.checkpoint.tools.comparing import diff
from trainer.checkpoint.tools.exporting import CONFIG, export
from trainer.checkpoint.tools.listing import list_checkpoints, verify_checkpoints

NAME = "trainer.checkpoint"
DAMAGED = 1
"""Exit status of `verify` where something is."""


class _Parser(argparse.ArgumentParser):
    """Faults as an InputError, not argparse's own exit."""

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"command line: {message}; --help says what there is")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    try:
        quiet_known_warnings()
        given = _parser().parse_args(argv)
        summary = _work(given)
        if given.json:
            print(json.dumps(summary), flush=True)
    except InputError as error:
        report_faults(NAME, error.faults)
        return 2
    except OSError as error:
        report_faults(NAME, (describe_os_error(error),))
        return 2
    except KeyboardInterrupt:
        print(f"\n{NAME}: interrupted", file=sys.stderr)
        return 130
    return DAMAGED if summary.get("faults") else 0


def _parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=f"python -m {NAME}", description=__doc__, formatter_class=text, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, more: str = "") -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=about, description=f"{about}\n\n{more}".strip(), formatter_class=text, allow_abbrev=False
        )
        added.add_argument("path", metavar="PATH", help="folder of a run, or folder or URL of its checkpoints")
        added.add_argument("--json", action="store_true", help="print a summary as the last line of standard output")
        return added

    command(
        "list",
        "what there is, oldest first, and what a restore of each would read",
        "`best` is the one that validation chose; a chain is a base with the deltas made from it.",
    )
    verify = command(
        "verify",
        "read every byte, name every fault, and say which checkpoint `latest` restores",
        "Exit status 1 where anything is damaged.",
    )
    verify.add_argument("--checkpoint", default="", metavar="NAME", help="only the chain that ends in this one")
    folds = command(
        "compact",
        "fold a chain into a base in the place of its last checkpoint",
        "It restores the same as before, bit for bit, and so do checkpoints made from it later. Whenever it is cut\n"
        "short, the old checkpoint or the new one is whole.",
    )
    folds.add_argument("--checkpoint", default="latest", metavar="NAME", help="latest (default), best, or a name")
    folds.add_argument(
        "--prune",
        action="store_true",
        help="remove all earlier checkpoints but the best and what later ones are made from",
    )
    bundles = command(
        "export",
        "write a bundle for serving: the model without optimizer states, and its code table",
        "OUT looks like the folder of a run and can be moved: python -m evaluation.evaluate run=OUT store=…",
    )
    bundles.add_argument("out", metavar="OUT", help="local folder to write; must not hold anything yet")
    bundles.add_argument("--checkpoint", default="best", metavar="NAME", help="best (default), latest, or a name")
    bundles.add_argument("--codes", default="", metavar="FOLDER", help="the code table, if it has moved")
    compares = command("diff", "how far tables and dense tensors moved from one checkpoint to another")
    for name in ("first", "second"):
        compares.add_argument(name, metavar=name.upper(), help="its name or step, best or latest")
    return parser


def _work(given: argparse.Namespace) -> dict[str, Any]:
    storage, run = find_storage(given.path)
    if given.command == "list":
        return list_checkpoints(storage)
    if given.command == "verify":
        return verify_checkpoints(storage, given.checkpoint)
    if given.command == "compact":
        return compact(storage, given.checkpoint, prune=given.prune)
    if given.command == "export":
        return export(storage, run, given.out, given.checkpoint, given.codes)
    return diff(storage, given.first, given.second)


def find_storage(path: str) -> tuple[Storage, Path | None]:
    """The checkpoints at a path or URL, and the folder of the run if that is what it is.

    Raises:
        InputError: there is no such folder, or the run's configuration cannot be read.
    """
    if "://" in path:
        return open_storage(path), None
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; give that of a run, or the folder or URL of its checkpoints")
    if not (folder / CONFIG).is_file() and not (folder / "checkpoints").is_dir():
        return open_storage(folder), None
    return run_storage(folder), folder


if __name__ == "__main__":
    sys.exit(main())
