"""Chains of every plan and number of ranks, restored under every other: whole tensors, bit for bit where copied.

What a piece ought to hold is put together here from the pieces that training had, not from the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel

from common.errors import InputError
from common.storage import open_storage
from serving.checkpoints import restore as restore_module
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import BASE, DELTA, Manifest, blank_manifest, step_folder
from serving.checkpoints.restore import check_tables, open_chain
from sharding.tables import TableShard, table_shards
from sharding.world import World, open_world
from tests.checkpoint_example import (
    PLANS,
    ROWS,
    WIDTH,
    restore,
    save,
    train_rows,
    two_tables,
    watch,
    whole_state,
    write_chain,
)
from tests.ranks import run_on_ranks

FEW = {"small": 5}
"""Rows: of four ranks that share them, the last has none."""
Pieces = list[dict[str, Any]]
"""Of a table: its name, first row and column, `weight` and `momentum1`."""


@pytest.fixture(scope="module", autouse=True)
def fewer() -> Iterator[None]:
    with mock.patch.dict(ROWS, FEW):
        yield


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


def pieces_of(model: DistributedModelParallel) -> Pieces:
    """Of all ranks, on every rank."""
    own = [
        {
            "table": shard.table,
            "row": shard.first_row,
            "column": shard.first_column,
            "weight": shard.weight_RD.clone(),
            **{name: state.clone() for name, state in shard.states.items()},
        }
        for shard in table_shards(model)
    ]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return [piece for pieces in every for piece in pieces]


def whole_table(pieces: Pieces, table: str) -> Tensor:
    whole = torch.full((ROWS[table], WIDTH), float("nan"))
    for piece in pieces:
        if piece["table"] == table:
            rows, columns = piece["weight"].shape
            whole[piece["row"] : piece["row"] + rows, piece["column"] : piece["column"] + columns] = piece["weight"]
    return whole


def accumulators(pieces: Pieces, table: str, column: int, columns: int) -> Tensor:
    """[rows of the table]: those of the same columns, else of the whole row, else the mean of both halves."""
    by_columns: dict[tuple[int, int], Tensor] = {}
    for piece in pieces:
        if piece["table"] == table:
            key = (piece["column"], piece["weight"].shape[1])
            into = by_columns.setdefault(key, torch.full((ROWS[table],), float("nan")))
            into[piece["row"] : piece["row"] + len(piece["momentum1"])] = piece["momentum1"]
    if (column, columns) in by_columns:
        return by_columns[column, columns].clone()
    if (0, WIDTH) in by_columns:
        return by_columns[0, WIDTH].clone()
    return (by_columns[0, WIDTH // 2] + by_columns[WIDTH // 2, WIDTH // 2]) / 2


def spoil(model: DistributedModelParallel) -> None:
    for shard in table_shards(model):
        for tensor in (shard.weight_RD, *shard.states.values()):
            tensor.fill_(float("nan"))


def check_restored(
    model: DistributedModelParallel, path: Path, chain: list[Link], saved: Pieces, base: Pieces | None
) -> None:
    """`base` holds the pieces of the chain's base, where that was cut by columns and the rest was not."""
    spoil(model)
    with open_chain(open_storage(path), chain) as reader:
        reader.fill(table_shards(model))
    for shard in table_shards(model):
        rows = slice(shard.first_row, shard.first_row + shard.rows)
        columns = slice(shard.first_column, shard.first_column + shard.columns)
        assert torch.equal(shard.weight_RD, whole_table(saved, shard.table)[rows, columns]), (path, shard.table)
        expected = accumulators(saved, shard.table, shard.first_column, shard.columns)
        if base and shard.columns < WIDTH:  # a row that has not changed since has the accumulators it had by halves
            same = accumulators(saved, shard.table, 0, WIDTH) == accumulators(base, shard.table, 0, WIDTH)
            assert shard.table == "small" or 0 < same.sum() < len(same)
            expected[same] = accumulators(base, shard.table, shard.first_column, shard.columns)[same]
        assert torch.equal(shard.states["momentum1"], expected[rows]), (path, shard.table, shard.first_column)


def write_plan(world: World, folder: Path, plan: str) -> Pieces:
    """A base and two deltas."""
    model = two_tables(world, plan)
    checkpointer = watch(model, world, folder / f"{plan}-{world.size}", chain_share=1e9)
    for step in (10, 20, 30):
        train_rows(model, world, step)
        assert not save(checkpointer, step).error
    return pieces_of(model)


Saved = dict[str, Pieces]
"""Folder of a chain → what it ought to restore."""
Work = Callable[[World, Path, Saved], None]


def write_plans(world: World, folder: Path, saved: Saved) -> None:
    for plan in PLANS:
        saved[f"{plan}-{world.size}"] = write_plan(world, folder, plan)


