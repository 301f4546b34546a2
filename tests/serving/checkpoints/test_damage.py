"""Every file of a chain is harmed in every way: it is found, named, and passed over; what is restored is what was."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.errors import InputError
from common.storage import open_storage
from serving.checkpoints.chain import Checkpoints, Link
from serving.checkpoints.manifest import BASE, DELTA, MANIFEST, Damage, step_folder
from serving.checkpoints.model import MODEL, dense_tensors
from serving.checkpoints.restore import open_chain
from sharding.tables import table_shards
from sharding.world import World, open_world
from tests.checkpoint_example import ROWS, two_tables, whole_state, write_chain
from tests.ranks import run_on_ranks

STEPS = (10, 20, 30, 40)
States = dict[int, dict[str, Tensor]]
FLIPS = 4


def truncate(path: Path, _seed: int) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path, _seed: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path, _seed: int) -> None:
    path.write_bytes(b"")


def remove(path: Path, _seed: int) -> None:
    path.unlink()


def lengthen(path: Path, _seed: int) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def flip(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def swap(path: Path, _seed: int) -> None:
    """The file that plays the same part in another step, under this one's name."""
    other = next(folder for folder in sorted(path.parent.parent.iterdir()) if folder.name != path.parent.name)
    part = path.name.split(".")[0]
    path.write_bytes(next(file for file in other.iterdir() if file.name.split(".")[0] == part).read_bytes())


HARMS: list[tuple[Callable[[Path, int], None], int]] = [
    *((harm, 0) for harm in (truncate, halve, empty, remove, lengthen, swap)),
    *((flip, seed) for seed in range(FLIPS)),
]


def fill(model: DistributedModelParallel, path: Path, chain: list[Link]) -> dict[str, Tensor]:
    """Everything that a chain restores into a model that held something else."""
    storage = open_storage(path)
    for shard in table_shards(model):
        for tensor in (shard.weight_RD, *shard.states.values()):
            tensor.fill_(float("nan"))
    with open_chain(storage, chain) as reader:
        reader.fill(table_shards(model))
        for name, value in dense_tensors(model).items():
            value.copy_(reader.dense()[f"{MODEL}{name}"])
    return whole_state(model)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def harmless(path: Path, before: bytes) -> bool:
    """A blank of a manifest turned into another blank, or one more: JSON says the same."""
    try:
        return path.name == MANIFEST and bool(json.loads(path.read_bytes()) == json.loads(before))
    except (OSError, ValueError):
        return False


def check_one(path: Path, file: Path) -> list[Link]:
    """A harmed file is named by everything that looks at it; returns the newest chain without it."""
    step = int(file.parent.name.removeprefix("step-"))
    checkpoints = Checkpoints(open_storage(path))
    if file.name == MANIFEST:
        with pytest.raises(Damage, match=f"{file.parent.name}/{MANIFEST}: "):
            checkpoints.link(file.parent.name)
    else:
        faults = checkpoints.faults(checkpoints.link(file.parent.name))
        assert len(faults) == 1
        assert faults[0].startswith(f"{file}: ")
    for other in STEPS:
        needs_it = pytest.raises(Damage, match=f"^{file}: ") if other >= step else nullcontext()
        with needs_it:
            checkpoints.whole_chain(step_folder(other))
    broken = [other for other in reversed(STEPS) if other >= step and (path / step_folder(other) / MANIFEST).exists()]
    if step == STEPS[0]:
        with pytest.raises(InputError) as caught:
            Checkpoints(open_storage(path)).newest_whole_chain()
        chain, passed = [], list(caught.value.faults)
    else:
        chain, passed = Checkpoints(open_storage(path)).newest_whole_chain()
        assert [link.manifest.step for link in chain] == [other for other in STEPS if other < step]
    assert len(passed) == len(broken)
    for other, fault in zip(broken, passed, strict=True):
        assert fault.startswith(f"{step_folder(other)} cannot be used: {file}: ")
    return chain


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


