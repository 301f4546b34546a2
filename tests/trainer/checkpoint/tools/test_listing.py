"""What is there, and whether it is still as it was written; faults of users."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from common.storage import LocalStorage
from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import MANIFEST
from sharding.world import open_world
from tests.checkpoint_example import save, train_rows, two_tables, watch
from trainer.checkpoint.__main__ import main

NAMES = [f"step-{step:08d}" for step in (10, 20, 30, 40, 50)]
BASES = (NAMES[0], NAMES[3])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: bases 10 and 40, deltas 20, 30 and 50; the best is 20."""
    run = tmp_path_factory.mktemp("written") / "run"
    with open_world() as world:
        model = two_tables(world)
        checkpointer = watch(model, world, run / "checkpoints", chain_share=1e9, base_every=30)
        for step, metric in ((10, 0.1), (20, 0.4321), (30, 0.3), (40, 0.2), (50, None)):
            train_rows(model, world, step)
            save(checkpointer, step, {} if metric is None else {"ndcg@10": metric})
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


def tool(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> tuple[str, dict[str, Any]]:
    """Run a command that is to end with a status; the text it printed and its summary."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == status
    *lines, last = capsys.readouterr().out.splitlines()
    return "\n".join(lines), json.loads(last)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that is a fault of the user's."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("trainer.checkpoint: ")
    return error


def flip(folder: Path, pattern: str) -> Path:
    """Change one bit of the one file of that kind."""
    (path,) = folder.glob(pattern)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path


def test_list_says_what_there_is_and_what_it_needs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, facts = tool(capsys, 0, "list", run)
    links = Checkpoints(LocalStorage(run / "checkpoints")).links()
    sizes = {link.name: link.manifest.size for link in links}
    by_name = {entry["name"]: entry for entry in facts["checkpoints"]}
    assert list(by_name) == NAMES
    assert [entry["kind"] for entry in by_name.values()] == ["base", "delta", "delta", "base", "delta"]
    assert [entry["chain"] for entry in by_name.values()] == [1, 2, 3, 1, 2]
    assert [entry["step"] for entry in by_name.values()] == [10, 20, 30, 40, 50]
    assert by_name[NAMES[2]]["restore_bytes"] == sum(sizes[name] for name in NAMES[:3])
    assert [entry["bytes"] for entry in by_name.values()] == list(sizes.values())
    assert {name: entry["marks"] for name, entry in by_name.items() if entry["marks"]} == {
        NAMES[1]: ["best"],
        NAMES[4]: ["newest"],
    }
    assert by_name[NAMES[0]]["tables"] == {"small": [7, 7], "large": [61, 61]}
    stored = {shard.table: shard.stored for shard in links[1].manifest.shards}
    assert by_name[NAMES[1]]["tables"] == {"small": [stored["small"], 7], "large": [stored["large"], 61]}
    assert facts["bytes"] == sum(sizes.values())
    assert facts["needed"] == [NAMES[0], NAMES[1], NAMES[3], NAMES[4]]
    assert facts["needed_bytes"] == sum(sizes[name] for name in facts["needed"])
    assert facts["unfinished"] == []
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("step-")}
    assert list(lines) == NAMES
    assert f"small {stored['small']}/7" in lines[NAMES[1]]
    assert "0.4321" in lines[NAMES[1]]
    assert "best" in lines[NAMES[1]]
    assert "newest" in lines[NAMES[4]]


def test_list_names_what_cannot_be_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "checkpoints" / NAMES[1], MANIFEST)
    (run / "checkpoints" / "step-00000060").mkdir()
    text, facts = tool(capsys, 0, "list", run / "checkpoints")
    faults = {entry["name"]: entry["fault"] for entry in facts["checkpoints"]}
    assert list(faults) == NAMES
    assert [bool(fault) for fault in faults.values()] == [False, True, True, False, False]
    assert f"{NAMES[1]}/{MANIFEST}" in faults[NAMES[2]], "its child says which one it lacks"
    assert text.count("cannot be used: ") == 2
    assert facts["unfinished"] == ["step-00000060"]
    assert [entry["name"] for entry in facts["checkpoints"] if "best" in entry["marks"]] == [NAMES[2]]


def test_list_without_validation_or_without_any_that_holds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES[:4]:
        shutil.rmtree(run / "checkpoints" / name)
    assert tool(capsys, 0, "list", run)[1]["checkpoints"][0]["marks"] == ["newest"]
    (run / "checkpoints" / NAMES[4] / MANIFEST).write_bytes(b"{")
    text, facts = tool(capsys, 0, "list", run)
    assert "not JSON" in facts["checkpoints"][0]["fault"]
    assert "not JSON" in text


def test_verify_reads_every_link(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, facts = tool(capsys, 0, "verify", run)
    assert facts == {"checked": NAMES, "faults": [], "lost": [], "restores": NAMES[4]}
    assert "0 faults; latest restores step-00000050" in text


@pytest.mark.parametrize(
    ("damaged", "lost"),
    [
        ({NAMES[0]: ["tables-*"]}, NAMES[:3]),
        ({NAMES[1]: ["dense*", "states-*"], NAMES[4]: ["states-*"]}, [NAMES[1], NAMES[2], NAMES[4]]),
        ({name: ["dense*"] for name in BASES}, NAMES),
    ],
)
def test_verify_names_every_fault_and_what_latest_restores(
    run: Path, capsys: pytest.CaptureFixture[str], damaged: dict[str, list[str]], lost: list[str]
) -> None:
    folder = run / "checkpoints"
    paths = [flip(folder / name, pattern) for name, patterns in damaged.items() for pattern in patterns]
    text, facts = tool(capsys, 1, "verify", run)
    assert len(facts["faults"]) == len(paths)
    for path in paths:
        (fault,) = (fault for fault in facts["faults"] if str(path) in fault)
        assert "checksum" in fault
        assert fault in text
    assert facts["lost"] == lost
    checkpoints = Checkpoints(LocalStorage(folder))
    if lost == NAMES:
        assert facts["restores"] is None
        with pytest.raises(InputError):
            checkpoints.newest_whole_chain()
    else:
        assert facts["restores"] == checkpoints.newest_whole_chain()[0][-1].name


def test_verify_finds_missing_files_missing_parents_and_broken_manifests(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints"
    shutil.rmtree(folder / NAMES[1])
    (folder / NAMES[3] / MANIFEST).write_bytes(b"")
    (dense,) = (folder / NAMES[0]).glob("dense*")
    dense.unlink()
    _, facts = tool(capsys, 1, "verify", folder)
    assert facts["restores"] is None
    assert facts["checked"] == [NAMES[0], NAMES[2], NAMES[4]]
    told = "\n".join(facts["faults"])
    for place in (f"{folder / NAMES[1] / MANIFEST}: no such file", f"{dense}: no such file", str(folder / NAMES[3])):
        assert place in told


def test_verify_of_one_chain_looks_at_no_other(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "checkpoints" / NAMES[2], "dense*")
    text, facts = tool(capsys, 0, "verify", run, "--checkpoint", NAMES[1])
    assert (facts["checked"], facts["restores"]) == (NAMES[:2], NAMES[1])
    assert f"{NAMES[1]} can be restored" in text
    text, facts = tool(capsys, 1, "verify", run, "--checkpoint", NAMES[2])
    assert (facts["checked"], facts["restores"]) == (NAMES[:3], None)
    assert f"{NAMES[2]} cannot be restored" in text


def test_checkpoints_kept_elsewhere_are_found_by_the_configuration(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "config.yaml").write_text(f"checkpoint:\n  path: {tmp_path / 'elsewhere'}\n")
    assert len(tool(capsys, 0, "list", run)[1]["checkpoints"]) == 5
    (run / "config.yaml").write_text("checkpoint: [")
    assert "not a readable configuration" in refused(capsys, "list", run)


def test_faults_of_users_end_with_status_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused(capsys, "list", tmp_path / "nowhere")
    for command in ("list", "verify", "compact"):
        assert "holds no checkpoint" in refused(capsys, command, tmp_path)
        assert "holds no checkpoint" in refused(capsys, command, "memory://nothing-here")
    assert NAMES[4] in refused(capsys, "verify", run, "--checkpoint", "step-1")
    assert NAMES[4] in refused(capsys, "compact", run, "--checkpoint", "step-1")
    assert "no such checkpoint" in refused(capsys, "diff", run, "10", "11")
    assert "command line" in refused(capsys)
    assert "command line" in refused(capsys, "lists", run)
    assert "command line" in refused(capsys, "list", run, "--checkpoint", "best")
    assert "not a place" in refused(capsys, "list", "nosuchscheme://x")
