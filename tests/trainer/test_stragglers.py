"""What each rank's steps cost itself, on ranks made slow by a known time, and when one is named."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing as mp

from data.loader import Loader
from tests.conftest import Prepared
from tests.ranks import become
from tests.trainer.test_train import SMALL, records
from trainer import stragglers, train
from trainer.stragglers import RankTimes, Stragglers

SLOW_S = 0.15
EPOCH = 4  # steps: the pipeline fetches batches ahead, and in each epoch anew


def make_slow(where: str) -> None:
    """Have this process take longer: in its loader, in the forward of its model, or in the backward."""
    iterate, build = Loader.iterate, train.build_sharded

    def slowly(self: Loader, *arguments: Any) -> Iterator[Any]:
        for batch in iterate(self, *arguments):
            time.sleep(SLOW_S)
            yield batch

    def build_slow(*arguments: Any, **named: Any) -> Any:
        model = build(*arguments, **named)
        if where == "forward":
            model.module.tower.register_forward_pre_hook(lambda *_: time.sleep(SLOW_S))
        else:
            parameter = next(model.module.tower.parameters())
            parameter.register_hook(lambda gradient: (time.sleep(SLOW_S), gradient)[1])
        return model

    if where == "loader":
        Loader.iterate = slowly  # type: ignore[method-assign, assignment]
    else:
        train.build_sharded = build_slow  # type: ignore[assignment]


def train_slow(rank: int, environment: dict[str, str], size: int, port: int, keys: list[str], where: str) -> None:
    become(rank, size, environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    stragglers.JUDGED_S = 0.0
    if rank == 1:
        make_slow(where)
    assert train.main(keys) == 0


@pytest.mark.parametrize("where", ["loader", "forward", "backward"])
def test_a_slow_rank_is_told_from_those_that_wait_for_it(prepared: Prepared, tmp_path: Path, where: str) -> None:
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={run}", *SMALL]
    keys += [f"max_steps={4 * EPOCH}", "validate_every=100", f"log_every={EPOCH}"]
    arguments = (dict(os.environ), 2, port, keys, where)
    mp.start_processes(train_slow, args=arguments, nprocs=2, join=True, start_method="forkserver")

    found = records(run, "ranks")
    assert [record["step"] for record in found] == [EPOCH, 2 * EPOCH, 3 * EPOCH, 4 * EPOCH]

    def of(name: str) -> Any:
        """Median over intervals, by rank."""
        return np.median([record[name] for record in found], axis=0)

    own, wait, compute, blocked = (of(f"{name}_s") for name in ("own", "data_wait", "compute", "blocked"))
    # The machine is busy with other things: a part of what was planted is enough to tell who is slow, and where.
    assert own[1] - own[0] > 0.6 * SLOW_S
    assert blocked[0] - blocked[1] > 0.6 * SLOW_S
    slow_in, fast_in = (wait, compute) if where == "loader" else (compute, wait)
    assert slow_in[1] - slow_in[0] > 0.6 * SLOW_S
    assert fast_in[1] < 0.6 * SLOW_S or where == "loader"
    assert {record["slowest"] for record in found} == {1}
    for record in found:
        for parts in zip(record["own_s"], record["data_wait_s"], record["compute_s"], strict=True):
            assert parts[0] == pytest.approx(parts[1] + parts[2], abs=1e-3)
    said = (run / "logs" / "rank-00000.log").read_text()
    assert said.count("rank 1 on ") == said.count("holds the others up") == 1
    assert "the others" in said


def times(*own: float, wait: float = 0.0) -> RankTimes:
    return RankTimes(list(own), [wait] * len(own), [2.0 - one for one in own])


HOSTS = ["n1", "n1", "n2", "n2"]


def judge(judged: Stragglers, *spans: RankTimes) -> list[str]:
    return [judged.judge(span, 5, HOSTS) for span in spans]


def test_a_rank_is_named_once_when_it_is_slow_for_a_while_and_taken_back_once() -> None:
    judged, even, slow = Stragglers(0.2, 0.0), times(1.0, 1.0, 1.05, 1.1), times(0.98, 0.98, 0.98, 1.42, wait=0.44)
    assert judge(judged, even, even, even) == ["", "", ""]
    said = judge(judged, slow, slow, slow, slow, slow)
    assert [bool(line) for line in said] == [False, False, True, False, False]
    assert said[2] == (
        "rank 3 on n2 holds the others up: 1.42 s a step of its own, the others 0.98; of which data wait 31%, "
        "compute 69%"
    )
    said = judge(judged, even, slow, even, even, even, even)
    assert [bool(line) for line in said] == [False, False, False, False, True, False]
    assert said[4] == "rank 3 on n2 no longer holds the others up"


def test_ranks_that_are_slow_in_turn_are_not_named() -> None:
    judged = Stragglers(0.2, 0.0)
    turns = [times(1.5, 1, 1, 1), times(1, 1.5, 1, 1), times(1, 1, 1.5, 1)]
    assert judge(judged, *turns, *turns) == [""] * 6


def test_intervals_are_judged_together_until_they_are_long_enough() -> None:
    judged = Stragglers(0.2, judged_s=0.2)
    said = []
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        time.sleep(0.02)
        said.append(judged.judge(times(1.0, 1.0, 1.0, 3.0 if len(said) % 2 else 1.0), 5, HOSTS))
    assert sum(map(bool, said)) == 1, "on average rank 3 took twice as long"


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_share_decides(share: float) -> None:
    said = judge(Stragglers(share, 0.0), *[times(1.0, 1.1, 1.0, 1.0)] * 3)
    assert bool(said[2]) == (share < 0.1)
