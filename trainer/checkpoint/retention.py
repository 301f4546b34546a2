"""Which checkpoints of a run may go: none that another one still needs."""

from __future__ import annotations

from common.storage import Storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import MANIFEST, Damage
from serving.checkpoints.model import SELECTION_METRIC


def needed(checkpoints: Checkpoints, keep: int) -> set[str]:
    """Names of the newest `keep` checkpoints and the best, and of all that these are made from."""
    names = checkpoints.names()
    wanted = names[-keep:]
    best = checkpoints.best(SELECTION_METRIC)
    found: set[str] = set(wanted)
    for name in [*wanted, *([best.name] if best else [])]:
        try:
            found.update(link.name for link in checkpoints.chain(name))
        except Damage:  # not to be restored, and for people to look at until newer ones take its place
            found.add(name)
    return found


def remove_old(storage: Storage, keep: int) -> list[str]:
    """Remove what is not needed, and what crashes left unfinished; returns the names of checkpoints removed.

    A manifest goes first: what is cut short in the middle is no checkpoint any more.
    """
    checkpoints = Checkpoints(storage)
    kept, names = needed(checkpoints, keep), checkpoints.names()
    removed = [name for name in names if name not in kept]
    for name in removed:
        storage.remove(f"{name}/{MANIFEST}")
    for folder in storage.folders():
        if folder.startswith("step-") and folder not in kept:
            storage.remove_folder(folder)
    return removed
