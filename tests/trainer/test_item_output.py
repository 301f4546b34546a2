"""Runs whose output are plain items: trained on any ranks, resumed, restored from deltas, exported, started from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.event_store import EventStore
from model.config import HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from model.embeddings import CODE_TABLE, INITIAL_STD, ITEM_TABLE, draw_rows
from serving.checkpoints import model as serving_model
from serving.checkpoints.model import build_sharded, find_chain, item_matrix, load_model, run_storage
from sharding.planning.placement import Piece, Placement, TablePlan, row_wise
from sharding.planning.workload import on_meta
from sharding.world import World, open_world
from tests.conftest import Prepared
from tests.ranks import run_on_ranks
from tests.trainer.test_train import NO_DROPOUT, losses, parameters, records, train_here, train_on
from trainer.checkpoint.__main__ import main as checkpoint_tool

ITEMS = ["model.output.kind=items", "model.items.kind=vocabulary"]
FEW = [*ITEMS, "batch.negatives.count=8"]


@pytest.fixture(scope="module")
def run(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on one rank."""
    path = tmp_path_factory.mktemp("items") / "run"
    chain = ["checkpoint.keep=100", "checkpoint.every=2", "checkpoint.chain_share=100"]  # all deltas but the first
    assert train_here(prepared, path, *FEW, *NO_DROPOUT, *chain) == 0
    return path


def test_a_run_learns_and_validates(run: Path) -> None:
    found = records(run, "train")
    assert found[-1]["loss"] < 0.95 * found[0]["loss"]
    assert all(len(record["level_loss"]) == len(record["level_accuracy"]) == 1 for record in found)
    assert found[-1]["level_accuracy"][0] > found[0]["level_accuracy"][0]
    validations = records(run, "validation")
    assert len(validations) == 3
    assert all(0 < record["ndcg@10"] <= 1 for record in validations)


def test_other_ranks_and_a_look_up_a_token_train_the_same_model(run: Path, prepared: Prepared, tmp_path: Path) -> None:
    expected, one = parameters(run), losses(run)
    ways = {"two": (2, []), "three": (3, []), "plain": (1, ["batch.distinct=false", "max_steps=6"])}
    for name, (ranks, keys) in ways.items():
        if ranks > 1:
            train_on(ranks, prepared, tmp_path / name, *FEW, *NO_DROPOUT, *keys)
        else:
            assert train_here(prepared, tmp_path / name, *FEW, *NO_DROPOUT, *keys) == 0
        found = losses(tmp_path / name)
        assert found == pytest.approx(one[: len(found)], rel=1e-4)
        if ranks == 1:
            continue
        for table, value in parameters(tmp_path / name).items():
            torch.testing.assert_close(
                expected[table], value, rtol=2e-3, atol=1e-4, msg=lambda text, table=table: f"{table}: {text}"
            )


