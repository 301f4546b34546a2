"""Fixtures that several rooms share: a small prepared store with its codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from data import prepare
from semantic_ids import fit
from tests.yambda_example import write_yambda_example

# A shared machine pauses whenever it likes: how long an example takes says nothing.
settings.register_profile("segue", deadline=None)
settings.load_profile("segue")


@dataclass(frozen=True)
class Prepared:
    """A store made by data.prepare and codes made by semantic_ids.fit."""

    store: Path
    codes: Path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Yambda's layout in small: durations, organic flags, several artists or none, items without embeddings."""
    folder = tmp_path_factory.mktemp("prepared")
    raw = write_yambda_example(folder / "raw", users=60, items=160, seed=1)
    made = Prepared(folder / "store", folder / "codes")
    assert prepare.main(["source=yambda", f"path={raw}", "kind=multi_event", f"out={made.store}"]) == 0
    assert fit.main([f"store={made.store}", f"out={made.codes}", "levels=2", "codes=16"]) == 0
    return made
