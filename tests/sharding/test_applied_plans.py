"""Tables cut in every way that the policy knows are held to whole ones: outputs, updates, starting values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sharding.apply import gather_table, shard_model, sharded_tables
from sharding.planning.placement import Piece, Placement, TablePlan, even_rows, row_wise
from sharding.world import World
from tests.ranks import run_on_ranks
from tests.sharding.test_apply import (
    EPSILON,
    RATE,
    ROWS,
    STEPS,
    WIDTH,
    Tables,
    features_of,
    initial_rows,
    train_unsharded,
)

COLUMNS = 4
CASES = [
    ("row-wise", "float32"),
    ("table-wise", "float32"),
    ("column-wise", "float32"),
    ("table-row-wise", "float32"),
    ("row-wise", "float16"),
    ("row-wise", "bfloat16"),
    ("column-wise", "int8"),
]
TOLERANCE = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.08, "int8": 0.08}
"""Of numbers up to 10: what so many bits can hold, a few times over."""


def placed(sharding: str, communication: str, ranks: int) -> Placement:
    """The tables of `Tables`, cut by hand."""
    tables = []
    for name, rows in ROWS.items():
        if sharding == "table-wise":
            pieces = [Piece(ranks - 1, 0, rows, 0, WIDTH)]
        elif sharding == "column-wise":
            pieces = [
                Piece(index % ranks, 0, rows, first, COLUMNS) for index, first in enumerate(range(0, WIDTH, COLUMNS))
            ]
        else:
            pieces = [Piece(rank, first, count, 0, WIDTH) for rank, first, count in even_rows(rows, ranks)]
        tables.append(TablePlan(name, "ebc", rows, WIDTH, True, sharding, "fused", 0.0, tuple(pieces)))
    return Placement((ranks,), "cpu", communication, tuple(tables))


def train_sharded(world: World) -> list[tuple[list[Tensor], dict[str, Tensor] | None]]:
    """Outputs of this rank before each step, and the tables after the last on rank 0, case by case."""
    results = []
    for sharding, communication in CASES:
        placement = placed(sharding, communication, world.size)
        if (sharding, communication) == ("row-wise", "float32"):
            assert placement == row_wise(Tables("meta"), world), "cut by hand and by the code alike"
        model = shard_model(
            Tables("meta"), placement, world, learning_rate=RATE, epsilon=EPSILON, draw_rows=initial_rows
        )
        outputs = []
        for step in range(STEPS):
            loss, pooled = model(features_of(step, world.rank))
            outputs.append(pooled.detach().clone())
            loss.backward()
        tables = _gathered(model, placement, world)
        results.append((outputs, tables if world.is_main else None))
    return results


def _gathered(model: object, placement: Placement, world: World) -> dict[str, Tensor]:
    found = {}
    for name, table in sharded_tables(model).items():  # type: ignore[arg-type]
        whole = gather_table(table, world)
        if whole is not None:
            found[name] = whole
    assert not world.is_main or found.keys() == {table.name for table in placement.tables}
    return found


@pytest.fixture(scope="module")
def trained() -> list[list[tuple[list[Tensor], dict[str, Tensor] | None]]]:
    return run_on_ranks(2, train_sharded)


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_a_table_is_the_same_however_it_is_cut(
    trained: list[list[tuple[list[Tensor], dict[str, Tensor] | None]]], case: int
) -> None:
    sharding, communication = CASES[case]
    expected_outputs, expected_tables = train_unsharded(2, COLUMNS if sharding == "column-wise" else WIDTH)
    tolerance = TOLERANCE[communication]
    errors = []
    for rank in range(2):
        for step, output in enumerate(trained[rank][case][0]):
            torch.testing.assert_close(output, expected_outputs[step][rank], rtol=1e-5, atol=tolerance)
            errors.append((output - expected_outputs[step][rank]).abs().max().item())
    tables = trained[0][case][1]
    assert tables is not None
    for name, expected in expected_tables.items():
        assert not torch.equal(expected, initial_rows(name, 0, ROWS[name], WIDTH)), "the update changed nothing"
        torch.testing.assert_close(tables[name], expected, rtol=1e-5, atol=tolerance)
    if communication != "float32":
        assert max(errors) > 1e-5, "the vectors travelled in 32 bits"


def test_another_optimizer_where_columns_are_apart() -> None:
    """What the documentation warns of: pieces of columns have accumulators of their own."""
    whole, pieces = (train_unsharded(2, columns)[1] for columns in (WIDTH, COLUMNS))
    assert any(not torch.allclose(whole[name], pieces[name], atol=1e-3) for name in ROWS)
