from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from common.errors import InputError
from data.sources.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_everything_arrives_in_order_from_another_thread() -> None:
    def blocks() -> Iterator[tuple[int, str]]:
        for number in range(50):
            yield number, threading.current_thread().name

    found = list(prefetched(blocks()))
    assert [number for number, _ in found] == list(range(50))
    assert {name for _, name in found} != {threading.current_thread().name}
    assert not threads()


def test_a_fault_is_raised_after_the_blocks_before_it() -> None:
    def blocks() -> Iterator[int]:
        yield from range(3)
        raise InputError("the fourth is damaged")

    reading = prefetched(blocks())
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="the fourth is damaged"):
        next(reading)
    assert not threads()


def test_at_most_one_block_is_made_ahead_and_none_after_the_end() -> None:
    made = []

    def blocks() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    reading = prefetched(blocks())
    assert [next(reading), next(reading)] == [0, 1]
    reading.close()  # as an exception or Ctrl-C in the loop does
    assert len(made) <= 3
    assert not threads()


def test_ctrl_c_passes_through() -> None:
    def blocks() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    reading = prefetched(blocks())
    assert next(reading) == 1
    with pytest.raises(KeyboardInterrupt):
        next(reading)
    assert not threads()
