"""Chains by their manifests alone: who was made from whom, and which checkpoint is the best."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import xxhash

from common.errors import InputError
from common.storage import open_storage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import (
    BASE,
    DELTA,
    FORMAT_VERSION,
    MANIFEST,
    Damage,
    blank_manifest,
    encode_manifest,
    step_folder,
)

CONTENT = b"content"
METRIC = "ndcg@10"


def put(folder: Path, step: int, made_from: int = 0, **changes: Any) -> None:
    """A checkpoint of one file; a delta if it has a parent, whose state is `s` and its step."""
    names = ("store", "codes", "store_fingerprint", "codes_fingerprint", "config_fingerprint")
    made = blank_manifest(world_size=1, model={}, vocabulary={}, meanings={}, **dict.fromkeys(names, ""))
    files = {"dense": {"bytes": len(CONTENT), "xxh3_128": xxhash.xxh3_128(CONTENT).hexdigest()}}
    usual: dict[str, Any] = {"kind": BASE, "step": step, "state": f"s{step}", "files": files, "dense": "dense"}
    if made_from:
        usual |= {"kind": DELTA, "parent": step_folder(made_from), "parent_state": f"s{made_from}"}
    storage = open_storage(folder)
    with storage.create(f"{step_folder(step)}/dense") as sink:
        sink.write(CONTENT)
    manifest = dataclasses.replace(made, **{**usual, **changes})
    storage.replace(f"{step_folder(step)}/{MANIFEST}", encode_manifest(manifest))


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(open_storage(folder))


def steps(chain: list[Any]) -> list[int]:
    return [link.manifest.step for link in chain]


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Base 10 → 20 → 30, and a base 40 → 50."""
    for step, parent in ((10, 0), (20, 10), (30, 20), (40, 0), (50, 40)):
        put(tmp_path, step, parent)
    return tmp_path


def test_chains_go_from_a_base_to_the_checkpoint_asked_for(four: Path) -> None:
    found = checkpoints(four)
    assert found.names() == [step_folder(step) for step in (10, 20, 30, 40, 50)]
    for step, expected in ((10, [10]), (20, [10, 20]), (30, [10, 20, 30]), (40, [40]), (50, [40, 50])):
        assert steps(found.chain(step_folder(step))) == expected
        assert steps(found.whole_chain(step_folder(step))) == expected
    chain, passed = found.newest_whole_chain()
    assert (steps(chain), passed) == ([40, 50], [])


def test_folders_without_a_manifest_and_other_folders_are_no_checkpoints(four: Path) -> None:
    (four / step_folder(60)).mkdir()
    (four / step_folder(60) / "dense").write_bytes(CONTENT)
    (four / "notes").mkdir()
    (four / "notes" / MANIFEST).write_bytes(b"{}")
    assert checkpoints(four).names() == [step_folder(step) for step in (10, 20, 30, 40, 50)]
    with pytest.raises(Damage, match="no such file"):
        checkpoints(four).chain(step_folder(60))


def test_without_any_checkpoint_the_user_is_told_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert checkpoints(folder).names() == []
        assert checkpoints(folder).best() is None
        with pytest.raises(InputError, match=f"{folder}: holds no checkpoint"):
            checkpoints(folder).newest_whole_chain()


def test_a_missing_parent_breaks_the_chain(four: Path) -> None:
    (four / step_folder(20) / MANIFEST).unlink()
    with pytest.raises(Damage, match=f"{step_folder(20)}/{MANIFEST}: no such file"):
        checkpoints(four).chain(step_folder(30))
    assert steps(checkpoints(four).newest_whole_chain()[0]) == [40, 50], "another chain is not concerned"


def test_a_parent_that_was_written_again_breaks_the_chain(four: Path) -> None:
    put(four, 20, 10, state="another")
    with pytest.raises(Damage, match=f"{step_folder(30)}: made from state s20 of {step_folder(20)}, .* another now"):
        checkpoints(four).chain(step_folder(30))
    assert steps(checkpoints(four).chain(step_folder(20))) == [10, 20]


