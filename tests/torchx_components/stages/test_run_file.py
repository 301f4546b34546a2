from __future__ import annotations

from pathlib import Path

import pytest

from torchx_components.stages.job import Job
from torchx_components.stages.processes import Ended
from torchx_components.stages.run_file import keys_by_stage, read_sections

FILE = """
synthesize: {out: logs/a, users: 10}
prepare:
  path: ${synthesize.out}/log.parquet
  out: stores/${.size}
  size: 50m
  catalogue: {path: "${..out}/items", sorted: "${prepare.sorted}"}
  sorted: true
  literal: \\${synthesize.out}
fit_ids:
  store: ${prepare.out}
train:
  run: runs/a
  model: {width: 8}
  lists: ["${fit_ids.store}"]
evaluate:
  run: ${train.run}
  model: ${train.model}
"""
STAGES = ("synthesize", "prepare", "fit_ids", "train", "evaluate")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def keys(file: Path, *overrides: str) -> dict[str, list[str]]:
    found = keys_by_stage(read_sections(file), STAGES, overrides)
    return {stage: given for stage, given in found.items() if given}


def test_a_key_goes_to_its_stage_and_to_what_refers_to_it(file: Path) -> None:
    assert keys(file) == {}
    assert keys(file, "synthesize.users=3") == {"synthesize": ["users=3"]}
    assert keys(file, "synthesize.out=x y") == {"synthesize": ["out=x y"], "prepare": ["path=x y/log.parquet"]}
    assert keys(file, "train.run=r") == {"train": ["run=r"], "evaluate": ["run=r"]}
    assert keys(file, "train.run=r", "evaluate.run=s", "train.run=t") == {
        "train": ["run=r", "run=t"],
        "evaluate": ["run=s"],
    }


def test_references_through_references(file: Path) -> None:
    given = ["train.lists=[x]", "prepare.size=5b"]  # without the list, which is not followed
    assert keys(file, *given) == {
        "prepare": ["out=stores/5b", "catalogue.path=stores/5b/items", "size=5b"],
        "fit_ids": ["store=stores/5b"],
        "train": ["lists=[x]"],
    }


def test_a_value_that_is_no_text(file: Path) -> None:
    file.write_text(
        "prepare: {out: a, flag: true, none: null, rate: 1.0e-3}\n"
        "fit_ids: {all: '${prepare.out} ${prepare.flag} ${prepare.none} ${prepare.rate}'}"
    )
    assert keys(file, "prepare.out=b")["fit_ids"] == ["all=b true null 0.001"]


def test_a_circle_is_left_to_the_entry_which_refuses_it(file: Path) -> None:
    file.write_text("prepare: {out: '${fit_ids.store} ${prepare.size}', size: 1}\nfit_ids: {store: '${prepare.out}'}")
    assert "${" in keys(file, "prepare.size=2")["fit_ids"][0]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["users=1"], "`users=1` is not of the form SECTION.key=value"),
        (["prepare.users"], "`prepare.users` is not of the form SECTION.key=value"),
        (["plan.nodes=1"], "no stage `plan`; stages are synthesize, prepare"),
        (["train.model.width=4"], "`evaluate.model` is '${train.model}' in the file, and a part of what it refers to"),
        (["prepare.out=x"], "`train.lists` is ['${fit_ids.store}'] in the file"),
    ],
)
def test_what_cannot_be_followed_is_refused(file: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(Ended, match="command line") as refused:
        keys(file, *overrides)
    assert refused.value.status == 2
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"), [("a: [", "not a readable configuration"), ("- a", "has no sections"), (None, "no such")]
)
def test_files_that_are_none(file: Path, content: str | None, told: str) -> None:
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(Ended, match=told):
        read_sections(file)


# ── what a stage is called with ──────────────────────────────────────────────────────────────────────────


def train_keys(file: Path, section: str, *overrides: str) -> list[str]:
    file.write_text(f"prepare:\ntrain: {section}\n")
    job = Job(file, overrides, (), 1, 1, 1, 0, None, "id", "", 600, 0)
    first, second = job.steps()
    assert first.arguments == ("--config", str(file))
    return list(second.arguments[2:])


def test_training_goes_on_unless_the_user_says_where_to_begin(file: Path) -> None:
    assert train_keys(file, "{epochs: 1}") == ["resume=auto"]
    assert train_keys(file, "", "train.epochs=2") == ["epochs=2", "resume=auto"]
    assert train_keys(file, "{resume: 'false'}") == []
    assert train_keys(file, "{overwrite: true}") == []
    assert train_keys(file, "{overwrite: true}", "train.overwrite=false") == ["overwrite=false", "resume=auto"]
    assert train_keys(file, "", "train.overwrite=True") == ["overwrite=True"]
    assert train_keys(file, "", "train.resume=true") == ["resume=true"]


def test_a_file_without_stages_is_refused(file: Path) -> None:
    file.write_text("plan: {}")
    with pytest.raises(Ended, match="has a section of no stage"):
        Job(file, (), (), 1, 1, 1, 0, None, "id", "", 600, 0).steps()
