"""Chains folded into a base: the same numbers, bit for bit, whole whenever it is cut short."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.storage import LocalStorage, Storage, open_storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import BASE, DELTA, MANIFEST, encode_manifest, read_manifest
from serving.checkpoints.restore import open_chain
from sharding.world import World, open_world
from tests.checkpoint_example import (
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
from trainer.checkpoint.__main__ import main
from trainer.checkpoint.tools import compacting, folding

PLANS = ("row_wise", "column_wise")
NAMES = [f"step-{step:08d}" for step in (10, 20, 30, 40)]
FORMATS = [("float32", "float32"), ("int8", "bfloat16"), ("int4", "float32")]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "BLOCK_BYTES", 5 * 4 * WIDTH)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A base and three deltas."""
    with open_world() as world:
        write_chain(world, tmp_path / "checkpoints", 4, values="int8", states="bfloat16")
    return tmp_path / "checkpoints"


def restored(path: str | Path, name: str) -> dict[str, Tensor]:
    """Everything a checkpoint restores, under every plan."""
    with open_world() as world:
        states = {plan: whole_state(restore(world, path, name, plan)) for plan in PLANS}
    return {f"{plan} {key}": value for plan, state in states.items() for key, value in state.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def listing(storage: Storage, name: str) -> set[str]:
    return set(storage.files(name))


def is_tidy(storage: Storage, name: str) -> bool:
    """Whether the folder holds what its manifest names, and nothing else."""
    return listing(storage, name) == {MANIFEST, *read_manifest(storage, name).files}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("values", "states"), FORMATS)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_it_restores_the_same_bit_for_bit_and_so_do_later_deltas(
    tmp_path: Path, values: str, states: str, where: str
) -> None:
    path = str(tmp_path / "checkpoints") if where == "local" else f"memory://compact-{values}"
    with open_world() as world:
        write_chain(world, path, 4, values=values, states=states)
    storage = open_storage(path)
    expected = {name: restored(path, name) for name in NAMES}
    assert not same(expected[NAMES[1]], expected[NAMES[2]])
    before = read_manifest(storage, NAMES[2])

    assert main(["compact", path, "--checkpoint", NAMES[2]]) == 0
    after = read_manifest(storage, NAMES[2])
    assert (before.kind, after.kind, after.parent, after.parent_state) == (DELTA, BASE, "", "")
    assert (after.value_format, after.state_format) == ("float32", "float32")
    assert after.touched == ROWS
    unchanged = ("state", "step", "epoch", "metrics", "progress", "model", "tables", "world_size", "dense")
    assert [getattr(after, key) for key in unchanged] == [getattr(before, key) for key in unchanged]
    assert is_tidy(storage, NAMES[2])
    assert [link.name for link in Checkpoints(storage).whole_chain(NAMES[3])] == NAMES[2:]
    for name in NAMES:
        assert same(restored(path, name), expected[name])

    assert main(["compact", path]) == 0
    assert [link.name for link in Checkpoints(storage).whole_chain(NAMES[3])] == NAMES[3:]
    assert same(restored(path, NAMES[3]), expected[NAMES[3]])


def write_mixed(world: World, path: str) -> None:
    """Row-wise base and delta, a column-wise delta, a row-wise one; each rank with random states of its own."""
    model, chain = two_tables(world), []
    for step, plan in ((10, "row_wise"), (20, "row_wise"), (30, "column_wise"), (40, "row_wise")):
        if chain:
            model = restore(world, path, plan=plan)
        checkpointer = watch(model, world, path, chain, chain_share=1e9, values="int8" if step == 30 else "float32")
        train_rows(model, world, step)
        torch.manual_seed(world.rank)
        assert not save(checkpointer, step).error
        chain = Checkpoints(open_storage(path)).whole_chain(f"step-{step:08d}")


def random_states(storage: Storage, name: str) -> list[dict[str, Tensor]]:
    with open_chain(storage, Checkpoints(storage).chain(name)) as reader:
        return [reader.random(rank) for rank in range(reader.manifest.world_size)]


