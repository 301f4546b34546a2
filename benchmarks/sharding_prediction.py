"""What `python -m sharding.plan` says of a job, beside what its ranks hold and send when it runs.

Models train on batches of a synthetic log in Yambda's layout, with several artists an item and five kinds of events.
Every rank predicts from its own batch, and sums over ranks are compared, so that what is left is what the arithmetic
gets wrong, not that batches differ.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from benchmarks.sharding_ranks import BAGS, ROWS, PeakMemory, Sending
from data.batches import Batch
from data.event_store import EventStore
from data.loader import Loader, item_features
from data.sequences import training_windows
from model.config import ItemTableConfig, ModelConfig, Vocabulary
from serving.checkpoints.model import build_sharded
from sharding.job import cluster_at_hand
from sharding.planning.memory import memory_of_ranks, optimizer_bytes, table_bytes
from sharding.planning.placement import Placement
from sharding.planning.planner import place_tables
from sharding.planning.policy import ShardingConfig, TablePolicies, TablePolicy
from sharding.planning.topology import Cluster
from sharding.planning.traffic import STAGES, exchanges
from sharding.planning.workload import DenseModel, Workload, measure_dense, on_meta, workload_of_batch
from sharding.tables import table_shards
from sharding.world import World
from trainer.config import OptimizerConfig
from trainer.optimizers import Optimizers

LEVELS, CODES = 4, 256
STEPS = 3

_VOCABULARY = ItemTableConfig(kind="vocabulary")
_NARROW = ModelConfig(blocks=1, heads=1, head_dim_qk=8, head_dim_v=8)


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        name: for the report.
        model: the model.
        tokens: budget of a rank and step.
        items: rows of its table of items; 0: the catalogue's.
        sharding: where tables lie.
        distinct: whether an item is asked for once a batch.
    """

    name: str
    model: ModelConfig
    tokens: int
    items: int = 0
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    distinct: bool = True


def jobs(scale: int) -> list[Job]:
    """Trainings of which each is large in something else; `scale` 1 is the smallest."""
    by_columns = TablePolicies(
        rq=TablePolicy(sharding="column-wise", columns=16),
        artist_quotient=TablePolicy(sharding="table-wise"),
        artist_remainder=TablePolicy(sharding="table-wise"),
        event_type=TablePolicy(sharding="table-wise"),
    )
    head = 64 * scale
    wide = ModelConfig(width=4 * head, blocks=4, heads=4, head_dim_qk=head, head_dim_v=head, max_history=64)
    everyday = ModelConfig(items=_VOCABULARY)
    return [
        Job("as configured", everyday, 4096),
        Job("float16 on the way", everyday, 4096, sharding=ShardingConfig(communication="float16")),
        Job("cut by columns", ModelConfig(), 4096, sharding=ShardingConfig(tables=by_columns)),
        Job("a bag a token", _NARROW, 8192 * scale, distinct=False),
        Job("large tables", ModelConfig(items=_VOCABULARY), 1024, items=500_000 * scale**2),
        Job("long batches", ModelConfig(blocks=4), 8192 * scale),
        Job("a wide tower", wide, 256),
    ]


def vocabulary_of(job: Job, store: EventStore) -> Vocabulary:
    """What a job's model knows of the data."""
    return Vocabulary(LEVELS, CODES, store.num_artists, len(store.event_types), job.items or store.num_items)


def towers(found: list[Job], store: EventStore) -> list[DenseModel]:
    """The dense part of each job's model, measured here so that no rank's memory knows of it."""
    return [measure_dense(job.model, vocabulary_of(job, store), job.model.max_history) for job in found]


def run_jobs(world: World, folder: str, found: list[Job], dense: list[DenseModel]) -> list[dict[str, Any]]:
    """All jobs one after another on this rank; what each was predicted to take, and took."""
    store = EventStore.open(Path(folder), verify=False)
    first = dataclasses.replace(found[0], tokens=512)
    _run(world, store, first, dense[0])  # code is read into memory at its first use
    return [_run(world, store, job, one) for job, one in zip(found, dense, strict=True)]


