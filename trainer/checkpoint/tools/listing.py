"""What a folder of checkpoints holds, what each of them needs, and which of them are still as they were written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from common.progress import Progress, format_count
from common.storage import Storage
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import SELECTION_METRICS, Damage, selection_metric
from trainer.checkpoint.retention import needed


@dataclass(frozen=True)
class Entry:
    """A checkpoint as a list shows it.

    Attributes:
        name: of its folder.
        fault: why it is none, or cannot be restored as far as manifests say; empty if it can.
        link: None where its manifest does not hold.
        chain: how many checkpoints a restore reads; 0 where there is a fault.
        restore_bytes: how much that is.
        marks: `best`, `newest`, both or neither.
    """

    name: str
    fault: str
    link: Link | None
    chain: int
    restore_bytes: int
    marks: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        facts: dict[str, Any] = {"name": self.name, "fault": self.fault, "marks": list(self.marks)}
        if self.link:
            manifest = self.link.manifest
            facts |= {key: getattr(manifest, key) for key in ("kind", "step", "epoch", "parent", "metrics")}
            facts |= {"ranks": manifest.world_size, "bytes": manifest.size, "tables": table_rows(self.link)}
            facts |= {"chain": self.chain, "restore_bytes": self.restore_bytes}
        return facts


def table_rows(link: Link) -> dict[str, list[int]]:
    """[rows stored, rows] of every table."""
    stored = link.manifest.touched
    return {table: [stored[table], rows] for table, (rows, _) in link.manifest.tables.items()}


def some_checkpoints(storage: Storage) -> Checkpoints:
    """The checkpoints of a folder.

    Raises:
        InputError: it holds none.
    """
    checkpoints = Checkpoints(storage)
    if not checkpoints.names():
        raise InputError(
            f"{storage.url}: holds no checkpoint; give the folder of a run, or the folder or URL of its checkpoints"
        )
    return checkpoints


def entries(checkpoints: Checkpoints) -> list[Entry]:
    """All checkpoints, oldest first, those whose manifest does not hold too."""
    best = checkpoints.best()
    marked = {
        "best": best.name if best and not math.isnan(best.manifest.score) else "",
        "newest": max((link.name for link in checkpoints.links()), default=""),
    }
    found = []
    for name in checkpoints.names():
        link, fault, chain = None, "", list[Link]()
        try:
            link = checkpoints.link(name)
            chain = checkpoints.chain(name)
        except Damage as damage:
            fault = str(damage)
        size = sum(each.manifest.size for each in chain)
        marks = tuple(mark for mark, whose in marked.items() if whose == name)
        found.append(Entry(name, fault, link, len(chain), size, marks))
    return found


def list_checkpoints(storage: Storage) -> dict[str, Any]:
    """Print a table of the checkpoints and what they take up; returns the same as plain values."""
    checkpoints = some_checkpoints(storage)
    found = entries(checkpoints)
    print(_table(found))
    sizes = {entry.name: entry.link.manifest.size for entry in found if entry.link}
    total = sum(sizes.values())
    enough = sorted(needed(checkpoints, keep=1) & sizes.keys())
    enough_bytes = sum(sizes[name] for name in enough)
    names = {entry.name for entry in found}
    unfinished = [name for name in storage.folders() if name.startswith("step-") and name not in names]
    print(
        f"\n{len(found)} checkpoints, {format_count(total)}B; best and newest with all they are made from: "
        f"{len(enough)}, {format_count(enough_bytes)}B"
    )
    for name in unfinished:
        print(f"{name}: has no manifest: it is being written, or a crash cut it short")
    return {
        "checkpoints": [entry.plain() for entry in found],
        "bytes": total,
        "needed": enough,
        "needed_bytes": enough_bytes,
        "unfinished": unfinished,
    }


def _table(found: Sequence[Entry]) -> str:
    metric = next(filter(None, (selection_metric(entry.link.manifest.metrics) for entry in found if entry.link)), "")
    heads = (
        *("checkpoint", "kind", "epoch", "ranks", "size", "chain", "to restore"),
        *(metric or SELECTION_METRICS[0], "", "rows stored"),
    )
    cells = [heads, *(_cells(entry) for entry in found)]
    widths = [max(len(row[column]) for row in cells if len(row) > 2) for column in range(len(heads))]
    lines = []
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cells(entry: Entry) -> tuple[str, ...]:
    """Of a row; a checkpoint without a manifest has its name and the reason."""
    if not entry.link:
        return (entry.name, f"cannot be used: {entry.fault}")
    manifest = entry.link.manifest
    rows = (
        f"{table} {format_count(stored)}/{format_count(total)}"
        for table, (stored, total) in table_rows(entry.link).items()
    )
    return (
        entry.name,
        manifest.kind,
        str(manifest.epoch),
        str(manifest.world_size),
        f"{format_count(manifest.size)}B",
        str(entry.chain) if entry.chain else "broken",
        f"{format_count(entry.restore_bytes)}B" if entry.chain else "–",
        "" if math.isnan(manifest.score) else f"{manifest.score:.4f}",
        " ".join(entry.marks),
        ", ".join(rows) if not entry.fault else f"cannot be used: {entry.fault}",
    )


def verify_checkpoints(storage: Storage, name: str = "") -> dict[str, Any]:
    """Read every byte of all checkpoints, or of the chain that ends in `name`, and print every fault found.

    Returns:
        `checked` names, `faults`, `lost` names that cannot be restored, and `restores`: what `latest` would restore, or
        `name` itself; None if nothing.

    Raises:
        InputError: there is no such checkpoint.
    """
    checkpoints = some_checkpoints(storage)
    names = checkpoints.names()
    if name and name not in names:
        raise InputError(f"{storage.where(name)}: no such checkpoint; there are {', '.join(names)}")
    wanted, faults = ([name], list[str]()) if name else (names, list[str]())
    chains: dict[str, list[Link]] = {}
    for each in wanted:
        try:
            chains[each] = checkpoints.chain(each)
        except Damage as damage:
            faults.append(f"{each} cannot be restored: {damage}")
    links = _links(checkpoints, wanted, chains)
    broken = _verify_links(checkpoints, links)
    faults += [fault for found in broken.values() for fault in found]
    whole = [each for each, chain in chains.items() if not any(link.name in broken for link in chain)]
    restores = whole[-1] if whole else None
    lost = [each for each in wanted if each not in whole]
    for fault in faults:
        print(fault)
    if lost:
        print(f"not to be restored: {', '.join(lost)}")
    print(f"{len(links)} checkpoints read, {len(faults)} faults; {_conclusion(name, restores)}")
    return {"checked": [link.name for link in links], "faults": faults, "lost": lost, "restores": restores}


def _links(checkpoints: Checkpoints, wanted: Sequence[str], chains: dict[str, list[Link]]) -> list[Link]:
    """Those whose files are to be read: of whole chains, and each wanted one whose own manifest holds."""
    links = {link.name: link for chain in chains.values() for link in chain}
    links |= {link.name: link for link in checkpoints.links() if link.name in wanted}
    return [links[name] for name in sorted(links)]


def _verify_links(checkpoints: Checkpoints, links: Sequence[Link]) -> dict[str, list[str]]:
    """Faults by checkpoint, of those that have any."""
    broken: dict[str, list[str]] = {}
    with Progress("verify", sum(link.manifest.size for link in links), "bytes") as progress:
        for link in links:
            for file, entry in link.manifest.files.items():  # one by one, so that progress is seen
                alone = dataclasses.replace(link.manifest, files={file: entry})
                if found := checkpoints.faults(Link(link.name, alone)):
                    broken.setdefault(link.name, []).extend(found)
                progress.advance(entry["bytes"], link.name)
    return broken


def _conclusion(name: str, restores: str | None) -> str:
    if name:
        return f"{name} can be restored" if restores else f"{name} cannot be restored"
    return f"latest restores {restores}" if restores else "none of them can be restored"
