"""What ranks say of themselves, and which one a message blames."""

from __future__ import annotations

import time

import pytest

from sharding.ranks.heartbeat import SAVING, TRAINING, VALIDATION, Beat, Pulse, Seen, Table, culprits, describe_loss


def rank(number: int, *, silent: bool = False, **of_beat: object) -> Seen:
    beat = Beat(number, f"n{number // 2 + 1}", 100 + number, **{"phase": TRAINING, "step": 12, **of_beat})  # type: ignore[arg-type]
    return Seen(beat, 40.0 if silent else 1.0, silent)


def test_a_pulse_counts_from_the_last_change_and_comes_back_to_its_phase() -> None:
    pulse = Pulse()
    pulse.enter(TRAINING)
    pulse.step_done(1, 7)
    time.sleep(0.05)
    assert 0.05 <= pulse.age_s < 1
    with pulse.during(SAVING):
        assert pulse.now[:3] == (SAVING, 1, 7)
        assert pulse.age_s < 0.05
    assert pulse.now[:3] == (TRAINING, 1, 7)


def test_a_step_costs_a_pulse_next_to_nothing() -> None:
    pulse = Pulse()
    start = time.perf_counter()
    for step in range(10_000):
        pulse.step_done(0, step)
    assert (time.perf_counter() - start) / 10_000 < 50e-6


def test_a_beat_reads_back_as_written() -> None:
    beat = Beat(3, "n2", 77, count=5, phase=VALIDATION, epoch=2, step=9, age_s=1.5, waiting=True, ended="done")
    assert Beat.of_json(beat.to_json()) == beat


def test_a_rank_is_silent_when_its_count_stands_still_whatever_it_says() -> None:
    table = Table(2, silence_s=0.1)
    until = time.monotonic() + 0.2
    count = 0
    while time.monotonic() < until:
        count += 1
        table.hear([Beat(0, "n1", 1, count=count), Beat(1, "n1", 2, count=1, step=count)])
        time.sleep(0.01)
    assert [seen.is_silent for seen in table.seen()] == [False, True]
    table.hear([Beat(1, "n1", 2, count=2)])
    assert not table.seen()[1].is_silent
    table.hear([Beat(1, "n1", 2, count=3, ended="done")])
    time.sleep(0.15)
    assert not table.seen()[1].is_silent, "who has ended is not expected to speak"


@pytest.mark.parametrize(
    ("ranks", "expected", "reason"),
    [
        ([rank(0, lost=True), rank(1, ended="ValueError: no"), rank(2, silent=True)], [1], "has ended"),
        ([rank(0, waiting=True), rank(1, waiting=True, step=11), rank(2, silent=True)], [2], "does not answer"),
        ([rank(0, waiting=True), rank(1, waiting=True, step=11), rank(2)], [1], "is behind"),
        ([rank(0, waiting=True), rank(1), rank(2, waiting=True)], [1], "waits for nobody"),
        ([rank(0, waiting=True), rank(1, waiting=True)], [], "no rank stands out"),
        ([rank(0), rank(1)], [], "no rank stands out"),
        ([rank(0)], [0], "waits for nobody"),
        ([rank(0, lost=True, ended="lost a peer"), rank(1, silent=True)], [1], "does not answer"),
    ],
)
def test_who_holds_the_others_up(ranks: list[Seen], expected: list[int], reason: str) -> None:
    chosen, why = culprits(ranks)
    assert ([seen.beat.rank for seen in chosen], why) == (expected, reason)


def test_a_message_names_the_rank_its_node_and_where_each_was() -> None:
    ranks = [rank(0, waiting=True, age_s=1800.0), rank(3, silent=True, step=11, age_s=2.0)]
    assert describe_loss("no step for 1801 s", ranks).splitlines() == [
        "no step for 1801 s: rank 3 on n2 (pid 103) does not answer",
        "  rank 3 on n2 (pid 103): training, step 11, 42 s ago; last heard of 40 s ago  ← this one",
        "  rank 0 on n1 (pid 100): training, step 12, 1801 s ago; waits for the others",
    ]


def test_a_message_of_many_ranks_stays_short_and_keeps_the_one_to_blame() -> None:
    ranks = [rank(number, waiting=number != 900) for number in range(1000)]
    lines = describe_loss("no step", ranks).splitlines()
    assert len(lines) < 20
    assert lines[1].endswith("← this one")
    assert "rank 900 on n451" in lines[0]
    assert lines[-1] == "  … and 984 more ranks"
