"""A hashed table over ranks: who owns which row, what rows begin as; neither ranks nor a stop make a difference."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.streamable import Pipelineable

from common.errors import InputError
from model.embeddings import draw_rows
from model.hashing_config import HashingConfig
from sharding.hashing.hashed_items import (
    HashedItemsSharder,
    hash_items,
    hash_state,
    hashed_tables,
    load_hash_state,
)
from sharding.hashing.id_hash import scatter_ids
from sharding.hashing.id_map import FREE
from sharding.tables import TableShard, table_shards
from sharding.world import World, open_world
from tests.ranks import run_on_ranks

RULES = HashingConfig(rows=48, buckets=12, interval=3, eviction="distance-lfu")
SIZE = RULES.rows // RULES.buckets
WIDTH, STEPS, STOP, RATE = 8, 14, 7, 0.1  # the stop lies within an interval


@dataclass
class Ids(Pipelineable):
    """A batch that TorchRec's pipeline takes."""

    item_ids: KeyedJaggedTensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Ids:
        return Ids(self.item_ids.to(device, non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        self.item_ids.record_stream(stream)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = EmbeddingConfig(name="item", num_embeddings=RULES.rows, embedding_dim=WIDTH, feature_names=["item"])
        self.table = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: Ids) -> tuple[Tensor, Tensor]:
        return weigh(self.scale, self.table(batch.item_ids))


@torch.fx.wrap
def weigh(scale: Tensor, embedded: dict[str, Any]) -> tuple[Tensor, Tensor]:
    rows_nD = embedded["item"].values()
    return (scale * (rows_nD * torch.linspace(0.5, 1.5, WIDTH)).sin()).sum(), rows_nD.detach()


def plan_of(model: Table, world: World, way: Any = row_wise, kernel: str = "fused") -> ShardingPlan:
    ways = {"item": way(compute_kernel=kernel)}
    sizes = {"local_size": world.size, "world_size": world.size}
    return ShardingPlan(
        plan={"table": construct_module_sharding_plan(model.table, ways, device_type="cpu", **sizes)}  # type: ignore[arg-type]
    )


def build(world: World) -> DistributedModelParallel:
    model = Table()
    plan = plan_of(model, world)
    hash_items(model, plan, RULES)
    apply_optimizer_in_backward(RowWiseAdagrad, model.table.parameters(), {"lr": RATE, "eps": 1e-8})
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),  # type: ignore[arg-type]
        device=world.device,
        plan=plan,
        sharders=[HashedItemsSharder()],  # type: ignore[list-item]
        init_parameters=False,
    )
    shard = only_shard(sharded)
    shard.weight_RD.copy_(draw_rows(0, "item", shard.first_row, shard.first_row + shard.rows, WIDTH, 1.0))
    return sharded


def only_shard(model: DistributedModelParallel) -> TableShard:
    (shard,) = table_shards(model)
    return shard


def ids_of(step: int) -> list[int]:
    """Of a step, all ranks' together; favourites drift, some ids are negative or large, some come twice."""
    generator = torch.Generator().manual_seed(step)
    ids_n = (torch.rand(12, generator=generator) ** 2 * 60).long().unique() * 2**56 - 7 + step // 5 * 20
    return torch.cat([ids_n, ids_n[:3]]).tolist()


def batch_of(step: int, rank: int, ranks: int) -> Ids:
    """A rank's share of a step's ids; what comes twice may come to two ranks."""
    own = torch.tensor(ids_of(step)[rank::ranks], dtype=torch.int64)
    return Ids(KeyedJaggedTensor(keys=["item"], values=own, lengths=torch.tensor([len(own)])))


def everything(model: DistributedModelParallel) -> dict[str, Tensor]:
    """This rank's table, optimizer state and map."""
    shard = only_shard(model)
    tensors = {"weight": shard.weight_RD, **shard.states, **hash_state(model)}
    return {name: value.clone() for name, value in tensors.items()}


