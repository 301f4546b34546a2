"""Touched rows are those that training looked up, under every plan, and no row changes without being touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sharding.tables import table_shards
from sharding.world import World
from tests.checkpoint_example import ROWS, train_rows, two_tables
from tests.ranks import run_on_ranks
from trainer.checkpoint.touched import TouchedRows


def expected_rows(step: int) -> dict[str, set[int]]:
    """What `train_rows` looks up."""
    generator = torch.Generator().manual_seed(100 + step)
    return {name: set(torch.randint(rows, (12,), generator=generator).tolist()) for name, rows in ROWS.items()}


def watch_steps(world: World, plan: str) -> list[dict[str, Any]]:
    model = two_tables(world, plan)
    shards = table_shards(model)
    touched = TouchedRows(model, shards)
    told: list[tuple[int, set[int]]] = []
    touched.before_update = lambda index, rows_n: told.append((index, set(rows_n.tolist())))
    found = []
    for step in (1, 2, 3):
        before = [shard.weight_RD.clone() for shard in shards]
        told.clear()
        train_rows(model, world, step)
        model.eval()
        with torch.no_grad():  # a lookup that trains nothing touches nothing
            model(all_rows(world))
        masks = touched.take() if step != 2 else [torch.zeros(shard.rows, dtype=torch.uint8) for shard in shards]
        for index, (shard, mask_R) in enumerate(zip(shards, masks, strict=True)):
            changed = (before[index] != shard.weight_RD).any(dim=1)
            in_time = set().union(*(rows for number, rows in told if number == index))
            assert set(changed.nonzero().flatten().tolist()) <= in_time, "a row changed that nobody was told of"
            rows = {shard.first_row + row for row in mask_R.nonzero().flatten().tolist()}
            found.append({"step": step, "table": shard.table, "rows": rows, "changed": int(changed.sum())})
    assert not any(mask_R.any() for mask_R in touched.take()), "a take begins anew"
    masks = [torch.ones(shard.rows, dtype=torch.uint8) for shard in shards]
    touched.put_back(masks)
    assert all(torch.equal(back, mask) for back, mask in zip(touched.take(), masks, strict=True))
    return found


def all_rows(world: World) -> Any:
    from torchrec import KeyedJaggedTensor

    ids = [torch.arange(6) for _ in ROWS]
    return KeyedJaggedTensor.from_lengths_sync(list(ROWS), torch.cat(ids), torch.ones(6 * len(ROWS), dtype=torch.int64))


@pytest.mark.parametrize("plan", ["row_wise", "table_wise", "column_wise"])
def test_touched_rows_are_the_rows_looked_up_in_training(plan: str) -> None:
    by_rank = run_on_ranks(2, watch_steps, plan)
    assert sum(record["changed"] for records in by_rank for record in records) > 20
    for name in ROWS:
        first = set().union(
            *(r["rows"] for records in by_rank for r in records if (r["step"], r["table"]) == (1, name))
        )
        assert first == expected_rows(1)[name]
        since = set().union(
            *(r["rows"] for records in by_rank for r in records if (r["step"], r["table"]) == (3, name))
        )
        assert since == expected_rows(2)[name] | expected_rows(3)[name]
