"""The crash driver in short, and that it can fail: differences of one bit, damage and wrong resumptions are told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.crash_child import PLACE as PLACE_COLUMN
from benchmarks.crash_child import RESUMED, TRAINING, Board
from benchmarks.crash_runs import Strike, differences, faults_of, newest_step, unfinished
from sharding.world import open_world
from tests.checkpoint_example import write_chain
from tests.ranks import run_module

ROOT = Path(__file__).parents[2]


def test_killed_trainings_of_one_and_two_ranks_end_as_those_that_nobody_killed(tmp_path: Path) -> None:
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    said = tmp_path / "said"
    assert run_module("benchmarks.crash", "--quick", said=said) == 0, Path(f"{said}.errors").read_text()
    figures = json.loads(said.read_text().splitlines()[-1])
    assert figures["kills"] == figures["identical"] == 8, said.read_text()
    assert figures["mismatches"] == 0
    assert figures["kills_during_writes"] > 0, "of each number of ranks, one stops in a writing to be killed there"
    assert figures["control_noticed"] == 1, "one number moved by the least amount must be found"
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before, "a quick run keeps no page"


def ended_run(run: Path, tensors: dict[str, Tensor], losses: list[float], rate: float = 1.0) -> Path:
    """What a run leaves for the comparison."""
    state = run.with_name(f"{run.name}-state")
    state.mkdir(parents=True)
    run.mkdir()
    save_file(tensors, str(state / "0.safetensors"))
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "loss": loss, "events_per_s": rate} for step, loss in enumerate(losses)
    ]
    lines.append({"kind": "checkpoint", "step": 1, "seconds": rate})
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def test_runs_that_differ_in_times_alone_are_identical(tmp_path: Path) -> None:
    numbers = {"table": torch.arange(6.0), "nothing": torch.full((2,), torch.nan)}
    one = ended_run(tmp_path / "one", numbers, [2.0, 1.0])
    other = ended_run(tmp_path / "other", numbers, [2.0, 1.0], rate=7.0)
    assert differences(one, other) == []


@pytest.mark.parametrize(
    ("tensors", "losses", "told"),
    [
        ({"table": torch.tensor([0.0, 1.0000001])}, [2.0, 1.0], "rank 0, table: differs"),
        ({"table": torch.tensor([-0.0, 1.0])}, [2.0, 1.0], "rank 0, table: differs"),
        ({"table": torch.tensor([0.0, 1.0]), "more": torch.ones(1)}, [2.0, 1.0], "rank 0, more: only one"),
        ({"table": torch.tensor([0.0, 1.0])}, [2.0, 1.0000000000000002], "train after step 1: differs"),
        ({"table": torch.tensor([0.0, 1.0])}, [2.0], "records of other steps"),
    ],
)
def test_the_least_difference_is_told(
    tmp_path: Path, tensors: dict[str, Tensor], losses: list[float], told: str
) -> None:
    whole = ended_run(tmp_path / "whole", {"table": torch.tensor([0.0, 1.0])}, [2.0, 1.0])
    faults = differences(whole, ended_run(tmp_path / "killed", tensors, losses))
    assert len(faults) == 1
    assert told in faults[0]


def test_damage_and_a_resumption_from_elsewhere_are_told(tmp_path: Path) -> None:
    run, board = tmp_path / "run", Board()
    assert newest_step(run) == -1
    with open_world() as world:
        write_chain(world, run / "checkpoints", steps=3)
    (run / "checkpoints" / "step-00000040").mkdir()
    assert newest_step(run) == 30
    assert unfinished(run) == 1
    board.clear()
    assert faults_of(run, board, 30) == []
    board.facts[0, PLACE_COLUMN], board.facts[0, RESUMED] = TRAINING, 20
    assert "from step 20, the newest whole checkpoint was step-00000030" in " ".join(faults_of(run, board, 30))
    board.facts[0, RESUMED] = 30
    assert faults_of(run, board, 30) == []

    file = next((run / "checkpoints" / "step-00000020").glob("tables-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = faults_of(run, board, 30)
    assert len(found) == 1
    assert file.name in found[0]


def test_kills_are_spread_over_time_writings_and_ranks() -> None:
    chance = random.Random(0)
    aimed = [Strike.draw(chance, 2, 3.0, 4, turn) for turn in range(1, 401, 2)]
    assert {strike.moment for strike in aimed} == {1, 2, 3}
    assert {strike.writes for strike in aimed} == {1, 2, 3, 4}
    assert {tuple(strike.ranks) for strike in aimed} == {(0,), (1,), (0, 1)}
    assert all(strike.seconds is None and 0 <= strike.delay <= 4e-3 for strike in aimed)
    assert [strike.held for strike in aimed] == [True, False] * 100
    times = [Strike.draw(chance, 1, 3.0, 4, turn=2).seconds or 0.0 for _ in range(200)]
    assert min(times) < 0.1
    assert 2.9 < max(times) <= 3.0
    alone = Strike.draw(chance, 1, 1.0, 0, turn=1)
    assert alone.ranks == [0]
    assert alone.seconds is not None, "there is no writing to aim at"
