from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data import leakage, schema, split
from data.leakage import prove_no_leakage, user_blocks
from data.split import LeakageError, Split, SplitConfig
from data.store_writer import write_event_store
from tests.data.helpers import MemorySource

SOURCE = MemorySource(lengths_U=[30, 2, 17, 1, 40, 9], artists_N=[[0]] * 5)
CONFIG = SplitConfig(kind="temporal", test_seconds=10, validation_seconds=8, gap_seconds=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_event_store(SOURCE, tmp_path / "store", CONFIG)
    return tmp_path / "store"


def prove(folder: Path, config: SplitConfig = CONFIG) -> None:
    times = np.load(folder / schema.column_file(schema.TIMESTAMP))
    prove_no_leakage(folder, config, 6, (int(times.min()), int(times.max())))


@pytest.mark.parametrize("kind", ["temporal", "leave-last-out", "leave-last-share", "held-out-users"])
@pytest.mark.parametrize("block", [1, 20, 2**21])
def test_honest_stores_pass_in_blocks_of_any_size(
    folder: Path, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "_BLOCK_EVENTS", block)
    prove(folder, CONFIG if kind == "temporal" else SplitConfig(kind=kind))


def test_times_that_go_down_are_found(folder: Path) -> None:
    path = folder / schema.column_file(schema.TIMESTAMP)
    times = np.load(path)
    times[40] = 0  # of user 2, whose events are 32 … 48
    np.save(path, times)
    with pytest.raises(LeakageError, match="user 2 has timestamps that go down"):
        prove(folder, SplitConfig())


def moved(held: str, field: str, user: int, by: int) -> object:
    """A `make_split` that is off by some events for one user."""
    honest = split.make_split

    def make(config: SplitConfig, offsets: np.ndarray, times: np.ndarray, time_range: tuple[int, int]) -> Split:
        made = honest(config, offsets, times, time_range)
        if not held:
            train_end = made.train_end_U.copy()
            train_end[user] += by
            return dataclasses.replace(made, train_end_U=train_end)
        part = getattr(made, held)
        values = getattr(part, field).copy()
        values[user] += by
        return dataclasses.replace(made, **{held: dataclasses.replace(part, **{field: values})})

    return make


@pytest.mark.parametrize(
    ("held", "field", "by", "message"),
    [
        ("", "", 1, "user 4 may train on events that are not those before"),
        ("", "", -1, "user 4 may train on"),
        ("validation", "history_stop_U", 1, "user 4 is shown for validation"),
        ("validation", "start_U", -1, "user 4 is not yet asked in validation"),
        ("validation", "stop_U", 1, "user 4 is asked in validation up to"),
        ("test", "history_stop_U", 1, "user 4 is shown for the test"),
        ("test", "start_U", -1, "user 4 is not yet asked in the test"),
    ],
)
def test_a_split_that_is_off_by_one_event_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, held: str, field: str, by: int, message: str
) -> None:
    prove(folder)
    monkeypatch.setattr(leakage, "make_split", moved(held, field, 4, by))
    with pytest.raises(LeakageError, match=message):
        prove(folder)


def test_a_store_that_leaks_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "make_split", moved("", "", 0, 1))
    with pytest.raises(LeakageError):
        write_event_store(SOURCE, tmp_path / "store", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_users_cover_all_users_once() -> None:
    offsets = np.array([0, 5, 6, 30, 31, 32, 40])
    assert user_blocks(offsets, 7) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert user_blocks(offsets, 1000) == [(0, 6)]
    assert user_blocks(np.array([0]), 7) == []
