"""A plan read back from plan.json, which anybody may have written: whole, possible, and for this job, or refused."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torchrec import EmbeddingBagCollection

from common.errors import InputError
from sharding.planning.placement import (
    FORMAT,
    Piece,
    Placement,
    TablePlan,
    even_rows,
    last_table_faults,
    table_modules,
    table_sizes,
)
from sharding.planning.policy import CACHED, KERNELS, PRECISIONS, SHARDINGS
from sharding.planning.topology import MAX_RANKS

T = TypeVar("T")

_MAX_FILE_BYTES = 64 * 2**20


def read_placement(path: Path) -> Placement:
    """The placement of a written plan.

    Raises:
        InputError: no such file, or not a plan, or pieces that do not make up their tables.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes, which no plan is")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such plan; make one: python -m sharding.plan … out=FOLDER") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a plan: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not a plan: too many levels, one within another") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: format {found!r}, expected {FORMAT}; make the plan anew: python -m sharding.plan …")
    try:
        placement = Placement(
            tuple(_typed(ranks, int) for ranks in content["ranks_per_node"]),
            str(content["device"]),
            str(content["communication"]),
            tuple(_table(table) for table in content["tables"]),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan: {type(error).__name__} {error}") from None
    faults = _faults_of_ranks(placement)
    if not faults:
        faults = [fault for table in placement.tables for fault in _faults(table, placement)]
    if not faults:
        faults = last_table_faults(placement)
    if faults:
        raise InputError(*(f"{path}: {fault}" for fault in faults))
    return placement


def _table(plain: dict[str, Any]) -> TablePlan:
    kinds = {"rows": int, "width": int, "cache_load_factor": float, "pooled": bool}
    values: dict[str, Any] = {
        field.name: _typed(plain[field.name], kinds.get(field.name, str))
        for field in dataclasses.fields(TablePlan)
        if field.name != "pieces"
    }
    pieces = tuple(Piece(*(_typed(number, int) for number in piece)) for piece in plain["pieces"])
    return TablePlan(**values, pieces=pieces)


def _typed(value: Any, kind: type[T]) -> T:
    """A value of that very type; whole numbers are floats too.

    Raises:
        TypeError: it is of another.
    """
    if kind is float and type(value) is int:
        return kind(value)  # type: ignore[call-arg]
    if type(value) is not kind:
        raise TypeError(f"{reprlib.repr(value)} where {kind.__name__} is expected")
    return value


def _faults_of_ranks(placement: Placement) -> list[str]:
    """What is wrong with a plan as a whole."""
    faults = []
    ranks, names = placement.ranks_per_node, [table.name for table in placement.tables]
    if min(ranks, default=0) < 1 or sum(ranks) > MAX_RANKS:
        faults.append(f"ranks_per_node is {reprlib.repr(list(ranks))}, expected 1 to {MAX_RANKS} ranks in all")
    if placement.device not in ("cuda", "cpu"):
        faults.append(f"device is {placement.device!r}, expected cuda or cpu")
    if placement.communication not in PRECISIONS:
        faults.append(f"communication is {placement.communication!r}, expected one of {', '.join(PRECISIONS)}")
    faults += [
        f"table `{name}` stands there {names.count(name)} times" for name in sorted({*names}) if names.count(name) > 1
    ]
    if not names:
        faults.append("has no tables")
    return faults


def _faults(table: TablePlan, placement: Placement) -> list[str]:
    """What keeps a table from being whole, or from being cut as it says."""
    num_ranks, at = placement.num_ranks, f"table `{table.name}`"
    faults = []
    if table.sharding not in SHARDINGS or table.kernel not in KERNELS:
        faults.append(f"{at}: sharding {table.sharding!r} with kernel {table.kernel!r} is not known")
    if placement.device == "cpu" and table.kernel != "fused":
        faults.append(f"{at}: kernel {table.kernel} needs GPUs; the plan is for the cpu")
    if placement.communication == "int8" and table.pooled and table.sharding in ("row-wise", "table-row-wise"):
        faults.append(f"{at}: cut {table.sharding}, its vectors are summed on their way, which int8 cannot do")
    if table.kernel in CACHED and not 0 < table.cache_load_factor <= 1:
        faults.append(f"{at}: cache_load_factor is {table.cache_load_factor}: a share above 0 and at most 1")
    outside = [
        piece
        for piece in table.pieces
        if not (
            0 <= piece.rank < num_ranks
            and 0 <= piece.first_row <= piece.first_row + piece.rows <= table.rows
            and 0 <= piece.first_column < piece.first_column + piece.columns <= table.width
        )
    ]
    if outside:
        faults.append(f"{at}: {outside[0]} lies outside {table.rows} × {table.width} or {num_ranks} ranks")
    elif table.sharding == "row-wise" and not _is_even(table, num_ranks):
        faults.append(
            f"{at}: row-wise pieces are not ⌈rows / ranks⌉ rows each in the order of ranks, without which ids would "
            f"go to the wrong owners"
        )
    elif sum(piece.rows * piece.columns for piece in table.pieces) != table.rows * table.width or _overlap(table):
        faults.append(f"{at}: its pieces do not make up {table.rows} × {table.width} numbers, each once")
    elif not _is_cut_so(table, placement):
        faults.append(f"{at}: its pieces are not those of a table that is cut {table.sharding}")
    return faults


def _is_cut_so(table: TablePlan, placement: Placement) -> bool:
    """Whether pieces that make up a table are of the kind that its sharding has; row-wise ones are looked at apart."""
    if table.sharding == "table-wise":
        return len(table.pieces) == 1
    if table.sharding == "column-wise":
        return all(piece.rows == table.rows for piece in table.pieces)
    if table.sharding == "table-row-wise":
        first_of_node = [sum(placement.ranks_per_node[:node]) for node in range(len(placement.ranks_per_node))]
        nodes = [
            list(range(first, first + ranks))
            for first, ranks in zip(first_of_node, placement.ranks_per_node, strict=True)
        ]
        first_rows = [piece.first_row for piece in table.pieces]
        return [piece.rank for piece in table.pieces] in nodes and first_rows == sorted(first_rows)
    return True


def _is_even(table: TablePlan, num_ranks: int) -> bool:
    return [(piece.rank, piece.first_row, piece.rows) for piece in table.pieces] == even_rows(table.rows, num_ranks)


def _overlap(table: TablePlan) -> bool:
    """Whether two pieces have a number in common; pieces are cut along one axis, so each column range by itself."""
    by_columns: dict[tuple[int, int], list[Piece]] = {}
    for piece in table.pieces:
        if piece.rows:
            by_columns.setdefault((piece.first_column, piece.columns), []).append(piece)
    ranges = sorted(by_columns)
    if any(first + columns > after for (first, columns), (after, _) in pairwise(ranges)):
        return True
    for pieces in by_columns.values():
        pieces.sort(key=lambda piece: piece.first_row)
        if any(one.first_row + one.rows > two.first_row for one, two in pairwise(pieces)):
            return True
    return False


def check_matches(placement: Placement, model: nn.Module, ranks_per_node: list[int], device: str, where: str) -> None:
    """See that a plan is one for this model on these ranks.

    Raises:
        InputError: with everything that differs.
    """
    faults = []
    if placement.num_ranks != sum(ranks_per_node):
        faults.append(f"{where}: is for {placement.num_ranks} ranks, this job has {sum(ranks_per_node)}")
    elif list(placement.ranks_per_node) != ranks_per_node:
        faults.append(f"{where}: is for nodes of {list(placement.ranks_per_node)} ranks, this job has {ranks_per_node}")
    if placement.device != device:
        faults.append(f"{where}: is for {placement.device}, this job runs on {device}")
    planned, own = {table.name: (table.rows, table.width) for table in placement.tables}, table_sizes(model)
    modules = table_modules(model)
    for name in sorted(planned.keys() | own.keys()):
        if name not in own:
            faults.append(f"{where}: has a table `{name}`, which this model lacks")
        elif name not in planned:
            faults.append(f"{where}: has no table `{name}`, which this model has")
        elif planned[name] != own[name]:
            faults.append(
                f"{where}: table `{name}` has {planned[name][0]} rows × {planned[name][1]} there and {own[name][0]} × "
                f"{own[name][1]} in this model"
            )
        elif placement.table(name).module != modules[name][0]:
            faults.append(
                f"{where}: table `{name}` lies in `{placement.table(name).module}` there and in `{modules[name][0]}` "
                f"in this model"
            )
        elif placement.table(name).pooled != isinstance(modules[name][1], EmbeddingBagCollection):
            faults.append(f"{where}: table `{name}` is not as this model's: one gives sums of rows, the other rows")
    if faults:
        raise InputError(*faults, f"{where}: plan anew for this job: python -m sharding.plan …, or leave it out")
