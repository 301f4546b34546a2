"""Checkpoints made by hand, for tests of everything that reads or writes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from common.config import to_plain
from common.storage import Storage, open_storage
from data.event_store import EventStore
from model.config import ModelConfig, Vocabulary
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import blank_manifest
from serving.checkpoints.model import MODEL, build_sharded, dense_tensors
from serving.checkpoints.restore import open_chain
from sharding.apply import shard_model
from sharding.planning.placement import Piece, Placement, TablePlan, row_wise
from sharding.tables import TableShard, table_shards
from sharding.world import World
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.resume import meanings

ROWS = {"small": 7, "large": 61}
"""Tables of `TwoTables`, the larger last, as the CPU's kernels want it."""
WIDTH = 8
PLANS = ("row_wise", "table_wise", "column_wise")


class TwoTables(nn.Module):
    """Two tables and a matrix over their sum."""

    def __init__(self) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(name=name, embedding_dim=WIDTH, num_embeddings=rows, feature_names=[name])
            for name, rows in ROWS.items()
        ]
        self.ebc = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        self.top = nn.Linear(WIDTH, 3)

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        pooled = self.ebc(ids).to_dict()
        result: Tensor = self.top(sum(pooled.values()))
        return result


def two_tables(world: World, plan: str = "row_wise") -> DistributedModelParallel:
    """`TwoTables` under a plan, always from the same numbers."""
    torch.manual_seed(5)
    model = TwoTables()
    placement = row_wise(model, world) if plan == "row_wise" else _placement(world, plan)
    return shard_model(model, placement, world, learning_rate=0.1, epsilon=1e-8, draw_rows=_starting_rows)


def _placement(world: World, plan: str) -> Placement:
    """Whole tables in turn, or half of the columns on the first rank and half on the last."""
    tables = []
    for index, (name, rows) in enumerate(ROWS.items()):
        pieces = (Piece(index % world.size, 0, rows, 0, WIDTH),)
        if plan == "column_wise":
            half = WIDTH // 2
            pieces = (Piece(0, 0, rows, 0, half), Piece(world.size - 1, 0, rows, half, half))
        tables.append(TablePlan(name, "ebc", rows, WIDTH, True, plan.replace("_", "-"), "fused", 0.0, pieces))
    return Placement((world.size,), "cpu", "float32", tuple(tables))


def _starting_rows(table: str, start: int, stop: int, _width: int) -> Tensor:
    return torch.randn(ROWS[table], WIDTH, generator=torch.Generator().manual_seed(len(table)))[start:stop]


def train_rows(model: DistributedModelParallel, world: World, step: int) -> None:
    """One step on a handful of rows that follow from the step: the same global batch on any number of ranks."""
    generator = torch.Generator().manual_seed(100 + step)
    bags = 12
    lengths = torch.ones(len(ROWS), bags, dtype=torch.int64)
    ids = [torch.randint(rows, (bags,), generator=generator) for rows in ROWS.values()]
    own = slice(world.rank * bags // world.size, (world.rank + 1) * bags // world.size)
    batch = KeyedJaggedTensor.from_lengths_sync(
        list(ROWS), torch.cat([drawn[own] for drawn in ids]), lengths[:, own].flatten()
    )
    model.train()
    model(batch).square().mean().backward()
    with torch.no_grad():
        for parameter in model.module.top.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def watch(
    model: DistributedModelParallel,
    world: World,
    path: str | Path | Storage,
    chain: list[Link] | None = None,
    **keys: Any,
) -> Checkpointer:
    """A checkpointer of a model; `keys` are of `CheckpointConfig`."""
    storage = path if isinstance(path, Storage) else open_storage(path)
    for module in model.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            module.post_lookup_tracker_fn = None
    return Checkpointer(
        CheckpointConfig(**{"keep": 100, **keys}),
        storage,
        world,
        model,
        lambda: {f"{MODEL}{name}": value for name, value in dense_tensors(model).items()},
        _template(world),
        chain or [],
        say=print,
        record=lambda step, values: None,
    )


def _template(world: World) -> Any:
    nothing = {"store": "", "codes": "", "store_fingerprint": "", "codes_fingerprint": "", "config_fingerprint": ""}
    return blank_manifest(world_size=world.size, model={}, vocabulary={}, meanings={}, **nothing)


def save(checkpointer: Checkpointer, step: int, metrics: dict[str, float] | None = None) -> Any:
    """A checkpoint of this step, on the disk; returns how it ended."""
    checkpointer.begin(step, 0, {"step": step}, metrics or {})
    return checkpointer.settle()


def write_chain(world: World, path: str | Path, steps: int = 4, **keys: Any) -> dict[int, dict[str, Tensor]]:
    """Train and save `steps` times, from step 10 on by tens; returns the whole state at each."""
    model = two_tables(world)
    checkpointer = watch(model, world, path, **{"chain_share": 1e9, **keys})
    states = {}
    for step in range(10, 10 * steps + 1, 10):
        train_rows(model, world, step)
        outcome = save(checkpointer, step)
        assert not outcome.error, outcome.error
        states[step] = whole_state(model)
    return states


def whole_state(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Copies of this rank's pieces of tables, their states and the dense tensors, by name and place."""
    found = {name: value.clone() for name, value in dense_tensors(model).items()}
    for shard in table_shards(model):
        place = f"{shard.table}.{shard.first_row}.{shard.first_column}"
        found[place] = shard.weight_RD.clone()
        found |= {f"{place}.{name}": state.clone() for name, state in shard.states.items()}
    return found


def restore(world: World, path: str | Path, which: str = "latest", plan: str = "row_wise") -> DistributedModelParallel:
    """The model of a checkpoint, tables, optimizer states and dense tensors, under any plan."""
    storage = open_storage(path)
    checkpoints = Checkpoints(storage)
    chain = checkpoints.newest_whole_chain()[0] if which == "latest" else checkpoints.whole_chain(which)
    model = two_tables(world, plan)
    with open_chain(storage, chain) as reader:
        reader.fill(table_shards(model))
        for name, value in dense_tensors(model).items():
            value.copy_(reader.dense()[f"{MODEL}{name}"])
    return model


def gathered(shards: list[TableShard]) -> dict[str, Tensor]:
    """Whole tables of a single process."""
    tables = {shard.table: torch.empty(shard.num_rows, shard.width) for shard in shards}
    for shard in shards:
        rows = slice(shard.first_row, shard.first_row + shard.rows)
        tables[shard.table][rows, shard.first_column : shard.first_column + shard.columns] = shard.weight_RD
    return tables


def write_untrained(run: Path, world: World, store_path: Path, codes_path: Path, cfg: ModelConfig, step: int) -> None:
    """A run's folder with one checkpoint of an untrained recommender."""
    store = EventStore.open(store_path)
    codes = CodeTable.open(codes_path, store)
    vocabulary = Vocabulary(codes.num_levels, codes.codes_per_level, store.num_artists, len(store.event_types))
    model = build_sharded(cfg, vocabulary, world, seed=0)
    checkpointer = watch(model, world, run / "checkpoints")
    checkpointer._template = dataclasses.replace(
        checkpointer._template,
        store=str(store_path),
        codes=str(codes_path),
        store_fingerprint=store.fingerprint,
        codes_fingerprint=codes.fingerprint,
        model=to_plain(cfg),
        vocabulary=dataclasses.asdict(vocabulary),
        meanings=meanings(store, codes, cfg),
    )
    checkpointer.begin(step, 2, {}, {})
    checkpointer.finish()
