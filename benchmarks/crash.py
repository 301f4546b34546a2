"""Training killed at random instants, gone on with, and compared with training that nobody killed.

    python -m benchmarks.crash [--quick] [--kills N]

Real trainings of one and of two ranks, sharded tables, dropout, a checkpoint every other step, are ended by SIGKILL and
go on with `resume=auto` until they reach the end. All parameters, optimizer states and recorded losses must then be
those of an uninterrupted run, bit for bit. Half of the kills strike at any time, half at the writing of a checkpoint.
Of two ranks, one is killed (the other ends by itself, or is told to) or both are. Before each resumption every
checkpoint that has a manifest must be as it was written. `--kills` sets their number and keeps no page.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import crash_child
from benchmarks.crash_child import Attempt, Board
from benchmarks.crash_runs import LIMIT_S, PATIENCE_S, PHASES, WRITES, Job, Kill, Killed, kill_and_resume
from benchmarks.harness import Findings, run, table
from common.noise import quiet_known_warnings
from data import prepare, synthesize
from semantic_ids import fit

KILLS, QUICK_KILLS = 200, 8
MOST_KILLS_OF_A_RUN = 6


def make_keys(folder: Path, epochs: int) -> list[str]:
    """A small store and its codes, made in a process of their own; returns what a training of them is given.

    Raises:
        RuntimeError: they could not be made.
    """

    def make() -> int:
        raw, store, codes = (folder / name for name in ("raw", "store", "codes"))
        sizes = ["users=60", "items=600", "artists=400", "median_history=40", "embedding_width=8", "days=20"]
        return (
            synthesize.main(["kind=yambda", f"out={raw}", *sizes])
            or prepare.main(["source=yambda", f"path={raw}", "kind=listens", f"out={store}"])
            or fit.main([f"store={store}", f"out={codes}", "levels=2", "codes=16"])
        )

    made = Attempt([crash_child.fork(make, folder / "data.log")])
    if not made.wait(LIMIT_S) or made.statuses[0]:
        raise RuntimeError((folder / "data.log").read_text(encoding="utf-8")[-1500:])
    small = "width=16 heads=2 head_dim_qk=8 head_dim_v=8 max_history=32 qr_remainders=2 dropout=0.2 input_dropout=0.2"
    return [
        f"store={folder / 'store'}",
        f"codes={folder / 'codes'}",
        *(f"model.{key}" for key in small.split()),
        *("batch.tokens=64", "batch.bins=8", "batch.windows=tiled", "batch.shuffle_ties=true"),
        *(f"epochs={epochs}", "validate_every=3", "log_every=1", "seed=5"),
        *("optimizer.warmup_steps=4", "optimizer.clip_norm=1.0"),
        *("checkpoint.every=2", "checkpoint.keep=2", "checkpoint.chain_share=3.0"),
    ]


def work(quick: bool, folder: Path, findings: Findings, kills: int | None = None) -> None:
    """All of it."""
    quiet_known_warnings()
    torch.set_num_threads(1)  # a process of several threads cannot be forked safely
    os.environ["OMP_NUM_THREADS"] = "1"
    kills = kills or (QUICK_KILLS if quick else KILLS)
    begun = time.perf_counter()
    board, chance = Board(), random.Random(20)
    keys = make_keys(folder, epochs=3 if quick else 9)
    jobs = [Job(keys, size, folder) for size in (1, 2)]
    for job in jobs:
        job.run_whole(board)
        _say(f"{job.size} rank(s): {job.steps} steps in {job.seconds:.1f} s, of which {job.setup:.1f} s set-up")
    runs: list[Killed] = []
    while (left := kills - sum(len(run.kills) for run in runs)) > 0:
        most = min(left, chance.randint(1, MOST_KILLS_OF_A_RUN), kills // 2)
        run = kill_and_resume(jobs[len(runs) % 2], folder / f"run-{len(runs)}", board, chance, most)
        runs.append(run)
        _tell(run, len(runs))
        if not run.faults:
            shutil.rmtree(run.folder)
    altered = kill_and_resume(jobs[0], folder / "altered", board, chance, 1, alter=True)
    report(jobs, runs, altered, time.perf_counter() - begun, findings)


def _tell(run: Killed, number: int) -> None:
    for kill in run.kills:
        _say(f"run {number}: {kill}")
    for fault in run.faults:
        _say(f"run {number}: FAULT: {fault}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def report(jobs: Sequence[Job], runs: Sequence[Killed], altered: Killed, seconds: float, findings: Findings) -> None:
    """Figures, and what was struck."""
    kills = [kill for run in runs for kill in run.kills]
    faulty = [run for run in runs if run.faults]
    findings.add(
        "What was trained",
        "\n".join(
            f"- {job.size} rank(s): {job.steps} steps, {job.seconds:.1f} s uninterrupted, of which {job.setup:.1f} s "
            f"set-up; a checkpoint every 2 steps"
            for job in jobs
        ),
        kills=len(kills),
        identical=sum(len(run.kills) for run in runs if not run.faults),
        runs=len(runs),
        mismatches=len(faulty),
        kills_during_writes=sum(kill.phase in WRITES.values() for kill in kills),
        seconds=seconds,
    )
    findings.add("Kills by what they struck", _by_phase(kills))
    findings.add("Kills by how far the run had come", _by_progress(jobs, runs))
    peers = Counter(kill.peer for kill in kills if kill.peer)
    told = ", ".join(f"{count} by {how}" for how, count in peers.most_common()) or "none"
    findings.add("Ranks that lost their peer ended", f"{told} (told to only after {PATIENCE_S:.0f} s)")
    findings.add(
        "A control: one number of one table moved by the least amount at a resumption",
        "\n".join(f"- {fault}" for fault in altered.faults[:4]) or "went unnoticed",
        control_noticed=int(bool(altered.faults)),
    )
    for killed in faulty:
        text = "\n".join(f"- {fault}" for fault in killed.faults[:20])
        findings.add(f"{killed.folder.name} did not end identical", text)


def _by_phase(kills: Sequence[Kill]) -> str:
    columns = {
        "one rank": lambda kill: kill.size == 1,
        "two, one killed": lambda kill: kill.size == 2 and len(kill.ranks) == 1,
        "two, both killed": lambda kill: len(kill.ranks) == 2,
        "at any time": lambda kill: not kill.aimed,
        "at a writing": lambda kill: kill.aimed,
        "a folder without manifest left": lambda kill: kill.unfinished > 0,
        "all": lambda kill: True,  # noqa: ARG005
    }
    rows = [
        [phase, *(sum(kill.phase == phase and counts(kill) for kill in kills) for counts in columns.values())]
        for phase in PHASES
    ]
    return table(["struck in", *columns], rows)


def _by_progress(jobs: Sequence[Job], runs: Sequence[Killed]) -> str:
    steps = {job.size: job.steps for job in jobs}
    fifths = Counter(min(5 * kill.step // steps[kill.size], 4) for run in runs for kill in run.kills)
    return table(["steps done", "kills"], [[f"{20 * n}–{20 * n + 20}%", fifths[n]] for n in range(5)])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--kills", type=int)
    given, rest = parser.parse_known_args(argv)

    def with_kills(quick: bool, folder: Path, findings: Findings) -> None:
        work(quick and not given.kills, folder, findings, given.kills)

    return run("crash", with_kills, [*rest, "--quick"] if given.kills else rest)


if __name__ == "__main__":
    sys.exit(main())
