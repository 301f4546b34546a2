"""What surrounds a peer's process: its environment, what it is given to read, and how its lists are scored."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import environment
from benchmarks.peers.data import requests_of, scores_of_lists, targets_of_epoch, write_events
from benchmarks.peers.rectools import PeerRun, answers, check_targets
from common.errors import InputError
from data.event_store import EventStore
from data.schema import ITEM
from tests.conftest import Prepared


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment of RecTools would lie."""
    monkeypatch.setenv(environment.FOLDER, str(tmp_path / "peers"))
    pins = Path(environment.ROOT / "requirements" / "peers-rectools.txt").read_bytes()
    return environment.folder_of("rectools", pins)


def test_another_set_of_pins_is_another_environment(folder: Path, tmp_path: Path) -> None:
    assert folder.parent == tmp_path / "peers"
    assert environment.folder_of("rectools", b"rectools==0.1") != folder


def test_an_environment_that_is_whole_is_used_again(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / environment.WHOLE).touch()
    assert environment.python_of("rectools") == folder / "bin" / "python"


def test_what_an_interrupted_making_left_goes_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    (folder / "left").touch()
    monkeypatch.setattr(environment, "_call", lambda command, name: folder.mkdir(exist_ok=True))
    environment.python_of("rectools")
    assert [path.name for path in folder.iterdir()] == [environment.WHOLE]


def test_an_environment_that_cannot_be_made_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "print('ERROR: No matching distribution found for torch'); raise SystemExit(1)"
    call = environment._call
    monkeypatch.setattr(environment, "_call", lambda command, name: call([sys.executable, "-c", said], name))
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match=r"^the environment of the peer rectools .* No matching .* for torch$"):
        environment.python_of("rectools")
    assert not folder.exists()


def test_a_child_inherits_no_setting_that_bears_on_speed() -> None:
    inherited = {"HOME": "/home", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "7", "PYTHONPATH": "/x"}
    assert environment.child_environment(2, pooled=False, inherited=inherited) == {
        "HOME": "/home",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    }
    pooled = environment.child_environment(2, pooled=True, inherited=inherited)
    assert pooled["MALLOC_MMAP_MAX_"] == "0"
    assert pooled["MALLOC_TRIM_THRESHOLD_"] == "17179869184"
    assert pooled["MALLOC_TOP_PAD_"] == "268435456"


def test_a_peer_sees_what_training_and_requests_may_see(prepared: Prepared, tmp_path: Path) -> None:
    store = EventStore.open(prepared.store)
    write_events(store, tmp_path / "events.npz")
    found = np.load(tmp_path / "events.npz")
    split = store.split()
    asked = split.test.asked_U
    ends = {"train": split.train_end_U, "validation": split.validation.start_U, "test": split.test.start_U}
    for who, end_U in ends.items():
        users_E = found["user_E"][found[f"{who}_E"]]
        counts_U = np.bincount(users_E, minlength=store.num_users)
        np.testing.assert_array_equal(counts_U[asked], end_U[asked])
        assert (np.diff(users_E) >= 0).all()
    assert len(found["item_E"]) == np.where(asked, split.test.start_U, split.train_end_U).sum()
    np.testing.assert_array_equal(found["test_users_R"], np.flatnonzero(asked))
    user = int(np.flatnonzero(asked)[0])
    begin = store.offsets[user]
    seen = found["item_E"][(found["user_E"] == user) & found["test_E"]]
    np.testing.assert_array_equal(seen, store.column(ITEM)[begin : begin + split.test.start_U[user]])


def test_an_epoch_has_the_targets_of_the_newest_windows(prepared: Prepared) -> None:
    store = EventStore.open(prepared.store)
    inputs_U = np.maximum(store.split().train_end_U - 1, 0)
    assert targets_of_epoch(store, 5) == np.minimum(inputs_U, 5).sum()


def test_lists_are_scored_by_the_place_of_the_target(prepared: Prepared) -> None:
    store = EventStore.open(prepared.store)
    requests = requests_of(store, "test")
    targets = requests.targets
    first, second, third, *_ = targets.items_T
    users = targets.users_R[[2, 0, 1]]
    lists = np.full((3, 100), -1)
    lists[0, :2] = [third + 1, third]  # users out of order: the third request's target stands second
    lists[1, 0] = first
    lists[2, 10] = second
    scores_R = scores_of_lists(requests, users, lists)
    np.testing.assert_allclose(scores_R[:3], [1, 0, 1 / np.log2(3)])
    assert not scores_R[3:].any()  # who got no list


def run_of(seconds: tuple[float, ...], targets: tuple[int, ...], looks: dict[int, float]) -> PeerRun:
    scores = {epoch: {"validation": np.array([score]), "test": np.array([1 - score])} for epoch, score in looks.items()}
    return PeerRun("hstu", 2, False, 0, {}, {}, seconds, targets, scores)


def test_the_first_epoch_warms_up() -> None:
    assert run_of((10.0, 1.0, 2.0, 1.0), (8, 8, 8, 8), {}).events_per_s == 8
    assert run_of((10.0,), (8,), {}).events_per_s == 0.8


def test_the_best_look_is_by_the_validation_events() -> None:
    run = run_of((3.0, 1.0, 1.0), (8, 8, 8), {1: 0.25, 2: 0.5, 3: 0.5})
    assert run.best_epoch == 2
    assert run.test[2] == 0.5
    assert run.seconds_until(2) == 4


def test_epochs_of_other_targets_are_refused() -> None:
    check_targets(run_of((1.0, 1.0), (8, 8), {}), 8)
    with pytest.raises(RuntimeError, match=r"\{7\} predictions, ours have 8"):
        check_targets(run_of((1.0, 1.0), (8, 7), {}), 8)


def test_what_a_child_says_comes_line_by_line(tmp_path: Path) -> None:
    child = "import json, sys; print(open(sys.argv[1]).read()); print('{}')"
    command = [sys.executable, "-I", "-c", child]
    assert list(answers(command, {"threads": 2}, tmp_path, os.environ)) == [{"threads": 2}, {}]


def test_a_child_that_fails_is_told_with_its_errors(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", "raise SystemExit('no such model')"]
    with pytest.raises(RuntimeError, match="ended with status 1\nno such model"):
        list(answers(command, {}, tmp_path, os.environ))