@pytest.fixture(scope="module")
def one(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, States]:
    """A chain of one process, and what it saved."""
    path = tmp_path_factory.mktemp("one") / "chain"
    return path, write_chain(world, path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, States]:
    """A chain of two processes, which have tried what damage is to both of them, and what they saved, put together."""
    path = tmp_path_factory.mktemp("two") / "chain"
    by_rank = run_on_ranks(2, write_and_harm, path)
    return path, {step: joined([states[step] for states in by_rank]) for step in STEPS}


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Runs of rows of several ranks as one process has them."""
    pieces: dict[tuple[str, str], dict[int, Tensor]] = {}
    whole = {}
    for part in parts:
        for name, value in part.items():
            table, *place = name.split(".")
            if table in ROWS:
                pieces.setdefault((table, ".".join(place[1:])), {})[int(place[0])] = value
            else:
                whole[name] = value
    return whole | {
        f"{table}.0.{rest}": torch.cat([value for _, value in sorted(runs.items())])
        for (table, rest), runs in pieces.items()
    }


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_every_harm_to_every_file_is_found_and_passed_over(
    ranks: str, world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, states = request.getfixturevalue(ranks)
    model = two_tables(world)
    checkpoints = Checkpoints(open_storage(source))
    assert [link.manifest.kind for link in checkpoints.newest_whole_chain()[0]] == [BASE, DELTA, DELTA, DELTA]
    assert all(not checkpoints.faults(link) for link in checkpoints.links())
    for step in STEPS:
        assert same(fill(model, source, checkpoints.whole_chain(step_folder(step))), states[step])
    path = tmp_path / "chain"
    shutil.copytree(source, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    assert len(files) == len(STEPS) * (4 if ranks == "one" else 6)
    tried = 0
    for number, file in enumerate(files):
        before = file.read_bytes()
        for harm, seed in HARMS:
            harm(file, 1000 * number + seed)
            if not harmless(file, before):
                tried += 1
                chain = check_one(path, file)
                if chain:
                    assert same(fill(model, path, chain), states[chain[-1].manifest.step]), (harm, file)
            file.write_bytes(before)
    assert tried > len(files) * (len(HARMS) - 2)


def test_when_every_checkpoint_is_harmed_all_faults_are_told(one: tuple[Path, States], tmp_path: Path) -> None:
    path = tmp_path / "chain"
    shutil.copytree(one[0], path)
    harmed = []
    for step, part, harm in zip(
        STEPS, ("dense", "tables", "states", "manifest"), (flip, halve, remove, empty), strict=True
    ):
        file = next((path / step_folder(step)).glob(f"{part}*"))
        harm(file, 0)
        harmed.append(file)
    with pytest.raises(InputError) as caught:
        Checkpoints(open_storage(path)).newest_whole_chain()
    for step, file, fault in zip(reversed(STEPS), reversed(harmed), caught.value.faults, strict=True):
        assert fault.startswith(f"{step_folder(step)} cannot be used: {file}: ")


def test_a_file_below_what_is_no_folder_any_more_is_damage(one: tuple[Path, States], tmp_path: Path) -> None:
    path = tmp_path / "chain"
    shutil.copytree(one[0], path)
    file = next((path / step_folder(40)).glob("tables*"))
    file.unlink()
    file.mkdir()
    chain, passed = Checkpoints(open_storage(path)).newest_whole_chain()
    assert chain[-1].name == step_folder(30)
    assert f"{file}: cannot be read: " in passed[0]


def write_and_harm(world: World, path: Path) -> States:
    """On each rank: verification is shared out, and all ranks are of one mind, whoever has read the harmed file."""
    states = write_chain(world, path)
    model = two_tables(world)
    scratch = path.with_name("harmed")
    if world.is_main:
        shutil.copytree(path, scratch)
    dist.barrier()
    files = sorted(file for file in scratch.rglob("*") if file.is_file())
    for number, file in enumerate(files):
        before = file.read_bytes()
        dist.barrier()
        if world.is_main:
            (flip, truncate, remove)[number % 3](file, number)
        dist.barrier()
        if not harmless(file, before):
            chain, passed = newest(scratch)
            told: list[Any] = [None] * world.size
            dist.all_gather_object(told, passed)
            assert told[0] == told[1]
            assert all(f"cannot be used: {file}: " in fault for fault in passed)
            reached = chain[-1].manifest.step if chain else 0
            assert reached == int(file.parent.name.removeprefix("step-")) - 10
            if chain:
                assert same(fill(model, scratch, chain), states[reached])
        dist.barrier()
        if world.is_main:
            file.write_bytes(before)
    one_rank_sees_less(world, path)
    return states


def newest(path: Path) -> tuple[list[Link], list[str]]:
    try:
        return Checkpoints(open_storage(path)).newest_whole_chain()
    except InputError as error:
        return [], list(error.faults)


def one_rank_sees_less(world: World, path: Path) -> None:
    """A file system that shows a rank an older state, or fails it, must not lead the ranks apart."""
    for hidden, step in ((MANIFEST, 40), ("tables", 30), ("dense", 20), ("states", 40)):
        for blind in range(world.size):
            storage = open_storage(path)
            if world.rank == blind:
                hide(storage, step_folder(step), hidden)
            chain, passed = Checkpoints(storage).newest_whole_chain()
            if hidden == MANIFEST:
                assert (chain[-1].manifest.step, len(passed)) == (30, 1)
            told: list[Any] = [None] * world.size
            dist.all_gather_object(told, ([link.name for link in chain], passed))
            assert told[0] == told[1]


def hide(storage: Any, folder: str, part: str) -> None:
    opened = storage.open

    def without(name: str) -> Any:
        if name.startswith(f"{folder}/{part}"):
            raise OSError(116, "Stale file handle")
        return opened(name)

    storage.open = without
