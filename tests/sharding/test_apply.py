"""Sharded tables are held to the unsharded EmbeddingBagCollection: outputs, updates, and starting values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from common.errors import InputError
from model.embeddings import draw_rows
from sharding.apply import gather_table, shard_model, sharded_tables
from sharding.planning.placement import row_wise
from sharding.world import World
from tests.ranks import run_on_ranks

ROWS = {"kinds": 2, "codes": 101}  # on three ranks one of them holds no row of `kinds`
WIDTH, TOKENS, STEPS, RATE, EPSILON = 8, 12, 3, 0.1, 1e-8


class Tables(nn.Module):
    """Just the tables, with a loss that weighs every output differently."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.ebc = EmbeddingBagCollection(
            device=torch.device(device),
            tables=[
                EmbeddingBagConfig(
                    name=name, num_embeddings=rows, embedding_dim=WIDTH, feature_names=[name], pooling=PoolingType.SUM
                )
                for name, rows in ROWS.items()
            ],
        )
        self.scale = nn.Parameter(torch.ones(()))  # DistributedDataParallel wants a dense parameter

    def forward(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        pooled = self.ebc(features).values()
        weights = torch.linspace(0.5, 1.5, pooled.shape[1])
        return (self.scale * (pooled * weights).sin()).sum() / TOKENS, pooled


def features_of(step: int, rank: int) -> KeyedJaggedTensor:
    """Bags of 0 … 4 repeated and missing ids, another set for every step and rank."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    lengths = torch.randint(0, 5, (len(ROWS) * TOKENS,), generator=generator)
    counts = lengths.view(len(ROWS), TOKENS).sum(1).tolist()
    ids = [torch.randint(0, rows, (n,), generator=generator) for rows, n in zip(ROWS.values(), counts, strict=True)]
    return KeyedJaggedTensor(keys=list(ROWS), values=torch.cat(ids), lengths=lengths, stride=TOKENS)


def initial_rows(table: str, start: int, stop: int, width: int) -> Tensor:
    return draw_rows(0, table, start, stop, width, 1.0)


def train_sharded(world: World) -> tuple[list[Tensor], dict[str, Tensor] | None]:
    """Pooled outputs of this rank before each step, and the tables after the last on rank 0."""
    model = Tables("meta")
    sharded = shard_model(
        model, row_wise(model, world), world, learning_rate=RATE, epsilon=EPSILON, draw_rows=initial_rows
    )
    outputs = []
    for step in range(STEPS):
        loss, pooled = sharded(features_of(step, world.rank))
        outputs.append(pooled.detach().clone())
        loss.backward()
    gathered = {name: gather_table(table, world) for name, table in sharded_tables(sharded).items()}
    return outputs, gathered if world.is_main else None  # type: ignore[return-value]


def train_unsharded(ranks: int, columns: int = WIDTH) -> tuple[list[list[Tensor]], dict[str, Tensor]]:
    """The obvious implementation: all ranks' batches in one process, row-wise Adagrad written out.

    An accumulator for each row of each piece of `columns` columns.
    """
    model = Tables("cpu")
    tables = {name: bag.weight for name, bag in model.ebc.embedding_bags.items()}
    with torch.no_grad():
        for name, table in tables.items():
            table.copy_(initial_rows(name, 0, ROWS[name], WIDTH))
    momentum = {name: torch.zeros(rows, WIDTH // columns, 1) for name, rows in ROWS.items()}
    outputs = []
    for step in range(STEPS):
        results = [model(features_of(step, rank)) for rank in range(ranks)]
        outputs.append([pooled.detach().clone() for _, pooled in results])
        model.zero_grad()
        torch.stack([loss for loss, _ in results]).mean().backward()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                grad = table.grad.view(ROWS[name], -1, columns)
                momentum[name] += grad.square().mean(dim=2, keepdim=True)
                table -= (RATE * grad / (momentum[name].sqrt() + EPSILON)).view_as(table)
    return outputs, {name: table.detach() for name, table in tables.items()}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sharded_tables_equal_the_unsharded_forward_and_after_updates(ranks: int) -> None:
    expected_outputs, expected_tables = train_unsharded(ranks)
    results = run_on_ranks(ranks, train_sharded)
    for rank, (outputs, _) in enumerate(results):
        for step in range(STEPS):
            torch.testing.assert_close(outputs[step], expected_outputs[step][rank], rtol=1e-5, atol=1e-6)
    tables = results[0][1]
    for name, expected in expected_tables.items():
        assert not torch.equal(expected, initial_rows(name, 0, ROWS[name], WIDTH)), "the update changed nothing"
        torch.testing.assert_close(tables[name], expected, rtol=1e-5, atol=1e-6)


def test_a_last_table_that_leaves_a_rank_empty_is_refused() -> None:
    model = Tables("meta")
    for ranks, refused in ((26, False), (101, False), (50, True), (102, True)):
        world = World(0, ranks, ranks, torch.device("cpu"))
        if refused:
            with pytest.raises(InputError, match=f"`codes` has 101 rows, too few for each of {ranks} ranks"):
                row_wise(model, world)
        else:
            row_wise(model, world)


def starting_tables(world: World) -> dict[str, Tensor] | None:
    model = Tables("meta")
    sharded = shard_model(
        model, row_wise(model, world), world, learning_rate=RATE, epsilon=EPSILON, draw_rows=initial_rows
    )
    gathered = {name: gather_table(table, world) for name, table in sharded_tables(sharded).items()}
    return gathered if world.is_main else None  # type: ignore[return-value]


@pytest.mark.parametrize("ranks", [1, 3])
def test_tables_start_from_the_same_numbers_on_any_number_of_ranks(ranks: int) -> None:
    tables = run_on_ranks(ranks, starting_tables)[0]
    for name, rows in ROWS.items():
        assert torch.equal(tables[name], initial_rows(name, 0, rows, WIDTH))
