"""Chains of checkpoints: base → delta → delta …, and the newest whose every byte is as it was written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch.distributed as dist

from common.errors import InputError
from common.storage import Storage
from serving.checkpoints.manifest import BASE, MANIFEST, Damage, Manifest, read_manifest


@dataclass(frozen=True)
class Link:
    """A checkpoint: its folder's name and its manifest."""

    name: str
    manifest: Manifest


@dataclass
class Checkpoints:
    """The checkpoints of a run.

    Manifests and verdicts are read once: make a new one to see what has changed since.

    Args:
        storage: the folder that holds them.
    """

    storage: Storage
    _links: dict[str, Link | Damage] = field(default_factory=dict, init=False)
    _verdicts: dict[str, Damage | None] = field(default_factory=dict, init=False)

    def names(self) -> list[str]:
        """Of all checkpoints that have a manifest, oldest first."""
        folders = [name for name in self.storage.folders() if name.startswith("step-")]
        return [name for name in folders if MANIFEST in self.storage.files(name)]

    def link(self, name: str) -> Link:
        """A checkpoint by name.

        Raises:
            Damage: its manifest does not hold.
        """
        if name not in self._links:
            try:
                self._links[name] = Link(name, read_manifest(self.storage, name))
            except Damage as damage:
                self._links[name] = damage
        found = self._links[name]
        if isinstance(found, Damage):
            raise found
        return found

    def links(self) -> list[Link]:
        """Every checkpoint whose manifest holds, oldest first."""
        found = []
        for name in self.names():
            try:
                found.append(self.link(name))
            except Damage:
                continue
        return found

    def chain(self, name: str) -> list[Link]:
        """From a base to the checkpoint `name`, by their manifests alone.

        Raises:
            Damage: a link is missing, does not hold, or is not the one that its child was made from.
        """
        link = self.link(name)
        chain = [link]
        while chain[0].manifest.kind != BASE:
            child = chain[0]
            parent = self.link(child.manifest.parent)
            if parent.manifest.state != child.manifest.parent_state:
                raise Damage(
                    f"{self.storage.where(child.name)}: made from state {child.manifest.parent_state} of "
                    f"{parent.name}, which holds state {parent.manifest.state} now"
                )
            if parent.manifest.step >= child.manifest.step:
                raise Damage(f"{self.storage.where(child.name)}: made from {parent.name}, which is no earlier")
            chain.insert(0, parent)
        return chain

    def verify(self, link: Link) -> None:
        """Read every byte of a checkpoint's files, shared out over the ranks where there are several.

        Raises:
            Damage: on every rank, the first fault that any of them found.
        """
        if link.name not in self._verdicts:
            self._verdicts[link.name] = _agreed(next(self._faults(link), None))
        fault = self._verdicts[link.name]
        if fault:
            raise fault

    def faults(self, link: Link) -> list[str]:
        """All that is wrong with a checkpoint's files, read by this process alone."""
        return [str(fault) for fault in self._faults(link, alone=True)]

    def _faults(self, link: Link, *, alone: bool = False) -> Iterator[Damage]:
        rank, size = (0, 1) if alone or not dist.is_initialized() else (dist.get_rank(), dist.get_world_size())
        for name, expected in list(link.manifest.files.items())[rank::size]:
            path = f"{link.name}/{name}"
            where = self.storage.where(path)
            try:
                count, digest = self.storage.size_and_digest(path)
            except FileNotFoundError:
                yield Damage(f"{where}: no such file")
                continue
            except OSError as error:
                yield Damage(f"{where}: cannot be read: {error}")
                continue
            if count != expected["bytes"]:
                yield Damage(f"{where}: {count} bytes, {expected['bytes']} were written")
            elif digest != expected["xxh3_128"]:
                yield Damage(f"{where}: its checksum is {digest}, {expected['xxh3_128']} was written")

    def whole_chain(self, name: str) -> list[Link]:
        """From a base to the checkpoint `name`, every byte verified. Called by all ranks.

        Raises:
            Damage: some file is not as it was written.
        """
        chain: list[Link] = []
        fault = None
        try:
            chain = self.chain(name)
        except Damage as damage:
            fault = damage
        if fault := _agreed(fault):
            raise fault
        for link in reversed(chain):
            self.verify(link)
        return chain

    def newest_whole_chain(self) -> tuple[list[Link], list[str]]:
        """The newest chain that holds, and what is wrong with those passed over. Called by all ranks.

        Raises:
            InputError: there is no checkpoint, or none holds.
        """
        names = agreed(self.names())
        passed: list[str] = []
        for name in reversed(names):
            try:
                return self.whole_chain(name), passed
            except Damage as damage:
                passed.append(f"{name} cannot be used: {damage}")
        if not names:
            raise InputError(f"{self.storage.url}: holds no checkpoint; train first: python -m trainer.train …")
        raise InputError(*passed)

    def best(self) -> Link | None:
        """The checkpoint with the largest validation metric, the earliest of equals; the newest if none has one."""
        links = self.links()
        measured = [link for link in links if not math.isnan(link.manifest.score)]
        if measured:
            return max(measured, key=lambda link: link.manifest.score)
        return links[-1] if links else None


def _agreed(fault: Damage | None) -> Damage | None:
    """The first rank's fault that has one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return fault
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, str(fault) if fault else None)
    return next((Damage(text) for text in found if text), None)


def agreed(names: list[str]) -> list[str]:
    """Rank 0's list: another rank may look a moment later."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return names
    told = [names]
    dist.broadcast_object_list(told, src=0)
    return told[0]
