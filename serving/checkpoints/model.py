"""A recommender built anew, or read back from a checkpoint, on any number of ranks."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.config import from_plain
from common.errors import InputError
from common.storage import Storage, open_storage
from data.batches import ItemFeatures
from data.event_store import EventStore
from data.store_columns import item_features
from model.config import ModelConfig, Vocabulary
from model.embeddings import (
    CODE_TABLE,
    INITIAL_STD,
    ITEM_TABLE,
    build_embeddings,
    build_item_table,
    draw_rows,
    rows_from_codebooks,
)
from model.heads import CascadedHeads
from model.item_head import unit_rows
from model.recommender import Recommender
from model.task_heads import TaskHeads
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import MANIFEST, Damage, Manifest
from serving.checkpoints.restore import ChainReader, check_tables, open_chain
from sharding.apply import shard_model, sharded_tables
from sharding.hashing.hashed_items import load_hash_state
from sharding.planning.placement import Placement, row_wise
from sharding.tables import table_shards
from sharding.world import World

MODEL = "model."
"""What the names of dense parameters begin with in a checkpoint's dense file."""

_GATHERED_ROWS = 2**16
"""Rows of the table of items that travel at once."""

BUNDLED_CODES = "codes"
"""Folder of the code table in an exported bundle; a run's own folder has none."""


def run_storage(run: Path, given: str = "") -> Storage:
    """Where a run keeps its checkpoints: as given, else where its `config.yaml` says, else in its own folder.

    Raises:
        InputError: that file is not readable.
    """
    config = run / "config.yaml"
    if not given and config.is_file():
        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{config}: not a readable configuration: {' '.join(str(error).split())}") from None
        group = content.get("checkpoint") if isinstance(content, dict) else None
        given = str(group.get("path") or "") if isinstance(group, dict) else ""
    return open_storage(given or os.fspath(run / "checkpoints"))


def code_table_path(run: Path | None, manifest: Manifest, given: str = "") -> Path:
    """Where the code table of a run is: as given, else the bundle's own, else where it was in training."""
    bundled = run / BUNDLED_CODES if run else None
    return Path(given) if given else bundled if bundled and bundled.is_dir() else Path(manifest.codes)


def find_chain(storage: Storage, which: str) -> list[Link]:
    """The chain that ends in the `best` (by validation), the `latest` whole, or a named checkpoint.

    Every byte is verified. Called by all ranks.

    Raises:
        InputError: there is no such checkpoint, or it is damaged; the message lists those there are.
    """
    checkpoints = Checkpoints(storage)
    if which == "latest":
        return checkpoints.newest_whole_chain()[0]
    names = checkpoints.names()
    if not names:
        raise InputError(f"{storage.url}: holds no checkpoint; train first: python -m trainer.train …")
    best = checkpoints.best() if which == "best" else None
    name = best.name if best else which
    if name not in names:
        raise InputError(f"{storage.where(name)}: no such checkpoint; there are best, latest, {', '.join(names)}")
    try:
        return checkpoints.whole_chain(name)
    except Damage as damage:
        others = ", ".join(other for other in names if other != name) or "no other"
        raise InputError(f"{damage}; {name} cannot be restored: choose another checkpoint=… ({others})") from None


def check_belongs(manifest: Manifest, where: str, store: EventStore, codes: CodeTable) -> None:
    """Refuse a checkpoint that was trained on another store or with other codes.

    Raises:
        InputError: naming both fingerprints.
    """
    faults = []
    for what, trained, given in (
        ("event store", manifest.store_fingerprint, store.fingerprint),
        ("code table", manifest.codes_fingerprint, codes.fingerprint),
    ):
        if trained != given:
            faults.append(
                f"{where}: trained with the {what} {trained}, but {given} was given; "
                f"give the one it was trained with, or train again"
            )
    if faults:
        raise InputError(*faults)


def features_of(store: EventStore, codes: CodeTable, cfg: ModelConfig) -> ItemFeatures:
    """The items of a store with their codes, as batches for a model have them."""
    hashed = cfg.items.kind == "hashed"
    return item_features(store, codes.codes_NC, codes.codes_per_level, cfg.qr_remainders, keys=hashed)