def write_and_go_on(world: World, folder: Path, saved: Saved) -> None:
    write_plans(world, folder, saved)
    check_going_on(world, folder)


def check_going_on(world: World, folder: Path) -> None:
    """A run that stopped at step 30 and one that did not are the same, state by state and chain by chain."""
    paths = folder.with_name("whole"), folder.with_name("resumed")
    never = two_tables(world)
    checkpointer = watch(never, world, paths[0], chain_share=1e9)
    for step in (10, 20, 30):
        train_rows(never, world, step)
        save(checkpointer, step)
    if world.is_main:
        shutil.copytree(paths[0], paths[1])
    dist.barrier()
    chain, _ = Checkpoints(open_storage(paths[1])).newest_whole_chain()
    resumed = restore(world, paths[1])
    same(whole_state(resumed), whole_state(never))
    again = watch(resumed, world, paths[1], chain, chain_share=1e9)
    for step in (40, 50, 60):
        for model, watched in ((never, checkpointer), (resumed, again)):
            train_rows(model, world, step)
            assert save(watched, step).kind == DELTA
        same(whole_state(resumed), whole_state(never))
    for path in paths:
        chain, passed = Checkpoints(open_storage(path)).newest_whole_chain()
        assert ([link.manifest.step for link in chain], passed) == ([10, 20, 30, 40, 50, 60], [])
        same(whole_state(restore(world, path)), whole_state(never))
        same(whole_state(restore(world, path, step_folder(30))), whole_state(restore(world, paths[0], step_folder(30))))
    stored = [
        [link.manifest.touched for link in Checkpoints(open_storage(path)).newest_whole_chain()[0]] for path in paths
    ]
    assert stored[0] == stored[1]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def write_and_mix(world: World, folder: Path, saved: Saved) -> None:
    """Write, and go on with another world's chain under another plan."""
    write_plans(world, folder, saved)
    for plan, other in (("column_wise", "row_wise-2"), ("row_wise", "column_wise-1")):
        name = f"{other}-then-{plan}-{world.size}"
        if world.is_main:
            shutil.copytree(folder / other, folder / name)
        dist.barrier()
        model = restore(world, folder / name, plan=plan)
        chain, _ = Checkpoints(open_storage(folder / name)).newest_whole_chain()
        checkpointer = watch(model, world, folder / name, chain, chain_share=1e9)
        for step in (40, 50):
            train_rows(model, world, step)
            assert save(checkpointer, step).kind == DELTA
        saved[name] = pieces_of(model)


def read_all(world: World, folder: Path, saved: Saved) -> None:
    """Every chain under every plan."""
    pieces_on_rank = 0
    for plan in PLANS:
        model = two_tables(world, plan)
        pieces_on_rank += len(table_shards(model))
        for name, pieces in saved.items():
            chain, passed = Checkpoints(open_storage(folder / name)).newest_whole_chain()
            assert not passed
            base = saved["column_wise-1"] if name.startswith("column_wise-1-then") else None
            check_restored(model, folder / name, chain, pieces, base)
    if world.rank == 3:
        assert pieces_on_rank == 1 + 0 + 2, "the last of four has no rows of the small table, and by tables none at all"


def in_one_world(world: World, folder: Path, saved: Saved, works: list[Work]) -> Saved:
    """Several works in one spawned world."""
    with mock.patch.dict(ROWS, FEW):
        for work in works:
            work(world, folder, saved)
    return saved


def test_every_plan_and_number_of_ranks_is_restored_under_every_other(world: World, tmp_path: Path) -> None:
    folder, saved = tmp_path / "chains", {}
    write_plans(world, folder, saved)
    saved = run_on_ranks(2, in_one_world, folder, saved, [write_and_go_on, read_all])[0]
    saved = run_on_ranks(3, in_one_world, folder, saved, [write_and_mix, read_all])[0]
    read_all(world, folder, saved)
    run_on_ranks(4, in_one_world, folder, saved, [read_all])
    assert len(saved) == 3 * len(PLANS) + 2
    assert any(piece["weight"].shape[1] < WIDTH for piece in saved["column_wise-1"]), "columns have been cut"
    halves = [piece["momentum1"] for piece in saved["column_wise-1"] if piece["table"] == "large"]
    assert not torch.equal(*halves), "the halves have accumulated different numbers, or a mean would prove nothing"


@pytest.fixture
def watched(world: World, tmp_path: Path) -> tuple[DistributedModelParallel, Any, Path]:
    """A model with a base on the disk."""
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path / "chain", chain_share=1e9)
    train_rows(model, world, 10)
    save(checkpointer, 10)
    return model, checkpointer, tmp_path / "chain"


