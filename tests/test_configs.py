"""The files of configs/: every section of each is what its command takes, and of each file there is a line of use."""

from pathlib import Path

import pytest
import yaml

from common.config import resolve
from data.prepare import PrepareConfig
from data.synthetic.config import SynthesizeConfig
from evaluation.config import EvaluateConfig
from semantic_ids.config import FitIdsConfig
from sharding.planning.config import PlanConfig
from trainer.config import TrainConfig

FOLDER = Path(__file__).parents[1] / "configs"
SECTIONS = {
    "synthesize": SynthesizeConfig,
    "prepare": PrepareConfig,
    "fit_ids": FitIdsConfig,
    "plan": PlanConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
FILES = sorted(path for folder in (FOLDER, FOLDER / "recipes") for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sections_are_what_commands_take(path: Path) -> None:
    text = path.read_text()
    sections = yaml.safe_load(text)
    assert sections
    for section in sections:
        needs_log = sections[section].get("source") == "movielens-1m"  # whose raw log everybody has elsewhere
        resolve(SECTIONS[section], section, path, ["path=logs"] if needs_log else [])
    assert f"--config {path.relative_to(FOLDER.parent)}" in text, "its head says how it is used"
