"""The whole path, from events to verdicts: what cannot be learnt is at chance, what can is found, what leaks is caught.

R requests · N items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batches import Batch
from data.event_store import EventStore
from data.loader import item_features
from evaluation.evaluator import Reader, evaluate_requests
from evaluation.guardrails.base import FAIL, PASS, Guardrail
from evaluation.guardrails.chance import better_than_chance
from evaluation.guardrails.leak_probe import leak_probe
from evaluation.metrics.ranking import per_request_metrics
from evaluation.requests import Requests, make_requests
from evaluation.results import Evaluation
from semantic_ids import fit
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.trie import CodeTrie
from serving.checkpoints.model import find_chain, load_model, run_storage
from serving.engines.base import ranked_catalogue
from serving.engines.exact import ExactEngine
from sharding.world import World, open_world
from tests.evaluation.helpers import make_store
from trainer.train import main as train

NUM_ITEMS, NUM_USERS, LENGTH, DEPTH = 60, 400, 12, 10
CPU = torch.device("cpu")

TRAINING = [
    "epochs=12",
    "validate_every=4",
    "log_every=20",
    "model.width=32",
    "model.heads=2",
    "model.head_dim_qk=16",
    "model.head_dim_v=16",
    "model.max_history=16",
    "model.dropout=0.0",
    "model.input_dropout=0.0",
    "batch.tokens=512",
    "batch.bins=1",
    "optimizer.warmup_steps=4",
]


@dataclass(frozen=True)
class Trained:
    """A model, and what it was trained and asked on."""

    store: EventStore
    requests: Requests
    reader: Reader
    evaluation: Evaluation


def nothing_to_learn(random: np.random.Generator) -> list[list[int]]:
    """What a user plays says nothing of what the user plays next, nor does anything else."""
    return [random.permutation(NUM_ITEMS)[:LENGTH].tolist() for _ in range(NUM_USERS)]


def a_circle(random: np.random.Generator) -> list[list[int]]:
    """Every item has one that always follows it."""
    circle = random.permutation(NUM_ITEMS)
    starts = random.integers(0, NUM_ITEMS, NUM_USERS)
    return [circle[(start + np.arange(LENGTH)) % NUM_ITEMS].tolist() for start in starts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores, codes and runs of both kinds, made as a user would; training opens a world of its own each time."""
    folder = tmp_path_factory.mktemp("trust")
    for histories in (nothing_to_learn, a_circle):
        store, codes, run = (folder / f"{histories.__name__}-{part}" for part in ("store", "codes", "run"))
        make_store(store, histories(np.random.default_rng(0)), NUM_ITEMS)
        keys = [f"store={store}", f"out={codes}", "levels=2", "codes=16", "embeddings=collaborative"]
        assert fit.main(keys) == 0
        assert train([f"store={store}", f"codes={codes}", f"run={run}", *TRAINING]) == 0
    return folder


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[World]:
    with open_world() as world:
        yield world


@pytest.fixture(scope="module")
def shuffled(folder: Path, world: World) -> Trained:
    return evaluated(folder, nothing_to_learn.__name__, world)


@pytest.fixture(scope="module")
def planted(folder: Path, world: World) -> Trained:
    return evaluated(folder, a_circle.__name__, world)


def evaluated(folder: Path, name: str, world: World) -> Trained:
    store = EventStore.open(folder / f"{name}-store")
    codes = CodeTable.open(folder / f"{name}-codes", store)
    storage = run_storage(folder / f"{name}-run")
    model = load_model(storage, find_chain(storage, "best"), world)
    tower = model.module.tower
    reader = Reader(model.module.encode, item_features(store, codes.codes_NC, codes.codes_per_level), 512)
    requests = make_requests(store, "test", tower.cfg.max_history, "next")
    engine = ExactEngine(tower.heads, CodeTrie.of(codes), ranked_catalogue(codes, CPU))
    evaluation = evaluate_requests(reader, [engine], requests, store, world, depth=NUM_ITEMS, label="test")
    assert evaluation is not None
    return Trained(store, requests, reader, evaluation)


def verdict_on_chance(one: Trained) -> Guardrail:
    return better_than_chance(one.evaluation, "exact", one.requests, one.store, filter_history=True)


def test_shuffled_labels_are_found_by_chance(shuffled: Trained) -> None:
    metrics = per_request_metrics(shuffled.evaluation.engines["exact"], shuffled.evaluation.targets, NUM_ITEMS)
    unseen = NUM_ITEMS - (LENGTH - 1)
    gains = np.zeros(unseen)
    gains[:DEPTH] = 1 / np.log2(np.arange(2, DEPTH + 2))
    hits = (np.arange(unseen) < DEPTH).astype(float)
    for name, worth in (("ndcg@10", gains), ("hr@10", hits)):
        error = worth.std() / np.sqrt(len(shuffled.requests))
        assert metrics[name].mean() == pytest.approx(worth.mean(), abs=3 * error), name
    verdict = verdict_on_chance(shuffled)
    assert verdict.verdict == FAIL
    assert "at chance" in verdict.found
    assert verdict.figures["low"] < 0 < verdict.figures["high"]


def test_what_can_be_learnt_is_found(planted: Trained) -> None:
    metrics = per_request_metrics(planted.evaluation.engines["exact"], planted.evaluation.targets, NUM_ITEMS)
    assert metrics["ndcg@10"].mean() > 0.8
    verdict = verdict_on_chance(planted)
    assert verdict.verdict == PASS
    assert verdict.figures["low"] > 0.5


def test_a_trained_model_does_not_see_what_is_asked(planted: Trained, shuffled: Trained) -> None:
    for one in (planted, shuffled):
        found = leak_probe(one.reader, one.requests, one.store, CPU, sample=100, seed=0)
        assert found.verdict == PASS, found.found


def of_the_target(batch: Batch) -> Tensor:
    """A row for every item, added to the state of the token that is to predict it."""
    rows_ND = torch.randn(NUM_ITEMS + 1, 32, generator=torch.Generator().manual_seed(0))
    return rows_ND[batch.target_items_L]


def of_its_code(batch: Batch) -> Tensor:
    return batch.target_codes_LC[:, 1:].float()


@pytest.mark.parametrize("leak", [of_the_target, of_its_code])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_a_planted_leak_is_caught_however_small(
    shuffled: Trained, leak: Callable[[Batch], Tensor], size: float
) -> None:
    """Long before figures show it: a ten-thousandth of the target moves no list, but a bit."""
    encode = shuffled.reader.encode
    leaking = dataclasses.replace(shuffled.reader, encode=lambda batch: encode(batch) + size * leak(batch))
    found = leak_probe(leaking, shuffled.requests, shuffled.store, CPU, sample=100, seed=0)
    assert found.verdict == FAIL
    assert "sees what it is asked to predict" in found.found
