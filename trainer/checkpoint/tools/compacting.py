"""A chain folded into one base, in the place of its last checkpoint: what is made from that one stays valid.

The base keeps the `state` of the delta that it replaces, since it restores the same numbers, bit for bit. Its files
have names of their own and count once the manifest has been replaced; only then the delta's files go.
"""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from common.errors import InputError
from common.progress import format_count
from common.storage import Storage
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import BASE, MANIFEST, Damage, Manifest, encode_manifest, read_manifest
from serving.checkpoints.model import find_chain
from serving.checkpoints.restore import open_chain
from trainer.checkpoint.retention import needed
from trainer.checkpoint.tools.folding import Folding


def compact(storage: Storage, which: str, *, prune: bool = False) -> dict[str, Any]:
    """Fold the chain that ends in the `latest` whole, the `best` or a named checkpoint, and say what came of it.

    Args:
        prune: remove earlier checkpoints that are neither the best nor what another one is made from.

    Returns:
        `name`, `folded` (links; 0 where it was a base already), `bytes_before` and `bytes` to restore it, and
        `removable` or `removed` checkpoints.

    Raises:
        InputError: there is no such checkpoint, or its chain is damaged, or the base cannot be written.
    """
    chain = find_chain(storage, which)
    name, before = chain[-1].name, sum(link.manifest.size for link in chain)
    if chain[-1].manifest.kind == BASE:
        manifest, folded = chain[-1].manifest, 0
        print(f"{name}: is a base already, {format_count(manifest.size)}B; it stays as it is")
    else:
        manifest, folded = _fold_in_place(storage, chain), len(chain)
        sizes = f"{format_count(before)}B to restore before, {format_count(manifest.size)}B now"
        print(f"{name}: {folded} checkpoints folded into a base, {sizes}")
    _remove_strangers(storage, name, manifest)
    spare = removable(storage, name)
    facts = {"name": name, "folded": folded, "bytes_before": before, "bytes": manifest.size}
    listed = f"{', '.join(spare) or 'none'} ({format_count(_bytes_of(storage, spare))}B)"
    if prune:
        remove_checkpoints(storage, spare)
        print(f"removed, since nothing is made from them any more: {listed}")
        return facts | {"removed": spare, "removable": []}
    print(f"earlier checkpoints that nothing is made from any more, which --prune removes: {listed}")
    return facts | {"removed": [], "removable": spare}


def _fold_in_place(storage: Storage, chain: list[Link]) -> Manifest:
    """Write the base and make it count; whatever fails, the old checkpoint or the new one is whole."""
    link = chain[-1]
    with open_chain(storage, chain) as reader:
        folding = Folding(reader, storage, f"{secrets.token_hex(4)}-folded", training=True)
        try:
            manifest = _with_old_dense(folding.write_tables(), link.manifest)
            _check_unchanged(storage, link, folding)
            storage.replace(f"{link.name}/{MANIFEST}", encode_manifest(manifest))
        except BaseException as error:
            if _counts(storage, link.name, folding):  # it was the last flush that failed, or came too late to stop
                raise
            folding.remove()
            if isinstance(error, OSError):
                raise InputError(
                    f"{storage.where(link.name)}: the base cannot be written: {error.strerror or error}; the "
                    f"checkpoint is as it was: make room, or mend what is wrong, and compact again"
                ) from None
            raise
    return manifest


def _with_old_dense(manifest: Manifest, old: Manifest) -> Manifest:
    """What all ranks have alike is never a change to an earlier checkpoint: its file serves on as it is."""
    return dataclasses.replace(manifest, files={**manifest.files, old.dense: old.files[old.dense]})


def _check_unchanged(storage: Storage, link: Link, folding: Folding) -> None:
    """Refuse to replace what is not the checkpoint that was folded: somebody else has been at work.

    Raises:
        InputError: the manifest is another one than it was, or files just written are gone.
    """
    where = storage.where(link.name)
    try:
        same = read_manifest(storage, link.name) == link.manifest
    except Damage:
        same = False
    if not same or folding.files.keys() - set(storage.files(link.name)):
        raise InputError(f"{where}: was changed by another process meanwhile; let that one end, and compact again")


def _counts(storage: Storage, name: str, folding: Folding) -> bool:
    """Whether the manifest names files of this folding, or cannot be read, so that none may be removed."""
    try:
        return bool(folding.files.keys() & read_manifest(storage, name).files.keys())
    except Exception:
        return True


def _remove_strangers(storage: Storage, name: str, manifest: Manifest) -> None:
    """Remove files of the folder that its manifest does not name: replaced ones, and what a crash left."""
    for file in storage.files(name):
        if file not in manifest.files and file != MANIFEST:
            storage.remove(f"{name}/{file}")


def removable(storage: Storage, name: str) -> list[str]:
    """Checkpoints before `name` that are neither the best nor what any of the others is made from, oldest first."""
    checkpoints = Checkpoints(storage)
    names = checkpoints.names()
    kept = needed(checkpoints, keep=1)
    for other in names:
        if other < name:
            continue
        try:
            kept |= {link.name for link in checkpoints.chain(other)}
        except Damage:
            continue  # not to be restored whatever is kept
    return [other for other in names if other < name and other not in kept]


def remove_checkpoints(storage: Storage, names: list[str]) -> None:
    """Remove checkpoints, the newest first, so that none is ever left without what it is made from."""
    for name in sorted(names, reverse=True):
        storage.remove(f"{name}/{MANIFEST}")  # first: what is cut short in the middle is no checkpoint any more
        storage.remove_folder(name)


def _bytes_of(storage: Storage, names: list[str]) -> int:
    return sum(link.manifest.size for link in Checkpoints(storage).links() if link.name in names)