def test_a_chain_of_several_ranks_and_plans(tmp_path: Path) -> None:
    """Pieces stay those of the ranks; optimizer states of column pieces stay apart."""
    path = tmp_path / "checkpoints"
    run_on_ranks(3, write_mixed, str(path))
    storage = LocalStorage(path)
    expected = {name: restored(path, name) for name in NAMES}
    random = random_states(storage, NAMES[3])
    assert len(random) == 3
    assert all(each for each in random)
    for name in (NAMES[3], NAMES[2]):  # so that the second finds its child a base already
        before = read_manifest(storage, name)
        assert main(["compact", str(path), "--checkpoint", name]) == 0
        after = read_manifest(storage, name)
        assert len({shard.tables for shard in after.shards}) == len({shard.tables for shard in before.shards})
        assert {shard.first_column for shard in after.shards} == {0, WIDTH // 2}
        assert is_tidy(storage, name)
        for each in NAMES:
            assert same(restored(path, each), expected[each]), (name, each)
    for now, then in zip(random_states(storage, NAMES[3]), random, strict=True):
        assert same(now, then)


def test_a_base_stays_as_it_is(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(chain)
    (chain / NAMES[0] / "tables-00000-of-00001.left.safetensors").write_bytes(b"left by a crash")
    assert main(["compact", str(chain), "--checkpoint", NAMES[0], "--json"]) == 0
    out = capsys.readouterr().out
    assert "is a base already" in out
    assert json.loads(out.splitlines()[-1])["folded"] == 0
    assert content(chain) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ["create", "replace"])
def test_an_error_leaves_everything_as_it_was(
    chain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    method: str,
) -> None:
    before = content(chain)
    original = getattr(LocalStorage, method)

    def fail(self: LocalStorage, name: str, *arguments: Any) -> Any:
        if not name.rpartition("/")[2].startswith("tables"):  # of `create`, the second file
            raise error
        return original(self, name, *arguments)

    monkeypatch.setattr(LocalStorage, method, fail)
    assert main(["compact", str(chain)]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert content(chain) == before
    if isinstance(error, OSError):
        assert f"{chain}/{NAMES[3]}: the base cannot be written: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["before the manifest", "after the manifest"])
def test_killed_in_the_middle_one_of_the_two_is_whole_and_the_next_one_tidies_up(
    chain: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What nobody can catch: nothing that runs after the moment runs at all."""
    expected, storage = restored(chain, NAMES[3]), LocalStorage(chain)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "before the manifest":
            patch.setattr(LocalStorage, "replace", killed)
            patch.setattr(folding.Folding, "remove", lambda self: None)
        else:
            patch.setattr(compacting, "_remove_strangers", killed)
        assert main(["compact", str(chain)]) == 130
    assert not is_tidy(storage, NAMES[3])
    assert read_manifest(storage, NAMES[3]).kind == (DELTA if when == "before the manifest" else BASE)
    assert same(restored(chain, NAMES[3]), expected)
    assert main(["compact", str(chain)]) == 0
    assert is_tidy(storage, NAMES[3])
    assert same(restored(chain, NAMES[3]), expected)


def test_files_that_count_already_are_not_taken_back(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush or an answer that fails after the manifest is there."""
    expected = restored(chain, NAMES[3])
    replace = LocalStorage.replace

    def fail_late(self: LocalStorage, name: str, data: bytes) -> None:
        replace(self, name, data)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "replace", fail_late)
        assert main(["compact", str(chain)]) == 2
    assert read_manifest(LocalStorage(chain), NAMES[3]).kind == BASE
    assert same(restored(chain, NAMES[3]), expected)


def test_what_another_process_changed_meanwhile_is_not_replaced(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, write_tables = LocalStorage(chain), folding.Folding.write_tables

    def meanwhile(self: folding.Folding) -> Any:
        changed = dataclasses.replace(read_manifest(storage, NAMES[3]), state="another")
        storage.replace(f"{NAMES[3]}/{MANIFEST}", encode_manifest(changed))
        return write_tables(self)

    monkeypatch.setattr(folding.Folding, "write_tables", meanwhile)
    assert main(["compact", str(chain)]) == 2
    assert "was changed by another process meanwhile" in capsys.readouterr().err
    assert read_manifest(storage, NAMES[3]).state == "another"
    assert is_tidy(storage, NAMES[3])


def test_a_damaged_chain_is_not_folded(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((chain / NAMES[1]).glob("states-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    before = content(chain)
    assert main(["compact", str(chain), "--checkpoint", NAMES[2]]) == 2
    assert str(file) in capsys.readouterr().err
    assert content(chain) == before


def test_prune_removes_what_nothing_is_made_from_any_more(tmp_path: Path) -> None:
    """The best by validation, 20, stays, with its base 10; 30 goes; 50 is made from 40 and stays."""
    path = tmp_path / "checkpoints"
    with open_world() as world:
        model = two_tables(world)
        checkpointer = watch(model, world, path, chain_share=1e9)
        for step in (10, 20, 30, 40, 50):
            train_rows(model, world, step)
            save(checkpointer, step, {"ndcg@10": 0.5 if step == 20 else 0.1} if step < 50 else {})
    expected = {name: restored(path, name) for name in (*NAMES, "step-00000050")}
    assert main(["compact", str(path), "--checkpoint", NAMES[3]]) == 0
    assert Checkpoints(LocalStorage(path)).names() == [*NAMES, "step-00000050"]
    assert main(["compact", str(path), "--checkpoint", NAMES[3], "--prune"]) == 0
    left = [NAMES[0], NAMES[1], NAMES[3], "step-00000050"]
    assert sorted(each.name for each in path.iterdir()) == left
    for name in left:
        assert same(restored(path, name), expected[name])
