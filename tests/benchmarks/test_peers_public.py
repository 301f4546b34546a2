"""The public HSTU code as a peer, as far as it needs none of that code; and the log made up for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import made_up_log
from benchmarks.peers.data import targets_of_epoch, write_events
from benchmarks.peers.public_hstu import CHECKOUT, PublicRun, checkout_at
from benchmarks.peers.public_hstu_child import read_rows
from common.errors import InputError
from data.event_store import EventStore
from data.schema import ITEM
from tests.conftest import Prepared

MODEL = "generative_recommenders/research/modeling/sequential/hstu.py"


def test_a_checkout_is_given_or_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKOUT, raising=False)
    assert checkout_at(None) is None
    monkeypatch.setenv(CHECKOUT, str(tmp_path))
    with pytest.raises(InputError, match="must be a checkout of the public HSTU code"):
        checkout_at(None)
    (tmp_path / MODEL).parent.mkdir(parents=True)
    (tmp_path / MODEL).touch()
    assert checkout_at(None) == tmp_path
    with pytest.raises(InputError, match="elsewhere has no"):
        checkout_at(tmp_path / "elsewhere")


def test_the_first_two_batches_warm_up() -> None:
    assert PublicRun(2, False, (9.0, 9.0, 1.0, 2.0, 1.0), (6, 6, 6, 6, 5), (1.0,) * 5).events_per_s == 5


def test_rows_are_the_newest_windows(prepared: Prepared, tmp_path: Path) -> None:
    store = EventStore.open(prepared.store)
    write_events(store, tmp_path / "events.npz")
    items, lengths_U, ids_UN, times_UN = read_rows(tmp_path / "events.npz", history=5, positions=8)
    assert items == store.num_items
    assert lengths_U.sum() == targets_of_epoch(store, 5)
    end_U = store.split().train_end_U
    users = np.flatnonzero(end_U >= 2)
    for row in (0, len(users) - 1):
        user, length = users[row], int(lengths_U[row])
        end = store.offsets[user] + end_U[user]
        newest = store.column(ITEM)[end - length - 1 : end].astype(np.int64) + 1
        np.testing.assert_array_equal(ids_UN[row, : length + 1], newest)
        assert not ids_UN[row, length + 1 :].any()
        assert (np.diff(times_UN[row, : length + 1]) >= 0).all()


def test_histories_are_as_long_as_those_of_movielens_1m() -> None:
    lengths_U = made_up_log.lengths()
    assert lengths_U.min() >= 20
    assert lengths_U.max() == 2314
    assert abs(np.median(lengths_U) - 96) <= 1
    assert 0.98e6 < lengths_U.sum() < 1.01e6


def test_nobody_rates_a_film_twice_and_times_ascend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_up_log, "USERS", 3)
    lengths_U = np.array([40, 25, 60])
    user_E = np.repeat(np.arange(3), lengths_U)
    items_E = made_up_log._items(lengths_U, np.random.default_rng(0))
    times_E = made_up_log._times(lengths_U, np.random.default_rng(0))
    assert len(set(zip(user_E, items_E, strict=True))) == len(user_E) == len(times_E)
    assert items_E.max() < made_up_log.ITEMS
    assert (np.diff(times_E)[np.diff(user_E) == 0] >= 0).all()