def newest(path: Path) -> list[Link]:
    return Checkpoints(open_storage(path)).newest_whole_chain()[0]


def test_a_delta_without_any_lookup_is_valid_and_holds_no_row(watched: Any, world: World) -> None:
    model, checkpointer, path = watched
    before = whole_state(model)
    save(checkpointer, 20)
    link = newest(path)[-1]
    assert link.manifest.kind == DELTA
    assert link.manifest.touched == {"small": 0, "large": 0}
    states = link.manifest.files[link.manifest.shards[0].states]
    assert states["bytes"] < 300, "a header and no more"
    same(whole_state(restore(world, path)), before)
    train_rows(model, world, 30)
    save(checkpointer, 30)
    same(whole_state(restore(world, path)), whole_state(model))


def test_a_lookup_outside_training_touches_nothing(watched: Any, world: World) -> None:
    model, checkpointer, path = watched
    model.eval()
    with torch.no_grad():
        model(every_row())
    save(checkpointer, 20)
    assert newest(path)[-1].manifest.touched == {"small": 0, "large": 0}


def every_row() -> KeyedJaggedTensor:
    """Each row of each table once, in bags of the same number."""
    bags = max(ROWS.values())
    lengths = torch.stack([(torch.arange(bags) < rows).long() for rows in ROWS.values()])
    return KeyedJaggedTensor.from_lengths_sync(
        list(ROWS), torch.cat([torch.arange(rows) for rows in ROWS.values()]), lengths.flatten()
    )


@pytest.mark.parametrize("block_rows", [1, 3, 65_536])
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_a_delta_in_which_every_row_changed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: str, block_rows: int
) -> None:
    monkeypatch.setattr(restore_module, "BLOCK_ROWS", block_rows)
    model = two_tables(world)
    checkpointer = watch(model, world, tmp_path, chain_share=1e9, values=values)
    save(checkpointer, 10)
    model.train()
    model(every_row()).square().mean().backward()
    save(checkpointer, 20)
    train_rows(model, world, 30)  # and one of some rows over it
    save(checkpointer, 30)
    chain = newest(tmp_path)
    assert chain[1].manifest.touched == ROWS
    assert 0 < chain[2].manifest.touched["large"] < ROWS["large"]
    restored, expected = whole_state(restore(world, tmp_path)), whole_state(model)
    for name, value in expected.items():
        if values == "float32" or name.endswith("momentum1") or name.split(".")[0] not in ROWS:
            assert torch.equal(restored[name], value), name
        else:
            assert not torch.equal(restored[name], value)
            torch.testing.assert_close(restored[name], value, rtol=0, atol=0.02)


def decoded_by_hand(path: Path, chain: list[Link]) -> dict[str, np.ndarray]:
    """Tables and accumulators from the files of a chain of one rank, by the words of the format's description."""
    found: dict[str, np.ndarray] = {}
    for link in chain:
        for shard in link.manifest.shards:
            folder = path / link.name
            with safe_open(folder / shard.tables, "pt") as tables, safe_open(folder / shard.states, "pt") as states:
                values = tables.get_tensor(f"{shard.key}.values").numpy()
                momentum = states.get_tensor(f"{shard.key}.momentum1")
                rows = (
                    tables.get_tensor(f"{shard.key}.rows").numpy()
                    if link.manifest.kind == DELTA
                    else np.arange(shard.rows)
                )
            format = link.manifest.value_format
            assert (momentum.dtype == torch.bfloat16) == (link.manifest.state_format == "bfloat16")
            if format == "int8":
                scale, bias = values[:, -8:].copy().view(np.float32).T
                values = scale[:, None] * values[:, :-8] + bias[:, None]
            elif format == "int4":
                scale, bias = values[:, -4:].copy().view(np.float16).astype(np.float32).T
                halves = np.stack([values[:, :-4] & 15, values[:, :-4] >> 4], 2).reshape(len(values), -1)
                values = scale[:, None] * halves + bias[:, None]
            table = found.setdefault(shard.table, np.full((ROWS[shard.table], WIDTH), np.nan, np.float32))
            table[rows] = values
            into = found.setdefault(f"{shard.table}.momentum1", np.full(ROWS[shard.table], np.nan, np.float32))
            into[rows] = momentum.float().numpy()
    return found


