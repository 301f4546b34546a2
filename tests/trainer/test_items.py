"""A run with a table of plain items, beside that of codes or in its place, as users start, resume and measure it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from data.event_store import EventStore
from evaluation import evaluate
from model.embeddings import CODE_TABLE, INITIAL_STD, ITEM_TABLE, draw_rows
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.model import run_storage
from tests.conftest import Prepared
from tests.trainer.test_train import losses, parameters, train_here, train_on

ITEMS = ["model.items.kind=vocabulary"]
ONLY = [*ITEMS, "model.items.only=true"]


def test_two_ranks_with_a_table_of_items_train_resume_and_are_measured(prepared: Prepared, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    keys = [*ITEMS, "epochs=4", "checkpoint.keep=100"]
    train_on(2, prepared, run, *keys)
    whole = parameters(run)
    store = EventStore.open(prepared.store)
    assert whole[ITEM_TABLE].shape == (store.num_items, 16)
    changed_N = (whole[ITEM_TABLE] != draw_rows(5, ITEM_TABLE, 0, store.num_items, 16, INITIAL_STD)).any(dim=1)
    assert changed_N.float().mean() > 0.5

    shutil.copytree(run, again)
    names = Checkpoints(run_storage(run)).names()
    for name in names[1:]:
        shutil.rmtree(again / "checkpoints" / name)
    train_on(2, prepared, again, *keys, "resume=true")
    assert len(names) > 1
    assert losses(again) == losses(run)
    resumed = parameters(again)
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(resumed[name], whole[name])] == []

    assert evaluate.main([f"run={run}", "bootstrap=20"]) == 0
    assert json.loads((run / "metrics.json").read_text())["users"] > 20


def test_plain_items_in_place_of_codes_learn_resume_and_are_measured(prepared: Prepared, tmp_path: Path) -> None:
    run, cut = tmp_path / "run", tmp_path / "cut"
    assert train_here(prepared, run, *ONLY) == 0
    assert losses(run)[-1] < 0.97 * losses(run)[0]
    assert train_here(prepared, cut, *ONLY, "max_steps=7") == 0
    assert train_here(prepared, cut, *ONLY, "resume=true") == 0
    assert losses(cut) == losses(run)
    found = parameters(cut)
    assert CODE_TABLE not in found
    assert all(torch.equal(found[name], value) for name, value in parameters(run).items())
    assert evaluate.main([f"run={run}", "bootstrap=20"]) == 0


def test_a_table_of_items_goes_on_in_another_run_where_the_items_are_the_same(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, with_items, without = (tmp_path / name for name in ("run", "with", "without"))
    assert train_here(prepared, run, *ITEMS, "max_steps=3") == 0
    assert train_here(prepared, with_items, *ITEMS, "max_steps=1", f"start_from={run}") == 0
    assert "begins anew" not in capfd.readouterr().err
    learnt, first = parameters(run)[ITEM_TABLE], parameters(with_items)[ITEM_TABLE]
    fresh = draw_rows(5, ITEM_TABLE, 0, *learnt.shape, INITIAL_STD)
    untouched_N = (first == learnt).all(dim=1)
    assert (untouched_N & (learnt != fresh).any(dim=1)).any()
    assert train_here(prepared, without, "max_steps=1") == 0
    assert train_here(prepared, tmp_path / "anew", *ITEMS, "max_steps=1", f"start_from={without}") == 0
    assert "table `item` begins anew: there is no table there whose rows are" in capfd.readouterr().err


def test_a_model_without_any_input_is_refused(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(prepared, tmp_path / "run", "model.items.only=true") == 2
    assert "only=true leaves out the codes" in capfd.readouterr().err