@pytest.mark.parametrize("parent", [30, 40])
def test_a_parent_that_is_no_earlier_breaks_the_chain(four: Path, parent: int) -> None:
    put(four, 30, parent)
    with pytest.raises(Damage, match=f"{step_folder(30)}: made from {step_folder(parent)}, which is no earlier"):
        checkpoints(four).chain(step_folder(30))


def test_two_that_name_each_other_do_not_go_round_for_ever(four: Path) -> None:
    put(four, 20, 30)
    for step in (20, 30):
        with pytest.raises(Damage, match="which is no earlier"):
            checkpoints(four).chain(step_folder(step))


@pytest.mark.parametrize("parent", ["", "..", "../elsewhere", "notes"])
def test_a_parent_that_is_no_checkpoint_breaks_the_chain(four: Path, parent: str) -> None:
    put(four, 30, 20, parent=parent)
    with pytest.raises(Damage, match="no such file"):
        checkpoints(four).chain(step_folder(30))


def test_a_manifest_of_another_step_is_damage(four: Path) -> None:
    other = (four / step_folder(40) / MANIFEST).read_bytes()
    (four / step_folder(50) / MANIFEST).write_bytes(other)
    with pytest.raises(Damage, match=f"{step_folder(50)}/{MANIFEST}: the manifest of step 40"):
        checkpoints(four).chain(step_folder(50))
    chain, passed = checkpoints(four).newest_whole_chain()
    assert steps(chain) == [40]
    assert len(passed) == 1
    assert passed[0].startswith(f"{step_folder(50)} cannot be used: ")


def test_a_newer_format_is_said_and_not_passed_over(four: Path) -> None:
    text = (four / step_folder(50) / MANIFEST).read_text()
    content = text.replace(f'"format_version": {FORMAT_VERSION}', f'"format_version": {FORMAT_VERSION + 1}')
    head = content[: content.index(',\n "xxh3_128": "', content.index('"metrics"'))]
    (four / step_folder(50) / MANIFEST).write_text(head + "}")
    with pytest.raises(InputError, match=f"{step_folder(50)}/{MANIFEST}: format version {FORMAT_VERSION + 1}"):
        checkpoints(four).newest_whole_chain()


def test_a_file_that_cannot_be_read_is_damage_and_not_the_end(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoints(four)
    read = found.storage.size_and_digest

    def broken(name: str) -> tuple[int, str]:
        if name.startswith(step_folder(50)):
            raise OSError(5, "Input/output error")
        return read(name)

    monkeypatch.setattr(found.storage, "size_and_digest", broken)
    chain, passed = found.newest_whole_chain()
    assert steps(chain) == [40]
    assert f"{step_folder(50)}/dense: cannot be read: [Errno 5] Input/output error" in passed[0]


def test_verdicts_are_given_once_and_faults_are_looked_for_anew(four: Path) -> None:
    found = checkpoints(four)
    found.newest_whole_chain()
    (four / step_folder(50) / "dense").write_bytes(b"changed")
    found.whole_chain(step_folder(50))
    assert len(found.faults(found.link(step_folder(50)))) == 1
    with pytest.raises(Damage, match=f"{step_folder(50)}/dense: its checksum is"):
        checkpoints(four).whole_chain(step_folder(50))


def test_the_best_is_the_earliest_of_the_largest_and_without_metrics_the_newest(four: Path) -> None:
    best = checkpoints(four).best()
    assert best is not None
    assert best.manifest.step == 50
    for step, parent, score in ((20, 10, 0.3), (30, 20, 0.4), (40, 0, 0.4)):
        put(four, step, parent, metrics={METRIC: score, "mrr": -score})
    best = checkpoints(four).best()
    assert best is not None
    assert best.manifest.step == 30
    (four / step_folder(30) / MANIFEST).write_bytes(b"")
    best = checkpoints(four).best()
    assert best is not None
    assert best.manifest.step == 40
    assert [link.manifest.step for link in checkpoints(four).links()] == [10, 20, 40, 50]