@pytest.mark.parametrize(("values", "states"), [("int8", "float32"), ("int4", "bfloat16"), ("float32", "bfloat16")])
def test_quantised_deltas_restore_what_their_files_say(world: World, tmp_path: Path, values: str, states: str) -> None:
    saved = write_chain(world, tmp_path, 3, values=values, states=states)
    chain = newest(tmp_path)
    assert [link.manifest.value_format for link in chain] == ["float32", values, values], "a base is never quantised"
    assert [link.manifest.state_format for link in chain] == ["float32", states, states]
    by_hand = decoded_by_hand(tmp_path, chain)
    restored = whole_state(restore(world, tmp_path))
    for table in ROWS:
        untouched = np.ones(ROWS[table], bool)
        for link in chain[1:]:
            shard = next(shard for shard in link.manifest.shards if shard.table == table)
            with safe_open(tmp_path / link.name / shard.tables, "pt") as file:
                untouched[file.get_tensor(f"{shard.key}.rows").numpy()] = False
        found, live = restored[f"{table}.0.0"].numpy(), saved[30][f"{table}.0.0"].numpy()
        assert np.allclose(found, by_hand[table], rtol=1e-6, atol=1e-6)
        assert np.array_equal(found[untouched], live[untouched]), "rows of the base are what they were"
        assert np.array_equal(found, live) == (values == "float32")
        momentum = restored[f"{table}.0.0.momentum1"].numpy()
        assert np.array_equal(momentum, by_hand[f"{table}.momentum1"])
        assert np.allclose(momentum, saved[30][f"{table}.0.0.momentum1"], rtol=2**-8)
    for name in ("module.top.weight", "module.top.bias", "top.weight", "top.bias"):
        if name in restored:
            assert torch.equal(restored[name], saved[30][name]), "what all ranks have alike is never rounded"


def test_without_states_only_the_tables_are_filled(watched: Any, world: World) -> None:
    model, checkpointer, path = watched
    train_rows(model, world, 20)
    save(checkpointer, 20)
    saved = whole_state(model)
    spoil(model)
    with open_chain(open_storage(path), newest(path)) as reader:
        reader.fill(table_shards(model), states=False)
    for shard in table_shards(model):
        assert torch.equal(shard.weight_RD, saved[f"{shard.table}.0.0"])
        assert shard.states["momentum1"].isnan().all()


def test_random_states_are_those_of_the_rank_and_none_of_a_rank_that_was_not_there(watched: Any) -> None:
    _, _, path = watched
    expected = torch.get_rng_state()
    with open_chain(open_storage(path), newest(path)) as reader:
        own = reader.random(0)
        assert any(torch.equal(value.flatten(), expected) for value in own.values())
        assert all(name.startswith("random.") for name in own)
        assert reader.random(1) == {}


def test_a_file_that_is_no_tensor_file_is_refused_with_its_place(watched: Any) -> None:
    model, _, path = watched
    chain = newest(path)
    for file in (chain[0].manifest.dense, chain[0].manifest.shards[0].tables):
        (path / chain[0].name / file).write_bytes(b"no such thing")
        with open_chain(open_storage(path), chain) as reader:
            read = reader.dense if file.startswith("dense") else lambda: reader.fill(table_shards(model))
            with pytest.raises(InputError, match=f"{path}/{chain[0].name}/{file}: cannot be read"):
                read()


def shard(table: str, rows: int, width: int) -> TableShard:
    return TableShard(table, rows, width, 0, 0, torch.empty(rows, width), {})


def test_tables_of_other_shapes_are_refused_each_of_them() -> None:
    names = ("store", "codes", "store_fingerprint", "codes_fingerprint", "config_fingerprint")
    made = blank_manifest(world_size=1, model={}, vocabulary={}, meanings={}, **dict.fromkeys(names, ""))
    manifest = Manifest(**{**vars(made), "kind": BASE, "tables": {"a": [5, 8], "b": [7, 8]}})
    check_tables(manifest, "here", [shard("a", 5, 8), shard("b", 7, 8)])
    check_tables(manifest, "here", [shard("a", 6, 8), shard("b", 7, 8)], may_grow=True)
    for shards, may_grow, faults in (
        ([shard("a", 6, 8)], False, ["here: table `a` is 5 × 8 there and 6 × 8 in this model"]),
        ([shard("a", 4, 8)], True, ["here: table `a` is 5 × 8 there and 4 × 8 in this model"]),
        ([shard("a", 5, 4)], True, ["here: table `a` is 5 × 8 there and 5 × 4 in this model"]),
        ([shard("c", 5, 8)], True, ["here: table `c` is 0 × 0 there and 5 × 8 in this model"]),
        (
            [shard("a", 1, 1), shard("b", 7, 8), shard("c", 2, 2)],
            False,
            [
                "here: table `a` is 5 × 8 there and 1 × 1 in this model",
                "here: table `c` is 0 × 0 there and 2 × 2 in this model",
            ],
        ),
    ):
        with pytest.raises(InputError) as caught:
            check_tables(manifest, "here", shards, may_grow=may_grow)
        assert list(caught.value.faults) == faults
