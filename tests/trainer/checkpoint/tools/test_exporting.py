"""Serving bundles: the same metrics as the run, from another place, without optimizer states."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from common.config import to_yaml
from common.errors import InputError
from common.storage import LocalStorage, open_storage
from evaluation import evaluate
from model.config import ModelConfig
from semantic_ids import fit
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import BASE, read_manifest
from serving.checkpoints.model import dense_tensors, find_chain, load_model, run_storage
from serving.checkpoints.restore import open_chain
from sharding.apply import gather_table, sharded_tables
from sharding.world import open_world
from tests.checkpoint_example import save, watch, write_untrained
from tests.conftest import Prepared
from trainer.checkpoint.__main__ import main
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.tools import folding
from trainer.config import TrainConfig

CONFIG = ModelConfig(width=8, blocks=1, head_dim_qk=4, head_dim_v=4, max_history=20)
BEST, NEWEST = "step-00000009", "step-00000011"


def change(checkpointer: Checkpointer, seed: int) -> None:
    """Move every third row of all tables."""
    generator = torch.Generator().manual_seed(seed)
    for index, shard in enumerate(checkpointer.shards):
        rows = torch.arange(0, shard.rows, 3)
        checkpointer.touched.mark(index, rows)
        shard.weight_RD[rows] += torch.randn(len(rows), shard.columns, generator=generator)
        for state in shard.states.values():
            state[rows] += 1.0


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a base and two quantised deltas, the first of which is the best, and a code table of its own."""
    folder = tmp_path_factory.mktemp("exporting")
    run = folder / "run"
    shutil.copytree(prepared.codes, folder / "codes")
    with open_world() as world:
        write_untrained(run, world, prepared.store, folder / "codes", CONFIG, step=7)
        storage = run_storage(run)
        chain = find_chain(storage, "latest")
        checkpointer = watch(load_model(storage, chain, world), world, storage, chain, chain_share=1e9, values="int8")
        checkpointer._template = chain[-1].manifest
        model_only = checkpointer._dense
        checkpointer._dense = lambda: model_only() | {"optimizer.moments": torch.ones(3)}
        for step, metric in ((9, 0.5), (11, 0.4)):
            change(checkpointer, step)
            save(checkpointer, step, {"ndcg@10": metric})
    config = TrainConfig(run=str(run), store=str(prepared.store), codes=str(folder / "codes"), model=CONFIG)
    (run / "config.yaml").write_text(to_yaml(config))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "run", tmp_path / "run")


def parameters(folder: Path, which: str) -> dict[str, Tensor]:
    with open_world() as world:
        storage = run_storage(folder)
        model = load_model(storage, find_chain(storage, which), world)
        tables = {name: gather_table(table, world) for name, table in sharded_tables(model).items()}
        dense = dense_tensors(model)
        return {name: value.clone() for name, value in (tables | dense).items() if value is not None}


def measured(folder: Path, *keys: str) -> dict[str, Any]:
    assert evaluate.main([f"run={folder}", "bootstrap=20", *keys]) == 0
    figures: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return figures


