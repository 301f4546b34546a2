"""The collector is rare while an entry is imported, and as usual in everything that comes after."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USUAL = "gc.get_threshold() == (700, 10, 10)"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import gc\n{code}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_rare_until_imports_are_done() -> None:
    run(
        "import common.startup\n"
        "assert gc.get_threshold()[0] == 100_000 and gc.isenabled() and not gc.get_freeze_count()\n"
        f"common.startup.imports_are_done()\nassert {USUAL} and gc.get_freeze_count()"
    )


def test_what_a_user_has_set_stays() -> None:
    run(
        "import common.startup\ngc.set_threshold(5)\n"
        "common.startup.imports_are_done()\nassert gc.get_threshold()[0] == 5"
    )


@pytest.mark.parametrize("module", ["common.config", "data.batches", "model.recommender"])
def test_a_library_leaves_it_alone(module: str) -> None:
    run(f"import {module}\nassert {USUAL}")


@pytest.mark.parametrize(
    "entry", ["trainer/train", "evaluation/evaluate", "sharding/plan", "semantic_ids/fit", "semantic_ids/encode"]
)
def test_entries_import_it_before_all_else(entry: str) -> None:
    tree = ast.parse((ROOT / f"{entry}.py").read_text())
    first = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)][1]  # after __future__
    assert isinstance(first, ast.Import)
    assert first.names[0].name == "common.startup"


def test_an_entry_works_with_the_usual_collector() -> None:
    run(f"import semantic_ids.fit as entry\nassert not {USUAL}\nentry.main(['no=such'])\nassert {USUAL}")
