"""Which checkpoints of a run may go: none that another one still needs."""

from __future__ import annotations

import contextlib

from common.storage import Storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import MANIFEST, Damage


def needed(checkpoints: Checkpoints, keep: int, written: str = "") -> set[str]:
    """Names of the newest `keep` checkpoints and the best, and of all that these are made from.

    One whose chain does not hold stays for people to look at until newer ones take its place, but is not counted, or it
    would crowd out what can still be restored. Nor are those after the one just `written`: they are left from before a
    fall-back past damage, and the run goes on from that one.
    """
    found: set[str] = set()
    for name in reversed(checkpoints.names()):
        if keep <= 0:
            break
        try:
            found.update(link.name for link in checkpoints.chain(name))
        except Damage:
            found.add(name)
            continue
        if not written or name <= written:
            keep -= 1
    best = checkpoints.best()
    if best:
        found.add(best.name)
        with contextlib.suppress(Damage):
            found.update(link.name for link in checkpoints.chain(best.name))
    return found


def remove_old(storage: Storage, keep: int, written: str = "") -> list[str]:
    """Remove what is not needed, and what crashes left unfinished; returns the names of checkpoints removed.

    `written` is the checkpoint that training goes on from. A manifest goes first: what is cut short in the middle is no
    checkpoint any more.
    """
    checkpoints = Checkpoints(storage)
    kept, names = needed(checkpoints, keep, written), checkpoints.names()
    removed = [name for name in names if name not in kept]
    for name in reversed(removed):  # newest first: nothing ever stands there whose base is gone
        storage.remove(f"{name}/{MANIFEST}")
    for folder in storage.folders():
        if folder.startswith("step-") and folder not in kept:
            storage.remove_folder(folder)
    return removed