def train(model: DistributedModelParallel, world: World, steps: range) -> None:
    for step in steps:
        loss, _ = model(batch_of(step, world.rank, world.size))
        (loss * world.size).backward()  # the mean over ranks is the sum, as on one rank


def check_rows_begin_anew(model: DistributedModelParallel, world: World, steps: range) -> int:
    """Train; whatever row gets an owner is its bucket's shared row at that moment, its optimizer state 0."""
    shard, checked = only_shard(model), 0
    ready: list[Tensor] = []
    hashed_tables(model)["item"].before_reset = lambda table, rows_n: ready.append(rows_n)
    for step in steps:
        before_RD, states = shard.weight_RD.clone(), {name: state.clone() for name, state in shard.states.items()}
        looked_up = scatter_ids(torch.tensor(ids_of(step)))
        loss, _ = model(batch_of(step, world.rank, world.size))
        rows = torch.cat(ready).tolist() if ready else []
        ready.clear()
        for row in range(shard.rows):
            begun = row in rows
            expected = before_RD[row // SIZE * SIZE + SIZE - 1] if begun else before_RD[row]
            assert torch.equal(shard.weight_RD[row], expected), f"step {step}, row {row}"
            for name, state in shard.states.items():
                assert torch.equal(state[row], torch.zeros_like(state[row]) if begun else states[name][row])
        checked += len(rows)
        assert step % RULES.interval == RULES.interval - 1 or not rows
        assert not rows or bool(torch.isin(hashed_tables(model)["item"].map_of("item").ids_GS, looked_up).any())
        (loss * world.size).backward()
    hashed_tables(model)["item"].before_reset = None
    return checked


def run_all(world: World, saved: list[dict[str, Tensor]] | None) -> dict[str, Any]:
    """Uninterrupted, stopped half-way, read in evaluation, through the pipeline, and gone on with from other ranks."""
    found: dict[str, Any] = {}
    model = build(world)
    train(model, world, range(STOP))
    found["half"] = everything(model)
    model.eval()
    _, rows_nD = model(batch_of(STOP, world.rank, world.size))
    assert all(torch.equal(value, found["half"][name]) for name, value in everything(model).items())
    table_RD = only_shard(model).weight_RD
    if world.size == 1:
        rows_n, shared_n = hashed_tables(model)["item"].map_of("item").find(scatter_ids(torch.tensor(ids_of(STOP))))
        assert (rows_n < 0).any()
        assert torch.equal(rows_nD, table_RD[torch.where(rows_n < 0, shared_n, rows_n)])
    model.train()
    train(model, world, range(STOP, STEPS))
    found["whole"] = everything(model)

    assert all("_GS" not in key and "_iter" not in key and "segments" not in key for key in model.state_dict())

    watched = build(world)
    found["begun"] = check_rows_begin_anew(watched, world, range(STEPS))
    assert all(torch.equal(value, found["whole"][name]) for name, value in everything(watched).items())

    piped = build(world)
    pipeline = TrainPipelineSparseDist(
        piped, torch.optim.SGD(piped.module.scale.new_zeros(1).requires_grad_() for _ in range(1)), world.device
    )
    batches = iter([batch_of(step, world.rank, world.size) for step in range(STEPS)])
    for _ in range(STEPS):
        pipeline.progress(batches)
    found["piped_ids"] = hash_state(piped)["item.ids"].clone()

    resumed = build(world)
    pieces = saved or all_pieces(found["half"], world)
    shard = only_shard(resumed)
    for name, value in (("weight", shard.weight_RD), *shard.states.items()):
        value.copy_(torch.cat([piece[name] for piece in pieces])[shard.first_row : shard.first_row + shard.rows])
    load_hash_state(resumed, pieces)
    train(resumed, world, range(STOP, STEPS))
    found["resumed"] = everything(resumed)
    return found


def all_pieces(own: dict[str, Tensor], world: World) -> list[dict[str, Tensor]]:
    pieces: list[Any] = [None] * world.size
    dist.all_gather_object(pieces, own)
    return pieces


def joined(results: list[dict[str, Any]], which: str) -> dict[str, Tensor]:
    """All ranks' rows together, and the history in an order of its own."""
    pieces = [result[which] for result in results]
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0] if pieces[0][name].ndim}
    order = sorted(zip(whole.pop("item.history_steps").tolist(), whole.pop("item.history_ids").tolist(), strict=True))
    return whole | {"history": torch.tensor(order), "step": pieces[0]["item.step"]}


