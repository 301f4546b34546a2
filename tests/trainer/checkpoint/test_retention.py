"""What may go and what must stay, over chains made by hand of manifests alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.storage import open_storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import (
    BASE,
    DELTA,
    MANIFEST,
    SELECTION_METRICS,
    blank_manifest,
    encode_manifest,
    step_folder,
)
from trainer.checkpoint.retention import needed, remove_old


def put(folder: Path, step: int, parent: int = 0, score: float | None = None) -> None:
    names = ("store", "codes", "store_fingerprint", "codes_fingerprint", "config_fingerprint")
    made = blank_manifest(world_size=1, model={}, vocabulary={}, meanings={}, **dict.fromkeys(names, ""))
    metrics = {} if score is None else {SELECTION_METRICS[0]: score}
    manifest = dataclasses.replace(made, kind=BASE, step=step, state=f"s{step}", metrics=metrics)
    if parent:
        manifest = dataclasses.replace(manifest, kind=DELTA, parent=step_folder(parent), parent_state=f"s{parent}")
    open_storage(folder).replace(f"{step_folder(step)}/{MANIFEST}", encode_manifest(manifest))


def steps_left(folder: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in Checkpoints(open_storage(folder)).names()]


def tidy(folder: Path, keep: int, written: int = 0) -> list[int]:
    """Removed steps."""
    removed = remove_old(open_storage(folder), keep, step_folder(written) if written else "")
    return [int(name.removeprefix("step-")) for name in removed]


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """10 → 20 → 30, 40 → 50, and 60 → 70."""
    for step, parent in ((10, 0), (20, 10), (30, 20), (40, 0), (50, 40), (60, 0), (70, 60)):
        put(tmp_path, step, parent)
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (1, [60, 70]),
        (2, [60, 70]),
        (3, [40, 50, 60, 70]),
        (4, [40, 50, 60, 70]),
        (5, [10, 20, 30, 40, 50, 60, 70]),
        (99, [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_the_newest_stay_with_all_that_they_are_made_from(seven: Path, keep: int, left: list[int]) -> None:
    before = steps_left(seven)
    assert tidy(seven, keep) == [step for step in before if step not in left]
    assert steps_left(seven) == left
    assert sorted(path.name for path in seven.iterdir()) == [step_folder(step) for step in left]
    assert tidy(seven, keep) == []


def test_the_best_stays_with_all_that_it_is_made_from(seven: Path) -> None:
    put(seven, 20, 10, score=0.5)
    put(seven, 50, 40, score=0.4)
    assert tidy(seven, 1) == [30, 40, 50]
    assert steps_left(seven) == [10, 20, 60, 70]
    put(seven, 70, 60, score=0.6)  # a new best lets the old one go
    tidy(seven, 1)
    assert steps_left(seven) == [60, 70]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_chains_the_newest_and_the_best_can_be_restored(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("chains")
    scores: dict[int, float] = {}
    keep = data.draw(st.integers(1, 3))
    for step in range(1, data.draw(st.integers(2, 9))):
        score = data.draw(st.none() | st.sampled_from([0.1, 0.2, 0.3]))
        put(folder, step, parent=step - 1 if data.draw(st.booleans()) else 0, score=score)
        if score is not None:
            scores[step] = score
        tidy(folder, keep, step)
        checkpoints = Checkpoints(open_storage(folder))
        wanted = set(range(max(1, step - keep + 1), step + 1))
        if scores:
            wanted.add(max(scores, key=lambda each: (scores[each], -each)))
        made_from = {link.manifest.step for each in wanted for link in checkpoints.chain(step_folder(each))}
        assert set(steps_left(folder)) == made_from


def test_what_a_crash_left_unfinished_goes_and_what_is_not_ours_stays(seven: Path) -> None:
    for folder in (15, 65, 80):
        (seven / step_folder(folder)).mkdir()
        (seven / step_folder(folder) / "tables-00000.x.safetensors").write_bytes(b"half")
    (seven / "notes").mkdir()
    (seven / "notes" / "a").write_bytes(b"mine")
    (seven / "read.me").write_bytes(b"mine")
    assert tidy(seven, 99) == []
    assert sorted(path.name for path in seven.iterdir() if not path.name.startswith("step-")) == ["notes", "read.me"]
    assert [path.name for path in sorted(seven.glob("step-*"))] == [step_folder(step) for step in range(10, 80, 10)]


def test_damaged_manifests_do_not_crowd_out_what_can_be_restored(tmp_path: Path) -> None:
    """20 is damaged while training goes on: 10 is the last that can be restored, until there is another base."""
    put(tmp_path, 10)
    for step in (20, 30, 40, 50):
        put(tmp_path, step, step - 10)
    (tmp_path / step_folder(20) / MANIFEST).write_bytes(b"")
    tidy(tmp_path, 2, 50)
    assert steps_left(tmp_path) == [10, 20, 30, 40, 50]
    put(tmp_path, 60)
    tidy(tmp_path, 1, 60)
    assert steps_left(tmp_path) == [60], "a base needs none of them"


def test_what_is_left_from_before_a_fall_back_does_not_crowd_out_what_is_written_now(tmp_path: Path) -> None:
    """The files of 30 are damaged, and 40 was made from it: the run goes on from 20, and next saves step 25."""
    put(tmp_path, 10)
    for step in (20, 30, 40):
        put(tmp_path, step, step - 10)
    put(tmp_path, 25, 20)
    assert tidy(tmp_path, 1, 25) == []
    assert steps_left(tmp_path) == [10, 20, 25, 30, 40]
    put(tmp_path, 28)
    tidy(tmp_path, 1, 28)
    assert 28 in steps_left(tmp_path)
    put(tmp_path, 45, 28)
    tidy(tmp_path, 1, 45)
    assert steps_left(tmp_path) == [28, 45]


def test_nothing_is_needed_where_nothing_is(tmp_path: Path) -> None:
    assert needed(Checkpoints(open_storage(tmp_path / "missing")), 2) == set()
    assert tidy(tmp_path / "missing", 2) == []
    assert not (tmp_path / "missing").exists()
