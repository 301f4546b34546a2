from __future__ import annotations

import itertools
import os
import signal
import sys
import time

import pytest

from torchx_components.endings import PRECEDENCE, overall
from torchx_components.stages.processes import Ended, Stops, combined, exit_status, read, run

PYTHON = (sys.executable, "-S", "-c")
HERE = dict(os.environ)
SAVES = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit({status})); print(1, flush=True); time.sleep(60)"
)


def test_one_status_of_many() -> None:
    assert combined([]) == combined([0, 0]) == 0
    assert combined([0, 7]) == 7
    for statuses in itertools.product((0, *PRECEDENCE), repeat=3):
        assert combined(statuses) == overall(statuses), "the launcher's rule"


@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 3), (-2, 130), (-15, 143), (-9, 1), (-11, 1)])
def test_status_of_a_process(code: int, status: int) -> None:
    assert exit_status(code) == status


def test_a_command_ends_with_its_own_status() -> None:
    with Stops() as stops:
        assert run([*PYTHON, "raise SystemExit(3)"], HERE, stops, lambda: None) == 3


def stopped(command: list[str], number: signal.Signals) -> int:
    """The status of a command while which this process gets a signal."""
    sent = []
    start = time.monotonic()

    def send_once() -> None:
        if not sent and time.monotonic() > start + 1:
            sent.append(number)
            signal.raise_signal(number)

    with Stops() as stops:
        return run(command, HERE, stops, send_once)


@pytest.mark.parametrize(
    ("status", "number", "expected"),
    [(143, signal.SIGTERM, 143), (4, signal.SIGTERM, 143), (1, signal.SIGTERM, 143), (2, signal.SIGTERM, 2)],
)
def test_a_signal_is_passed_on_and_waited_for(status: int, number: signal.Signals, expected: int) -> None:
    assert stopped([*PYTHON, SAVES.format(status=status)], number) == expected


def test_ctrl_c_reaches_a_command_through_us() -> None:
    assert stopped([*PYTHON, "import time; time.sleep(60)"], signal.SIGINT) == 130


def test_what_is_done_all_the_same_is_done() -> None:
    assert stopped([*PYTHON, SAVES.format(status=0)], signal.SIGTERM) == 0


def test_another_node_asks_once_for_an_end_with_its_status() -> None:
    with Stops() as stops:

        def ask() -> None:
            stops.ask(2)
            stops.ask(4)

        assert run([*PYTHON, "import time; time.sleep(60)"], HERE, stops, ask) == 2
        assert stops.asked == [(signal.SIGTERM, 2)]
        with pytest.raises(Ended) as ended:
            stops.check()
        assert ended.value.status == 2


def test_what_was_asked_before_a_command_began_ends_it_too() -> None:
    with Stops() as stops:
        signal.raise_signal(signal.SIGTERM)
        assert run([*PYTHON, "import time; time.sleep(60)"], HERE, stops, lambda: None) == 143


def test_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stops() as stops:
        signal.raise_signal(signal.SIGTERM)
        assert stops.status == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_what_a_command_says() -> None:
    with Stops() as stops:
        assert read([*PYTHON, "print('a' * 200_000)"], HERE, stops) == (0, "a" * 200_000 + "\n", "")
        assert read([*PYTHON, "import sys; sys.stderr.write('b'); sys.exit(2)"], HERE, stops) == (2, "", "b")
        stops.ask(143)
        start = time.monotonic()
        with pytest.raises(Ended):
            read([*PYTHON, "import time; time.sleep(60)"], HERE, stops)
        assert time.monotonic() - start < 30