@pytest.fixture(scope="module")
def on_one() -> list[dict[str, Any]]:
    with open_world() as world:
        return [run_all(world, None)]


@pytest.fixture(scope="module")
def on_two(on_one: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return run_on_ranks(2, run_all, [on_one[0]["half"]])


@pytest.fixture(scope="module")
def on_three(on_two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return run_on_ranks(3, run_all, [result["half"] for result in on_two])


def test_rows_change_owners_and_begin_anew(on_one: list[dict[str, Any]], on_two: list[dict[str, Any]]) -> None:
    owned = int((joined(on_one, "whole")["item.ids"] != FREE).sum())
    assert on_one[0]["begun"] == sum(result["begun"] for result in on_two) > owned + 3, "hardly an id lost its row"


def test_the_number_of_ranks_makes_no_difference(
    on_one: list[dict[str, Any]], on_two: list[dict[str, Any]], on_three: list[dict[str, Any]]
) -> None:
    for which in ("half", "whole"):
        expected = joined(on_one, which)
        for results in (on_two, on_three):
            for name, value in joined(results, which).items():
                if value.is_floating_point():
                    torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
                else:
                    assert torch.equal(value, expected[name]), name


def test_a_run_gone_on_with_is_the_uninterrupted_one_whoever_saved_it(
    on_one: list[dict[str, Any]], on_two: list[dict[str, Any]], on_three: list[dict[str, Any]]
) -> None:
    for result in on_one:  # saved by the same number of ranks: bit for bit
        assert all(torch.equal(value, result["whole"][name]) for name, value in result["resumed"].items())
    for results in (on_two, on_three):  # saved by one and by two
        resumed, whole = joined(results, "resumed"), joined(results, "whole")
        for name, value in resumed.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(value, whole[name]), name


def test_the_pipeline_hands_out_the_same_rows(on_one: list[dict[str, Any]], on_two: list[dict[str, Any]]) -> None:
    for results in (on_one, on_two):
        for result in results:
            assert torch.equal(result["piped_ids"], result["whole"]["item.ids"])


def test_a_plan_without_whole_buckets_on_each_rank_is_refused() -> None:
    for ranks, way, kernel, fault in (
        (5, row_wise, "fused", "buckets=12 cannot be shared out evenly to 5 ranks"),
        (2, column_wise, "fused", "planned column_wise with kernel fused"),
        (2, row_wise, "fused_uvm", "planned row_wise with kernel fused_uvm"),
    ):
        model, world = Table(), World(0, ranks, ranks, torch.device("cpu"))
        arguments = {"ranks": [0, 1]} if way is column_wise else {}
        with pytest.raises(InputError, match=fault):
            hash_items(model, plan_of(model, world, functools.partial(way, **arguments), kernel), RULES)
    model, world = Table(), World(0, 2, 2, torch.device("cpu"))
    plan = plan_of(model, world)
    first, second = plan.plan["table"]["item"].sharding_spec.shards  # type: ignore[index]
    first.shard_sizes[0], second.shard_offsets[0], second.shard_sizes[0] = 20, 20, 28
    with pytest.raises(InputError, match=r"planned with \[20, 28\] rows on different ranks"):
        hash_items(model, plan, RULES)
