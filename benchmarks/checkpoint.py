"""Sparse checkpoints beside torch.distributed.checkpoint, on two ranks, with a table that is mostly left alone.

A table of 10 million rows of 64 numbers with row-wise Adagrad, sharded by rows over two gloo ranks, ids drawn by Zipf's
law, trained until a twentieth of the rows has been touched; then a delta is written while training goes on. Beside it
stand a full save of the same state by DCP, and the reading of as many bytes by DCP. Caches are dropped before files are
read. What is restored is compared bit for bit with what was saved.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel

from benchmarks import harness
from benchmarks.harness import Findings, table
from common.noise import quiet_known_warnings
from common.storage import open_storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import blank_manifest
from serving.checkpoints.model import MODEL, dense_tensors
from serving.checkpoints.restore import open_chain
from sharding.apply import shard_model
from sharding.planning.placement import row_wise
from sharding.tables import TableShard, table_shards
from sharding.world import World
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.snapshot import TableSnapshot
from trainer.checkpoint.writing import Outcome

RANKS = 2
SIZE, QUICK_SIZE = (10_000_000, 10), (6_000_000, 3)
"""Rows and deltas. A much smaller table would show the starting of threads, not the moving of rows."""
WIDTH = 64
BAG = 8
TOUCHED_SHARE = 0.05


class OneTable(nn.Module):
    """A table under a matrix."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        config = EmbeddingBagConfig(name="tracks", embedding_dim=WIDTH, num_embeddings=rows, feature_names=["tracks"])
        self.ebc = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        self.top = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        """[B, D] of bags [B]."""
        result: Tensor = self.top(self.ebc(ids).values())
        return result


class Traffic:
    """Trains on ids drawn by Zipf's law with exponent 1, spread over the table."""

    def __init__(self, model: DistributedModelParallel, rows: int, bags: int, rank: int) -> None:
        self.model, self.rows, self.bags = model, rows, bags
        self.random = np.random.default_rng(rank)

    def step(self) -> float:
        """One step; its seconds, without the making of the batch."""
        places = (self.rows ** self.random.random(self.bags * BAG)).astype(np.int64) - 1
        ids = torch.from_numpy(places * 2_654_435_761 % self.rows)
        batch = KeyedJaggedTensor.from_lengths_sync(["tracks"], ids, torch.full((self.bags,), BAG))
        start = time.perf_counter()
        self.model(batch).square().mean().backward()
        return time.perf_counter() - start


def main() -> int:
    """Entry point."""
    return harness.run("checkpoint", _work)


def _work(quick: bool, scratch: Path, findings: Findings) -> None:
    rows, deltas = QUICK_SIZE if quick else SIZE
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        os.environ["OMP_NUM_THREADS"] = "1"
        mp.spawn(_rank, args=(folder, rows, deltas), nprocs=RANKS, join=True)
        found = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    _report(found, rows, deltas, findings)


