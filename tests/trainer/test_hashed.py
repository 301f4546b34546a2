"""Training with a hashed table of items, end to end: owners change, and stops, ranks and tools make no difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.event_store import EventStore
from data.item_keys import item_keys
from evaluation import evaluate
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import DELTA
from serving.checkpoints.model import find_chain, load_model, run_storage
from sharding.hashing.hashed_items import hash_state, hashed_tables
from sharding.hashing.id_hash import scatter_ids
from sharding.hashing.id_map import FREE
from sharding.tables import table_shards
from sharding.world import open_world
from tests.conftest import Prepared
from tests.sharding.hashing.test_hashed_items import batch_of, build, ids_of
from tests.trainer.test_train import NO_DROPOUT, losses, train_here, train_on
from tests.trainer.test_warm_start import write_log
from trainer.checkpoint import __main__ as checkpoint
from trainer.checkpoint.touched import TouchedRows

HASHED = [
    "model.items.kind=hashed",
    "model.items.hashing.rows=60",
    "model.items.hashing.buckets=12",
    "model.items.hashing.eviction=lru",
    "model.items.hashing.interval=3",
    "checkpoint.every=2",
    "checkpoint.chain_share=100",
    "checkpoint.wait=true",
    *NO_DROPOUT,
]


def everything(run: Path, which: str = "latest") -> dict[str, Tensor]:
    """Tables, dense parameters and the map of a checkpoint, read by one process whatever wrote it."""
    with open_world() as world:
        storage = run_storage(run)
        model = load_model(storage, find_chain(storage, which), world)
        tensors = {shard.table: shard.weight_RD for shard in table_shards(model)} | hash_state(model)
        tensors |= {name: value for name, value in model.state_dict().items() if type(value) is Tensor}
        return {name: value.clone() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def runs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a stop, and one stopped within an interval, at a delta."""
    folder = tmp_path_factory.mktemp("hashed")
    assert train_here(prepared, folder / "whole", *HASHED) == 0
    assert train_here(prepared, folder / "cut", *HASHED, "max_steps=7") == 0
    return folder


def test_a_resumed_run_goes_the_way_of_the_uninterrupted_one(runs: Path, prepared: Prepared, tmp_path: Path) -> None:
    storage = run_storage(runs / "cut")
    chain = Checkpoints(storage).newest_whole_chain()[0]
    assert [link.manifest.kind for link in chain[1:]] == [DELTA] * 3
    before, whole = everything(runs / "cut"), everything(runs / "whole")
    assert before["item.history_ids"].numel(), "the stop was not within an interval"
    lost = (before["item.ids"] != FREE) & (before["item.ids"] != whole["item.ids"])
    assert int(lost.sum()) > 5, "hardly an item lost its row"
    known = scatter_ids(torch.from_numpy(item_keys(EventStore.open(prepared.store).item_ids)))
    assert torch.isin(before["item.ids"][before["item.ids"] != FREE], known).all()
    shutil.copytree(runs / "cut", tmp_path / "cut")
    assert train_here(prepared, tmp_path / "cut", *HASHED, "resume=true") == 0
    assert losses(tmp_path / "cut") == losses(runs / "whole")
    resumed = everything(tmp_path / "cut")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_two_ranks_go_on_where_one_stopped_and_hand_out_the_same_rows(
    runs: Path, prepared: Prepared, tmp_path: Path
) -> None:
    shutil.copytree(runs / "cut", tmp_path / "cut")
    train_on(2, prepared, tmp_path / "cut", *HASHED, "resume=true")
    assert losses(tmp_path / "cut") == pytest.approx(losses(runs / "whole"), rel=1e-5)
    found, whole = everything(tmp_path / "cut"), everything(runs / "whole")
    for name, value in whole.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)
        else:
            assert torch.equal(found[name], value), name


def test_tools_keep_the_map_and_a_bundle_is_measured_as_the_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "cut", tmp_path / "cut")
    assert checkpoint.main(["compact", str(tmp_path / "cut")]) == 0
    assert checkpoint.main(["verify", str(tmp_path / "cut")]) == 0
    before, after = everything(runs / "cut"), everything(tmp_path / "cut")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert checkpoint.main(["export", str(runs / "cut"), str(tmp_path / "bundle"), "--checkpoint", "latest"]) == 0
    parts = ["intervals_95", "ndcg@10", "mrr", "level_accuracy"]
    measured = []
    for run in (runs / "cut", tmp_path / "bundle"):
        assert evaluate.main([f"run={run}", "checkpoint=latest", "bootstrap=20"]) == 0
        figures = json.loads((run / "metrics.json").read_text())
        engines = {name: found["ndcg@10"] for name, found in figures["engines"].items()}
        measured.append([*(figures[part] for part in parts), engines])
    assert measured[0] == measured[1]


def test_a_newer_store_starts_with_the_rows_of_an_older_one_item_by_item(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"a{number:02d}" for number in range(10)]
    old = write_log(tmp_path / "old", names, seed=1)
    newer = write_log(tmp_path / "newer", ["a00x", *names], seed=3)  # every item but two has another dense index
    assert train_here(old, tmp_path / "before", *HASHED, "max_steps=6") == 0
    still = ["max_steps=1", "optimizer.learning_rate=0", "optimizer.sparse_learning_rate=0"]
    start = f"start_from={tmp_path / 'before'}"
    assert train_here(newer, tmp_path / "after", *HASHED, *still, start) == 0
    before, after = everything(tmp_path / "before"), everything(tmp_path / "after")
    assert int((before["item.ids"] != FREE).sum()) > 12
    assert torch.equal(after["item.ids"], before["item.ids"])
    assert torch.equal(after["item"], before["item"])
    capfd.readouterr()
    for keys, told in (
        (["model.items.hashing.rows=72"], "it has 60 rows in 12 buckets there, 72 in 12 here"),
        (["model.items.kind=vocabulary"], "there is no table there whose rows are the catalogue's items"),
    ):
        assert train_here(newer, tmp_path / "other", *HASHED, *still, *keys, start, "overwrite=true") == 0
        assert f"table `item` begins anew: {told}" in capfd.readouterr().err


def test_a_row_that_gets_another_owner_counts_as_touched_before_it_changes() -> None:
    with open_world() as world:
        model = build(world)
        (shard,) = table_shards(model)
        touched, before_RD = TouchedRows(model, [shard]), shard.weight_RD.clone()

        told_R = torch.zeros(shard.rows, dtype=torch.bool)

        def unchanged_so_far(_index: int, rows_n: Tensor) -> None:
            new_n = rows_n[~told_R[rows_n]]
            assert torch.equal(shard.weight_RD[new_n], before_RD[new_n])
            told_R[new_n] = True

        touched.before_update = unchanged_so_far
        reset_alone = 0
        for step in range(15):
            before_RD.copy_(shard.weight_RD)
            told_R[:] = False
            model(batch_of(step, 0, 1))[0].backward()
            rows_n, shared_n = hashed_tables(model)["item"].map_of("item").find(scatter_ids(torch.tensor(ids_of(step))))
            changed_R = (shard.weight_RD != before_RD).any(dim=1)
            assert (touched.take()[0] != 0)[changed_R].all(), f"step {step}"
            changed_R[torch.where(rows_n < 0, shared_n, rows_n)] = False
            reset_alone += int(changed_R.sum())
        assert reset_alone > 5, "every new owner was looked up at once"