def _run(world: World, store: EventStore, job: Job, dense: DenseModel) -> dict[str, Any]:
    torch.manual_seed(world.rank)
    vocabulary, batches = vocabulary_of(job, store), _batches(world, store, job)
    workload = workload_of_batch(job.model, vocabulary, batches[0], dense)
    cluster = cluster_at_hand(world)
    placement = place_tables(on_meta(job.model, vocabulary), cluster, job.sharding, workload, reserved=0)
    peak = PeakMemory()
    model = build_sharded(job.model, vocabulary, world, seed=0, learning_rate=0.02, placement=placement)
    optimizers = Optimizers(model, OptimizerConfig(), 1000)
    sent = _train(model, optimizers, batches)
    grown = peak.growth()
    memory = memory_of_ranks(placement, cluster, workload, reserved=0)[world.rank]
    return {
        "job": job.name,
        "predicted_bytes": _predicted_bytes(placement, workload, world.rank),
        "bytes": _bytes(model),
        "predicted_sent": _predicted_sent(placement, cluster, workload),
        "sent": sent,
        "kinds": memory.ddr,
        "predicted_peak": memory.used("ddr"),
        "peak": grown,
    }


def _batches(world: World, store: EventStore, job: Job) -> list[Batch]:
    codes_NC = np.random.default_rng(0).integers(1, CODES, (store.num_items, LEVELS), dtype=np.uint16)
    loader = Loader(
        store,
        item_features(store, codes_NC, CODES, job.model.qr_remainders),
        training_windows(store.offsets, store.split(), job.model.max_history),
        tokens=job.tokens,
        bins=world.size,
        rank=world.rank,
        world_size=world.size,
        seed=0,
        shuffle=True,
        distinct=job.distinct,
    )
    batches = (loader.batch(0, step % loader.steps_per_epoch(0)) for step in range(STEPS))
    return [batch for batch in batches if batch is not None]


def _train(model: DistributedModelParallel, optimizers: Optimizers, batches: list[Batch]) -> dict[str, int]:
    """A step by hand, its traffic counted; then some by the trainer's pipeline."""
    model.train()
    optimizers.set_rates(0)
    sending = Sending(model)
    with sending.counting():
        optimizers.combined.zero_grad()
        loss, _ = model(batches[0])
        with sending.backward():
            loss.backward()
        optimizers.combined.step()
    del loss
    pipeline = TrainPipelineSparseDist(model, optimizers.combined, torch.device("cpu"), execute_all_batches=True)
    waiting = iter(batches)
    for step in range(len(batches)):
        optimizers.set_rates(step + 1)
        pipeline.progress(waiting)
    pipeline.detach()
    return sending.bytes


def _predicted_bytes(placement: Placement, workload: Workload, rank: int) -> dict[str, int]:
    return {
        "tables": sum(table_bytes(table).get(rank, 0) for table in placement.tables),
        "their optimizer": sum(optimizer_bytes(table).get(rank, 0) for table in placement.tables),
        "dense parameters": 4 * workload.dense.parameters,
    }


def _bytes(model: DistributedModelParallel) -> dict[str, int]:
    """Of the live tensors."""
    shards, tables = table_shards(model), set(model.fused_optimizer.params)
    return {
        "tables": sum(shard.weight_RD.nbytes for shard in shards),
        "their optimizer": sum(state.nbytes for shard in shards for state in shard.states.values()),
        "dense parameters": sum(p.nbytes for name, p in model.named_parameters() if name not in tables),
    }


def _predicted_sent(placement: Placement, cluster: Cluster, workload: Workload) -> dict[str, float]:
    """By collection and stage, a rank's share of what all would send if all had its batch."""
    sent: dict[str, float] = {}
    for table, exchange in zip(placement.tables, exchanges(placement, cluster, workload), strict=True):
        for stage in STAGES:
            key = f"{BAGS if table.pooled else ROWS}.{stage}"
            sent[key] = sent.get(key, 0.0) + getattr(exchange, stage).total / cluster.num_ranks
    return sent