def _rank(rank: int, folder: str, rows: int, deltas: int) -> None:
    quiet_known_warnings()
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    try:
        found = _measure(World(rank, RANKS, RANKS, torch.device("cpu")), Path(folder), rows, deltas)
        if rank == 0:
            (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def _measure(world: World, folder: Path, rows: int, deltas: int) -> dict[str, Any]:
    model = OneTable(rows)
    sharded = shard_model(
        model,
        row_wise(model, world),
        world,
        learning_rate=0.1,
        epsilon=1e-8,
        draw_rows=lambda _table, start, stop, width: torch.empty(stop - start, width).uniform_(-0.1, 0.1),
    )
    sharded.train()
    shards = table_shards(sharded)
    checkpointer = _checkpointer(sharded, world, folder / "ours")
    traffic = Traffic(sharded, rows, max(256, rows // 1250), world.rank)
    found: dict[str, Any] = {"base": _write(checkpointer, traffic, 0), "deltas": []}
    for number in range(deltas):
        found["deltas"].append(_interval(checkpointer, traffic, shards, rows, number + 1))
    found["dcp"] = _dcp_save(sharded, world, folder / "dcp")
    found["restore"] = _restore(shards, checkpointer, world, folder)
    for number, values in enumerate(("int8", "int4")):
        checkpointer.config = replace(checkpointer.config, values=values)
        found[values] = _interval(checkpointer, traffic, shards, rows, deltas + 1 + number)
    return found


def _checkpointer(model: DistributedModelParallel, world: World, folder: Path) -> Checkpointer:
    nothing = {"store": "", "codes": "", "store_fingerprint": "", "codes_fingerprint": "", "config_fingerprint": ""}
    return Checkpointer(
        CheckpointConfig(chain_share=1e9, keep=1000),
        open_storage(folder),
        world,
        model,
        lambda: {f"{MODEL}{name}": value for name, value in dense_tensors(model).items()},
        blank_manifest(world_size=world.size, model={}, vocabulary={}, meanings={}, **nothing),
        [],
        say=lambda line: print(line, file=sys.stderr),
        record=lambda _step, _values: None,
    )


def _interval(
    checkpointer: Checkpointer, traffic: Traffic, shards: list[TableShard], rows: int, number: int
) -> dict[str, Any]:
    """Train until the share of rows is touched, see what copying them at once would take, write a delta meanwhile."""
    alone = [traffic.step(), traffic.step()]
    while _touched(checkpointer) < TOUCHED_SHARE * rows:
        alone.append(traffic.step())
    masks = checkpointer.touched.take()
    checkpointer.touched.put_back(masks)
    dist.barrier()
    start = time.perf_counter()
    copied = [TableSnapshot(shard, mask, at_once=True) for shard, mask in zip(shards, masks, strict=True)]
    at_once = time.perf_counter() - start
    touched = _total(sum(snapshot.count() for snapshot in copied))
    del copied
    written = _write(checkpointer, traffic, number)
    return written | {"touched": touched, "at_once": _slowest(at_once), "step_alone": statistics.median(alone)}


def _touched(checkpointer: Checkpointer) -> int:
    """Rows on all ranks since the last checkpoint."""
    return _total(sum(int(mask.count_nonzero()) for mask in checkpointer.touched._masks_R))


def _write(checkpointer: Checkpointer, traffic: Traffic, number: int) -> dict[str, Any]:
    """A checkpoint with training going on beside it until it is on the disk."""
    dist.barrier()
    checkpointer.begin(number, 0, {}, {})
    begun = checkpointer.stall_seconds
    beside = []
    while _total(int(checkpointer.busy)):
        if _touched(checkpointer) < TOUCHED_SHARE / 2 * traffic.rows:  # some of the next interval is left to itself
            beside.append(traffic.step())
    stall = checkpointer.stall_seconds
    outcome = checkpointer.settle()
    assert isinstance(outcome, Outcome), "nothing was on its way"
    assert not outcome.error, outcome.error
    return {
        "bytes": outcome.size,
        "seconds": outcome.seconds,
        "begin": _slowest(begun),
        "stall": _slowest(stall),
        "step_beside": statistics.median(beside) if beside else float("nan"),
        "steps_beside": len(beside),
    }


def _dcp_save(model: DistributedModelParallel, world: World, folder: Path) -> dict[str, Any]:
    """The whole state by DCP, waited for: its asynchronous form refuses TorchRec's ShardedTensors (torch 2.13)."""
    state = {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()["state"]}
    dist.barrier()
    start = time.perf_counter()
    dcp.save(state, checkpoint_id=str(folder / "waited"))
    for path in (folder / "waited").glob(f"__{world.rank}_*"):
        _flush(path)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in (folder / "waited").rglob("*") if path.is_file())
    return {"bytes": size, "seconds": _slowest(seconds)}


def _restore(shards: list[TableShard], checkpointer: Checkpointer, world: World, folder: Path) -> dict[str, Any]:
    """The chain read back, beside DCP reading as many bytes in its best case: one long tensor a rank."""
    checkpointer.begin(checkpointer.chain.base_step + 10_000, 0, {}, {})  # what was touched beside the last writing
    checkpointer.settle()
    saved = [shard.weight_RD.clone() for shard in shards], [shard.states["momentum1"].clone() for shard in shards]
    for shard in shards:
        shard.weight_RD.zero_()
        shard.states["momentum1"].zero_()
    storage = checkpointer.storage
    links = Checkpoints(storage).links()
    size = sum(link.manifest.size for link in links)
    _forget(folder / "ours")
    start = _together()
    chain, _ = Checkpoints(storage).newest_whole_chain()
    verified = time.perf_counter() - start
    with open_chain(storage, chain) as reader:
        reader.fill(shards)
    dist.barrier()
    seconds = time.perf_counter() - start
    same = all(
        torch.equal(shard.weight_RD, weight) and torch.equal(shard.states["momentum1"], momentum)
        for shard, weight, momentum in zip(shards, *saved, strict=True)
    )
    del saved
    peer = {f"rank{world.rank}": torch.ones(size // RANKS, dtype=torch.uint8)}
    dcp.save(peer, checkpoint_id=str(folder / "peer"))
    for path in (folder / "peer").glob(f"__{world.rank}_*"):
        _flush(path)
    _forget(folder / "peer")
    start = _together()
    dcp.load(peer, checkpoint_id=str(folder / "peer"))
    dist.barrier()
    dcp_seconds = time.perf_counter() - start
    return {
        "links": len(chain),
        "bytes": size,
        "seconds": _slowest(seconds),
        "verified": _slowest(verified),
        "dcp_seconds": _slowest(dcp_seconds),
        "identical": not _total(int(not same)),
    }


def _together() -> float:
    dist.barrier()
    return time.perf_counter()


def _total(value: int) -> int:
    told = torch.tensor(value)
    dist.all_reduce(told)
    return int(told)


def _slowest(seconds: float) -> float:
    told = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return float(told)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _forget(folder: Path) -> None:
    """Let go of the page cache of a folder's files, so that they are read from the disk."""
    dist.barrier()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _report(found: dict[str, Any], rows: int, deltas: int, findings: Findings) -> None:
    full, base = found["dcp"], found["base"]
    middle = _median(found["deltas"])
    named = {"float32": middle, "int8": found["int8"], "int4": found["int4"]}
    own_row = 4 * WIDTH + 4
    lines = [
        [
            name,
            f"{round(kept['touched']):,}",
            f"{kept['bytes'] / 1e6:.1f} MB",
            f"1/{full['bytes'] / kept['bytes']:.1f}",
            f"{kept['bytes'] / (kept['touched'] * own_row):.3f}",
            f"{kept['seconds']:.2f} s",
            f"{1e3 * kept['begin']:.1f} ms",
            f"{1e3 * kept['stall']:.1f} ms",
            f"{kept['stall'] / kept['seconds']:.1%}",
            f"{1e3 * kept['at_once']:.0f} ms",
            f"{kept['step_beside'] / kept['step_alone']:.2f} ×",
        ]
        for name, kept in named.items()
    ]
    head = ["delta", "rows touched", "bytes", "of a full save", "of these rows' own bytes", "written in"]
    head += ["begin", "all stalls", "of the writing", "copying at once", "a step beside it"]
    findings.add(
        "A delta beside a full save",
        table(head, lines)
        + f"\n\n{rows:,} rows × {WIDTH} with one accumulator a row, {RANKS} ranks, bags of {BAG}; float32: median of "
        f"{deltas}. `begin` is the stall at the step boundary, `all stalls` adds every wait and every copying of "
        "rows that training was about to change while the delta was written; `copying at once` is what the boundary "
        "would cost if all rows were copied there. `a step beside it` is a training step while the delta is written, "
        f"over one without: {RANKS} training processes and {RANKS} writing threads share the machine's cores.\n\n"
        f"DCP, the whole state: {full['bytes'] / 1e6:,.0f} MB in {full['seconds']:.1f} s, for which training waits: "
        "its asynchronous form does not take TorchRec's sharded tensors (torch 2.13: `torch function 'data_ptr' … not "
        f"supported for ShardedTensor`). A base of ours: {base['bytes'] / 1e6:,.0f} MB in {base['seconds']:.1f} s, all "
        f"stalls {1e3 * base['stall']:.0f} ms.",
        touched_share=middle["touched"] / rows,
        delta_bytes_ratio_float32=middle["bytes"] / full["bytes"],
        delta_bytes_ratio_int8=found["int8"]["bytes"] / full["bytes"],
        delta_bytes_ratio_int4=found["int4"]["bytes"] / full["bytes"],
        delta_bytes_over_rows_own=middle["bytes"] / (middle["touched"] * own_row),
        delta_seconds=middle["seconds"],
        full_seconds_dcp=full["seconds"],
        stall_share_of_write=middle["stall"] / middle["seconds"],
        stall_ms=1e3 * middle["stall"],
        stall_ms_copying_at_once=1e3 * middle["at_once"],
        base_stall_share_of_write=base["stall"] / base["seconds"],
    )
    read = found["restore"]
    findings.add(
        "Restoring",
        f"A base and {read['links'] - 1} deltas, {read['bytes'] / 1e9:.2f} GB, on {RANKS} ranks, caches dropped: "
        f"{read['seconds']:.2f} s, of which {read['verified']:.2f} s read and verify every byte; DCP reads as many "
        f"bytes, one tensor a rank, in {read['dcp_seconds']:.2f} s. Every row and accumulator is that of the moment "
        f"saved, bit for bit: {read['identical']}.",
        restore_seconds=read["seconds"],
        restore_time_ratio_vs_dcp=read["seconds"] / read["dcp_seconds"],
        restored_identical=read["identical"],
    )


def _median(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(kept[key] for kept in deltas) for key in deltas[0]}


if __name__ == "__main__":
    sys.exit(main())