def build_sharded(
    config: ModelConfig,
    vocabulary: Vocabulary,
    world: World,
    *,
    seed: int,
    learning_rate: float = 0.0,
    epsilon: float = 1e-8,
    codebooks_CVd: Tensor | None = None,
    label_moments: tuple[Tensor, Tensor] | None = None,
    placement: Placement | None = None,
) -> DistributedModelParallel:
    """A recommender with its tables over the ranks, freshly initialised: the same numbers on any ranks under any plan.

    With `codebooks_CVd` the code table and the heads start from the quantiser's codebooks instead of noise, with
    `label_moments`, mean and deviation by task, predictions of actions from the mean. Without `placement` the tables
    lie row-wise over all ranks.
    """
    torch.manual_seed(seed)
    tables = build_embeddings(config, vocabulary, seed, torch.device("meta"))
    model = Recommender(config, tables, vocabulary, build_item_table(config, vocabulary, torch.device("meta")))
    code_rows = None
    if codebooks_CVd is not None:
        noise = draw_rows(seed, CODE_TABLE, 0, vocabulary.levels * vocabulary.codes, config.width, INITIAL_STD)
        code_rows = rows_from_codebooks(codebooks_CVd, config.width, noise)
        if isinstance(model.tower.heads, CascadedHeads):
            model.tower.heads.start_from(code_rows)
    if label_moments is not None and isinstance(model.tower.heads, TaskHeads):
        model.tower.heads.start_from(*label_moments)
    model.tower.to(world.device)

    def starting_rows(table: str, start: int, stop: int, width: int) -> Tensor:
        if table == CODE_TABLE and code_rows is not None:
            return code_rows[start:stop]
        return draw_rows(seed, table, start, stop, width, INITIAL_STD)

    return shard_model(
        model,
        placement or row_wise(model, world),
        world,
        learning_rate=learning_rate,
        epsilon=epsilon,
        draw_rows=starting_rows,
        hashing=config.items.hashing if config.items.kind == "hashed" else None,
    )


def dense_tensors(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Parameters and buffers that every rank has alike, live, by name."""
    return {name: value.detach() for name, value in model.state_dict().items() if type(value) is Tensor}


def fill_dense(own: dict[str, Tensor], saved: dict[str, Tensor], where: str) -> None:
    """Copy saved tensors into the live ones of the same names.

    Raises:
        InputError: naming every tensor that one side lacks or has in another shape.
    """
    faults = [f"{where}: has no tensor `{name}`, which this model has" for name in sorted(own.keys() - saved.keys())]
    faults += [f"{where}: has a tensor `{name}`, which this model lacks" for name in sorted(saved.keys() - own.keys())]
    faults += [
        f"{where}: tensor `{name}` is {tuple(saved[name].shape)} there and {tuple(own[name].shape)} in this model"
        for name in sorted(own.keys() & saved.keys())
        if own[name].shape != saved[name].shape
    ]
    if faults:
        raise InputError(*faults)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])


def saved_model(reader: ChainReader) -> dict[str, Tensor]:
    """The dense parameters of a checkpoint by their names in the model."""
    return {name.removeprefix(MODEL): value for name, value in reader.dense().items() if name.startswith(MODEL)}


def load_model(
    storage: Storage, chain: list[Link], world: World, attention_backend: str = ""
) -> DistributedModelParallel:
    """The trained model of a checkpoint, for inference, whatever number of ranks wrote it.

    Args:
        chain: from `find_chain`.
        attention_backend: in the place of the one that it was trained with.

    Raises:
        InputError: that backend does not compute the model's kind of attention.
    """
    manifest = chain[-1].manifest
    where = storage.where(f"{chain[-1].name}/{MANIFEST}")
    plain = manifest.model
    if attention_backend:
        plain = plain | {"attention": plain["attention"] | {"backend": attention_backend}}
    config = from_plain(ModelConfig, plain, where)
    model = build_sharded(config, Vocabulary(**manifest.vocabulary), world, seed=0)
    shards = table_shards(model)
    check_tables(manifest, where, shards)
    with open_chain(storage, chain) as reader:
        reader.fill(shards, states=False)
        load_hash_state(model, reader.maps())
        fill_dense(dense_tensors(model), saved_model(reader), where)
    model.eval()
    return model


@torch.no_grad()
def item_matrix(model: DistributedModelParallel, world: World) -> Tensor:
    """The vector of every item, by which a model whose output are items scores it: L2-normalised float32 [N, D].

    Collective: each rank gives what it holds of the table, whichever way that was cut, and gets the whole. Memory is
    that of the result and a block.
    """
    cfg = model.module.tower.cfg
    assert cfg.items.kind == "vocabulary", "rows of a hashed table belong to whoever came last"
    shards = [shard for shard in table_shards(model) if shard.table == ITEM_TABLE]
    num_items = sharded_tables(model)[ITEM_TABLE].size(0)
    vectors_ND = torch.empty(num_items, cfg.width, device=world.device)
    for first in range(0, num_items, _GATHERED_ROWS):
        block_RD = vectors_ND[first : first + _GATHERED_ROWS].zero_()
        for shard in shards:
            begin = max(shard.first_row, first)
            end = min(shard.first_row + shard.rows, first + len(block_RD))
            if begin < end:
                own_RD = block_RD[begin - first : end - first, shard.first_column : shard.first_column + shard.columns]
                own_RD.copy_(shard.weight_RD[begin - shard.first_row : end - shard.first_row])
        if world.size > 1:
            # Every number is one rank's and zero elsewhere: the sum is exact.
            dist.all_reduce(block_RD, group=world.group)
        block_RD.copy_(unit_rows(block_RD))
    return vectors_ND
