"""A plan: every piece of every table and who holds it, with what that costs each rank. Written, read, applied.

A plan is one JSON object, so that a dry run on a laptop and the job that follows it on a cluster speak of the same
thing. What a job follows are the pieces; memory, traffic and times are the dry run's arithmetic, for people.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from common.errors import InputError
from sharding.planning.policy import CACHED, KERNELS, PRECISIONS, SHARDINGS
from sharding.planning.topology import MAX_RANKS
from sharding.world import World

T = TypeVar("T")

FORMAT = 1
_MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Piece:
    """A rectangle of a table, and the rank that holds it. It may have no rows."""

    rank: int
    first_row: int
    rows: int
    first_column: int
    columns: int


@dataclass(frozen=True)
class TablePlan:
    """Where one table lies.

    Attributes:
        name: of the table.
        module: path of its collection in the model.
        rows, width: its size.
        pooled: whether a bag's rows come back as one sum.
        sharding, kernel: names of `sharding.planning.policy`.
        cache_load_factor: share of the rows that a cache holds, 0 without one.
        pieces: of which the table is made.
    """

    name: str
    module: str
    rows: int
    width: int
    pooled: bool
    sharding: str
    kernel: str
    cache_load_factor: float
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Float32 numbers of all rows."""
        return 4 * self.rows * self.width

    @property
    def ranks(self) -> list[int]:
        """Those that hold some of it."""
        return sorted({piece.rank for piece in self.pieces if piece.rows})


@dataclass(frozen=True)
class Placement:
    """All tables on the ranks of some nodes.

    Attributes:
        ranks_per_node: of each node.
        device: cuda or cpu.
        communication: what vectors travel in.
        tables: in the model's order.
    """

    ranks_per_node: tuple[int, ...]
    device: str
    communication: str
    tables: tuple[TablePlan, ...]

    @property
    def num_ranks(self) -> int:
        """Of all nodes."""
        return sum(self.ranks_per_node)

    def table(self, name: str) -> TablePlan:
        """One of them."""
        return next(table for table in self.tables if table.name == name)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        tables = [
            {
                **{field.name: getattr(table, field.name) for field in dataclasses.fields(table)},
                "bytes": table.bytes,
                "ranks": table.ranks,
                "pieces": [dataclasses.astuple(piece) for piece in table.pieces],
            }
            for table in self.tables
        ]
        return {
            "format": FORMAT,
            "device": self.device,
            "ranks_per_node": list(self.ranks_per_node),
            "communication": self.communication,
            "tables": tables,
        }

    def to_torchrec(self) -> ShardingPlan:
        """The same in TorchRec's words."""
        modules: dict[str, EmbeddingModuleShardingPlan] = {}
        first_of_node = [sum(self.ranks_per_node[:node]) for node in range(len(self.ranks_per_node))]
        for table in self.tables:
            shards = []
            for piece in table.pieces:
                local = piece.rank - max(first for first in first_of_node if first <= piece.rank)
                device = self.device if self.device == "cpu" else f"{self.device}:{local}"
                shards.append(
                    ShardMetadata(
                        [piece.first_row, piece.first_column],
                        [piece.rows, piece.columns],
                        f"rank:{piece.rank}/{device}",
                    )
                )
            modules.setdefault(table.module, EmbeddingModuleShardingPlan())[table.name] = ParameterSharding(
                sharding_type=SHARDINGS[table.sharding],
                compute_kernel=KERNELS[table.kernel],
                ranks=[piece.rank for piece in table.pieces],
                sharding_spec=EnumerableShardingSpec(shards),
                cache_params=CacheParams(load_factor=table.cache_load_factor) if table.kernel in CACHED else None,
            )
        return ShardingPlan(plan=dict(modules))


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


def even_rows(rows: int, num_ranks: int) -> list[tuple[int, int, int]]:
    """Rank, first row and number of rows of each piece of a row-wise table."""
    each = -(-rows // num_ranks)
    starts = [min(rank * each, rows) for rank in range(num_ranks + 1)]
    return [(rank, first, after - first) for rank, (first, after) in enumerate(pairwise(starts))]


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


def table_modules(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Table → path of its collection, and the collection, for every collection of tables in the model."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            found |= {table.name: (path, module) for table in module.embedding_bag_configs()}
        elif isinstance(module, EmbeddingCollection):
            found |= {table.name: (path, module) for table in module.embedding_configs()}
    return found


def row_wise(model: nn.Module, world: World) -> Placement:
    """Every table by rows over all ranks, ⌈rows / ranks⌉ consecutive ones each: what a policy of `row-wise` gives too.

    For models that are read, not trained, and need no room to be worked out.

    Raises:
        InputError: a rank would hold no row of a collection's last table, on the CPU.
    """
    sizes, modules = table_sizes(model), table_modules(model)
    tables = []
    for name, (rows, width) in sizes.items():
        path, module = modules[name]
        pieces = tuple(Piece(rank, first, count, 0, width) for rank, first, count in even_rows(rows, world.size))
        pooled = isinstance(module, EmbeddingBagCollection)
        tables.append(TablePlan(name, path, rows, width, pooled, "row-wise", "fused", 0.0, pieces))
    nodes = tuple(min(world.local_size, world.size - first) for first in range(0, world.size, world.local_size))
    placement = Placement(nodes, world.device.type, "float32", tuple(tables))
    check_last_tables(placement)
    return placement


def check_last_tables(placement: Placement) -> None:
    """On the CPU FBGEMM 1.8 reads past its arrays when the last table of a kernel has no rows on some rank.

    A kernel serves the tables of one collection that are cut alike.

    Raises:
        InputError: naming the tables.
    """
    if placement.device != "cpu":
        return
    last = {(table.module, table.sharding): table for table in placement.tables}
    faults = [
        f"table `{table.name}` has {table.rows} rows, too few for each of {len(table.pieces)} ranks to hold some; set "
        f"`sharding.tables.{table.name}.sharding=table-wise`, or use fewer ranks, or codes with more levels or more "
        f"codes a level"
        for table in last.values()
        if table.sharding in ("row-wise", "table-row-wise") and not all(piece.rows for piece in table.pieces)
    ]
    if faults:
        raise InputError(*faults)


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


def table_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Rows and width of each table."""
    sizes: dict[str, tuple[int, int]] = {}
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            configs = (
                module.embedding_bag_configs()
                if isinstance(module, EmbeddingBagCollection)
                else module.embedding_configs()
            )
            sizes |= {config.name: (config.num_embeddings, config.embedding_dim) for config in configs}
    return sizes
