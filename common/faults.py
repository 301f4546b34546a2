"""Saying what the user has to mend: once, however many ranks found it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.files import fingerprint_of, write_text_atomically


def is_main_rank() -> bool:
    """Whether this process speaks for all of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def report_faults(name: str, faults: Sequence[str]) -> None:
    """Print the faults of the entry point `name` to standard error.

    Of the ranks of one torchrun, whichever comes first prints: the others may be ended before they could, and a fault
    may be of one rank alone. Without torchrun rank 0 prints.
    """
    if len(faults) == 1:
        text = f"{name}: {faults[0]}"
    else:
        text = "\n".join([f"{name}: {len(faults)} faults", *(f"  - {fault}" for fault in faults)])
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply:
        _leave_reply(Path(reply), text)
    if _is_first_to_say(text, reply):
        print(text, file=sys.stderr, flush=True)


def report_lost(name: str, text: str, *, aloud: bool) -> None:
    """Tell torchrun, and the terminal if this rank is to, that the job fell apart."""
    text = f"{name}: {text}"
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply:
        _leave_reply(Path(reply), text)
    if aloud:
        print(text, file=sys.stderr, flush=True)


def _leave_reply(path: Path, text: str) -> None:
    """Tell torchrun and TorchX, which end with a block of their own: it shows this text as the cause."""
    content = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
    try:
        write_text_atomically(path, json.dumps(content))
    except OSError:
        return  # the text is printed all the same


def _is_first_to_say(text: str, reply: str | None) -> bool:
    if not reply or "LOCAL_RANK" not in os.environ:
        return is_main_rank()
    # torchrun gives each rank a file ATTEMPT/LOCAL_RANK/error.json: ATTEMPT is this node's ranks' own folder.
    try:
        (Path(reply).parent.parent / f"said-{fingerprint_of(text)}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True  # better twice than never
    return True
