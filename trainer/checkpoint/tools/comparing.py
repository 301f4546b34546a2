"""How far a model moved between two checkpoints.

Shapes: R rows of a block · D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from common.progress import Progress, format_count
from common.storage import Storage
from serving.checkpoints.chain import Link
from serving.checkpoints.manifest import step_folder
from serving.checkpoints.model import find_chain, saved_model
from serving.checkpoints.restore import ChainReader, open_chain
from trainer.checkpoint.tools.folding import row_blocks


@dataclass
class TableChange:
    """What became of a table.

    Attributes:
        rows: of the table.
        changed: rows with at least one value that is not the same, bit for bit.
        stored: rows that the checkpoints between the two hold; None where one is not made from the other by deltas.
        largest: absolute change of a value.
        mean: absolute change of the values of changed rows.
    """

    rows: int
    changed: int = 0
    stored: int | None = None
    largest: float = 0.0
    mean: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "share": self.changed / self.rows}


def diff(storage: Storage, first: str, second: str) -> dict[str, Any]:
    """Print what changed from one checkpoint to another, each by name, by step, `best` or `latest`.

    Returns:
        `from`, `to`, `tables` by name and `dense`: the norm of each tensor's change relative to its norm before; None
        where that was 0 and no longer is.

    Raises:
        InputError: a checkpoint is missing or damaged, or their tables or tensors are not of the same shapes.
    """
    old, new = (find_chain(storage, step_folder(int(which)) if which.isdigit() else which) for which in (first, second))
    with open_chain(storage, old) as before, open_chain(storage, new) as after:
        dense = saved_model(before), saved_model(after)
        _check_alike(storage.where(old[-1].name), old[-1], new[-1], *dense)
        between = _between(before, after)
        with Progress("diff", sum(rows for rows, _ in before.manifest.tables.values()), "rows") as progress:
            tables = {name: _table_change(name, before, after, between, progress) for name in before.manifest.tables}
        moved = _dense_changes(*dense)
    print(f"from {old[-1].name} to {new[-1].name}")
    print("\n".join(_lines(tables, moved)))
    plain = {name: change.plain() for name, change in tables.items()}
    return {"from": old[-1].name, "to": new[-1].name, "tables": plain, "dense": moved}


Between = tuple[ChainReader, Sequence[Link]]
"""The deltas that lead from one checkpoint to another, and a reader of the chain that they stand in."""


def _between(before: ChainReader, after: ChainReader) -> Between | None:
    """From the one to the other, or back; None where no deltas lead there."""
    for start, end in ((before, after), (after, before)):
        names = [link.name for link in end.chain]
        if start.chain[-1].name in names:
            return end, end.chain[names.index(start.chain[-1].name) + 1 :]
    return None


def _check_alike(where: str, old: Link, new: Link, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Refuse checkpoints of two models.

    Raises:
        InputError: naming every table and tensor that one of them lacks or has in another shape.
    """
    shapes = [
        {f"table `{name}`": list(shape) for name, shape in link.manifest.tables.items()}
        | {f"tensor `{name}`": list(value.shape) for name, value in dense.items()}
        for link, dense in ((old, before), (new, after))
    ]
    faults = [
        f"{where}: {name} is {shapes[0].get(name, 'missing')} there and {shapes[1].get(name, 'missing')} in "
        f"{new.name}; compare checkpoints of one model"
        for name in sorted(shapes[0].keys() | shapes[1].keys())
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    if faults:
        raise InputError(*faults)


def _table_change(
    name: str, before: ChainReader, after: ChainReader, between: Between | None, progress: Progress
) -> TableChange:
    rows, width = before.manifest.tables[name]
    change, total = TableChange(rows, stored=None if between is None else 0), 0.0
    place = (name, range(rows), range(width))
    for old, new in zip(row_blocks(before, *place), row_blocks(after, *place), strict=True):
        differs_R = (old.weight_RD.view(torch.int32) != new.weight_RD.view(torch.int32)).any(dim=1)
        count = int(differs_R.sum())
        if count:
            moved_nD = (new.weight_RD[differs_R] - old.weight_RD[differs_R]).abs()
            change.largest = max(change.largest, float(moved_nD.max()))
            total += float(moved_nD.sum(dtype=torch.float64))
        change.changed += count
        if between is not None and change.stored is not None:
            change.stored += _stored(*between, name, range(old.first_row, old.first_row + old.rows))
        progress.advance(old.rows, name)
    change.mean = total / (change.changed * width) if change.changed else 0.0
    return change


def _stored(reader: ChainReader, links: Sequence[Link], table: str, block: range) -> int:
    """How many of these rows some delta of the reader's chain holds."""
    mask_R = torch.zeros(len(block), dtype=torch.bool)
    for link in links:
        for shard in link.manifest.shards:
            if shard.table != table or not shard.stored:
                continue
            with reader.open(link, shard.tables) as file:
                rows_n = file.get_tensor(f"{shard.key}.rows")
            first, last = torch.searchsorted(
                rows_n, torch.tensor([block.start, block.stop], dtype=rows_n.dtype)
            ).tolist()
            mask_R[rows_n[first:last].long() - block.start] = True
    return int(mask_R.sum())


def _dense_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float | None]:
    changes: dict[str, float | None] = {}
    for name, old in before.items():
        if not old.is_floating_point():
            continue
        norm, moved = float(old.double().norm()), float((after[name].double() - old.double()).norm())
        changes[name] = moved / norm if norm else None if moved else 0.0
    return changes


def _lines(tables: dict[str, TableChange], dense: dict[str, float | None]) -> list[str]:
    width = max(map(len, [*tables, *dense]), default=0)
    lines = [f"{'table':<{width}}  rows changed        of stored  largest change  mean of changed rows"]
    for name, change in tables.items():
        share = f"{format_count(change.changed)}/{format_count(change.rows)}, {change.changed / change.rows:.2%}"
        of_stored = "–" if not change.stored else f"{change.changed / change.stored:.2%}"
        lines.append(f"{name:<{width}}  {share:<18}  {of_stored:>9}  {change.largest:>14.4g}  {change.mean:>20.4g}")
    lines.append(f"{'dense tensor':<{width}}  norm of the change, of the tensor's")
    for name, moved in dense.items():
        lines.append(f"{name:<{width}}  {'was zero' if moved is None else f'{moved:.4%}'}")
    return lines
