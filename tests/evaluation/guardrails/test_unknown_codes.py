from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.event_store import EventStore
from evaluation.guardrails.base import FAIL, INFO, PASS, WARN
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.guardrails.unknown_codes import missingness, unknown_codes
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.quality.unknown import unknown_figures
from tests.conftest import Prepared
from tests.evaluation.helpers import make_store

CONFIG = GuardrailsConfig()
NUM_ITEMS = 50


def counted(store: EventStore, known_N: np.ndarray) -> dict[str, Any]:
    return {"unknown": unknown_figures(store, known_N, seed=0, replicates=200)}


@pytest.fixture(scope="module")
def random_store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    random = np.random.default_rng(0)
    histories = [random.integers(0, NUM_ITEMS, random.integers(5, 30)).tolist() for _ in range(600)]
    return make_store(tmp_path_factory.mktemp("random") / "store", histories, NUM_ITEMS)


def known_but(unknown: int) -> np.ndarray:
    return np.arange(NUM_ITEMS) >= unknown


def test_gaps_that_lie_anywhere_are_judged_by_their_size(random_store: EventStore) -> None:
    for unknown, verdict in ((0, PASS), (1, PASS), (20, WARN)):
        found = unknown_codes(counted(random_store, known_but(unknown)), CONFIG)
        assert found.verdict == verdict, found.found
    assert unknown_codes(counted(random_store, known_but(20)), GuardrailsConfig(unknown_share=0.9)).verdict == PASS
    items = random_store.column("item")
    test = random_store.split().test
    validation = random_store.split().validation
    at = np.concatenate([random_store.offsets[:-1] + one.start_U for one in (test, validation)])
    assert found.figures["share"] == pytest.approx((items[at] < 20).mean())


def test_gaps_that_lie_in_one_segment_are_named(tmp_path: Path) -> None:
    random, num_items = np.random.default_rng(1), 2000
    rarely = np.arange(num_items) < 200
    weights = np.where(rarely, 0.3, 1.0)
    histories = random.choice(num_items, (3000, 12), p=weights / weights.sum()).tolist()
    store = make_store(tmp_path / "store", histories, num_items)
    for unknown_N, verdict in (
        (rarely & (np.arange(num_items) % 2 == 0), WARN),
        (np.arange(num_items) % 60 == 0, PASS),
    ):
        found = unknown_codes(counted(store, ~unknown_N), CONFIG)
        assert found.figures["share"] < CONFIG.unknown_share
        assert found.verdict == verdict, found.found
        assert ("most in popularity 1: " in found.found) == (verdict == WARN)


def test_being_unknown_that_says_nothing_holds_and_being_unknown_that_tells_is_caught(
    random_store: EventStore, tmp_path: Path
) -> None:
    assert missingness(counted(random_store, known_but(20))).verdict == PASS
    random = np.random.default_rng(2)
    # Unknown items come in runs: one tells of the next.
    runs = [
        np.where(np.repeat(random.random(6) < 0.4, 4), random.integers(0, 20, 24), random.integers(20, 50, 24)).tolist()
        for _ in range(600)
    ]
    split_by_time = make_store(tmp_path / "store", runs, NUM_ITEMS)
    found = missingness(counted(split_by_time, known_but(20)))
    assert found.verdict in (WARN, FAIL)
    assert "next unknown" in found.found
    assert found.advice


def test_a_leak_over_held_out_events_fails() -> None:
    leak = {"leaks": True, "auc": 0.7, "verdict": "it leaks"}
    clean = {"leaks": False, "auc": 0.5, "verdict": "clean"}
    for training, held_out, verdict in ((clean, leak, FAIL), (leak, clean, WARN), (clean, clean, PASS)):
        leakage = {"training": [training], "held_out": [held_out]}
        assert missingness({"unknown": {"items": 5, "unknown_items": 1, "leakage": leakage}}).verdict == verdict


def test_what_was_not_counted_is_not_judged(prepared: Prepared) -> None:
    for diagnostics in (None, {"levels": []}):
        assert unknown_codes(diagnostics, CONFIG).verdict == INFO
        assert missingness(diagnostics).verdict == INFO
    table = CodeTable.open(prepared.codes, EventStore.open(prepared.store))
    assert unknown_codes(table.manifest.diagnostics, CONFIG).verdict in (PASS, WARN)
    assert missingness(table.manifest.diagnostics).verdict in (PASS, WARN, FAIL, INFO)
