"""Bags of distinct items, which tokens share, and a table of items, train on any ranks as if nothing were shared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.storage import open_storage
from data.batches import Batch, BatchMaker, EventColumns, ItemFeatures
from data.examples import Tokens
from model.config import ItemTableConfig, ModelConfig, Vocabulary
from model.embeddings import build_embeddings, build_item_table, draw_rows, table_rows
from model.recommender import Recommender
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.restore import open_chain
from sharding.apply import gather_table, shard_model, sharded_tables
from sharding.planning.placement import row_wise
from sharding.tables import table_shards
from sharding.world import World, open_world
from tests.checkpoint_example import save, watch
from tests.ranks import run_on_ranks

ITEMS, BUDGET, RATE = 60, 40, 0.05
EPSILON = 1e-3
"""Large, so that rounding errors of small gradients are not magnified."""

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(levels=3, codes=8, artists=20, event_types=4, items=ITEMS)
MODEL = ModelConfig(
    width=8,
    heads=2,
    head_dim_qk=4,
    head_dim_v=4,
    dropout=0.0,
    input_dropout=0.0,
    max_history=40,
    qr_remainders=8,
    items=ItemTableConfig(kind="vocabulary"),
)
CASES = ("repeats", "one rank has no tokens", "one item throughout", "a full budget", "no rank has tokens", "repeats")
"""What is special of each step."""


def item_features() -> ItemFeatures:
    """Items without artists, with one and with several; items without codes."""
    generator = torch.Generator().manual_seed(1)
    codes_NC = torch.randint(0, VOCABULARY.codes, (ITEMS, VOCABULARY.levels), generator=generator, dtype=torch.int16)
    codes_NC[::5] = 0
    counts_N = torch.arange(ITEMS) % 4
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)))
    artists = torch.randint(0, VOCABULARY.artists, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    return ItemFeatures(codes_NC, VOCABULARY.codes, offsets, artists, VOCABULARY.artists, qr_remainders=8)


def batch_of(step: int, world: World, distinct: bool) -> Batch:
    """Another one for every step and rank."""
    random = np.random.default_rng([step, world.rank])
    case = CASES[step]
    inputs = BUDGET if case == "a full budget" else int(random.integers(20, BUDGET))
    if case == "no rank has tokens" or (case == "one rank has no tokens" and world.rank == world.size - 1):
        inputs = 0
    items = (ITEMS * random.random(inputs + 1) ** 2).astype(np.uint32)
    if case == "one item throughout":
        items[:] = 7
    columns = EventColumns(
        offsets=np.array([0, inputs + 1]),
        items=items,
        timestamps=random.integers(0, 900, inputs + 1).cumsum(),
        event_types=random.integers(0, VOCABULARY.event_types, inputs + 1).astype(np.uint8),
        durations=random.integers(1, 400, inputs + 1),
        organic=random.integers(0, 3, inputs + 1),
    )
    at_n = np.arange(inputs)
    tokens = Tokens(at_n, at_n + 1, None, np.array([0, inputs // 3, inputs]), None)
    maker = BatchMaker(columns, item_features(), distinct=distinct)
    return maker.make(tokens, np.arange(2), BUDGET, 1.0 / BUDGET)


@dataclass
class Trained:
    """Of one rank: losses and states before each step, gradients of the dense part; at the end tables on rank 0."""

    losses: list[Tensor]
    hidden_LD: list[Tensor]
    gradients: list[dict[str, Tensor]]
    tables: dict[str, Tensor]


def rows_at_first(table: str, start: int, stop: int, width: int) -> Tensor:
    return draw_rows(0, table, start, stop, width, 1.0)


def build(device: str) -> Recommender:
    where = torch.device(device)
    tables, items = build_embeddings(MODEL, VOCABULARY, 0, where), build_item_table(MODEL, VOCABULARY, where)
    torch.manual_seed(0)  # what the tower starts from, whatever the tables drew
    return Recommender(MODEL, tables, VOCABULARY, items)


def build_sharded(world: World) -> DistributedModelParallel:
    model = build("meta")
    place = row_wise(model, world)
    return shard_model(model, place, world, learning_rate=RATE, epsilon=EPSILON, draw_rows=rows_at_first)


def descend(parameters: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for p in parameters:
            p -= RATE * p.grad
            p.grad = None


def train(world: World, distinct: bool, folder: Path | None = None) -> Trained:
    """All steps; with a folder, with a whole checkpoint there after the second and one of what changed at the end."""
    sharded = build_sharded(world)
    checkpointer = watch(sharded, world, folder, chain_share=1e9) if folder else None
    dense = {name: p for name, p in sharded.named_parameters() if name.startswith("tower.")}
    found = Trained([], [], [], {})
    for step in range(len(CASES)):
        loss, output = sharded(batch_of(step, world, distinct))
        loss.backward()
        found.losses.append(loss.detach().clone())
        found.hidden_LD.append(output.hidden_LD)
        found.gradients.append({name: p.grad.clone() for name, p in dense.items() if p.grad is not None})
        descend(dense.values())
        if checkpointer and step in (1, len(CASES) - 1):
            assert not save(checkpointer, step).error
    found.tables = whole_tables(sharded, world)
    return found


def whole_tables(model: DistributedModelParallel, world: World) -> dict[str, Tensor]:
    gathered = {name: gather_table(table, world) for name, table in sharded_tables(model).items()}
    return {name: whole for name, whole in gathered.items() if whole is not None}


def train_unsharded(ranks: int) -> list[Trained]:
    """The obvious implementation: a bag a token, all ranks in one process, row-wise Adagrad written out."""
    model = build("cpu")
    tables = {name: bag.weight for name, bag in model.ebc.embedding_bags.items()}
    tables["item"] = model.item_table.embeddings["item"].weight
    with torch.no_grad():
        for name, table in tables.items():
            table.copy_(rows_at_first(name, 0, *table.shape))
    momentum = {name: torch.zeros(len(table)) for name, table in tables.items()}
    dense = {f"tower.{name}": p for name, p in model.tower.named_parameters()}
    found = [Trained([], [], [], tables) for _ in range(ranks)]
    for step in range(len(CASES)):
        model.zero_grad()
        results = [model(batch_of(step, World(rank, ranks, ranks, CPU), distinct=False)) for rank in range(ranks)]
        torch.stack([loss for loss, _ in results]).mean().backward()
        for one, (loss, output) in zip(found, results, strict=True):
            one.losses.append(loss.detach())
            one.hidden_LD.append(output.hidden_LD)
            one.gradients.append({name: p.grad.clone() for name, p in dense.items()})
        descend(dense.values())
        with torch.no_grad():
            for name, table in tables.items():
                momentum[name] += table.grad.square().mean(dim=1)
                table -= (RATE / (momentum[name].sqrt() + EPSILON))[:, None] * table.grad
    return found


def train_both_ways(world: World, folder: Path) -> tuple[Trained, Trained, dict[str, Tensor]]:
    """A bag a token; bags of distinct items; and, on three ranks, the tables that two ranks have left in the folder."""
    left: dict[str, Tensor] = {}
    if world.size == 3:
        sharded = build_sharded(world)
        storage = open_storage(folder)
        with open_chain(storage, Checkpoints(storage).newest_whole_chain()[0]) as reader:
            assert [link.manifest.kind for link in reader.chain] == ["base", "delta"]
            reader.fill(table_shards(sharded))
        left = whole_tables(sharded, world)
    return train(world, distinct=False), train(world, distinct=True, folder=folder if world.size == 2 else None), left


def check(found: Trained, expected: Trained) -> None:
    for step, case in enumerate(CASES):
        close(found.losses[step], expected.losses[step], case)
        close(found.hidden_LD[step], expected.hidden_LD[step], case)
        assert found.gradients[step].keys() == expected.gradients[step].keys()
        for name, gradient in expected.gradients[step].items():
            close(found.gradients[step][name], gradient, f"{case}: {name}")


def check_tables(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() == table_rows(MODEL, VOCABULARY).keys()
    for name, table in expected.items():
        start = rows_at_first(name, 0, *table.shape)
        changed_R = (table != start).any(dim=1)
        assert changed_R.any(), f"nothing of {name} was learnt"
        close(found[name], table, name)
        assert torch.equal((found[name] != start).any(dim=1), changed_R), name


def test_tokens_that_share_bags_train_as_tokens_with_bags_of_their_own_and_as_unsharded(tmp_path: Path) -> None:
    tables: dict[int, dict[str, Tensor]] = {}
    for ranks in (1, 2, 3):
        if ranks > 1:
            results = run_on_ranks(ranks, train_both_ways, tmp_path)
        else:
            with open_world() as world:
                results = [train_both_ways(world, tmp_path)]
        expected = train_unsharded(ranks)
        for (plain, shared, _), one in zip(results, expected, strict=True):
            check(plain, one)
            check(shared, one)
        check_tables(results[0][0].tables, expected[0].tables)
        check_tables(results[0][1].tables, expected[0].tables)
        tables[ranks] = results[0][1].tables
    left = results[0][2]
    assert left.keys() == tables[2].keys()
    for name, table in tables[2].items():
        assert torch.equal(left[name], table), f"{name}: a checkpoint of two ranks is another on three"


def close(found: Tensor, expected: Tensor, where: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=lambda text: f"{where}: {text}")
