"""A run gone on with, or started from another run's parameters."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.errors import InputError
from common.seeding import set_random_states
from common.storage import Storage, open_storage
from data.event_store import EventStore
from data.loader import Loader
from data.ranking.actions import action_names
from data.schema import ITEM, ITEMS_FILE, PLAYED_RATIO
from model.config import ItemTableConfig, ModelConfig
from model.embeddings import ARTIST_QUOTIENT, ARTIST_REMAINDER, EVENT_TYPE, ITEM_TABLE
from model.heads_config import HeadsConfig
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.code_table_files import read_item_ids
from serving.checkpoints.chain import Link
from serving.checkpoints.manifest import Manifest
from serving.checkpoints.model import (
    MODEL,
    check_belongs,
    dense_tensors,
    fill_dense,
    find_chain,
    run_storage,
    saved_model,
)
from serving.checkpoints.restore import BLOCK_ROWS, check_tables, open_chain
from sharding.apply import sharded_tables
from sharding.hashing.hashed_items import hashed_tables, load_hash_state
from sharding.tables import TableShard, table_shards
from sharding.world import World
from trainer.config import TrainConfig
from trainer.loop import Progress
from trainer.optimizers import Optimizers

_HEADS = "tower.heads."


def training_state(model: DistributedModelParallel, optimizers: Optimizers) -> dict[str, Tensor]:
    """What a step changes beside the tables, as live tensors by name: what is copied into them is in effect.

    Rates follow from the step, batches and all that is drawn in a step too, so none of them is here.
    """
    return {f"{MODEL}{name}": value for name, value in dense_tensors(model).items()} | optimizers.dense_state()


def resume(
    storage: Storage,
    chain: list[Link],
    model: DistributedModelParallel,
    optimizers: Optimizers,
    loader: Loader,
    store: EventStore,
    codes: CodeTable,
    world: World,
) -> Progress:
    """Put a run back to where a verified chain ends, on any number of ranks and under any plan.

    Raises:
        InputError: the chain belongs to another store, other codes, another model or another loader.
    """
    manifest, where = chain[-1].manifest, storage.where(chain[-1].name)
    check_belongs(manifest, where, store, codes)
    if any(not shard.states for link in chain for shard in link.manifest.shards):
        raise InputError(
            f"{where}: has no optimizer states, as a bundle for serving; start a run of its own with start_from="
        )
    progress = Progress(**manifest.progress)
    loader.check_state(progress.loader)
    shards = table_shards(model)
    check_tables(manifest, where, shards)
    optimizers.make_states()
    with open_chain(storage, chain) as reader:
        reader.fill(shards)
        load_hash_state(model, reader.maps())
        fill_dense(training_state(model, optimizers), reader.dense(), where)
        random = reader.random(world.rank) if manifest.world_size == world.size else {}
    if random:
        set_random_states(random)
    return progress


def meanings(store: EventStore, codes: CodeTable, cfg: ModelConfig) -> dict[str, list[Any]]:
    """What the rows of tables stand for: [digest, number] of artists, of rows of `event_type`, and of items where there
    is a table of them whose rows are the catalogue's; [digest] of the codebooks."""
    found = {
        "artists": _named(store.artist_ids),
        "event_types": _named(_event_types(store, cfg)),
        "codes": [hashlib.sha256(codes.codebooks_CVd.tobytes()).hexdigest()[:16]],
    }
    return found | {"items": _named(_item_ids(store))} if cfg.items.kind == "vocabulary" else found


def _event_types(store: EventStore, cfg: ModelConfig) -> pa.Array:
    """Names of the rows of `event_type`: types or, of a model that predicts actions, these and series' values."""
    ranking = cfg.output.ranking
    if ranking is None:
        return pa.array(store.event_types, type=pa.string())
    names = action_names(store.event_types, ranking.played_buckets, store.has_column(PLAYED_RATIO))
    values = map(store.series.told, range(store.series.num_values)) if ranking.series else ()
    return pa.array([*names, *values], type=pa.string())


def _item_ids(store: EventStore) -> pa.ChunkedArray:
    """Not through `store.item_ids`, which would keep them all for as long as the store is open."""
    return read_item_ids(store.path / ITEMS_FILE, ITEM)


def _named(names: pa.Array | pa.ChunkedArray) -> list[Any]:
    digest = hashlib.sha256()
    for begin in range(0, len(names), BLOCK_ROWS):
        digest.update(("\x1f" * (begin > 0) + "\x1f".join(names[begin : begin + BLOCK_ROWS].to_pylist())).encode())
    return [digest.hexdigest()[:16], len(names)]