def untimed(figures: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one evaluation to the next of the same model."""
    return {
        key: untimed(value) if isinstance(value, dict) else value
        for key, value in figures.items()
        if not any(word in key for word in ("second", "latency", "ms"))
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("run", "checkpoints"))


def test_a_bundle_that_was_moved_gives_the_metrics_of_the_run(
    run: Path, trained: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "BLOCK_BYTES", 7 * 4 * CONFIG.width)
    expected = measured(run)
    assert expected["checkpoint"] == BEST
    out = tmp_path / "made" / "bundle"
    assert main(["export", str(run), str(out)]) == 0
    moved = tmp_path / "moved"
    out.rename(moved)
    hidden = trained / "codes"
    hidden.rename(trained / "hidden")
    try:
        found = measured(moved, f"store={prepared.store}")
    finally:
        (trained / "hidden").rename(hidden)
    assert untimed(found) == untimed(expected)
    theirs = parameters(run, BEST)
    assert not torch.equal(*(parameters(run, which)["artist_remainder"] for which in (BEST, NEWEST)))
    for name, value in parameters(moved, "latest").items():
        assert torch.equal(value, theirs[name]), name


def test_what_is_in_a_bundle(run: Path, trained: Path, tmp_path: Path) -> None:
    (run / "config.yaml").write_text(
        to_yaml(TrainConfig(run="r", store="s", codes="c", model=CONFIG)).replace(
            "path: ''", f"path: {run}/checkpoints"
        )
    )
    out = tmp_path / "bundle"
    assert main(["export", str(run), str(out), "--checkpoint", "latest"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "codes", "config.yaml"]
    assert yaml.safe_load((out / "config.yaml").read_text())["checkpoint"]["path"] == ""
    for path in (trained / "codes").rglob("*"):
        assert path.is_dir() or (out / "codes" / path.relative_to(trained / "codes")).read_bytes() == path.read_bytes()
    storage = LocalStorage(out / "checkpoints")
    (chain,) = [Checkpoints(storage).whole_chain(name) for name in Checkpoints(storage).names()]
    manifest, original = chain[-1].manifest, read_manifest(open_storage(run / "checkpoints"), NEWEST)
    assert [link.manifest.kind for link in chain] == [BASE]
    assert (manifest.step, manifest.codes, manifest.random) == (11, "codes", [])
    assert manifest.codes_fingerprint == original.codes_fingerprint
    assert all(shard.states == "" for shard in manifest.shards)
    assert sorted(name.split(".")[0] for name in manifest.files) == ["dense", "tables-00000-of-00001"]
    with open_chain(storage, chain) as reader:
        with open_chain(run_storage(run), find_chain(run_storage(run), NEWEST)) as theirs:
            assert reader.dense().keys() == theirs.dense().keys() - {"optimizer.moments"}
            assert "optimizer.moments" in theirs.dense()
        with reader.open(chain[-1], manifest.shards[0].tables) as file:
            assert set(file.keys()) == {f"{shard.key}.values" for shard in manifest.shards}
    # A bundle is a run as far as these tools go.
    assert main(["verify", str(out)]) == 0
    assert main(["export", str(out), str(tmp_path / "again")]) == 0
    assert parameters(tmp_path / "again", "best").keys() == parameters(run, NEWEST).keys()


def test_nothing_can_be_trained_on_from_a_bundle(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "bundle")]) == 0
    with open_world() as world:
        storage = run_storage(tmp_path / "bundle")
        chain = find_chain(storage, "latest")
        shards = watch(load_model(storage, chain, world), world, tmp_path / "other").shards
        with open_chain(storage, chain) as reader, pytest.raises(InputError, match="cannot be read"):
            reader.fill(shards)


def test_folders_that_hold_something_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("full", "file"):
        out = tmp_path / name
        if name == "full":
            out.mkdir()
            (out / "mine").touch()
        else:
            out.write_text("mine")
        assert main(["export", str(run), str(out)]) == 2
        assert f"trainer.checkpoint: {out}: " in capsys.readouterr().err
        assert sorted(tmp_path.rglob("mine")) == [tmp_path / "full" / "mine"]
    assert (tmp_path / "file").read_text() == "mine"
    assert main(["export", str(run), "s3://bucket/bundle"]) == 2
    assert "local folder" in capsys.readouterr().err
    assert leftovers(tmp_path) == ["file", "full"]


def test_another_code_table_is_refused(
    run: Path, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert fit.main([f"store={prepared.store}", f"out={other}", "levels=3", "codes=8"]) == 0
    out = tmp_path / "bundle"
    assert main(["export", str(run), str(out), "--codes", str(other)]) == 2
    assert f"{other}: is the code table" in capsys.readouterr().err
    assert main(["export", str(run), str(out), "--codes", str(tmp_path / "none")]) == 2
    assert leftovers(tmp_path) == ["other"]
    assert main(["export", str(run), str(out), "--codes", str(prepared.codes)]) == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(folding.Folding, "write_tensors", fail)
    assert main(["export", str(run), str(tmp_path / "bundle")]) == (2 if isinstance(error, OSError) else 130)
    assert leftovers(tmp_path) == []
