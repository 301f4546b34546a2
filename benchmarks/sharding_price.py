"""What it costs to have a table on two ranks, and what asks for each item once, or fewer bits a number, give back.

Tables stand alone here, without a tower: a lookup of bags of ids drawn by Zipf's law with exponent 1, a gradient for
each sum, and the update of the rows in the backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel

from benchmarks.sharding_ranks import Sending, timed
from benchmarks.sharding_tables import (
    BAG,
    EPSILON,
    KEY,
    RATE,
    WIDTH,
    Size,
    bags_of,
    bags_of_items,
    look_up,
    one_bag,
    shard,
    zipf,
)
from model.embeddings import draw_rows
from model.hashing_config import HashingConfig
from sharding.apply import gather_table, sharded_tables
from sharding.tables import table_shards
from sharding.world import World

RANKS = 2
BUCKETS = 1680
PRECISIONS = ("float32", "float16", "bfloat16")
GLOBAL_BATCHES = 50


def all_of_it(world: World, size: Size, folder: str, alike: tuple[int, int]) -> dict[str, Any]:
    """Every part below on the ranks of one start, which takes longer than some of them."""
    train_alike(world, folder, *alike)
    return {
        "price": price(world, size),
        "precisions": precisions(world, Size(max(size.rows // 10, BUCKETS), size.bags, size.repeats)),
        "items": items(world, size),
    }


# ── two ranks beside one process ─────────────────────────────────────────────────────────────────────────


def price(world: World, size: Size) -> dict[str, Any]:
    """Seconds of a step: sharded, and the same global batch in one process on as many cores; then asking once."""
    random = np.random.default_rng(world.rank)
    plain = shard(world, size.rows)
    found: dict[str, Any] = {**_both(world, size, plain, random)}
    asking_once = shard(world, size.rows)
    found["catalogues"] = [_asking_once(size, items, plain, asking_once, random) for items in size.catalogues]
    return found


def _both(
    world: World, size: Size, plain: DistributedModelParallel, random: np.random.Generator
) -> dict[str, list[float]]:
    """By turns, so that what else the machine does strikes both."""
    batches = [bags_of(zipf(random, size.rows, size.bags * BAG)) for _ in range(4)]
    gradient_BD = torch.full((size.bags, WIDTH), 1e-4)
    alone = _OneProcess(size) if world.is_main else None
    seconds: dict[str, list[float]] = {"single": [], "sharded": []}
    for turn in range(size.repeats + 1):
        ids = batches[turn % len(batches)]
        sharded = _together(lambda ids=ids: look_up(plain, ids).backward(gradient_BD))  # type: ignore[misc]
        torch.set_num_threads(RANKS if alone else 1)
        single = _together(lambda: alone.step() if alone else None)
        torch.set_num_threads(1)
        if turn:
            seconds["sharded"].append(sharded)
            seconds["single"].append(single)
    return seconds


def _together(work: Callable[[], Any]) -> float:
    dist.barrier()
    start = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - start


class _OneProcess:
    """FBGEMM's table with the batches of all ranks, on as many threads."""

    def __init__(self, size: Size) -> None:
        self.table = SplitTableBatchedEmbeddingBagsCodegen(
            [(size.rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=RATE,
            eps=EPSILON,
        )
        self.table.split_embedding_weights()[0].uniform_(-0.1, 0.1)
        random, bags = np.random.default_rng(RANKS), RANKS * size.bags
        self.batches = [torch.from_numpy(zipf(random, size.rows, bags * BAG)) for _ in range(4)]
        self.offsets = torch.arange(0, bags * BAG + 1, BAG)
        self.gradient_BD = torch.full((bags, WIDTH), 1e-4)
        self.turn = 0

    def step(self) -> None:
        """Forward, backward, update."""
        self.turn += 1
        self.table(self.batches[self.turn % 4], self.offsets).backward(self.gradient_BD)


def _asking_once(
    size: Size,
    items: int,
    plain: DistributedModelParallel,
    asking_once: DistributedModelParallel,
    random: np.random.Generator,
) -> dict[str, Any]:
    items_L = zipf(random, items, size.bags)
    told: dict[str, Any] = {"items": items, "distinct": len(np.unique(items_L)) / size.bags}
    gradient_LD = torch.full((size.bags, WIDTH), 1e-4)
    for name, model in (("plain", plain), ("once", asking_once)):
        ids = bags_of_items(items_L, size.rows, distinct=name == "once")
        told[name] = {
            "bytes": _bytes_of_a_step(model, ids, gradient_LD),
            "seconds": timed(lambda model=model, ids=ids: look_up(model, ids).backward(gradient_LD), size.repeats),  # type: ignore[misc]
        }
    return told


def _bytes_of_a_step(model: DistributedModelParallel, ids: KeyedJaggedTensor, gradient: Tensor) -> int:
    sending = Sending(model)
    with sending.counting():
        found = look_up(model, ids)
        with sending.backward():
            found.backward(gradient)
    return sum(sending.bytes.values())


# ── fewer bits ───────────────────────────────────────────────────────────────────────────────────────────


def precisions(world: World, size: Size) -> dict[str, Any]:
    """Bytes, seconds and errors of vectors that travel in fewer bits: sums of bags, and rows of items in int8."""
    random = np.random.default_rng(world.rank)
    ids = bags_of(zipf(random, size.rows, size.bags * BAG))
    gradient_BD = torch.from_numpy(random.standard_normal((size.bags, WIDTH)).astype(np.float32)) / size.bags
    found: dict[str, Any] = {}
    whole: tuple[Tensor, Tensor] | None = None
    for name in PRECISIONS:
        try:
            found[name], vectors = _in_precision(world, size, name, ids, gradient_BD, pooled=True)
        except RuntimeError as error:
            found[name] = {"fault": str(error).splitlines()[0]}
            continue
        whole = whole or vectors
        found[name]["errors"] = [_error(ours, exact) for ours, exact in zip(vectors, whole, strict=True)]
    items = one_bag(np.unique(zipf(random, size.rows, size.bags)))
    gradient_dD = torch.from_numpy(random.standard_normal((items.values().numel(), WIDTH)).astype(np.float32))
    rows: tuple[Tensor, Tensor] | None = None
    for name in ("float32", "int8"):
        key = f"items {name}"
        found[key], vectors = _in_precision(world, size, name, items, gradient_dD / size.bags, pooled=False)
        rows = rows or vectors
        found[key]["errors"] = [_error(ours, exact) for ours, exact in zip(vectors, rows, strict=True)]
    return found


def _in_precision(
    world: World, size: Size, communication: str, ids: KeyedJaggedTensor, gradient: Tensor, *, pooled: bool
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """What a step sends and takes; its forward, and the gradients of this rank's rows."""
    # With so large an ε the accumulator does not matter, and at such a rate a row moves by its gradient.
    model = shard(
        world, size.rows, communication=communication, pooled=pooled, rate=1e8, epsilon=1e8, draw=_same_everywhere
    )
    vectors = look_up(model, ids).detach().clone()
    (rows,) = table_shards(model)
    rows.weight_RD.zero_()  # so that the gradient is kept to its last bit
    sent = _bytes_of_a_step(model, ids, gradient)
    moved = rows.weight_RD.clone()
    seconds = timed(lambda: look_up(model, ids).backward(gradient), size.repeats)
    return {"bytes": sent, "seconds": seconds}, (vectors, moved)


def _same_everywhere(table: str, start: int, stop: int, width: int) -> Tensor:
    return draw_rows(0, table, start, stop, width, 0.02)


def _error(ours: Tensor, exact: Tensor) -> float:
    """Relative, over all numbers."""
    return float((ours - exact).norm() / exact.norm())


# ── the table of items ───────────────────────────────────────────────────────────────────────────────────


def items(world: World, size: Size) -> dict[str, Any]:
    """Rows a second of a table whose rows are not summed: by a vocabulary, and with rows that change owners."""
    rows = size.rows // BUCKETS * BUCKETS
    steps = max(size.repeats, 4)
    rules = HashingConfig(rows=rows, buckets=BUCKETS, interval=steps // 2)
    random = np.random.default_rng(world.rank)
    kinds: dict[str, HashingConfig | None] = {"vocabulary": None, "hashed": rules}
    models = {name: shard(world, rows, pooled=False, hashing=kind) for name, kind in kinds.items()}
    found: dict[str, Any] = {name: {"ids": 0, "seconds": []} for name in models}
    for step in range(steps + 1):
        ids = np.unique(zipf(random, rows, size.bags * BAG))
        gradient_dD = torch.full((len(ids), WIDTH), 1e-4)
        batch = one_bag(ids)
        for name, model in models.items():  # by turns, as above
            took = _together(lambda m=model, b=batch, g=gradient_dD: look_up(m, b).backward(g))  # type: ignore[misc]
            if step:
                found[name]["seconds"].append(took)
                found[name]["ids"] += len(ids)
    return found


# ── the same on any ranks ────────────────────────────────────────────────────────────────────────────────


def train_alike(world: World, folder: str, rows: int, bags: int) -> int:
    """Steps whose global batches do not depend on the number of ranks; rank 0 keeps the table they end with."""
    model = shard(world, rows, draw=_same_everywhere)
    parts = 4 // world.size
    for step in range(GLOBAL_BATCHES):
        own = [np.random.default_rng([step, world.rank * parts + part]) for part in range(parts)]
        ids = bags_of(np.concatenate([zipf(random, rows, bags * BAG) for random in own]))
        vectors = look_up(model, ids)
        weights_D = torch.linspace(0.5, 1.5, WIDTH)
        ((vectors * weights_D).sin().sum() * world.size / (4 * bags)).backward()
    table = gather_table(sharded_tables(model)[KEY], world)
    if table is not None:
        np.save(Path(folder) / f"{world.size}.npy", table.numpy())
    return 0