def warm_start(
    config: TrainConfig, model: DistributedModelParallel, store: EventStore, codes: CodeTable
) -> tuple[str, bool]:
    """Fill a new model with another run's parameters. What the other does not know keeps its own start.

    A table whose rows stand for other things there is left out: artists may have been added behind those of the other
    run, not in between.

    Returns:
        What was taken and what was not, for people; and whether the heads were.

    Raises:
        InputError: there is nothing to start from, it is damaged, or its shapes do not fit.
    """
    given = Path(config.start_from)
    storage = run_storage(given) if (given / "config.yaml").is_file() else open_storage(config.start_from)
    chain = find_chain(storage, config.start_checkpoint)
    manifest, where = chain[-1].manifest, storage.where(chain[-1].name)
    told, heads_taken = [f"starting from {where}, {config.start_parts}"], False
    with open_chain(storage, chain) as reader:
        if config.start_parts != "dense":
            shards = table_shards(model)
            hashed = hashed_tables(model).keys()
            own = sharded_tables(model).keys() - hashed
            unknown = _unlike(manifest.meanings, store, own, config.model)
            unknown |= dict.fromkeys(hashed, why) if (why := _hashed_otherwise(manifest, config.model.items)) else {}
            if manifest.meanings["codes"] != meanings(store, codes, config.model)["codes"]:
                told.append("its codebooks are others: a code's row goes to the code of the same label")
            told += [f"table `{table}` begins anew: {why}" for table, why in unknown.items()]
            shards = [shard for shard in shards if shard.table not in unknown]
            check_tables(manifest, where, shards, may_grow=True)
            reader.fill(_same_rows(shards, manifest.tables), states=False)
            if hashed - unknown.keys():
                load_hash_state(model, reader.maps())
        if config.start_parts != "tables":
            others = _other_heads(config.model.output, manifest)
            heads_taken = not others
            told += [f"heads begin anew: {others}"] if others else []
            _start_dense(model, saved_model(reader), where, heads=heads_taken)
    return "; ".join(told), heads_taken


def _other_heads(output: HeadsConfig, theirs: Manifest) -> str:
    """Why the heads there answer other questions than ours; empty where they do not."""
    kind, tasks = theirs.model["output"]["kind"], list(theirs.model["output"]["actions"]["tasks"])
    if kind != output.kind:
        return f"its output is {kind} there"
    return f"its tasks are {tasks} there" if tasks != list(output.actions.tasks) else ""


def _start_dense(model: DistributedModelParallel, saved: dict[str, Tensor], where: str, *, heads: bool) -> None:
    """Fill the dense part, the heads with it or without."""
    own = dense_tensors(model)
    if not heads:
        own, saved = (
            {name: value for name, value in tensors.items() if not name.startswith(_HEADS)} for tensors in (own, saved)
        )
    fill_dense(own, saved, where)


def _unlike(theirs: dict[str, list[Any]], store: EventStore, own: Collection[str], cfg: ModelConfig) -> dict[str, str]:
    """Those of our `own` tables whose rows mean something else there, and why."""
    tables = {"artists": (ARTIST_QUOTIENT, ARTIST_REMAINDER), "event_types": (EVENT_TYPE,), "items": (ITEM_TABLE,)}
    names = {"artists": store.artist_ids, "event_types": _event_types(store, cfg)}
    found: dict[str, str] = {}
    if ITEM_TABLE in own and "items" in theirs:
        names["items"] = _item_ids(store)
    elif ITEM_TABLE in own:
        found[ITEM_TABLE] = "there is no table there whose rows are the catalogue's items"
    for what, named in names.items():
        if _named(named[: theirs[what][1]]) != theirs[what]:
            why = (
                f"the first {theirs[what][1]} of this store's {len(named)} {what.replace('_', ' ')} are not those there"
            )
            found |= dict.fromkeys(tables[what], why)
    return found


def _hashed_otherwise(theirs: Manifest, own: ItemTableConfig) -> str:
    """Why rows of a hashed table cannot be taken; empty if they can, whatever the store: keys of items outlive it."""
    items = theirs.model.get("items", {})
    if items.get("kind") != "hashed":
        return "items are not hashed there"
    rows, buckets = items["hashing"]["rows"], items["hashing"]["buckets"]
    if (rows, buckets) == (own.hashing.rows, own.hashing.buckets):
        return ""
    return f"it has {rows} rows in {buckets} buckets there, {own.hashing.rows} in {own.hashing.buckets} here"


def _same_rows(shards: Sequence[TableShard], tables: dict[str, list[int]]) -> list[TableShard]:
    """Views of the shards' rows under the numbers that these rows have in a table of fewer rows.

    The last quotient row is the unknown artist's, however many there are.
    """
    views = []
    for shard in shards:
        rows = tables[shard.table][0]
        if shard.table != ARTIST_QUOTIENT or rows == shard.num_rows:
            views.append(shard)
            continue
        known = min(max(rows - 1 - shard.first_row, 0), shard.rows)
        views.append(dataclasses.replace(shard, weight_RD=shard.weight_RD[:known], states={}))
        if shard.first_row + shard.rows == shard.num_rows:
            views.append(dataclasses.replace(shard, first_row=rows - 1, weight_RD=shard.weight_RD[-1:], states={}))
    return views
