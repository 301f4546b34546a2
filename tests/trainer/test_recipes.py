"""The recipes of configs/recipes, from files in MovieLens-1M's layout to trained and validated models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import prepare
from data.event_store import EventStore
from semantic_ids import fit
from serving.checkpoints.model import find_chain, run_storage
from tests.conftest import Prepared
from tests.trainer.test_train import records
from trainer.train import main

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """60 users with 20 ratings or more of 90 films, of 95 that are listed."""
    folder = tmp_path_factory.mktemp("films")
    random = np.random.default_rng(0)
    rows = [
        f"{user}::{film}::{random.integers(1, 6)}::{time}"
        for user in range(1, 61)
        for film, time in zip(
            random.permutation(90)[: random.integers(20, 80)] + 1,
            random.integers(0, 10**6, 80) + 956703932,
            strict=False,
        )
    ]
    raw = folder / "ml-1m"
    raw.mkdir()
    (raw / "ratings.dat").write_text("\n".join(rows) + "\n")
    genres = ("Drama", "Action|Sci-Fi", "Children's|Comedy")
    listed = [f"{film}::Film {film} (1999)::{genres[film % 3]}" for film in range(1, 96)]
    (raw / "movies.dat").write_text("\n".join(listed) + "\n", encoding="latin-1")
    made = Prepared(folder / "store", folder / "codes")
    recipe = ["--config", str(RECIPES[0])]
    assert prepare.main([*recipe, f"path={raw}", f"out={made.store}"]) == 0
    assert fit.main([*recipe, f"store={made.store}", f"out={made.codes}", "codes=16"]) == 0
    return made


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_on_a_log_of_that_layout(recipe: Path, films: Prepared, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = [f"store={films.store}", f"codes={films.codes}", f"run={run}", "max_steps=2", "log_every=1"]
    assert main(["--config", str(recipe), *keys]) == 0
    assert [record["step"] for record in records(run, "train")] == [1, 2]
    (validation,) = records(run, "validation")
    assert 0 < validation["ndcg@10"] < 1
    manifest = find_chain(run_storage(run), "latest")[-1].manifest
    assert manifest.model["output"]["kind"] == "items"
    assert manifest.tables["item"] == [95, 52] == [EventStore.open(films.store).num_items, 52]


def test_there_are_the_recipes_that_were_promised() -> None:
    assert [path.stem for path in RECIPES] == ["hstu-ml-1m-large", "hstu-ml-1m", "sasrec-ml-1m"]
