"""Imports run one way: a room knows the rooms before it, never those after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "data", "semantic_ids", "model", "sharding", "serving", "evaluation", "trainer")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MODEL_FILES = [path for path in FILES if path.relative_to(ROOT).parts[0] == "model"]
SERIES_FILES = sorted((ROOT / "data" / "series").rglob("*.py"))

MODEL_MAY_KNOW = {"common", "data.schema", "data.batches", "data.ranking.config", "data.ranking.tasks", "model"}
PARALLELISM = ("torch.distributed", "torch.multiprocessing", "torchrec.distributed", "multiprocessing")
FILE_MODULES = {"os", "io", "pathlib", "shutil", "tempfile", "pyarrow", "pickle", "common.files"}
FILE_CALLS = {"open", "torch.save", "torch.load", "np.save", "np.load", "numpy.save", "numpy.load"}


def imported_modules(path: Path, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, at its top and inside functions.

    `from a import b` gives `a.b`, since b may be a module.
    """
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            literal = node.args[0].value if isinstance(node.args[0], ast.Constant) else "a computed name"
            yield node.lineno, str(literal)


def is_within(module: str, parents: set[str] | tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def wrong_way(path: Path, root: Path = ROOT) -> list[str]:
    """Imports of rooms after the file's own, and of what stands outside the rooms' order."""
    room = path.relative_to(root).parts[0]
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "torchx_components", "tests", "benchmarks", "a computed name"}
    return [f"{path}:{line}: {name}" for line, name in imported_modules(path, root) if is_within(name, forbidden)]


def strangers_of_the_model(path: Path, root: Path = ROOT) -> list[str]:
    """What a file of model/ imports or calls that it should know nothing of: other rooms, parallelism, files."""
    found = [
        f"{path}:{line}: {name}"
        for line, name in imported_modules(path, root)
        if (is_within(name, ROOMS) and not is_within(name, MODEL_MAY_KNOW))
        or is_within(name, PARALLELISM)
        or is_within(name, FILE_MODULES)
    ]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FILE_CALLS:
            found.append(f"{path}:{node.lineno}: {ast.unparse(node.func)}")
        elif isinstance(node, ast.Attribute) and is_within(ast.unparse(node), PARALLELISM):
            found.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_room_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    assert wrong_way(path) == []


@pytest.mark.parametrize("path", SERIES_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_series_know_no_sources(path: Path) -> None:
    """Sources give series, and are written by what knows both."""
    assert [name for _, name in imported_modules(path) if is_within(name, {"data.sources"})] == []


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_model_knows_no_files_and_no_parallelism(path: Path) -> None:
    assert strangers_of_the_model(path) == []


def test_torchx_components_import_no_room() -> None:
    files = list((ROOT / "torchx_components").rglob("*.py"))
    assert files
    found = [f"{path}:{line}: {name}" for path in files for line, name in imported_modules(path)]
    assert [place for place in found if is_within(place.rsplit(": ", 1)[1], ROOMS)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import trainer.loop",
        "import numpy, serving",
        "from sharding import world",
        "from sharding.world import World as Other",
        "def f():\n    from evaluation import metrics",
        "if TYPE_CHECKING:\n    import trainer",
        "from ...serving import index",
        "import importlib\nimportlib.import_module('trainer.train')",
        "import importlib\nimportlib.import_module(name)",
        "from tests import ranks",
    ],
)
def test_an_import_the_wrong_way_is_found(line: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / "attention" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(wrong_way(path, tmp_path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torchrec.distributed.types import ShardingType",
        "x = torch.distributed.get_rank()",
        "from data.event_store import EventStore",
        "from semantic_ids.codes.code_table import CodeTable",
        "from common.files import fsync_path",
        "from pathlib import Path",
        "def f():\n    return open('x')",
        "torch.save(x, 'x')",
    ],
)
def test_a_stranger_in_the_model_is_found(line: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / "x.py"
    path.parent.mkdir()
    path.write_text(line)
    assert strangers_of_the_model(path, tmp_path)


def test_what_the_model_may_import(tmp_path: Path) -> None:
    path = tmp_path / "model" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import torch\nfrom data.batches import Batch\nfrom common.config import option\nimport model.heads"
    )
    assert strangers_of_the_model(path, tmp_path) == []
    assert wrong_way(path, tmp_path) == []