@pytest.mark.parametrize(
    "keys",
    [
        ["batch.negatives.kind=all"],
        ["batch.negatives.kind=mixed", "batch.negatives.per=bin", "model.items.only=true"],
        ["batch.negatives.kind=in-batch", "batch.negatives.count=8", "batch.windows=stream", "epochs=3"],
    ],
)
def test_a_resumed_run_goes_the_way_of_the_uninterrupted_one(
    prepared: Prepared, tmp_path: Path, keys: list[str]
) -> None:
    keys = [
        *ITEMS,
        "validate_every=6",
        *keys,
        *(["batch.period_seconds=4000"] if "batch.windows=stream" in keys else []),
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_here(prepared, whole, *keys) == 0
    assert train_here(prepared, cut, *keys, "max_steps=3", "batch.workers=1") == 0
    assert train_here(prepared, cut, *keys, "resume=true") == 0
    assert losses(cut) == losses(whole)
    expected, found = parameters(whole), parameters(cut)
    assert (CODE_TABLE in found) == ("model.items.only=true" not in keys)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_other_negatives_do_not_go_on_with_a_run(
    run: Path, prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert train_here(prepared, again, *ITEMS, *NO_DROPOUT, "batch.negatives.count=9", "resume=true") == 2
    assert "batch.negatives.count=8, now it is 9" in capfd.readouterr().err


def test_deltas_hold_the_rows_of_negatives_too(run: Path, prepared: Prepared, tmp_path: Path) -> None:
    """A row that was a negative and nothing else since the base has moved, and what is restored has it where it is."""
    storage = run_storage(run)
    chain = find_chain(storage, "latest")
    assert len(chain) > 1, "the newest checkpoint is a base, which proves nothing of deltas"
    live = tmp_path / "live"
    keys = [*FEW, *NO_DROPOUT, "checkpoint.keep=100", "checkpoint.every=2", "checkpoint.base_every=1"]
    assert train_here(prepared, live, *keys) == 0
    assert len(find_chain(run_storage(live), "latest")) == 1
    expected, found = parameters(live), parameters(run)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    never_played_N = EventStore.open(prepared.store).num_items
    start = draw_rows(5, ITEM_TABLE, 0, never_played_N, 16, INITIAL_STD)
    assert (found[ITEM_TABLE] != start).any(dim=1).all(), "every item is a negative in some step"


def test_a_run_is_exported_and_started_from(
    run: Path, prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert checkpoint_tool(["export", str(run), str(bundle), "--checkpoint", "latest"]) == 0
    with open_world() as world:
        storage = run_storage(bundle)
        vectors_ND = item_matrix(load_model(storage, find_chain(storage, "latest"), world), world)
    expected = parameters(run)
    torch.testing.assert_close(vectors_ND, F.normalize(expected[ITEM_TABLE], dim=1), rtol=0, atol=1e-6)
    capfd.readouterr()
    keys = [*FEW, "max_steps=1", f"start_from={run}", "start_checkpoint=latest", "optimizer.sparse_learning_rate=0.0"]
    assert train_here(prepared, tmp_path / "next", *keys) == 0
    assert "begins anew" not in capfd.readouterr().err
    assert torch.equal(parameters(tmp_path / "next")[ITEM_TABLE], expected[ITEM_TABLE])


# ── the vectors of all items ─────────────────────────────────────────────────────────────────────────────

CONFIG = ModelConfig(
    width=8,
    heads=1,
    head_dim_qk=4,
    head_dim_v=4,
    items=ItemTableConfig(kind="vocabulary"),
    output=HeadsConfig(kind="items"),
)
VOCABULARY = Vocabulary(levels=2, codes=8, artists=5, event_types=2, items=37)
CUTS = {
    "row-wise": [Piece(0, 0, 19, 0, 8), Piece(1, 19, 18, 0, 8)],
    "column-wise": [Piece(0, 0, 37, 0, 4), Piece(1, 0, 37, 4, 4)],
    "table-wise": [Piece(1, 0, 37, 0, 8)],
}


def vectors(world: World) -> list[Tensor]:
    """Of a fresh table, however it is cut, a few rows at a time."""
    serving_model._GATHERED_ROWS = 10
    found = []
    for cut, pieces in CUTS.items():
        rows = row_wise(on_meta(CONFIG, VOCABULARY), world)
        tables = tuple(
            TablePlan(one.name, one.module, one.rows, one.width, one.pooled, cut, one.kernel, 0.0, tuple(pieces))
            if one.name == ITEM_TABLE
            else one
            for one in rows.tables
        )
        placement = Placement(rows.ranks_per_node, rows.device, rows.communication, tables)
        found.append(item_matrix(build_sharded(CONFIG, VOCABULARY, world, seed=3, placement=placement), world))
    return found


def test_every_rank_gets_the_vectors_of_all_items_however_the_table_is_cut() -> None:
    expected = F.normalize(draw_rows(3, ITEM_TABLE, 0, 37, 8, INITIAL_STD), dim=1)
    for of_rank in run_on_ranks(2, vectors):
        assert len(of_rank) == len(CUTS)
        for found in of_rank:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        (["model.output.kind=items"], "items.kind is none: set items.kind=vocabulary"),
        (["batch.negatives.count=4"], "`batch.negatives` means nothing with `model.output.kind` codes"),
    ],
)
def test_what_does_not_go_together_is_refused(
    prepared: Prepared, tmp_path: Path, keys: list[str], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(prepared, tmp_path / "run", *keys) == 2
    assert fault in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
