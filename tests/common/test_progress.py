from __future__ import annotations

import io

import pytest

from common import progress
from common.progress import Progress, format_count, format_seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def advance(work: Progress, clock: Clock, seconds: float, amount: int, note: str = "") -> None:
    clock.now += seconds
    work.advance(amount, note)


def test_plain_lines_come_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("prepare", 4000, "users", stream=stream) as work:
        for _ in range(40):
            advance(work, clock, 0.5, 100)
    assert stream.getvalue() == (
        "prepare: 2k/4k users, 200/s, 10s left\nprepare: 4k/4k users, 200/s, 0.0s left\nprepare: 4k users in 20s\n"
    )


def test_a_terminal_has_one_line_rewritten(clock: Clock) -> None:
    stream = Terminal()
    with Progress("train", None, "events", stream=stream) as work:
        advance(work, clock, 0.125, 5)
        advance(work, clock, 0.125, 5, "loss 3")
    assert stream.getvalue() == "\r\x1b[2Ktrain: 10 events, 40/s, loss 3\r\x1b[2Ktrain: 10 events in 0.2s\n"


def test_after_an_error_no_line_claims_that_it_was_done(clock: Clock) -> None:
    for stream, left in ((io.StringIO(), ""), (Terminal(), "\r\x1b[2K")):
        with pytest.raises(ValueError, match="broken"), Progress("x", 2, "users", stream=stream):
            raise ValueError("broken")
        assert stream.getvalue() == left


def test_quiet_and_unused(clock: Clock) -> None:
    stream = Terminal()
    with Progress("x", 10, "users", quiet=True, stream=stream) as work:
        advance(work, clock, 60, 10)
    assert stream.getvalue() == ""
    with Progress("x", 0, "users", stream=stream):
        pass
    assert stream.getvalue().endswith("x: 0 users in 0.0s\n")


def test_more_than_announced(clock: Clock) -> None:
    stream = io.StringIO()
    advance(Progress("x", 10, "users", stream=stream), clock, 10, 20)
    assert stream.getvalue() == "x: 20/10 users, 2/s, 0.0s left\n"


def test_standard_output_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("x", 1, "users") as work:
        work.advance()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("x: 1 users in ")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (75.3, "1m15s"),
        (3599.7, "1h00m"),
        (90061, "25h01m"),
    ],
)
def test_seconds(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (943, "943"),
        (999.6, "1k"),
        (1000, "1k"),
        (99_950, "100k"),
        (999_499, "999k"),
        (999_999, "1M"),
        (1_234_567, "1.23M"),
        (4_790_000_000, "4.79G"),
        (2e12, "2T"),
    ],
)
def test_counts(count: float, shown: str) -> None:
    assert format_count(count) == shown
