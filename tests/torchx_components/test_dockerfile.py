"""The container image of jobs, held against what it is made of; no Docker needed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from docker.utils.build import exclude_paths
from fsspec.implementations.local import LocalFileSystem
from torchx.workspace.api import walk_workspace

from tests.test_imports import ROOMS

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "torchx_components" / "Dockerfile"
NEEDED = (*ROOMS, "torchx_components", "benchmarks", "configs", "requirements")
PRECIOUS = (
    ".env",
    "common/.env",
    "id_rsa",
    "token.txt",
    "stores/a/events",
    "runs/r/metrics.jsonl",
    ".git/config",
    "a.pem",
)


@dataclass(frozen=True)
class Instruction:
    """One of a Dockerfile; continued lines are joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Without options."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def instructions() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def named(name: str) -> list[Instruction]:
    return [instruction for instruction in instructions() if instruction.name == name]


def ignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def docker_context(root: Path) -> set[str]:
    """Files that Docker's own client would send, by its reading of .dockerignore; it adds the two files it needs."""
    found = exclude_paths(str(root), ignore_patterns(), dockerfile="torchx_components/Dockerfile")
    return {path for path in found if (root / path).is_file()} - {".dockerignore"}


def torchx_context(root: Path) -> set[str]:
    """Files that TorchX would lay over the image, by its own reading of .dockerignore."""
    walked = walk_workspace(LocalFileSystem(), str(root), ".dockerignore")
    return {str(PurePosixPath(folder, file).relative_to(root)) for folder, _, files in walked for file in files}


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--format", "json", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


def test_the_base_is_named_to_the_release_of_its_system_and_has_our_python() -> None:
    (base,) = named("FROM")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", base.text)
    assert found is not None
    assert project["requires-python"] == f">={found[1]}"


def test_jobs_do_not_run_as_root() -> None:
    assert re.fullmatch(
        r"[1-9]\d*:[1-9]\d*", named("USER")[-1].text
    )  # a number: Kubernetes can check that it is not root
    order = [instruction.name for instruction in instructions()]
    assert order.index("USER") < order.index("COPY")
    assert all("--chown" in copy.text for copy in named("COPY"))


def test_packages_are_those_of_make_quickstart() -> None:
    """By the recipe that `make quickstart` waits for, before the code comes in."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "STAMP := $(VENV)/.installed-$(ACCELERATOR)" in makefile
    assert re.search(r"^VENV := \.venv$", makefile, re.MULTILINE)
    assert re.search(r"^quickstart: \$\(STAMP\)$", makefile, re.MULTILINE)
    installing = [run for run in named("RUN") if "make " in run.text and "apt-get" not in run.text]
    assert len(installing) == 1
    assert 'make ".venv/.installed-$ACCELERATOR" ACCELERATOR="$ACCELERATOR"' in installing[0].text
    assert not [run for run in named("RUN") if re.search(r"\b(pip|pip3|conda|uv) ", run.text)]
    assert "PATH=/segue/.venv/bin:$PATH" in " ".join(named("ENV")[0].words)
    assert [workdir.text for workdir in named("WORKDIR")] == ["/segue"]
    assert named("COPY")[-1].words == [".", "."]
    assert instructions().index(installing[0]) < instructions().index(named("COPY")[-1])


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_the_recipe_has_all_it_needs_when_it_runs(accelerator: str, tmp_path: Path) -> None:
    """`make` itself, dry, in a folder that holds what was copied until then and nothing more."""
    before_code = named("COPY")[:-1]
    for copy in before_code:
        *sources, destination = copy.words
        for source in sources:
            target = tmp_path / destination / (source if (ROOT / source).is_file() else "")
            subprocess.run(["cp", "-rT", ROOT / source, target], check=True)
    goal = f".venv/.installed-{accelerator}"
    command = ["make", "--dry-run", goal, f"ACCELERATOR={accelerator}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert f"--editable '.[{accelerator},dev]'" in done.stdout
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {path.name for path in tmp_path.iterdir()} >= set(project["license-files"])
    assert f"touch {project['readme']} " in " ".join(run.text for run in named("RUN"))


def test_an_accelerator_that_there_is_not_is_refused() -> None:
    (check,) = [part for run in named("RUN") for part in run.text.split("&&") if "case " in part]
    command = ["sh", "-c", check.partition("case ")[1] + check.partition("case ")[2]]
    for accelerator, status in (("cpu", 0), ("cuda", 0), ("gpu", 2)):
        done = subprocess.run(command, env={"ACCELERATOR": accelerator}, capture_output=True, text=True, timeout=10)
        assert done.returncode == status
    assert done.stderr == "ACCELERATOR=gpu: expected cpu or cuda\n"


def test_schedulers_say_what_runs() -> None:
    assert not named("ENTRYPOINT")
    assert not named("CMD")


def test_no_secret_stays_in_the_image() -> None:
    """Arguments and variables can be read back from an image by whoever has it; a secret's mount leaves nothing."""
    given = [instruction.text for instruction in instructions() if instruction.name in ("ARG", "ENV")]
    names = {name for text in given for name in re.findall(r"(\w+)(?==|\s|$)", text)}
    assert not [name for name in names if re.search("token|secret|password|key|index_url", name, re.IGNORECASE)]
    assert [argument.text for argument in named("ARG")] == ["ACCELERATOR=cpu"]
    assert not named("ADD")


@pytest.mark.parametrize("context", [docker_context, torchx_context])
def test_the_rooms_come_in_and_nothing_else(context: Callable[[Path], set[str]], tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    wanted = {path for path in tracked if path.partition("/")[0] in NEEDED}
    wanted |= {"Makefile", "pyproject.toml", "LICENSE", "quickstart.sh"}
    for path in {*tracked, *PRECIOUS, "common/__pycache__/a.pyc", ".venv/bin/python", "core.1234"} - {""}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / ".dockerignore").write_text((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    assert context(tmp_path) == wanted


def test_what_is_copied_is_there() -> None:
    sent = docker_context(ROOT)
    for copy in named("COPY"):
        for source in copy.words[:-1]:
            assert source == "." or source in sent or any(path.startswith(f"{source}/") for path in sent), source
