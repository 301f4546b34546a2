from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import InputError
from data.event_store import EventStore
from data.split import SplitConfig, training_mask
from data.store_writer import write_event_store
from evaluation.baselines.build import build_baselines
from evaluation.baselines.config import BASELINES, BaselinesConfig
from evaluation.baselines.ials import IalsConfig
from evaluation.baselines.item_knn import ItemKnnConfig
from evaluation.baselines.lists import FixedListEngine
from evaluation.baselines.training_log import training_log
from serving.engines.base import Engine
from tests.data.helpers import MemorySource
from tests.evaluation.baselines.helpers import CPU, DAY, query_of

USERS, ITEMS = 12, 15
TEMPORAL = SplitConfig("temporal", test_seconds=DAY, validation_seconds=DAY, gap_seconds=60, end=10 * DAY)


@dataclass
class Told(MemorySource):
    """Histories as they are told."""

    told: Sequence[tuple[Sequence[int], Sequence[int]]] = ()

    def _columns(self, random: np.random.Generator, lengths: list[int]) -> dict[str, np.ndarray]:
        mine = list(self.told[: len(lengths)])
        self.told = self.told[len(lengths) :]
        return {
            "item": np.concatenate([items for items, _ in mine]).astype(np.uint32),
            "timestamp": np.concatenate([times for _, times in mine]).astype(np.uint32),
            "event_type": np.zeros(sum(lengths), np.uint8),
        }


def written(folder: Path, told: Sequence[tuple[Sequence[int], Sequence[int]]], split: SplitConfig) -> EventStore:
    source = Told([len(items) for items, _ in told], [[]] * ITEMS, told=told)
    write_event_store(source, folder, split)
    return EventStore.open(folder)


def histories(seed: int, held_out: bool, split: SplitConfig) -> list[tuple[list[int], list[int]]]:
    """The same training events whatever the seed, and held-out events that depend on it."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    told = []
    for _ in range(USERS):
        learnt = int(fixed.integers(2, 9))
        times = np.sort(fixed.integers(0, 7 * DAY, learnt)).tolist()
        items = fixed.integers(0, ITEMS - 3, learnt).tolist()
        if held_out:
            # Planted: items and times that training never has, many of them where the split holds out a period.
            more = 2 if split.kind == "leave-last-out" else int(random.integers(1, 30))
            times += np.sort(random.integers(8 * DAY, 10 * DAY, more)).tolist()
            items += random.integers(ITEMS - 3, ITEMS, more).tolist()
        told.append((items, times))
    told[0][1][-1] = max(told[0][1][-1], 9 * DAY + 1)  # something to test on
    return told


def content(engine: Engine) -> list[bytes]:
    """All that an engine was given by its fit."""
    arrays: list[Any] = [engine.catalogue.item_order.numpy()]  # type: ignore[attr-defined]
    if isinstance(engine, FixedListEngine):
        arrays += [engine._scores_n.numpy(), engine._columns_n.numpy()]
    elif engine.name == "item_knn":
        table = engine.table_NN  # type: ignore[attr-defined]
        arrays += [table.data, table.indices, table.indptr]
    else:
        arrays += [engine.item_factors_NF]  # type: ignore[attr-defined]
    return [array.tobytes() for array in arrays]


CONFIGS = [
    BaselinesConfig(item_knn=ItemKnnConfig(window=window), ials=IalsConfig(factors=4, iterations=3))
    for window in (0, 2)
]


@pytest.mark.parametrize("split", [SplitConfig(), TEMPORAL], ids=lambda split: split.kind)
def test_no_held_out_event_reaches_a_fit(tmp_path: Path, split: SplitConfig) -> None:
    stores = [written(tmp_path / str(seed), histories(seed, True, split), split) for seed in (1, 2)]
    lengths = [store.num_events for store in stores]
    assert split.kind == "leave-last-out" or lengths[0] != lengths[1]
    assert stores[0].fingerprint != stores[1].fingerprint
    for config in CONFIGS:
        first, second = (build_baselines(BASELINES, config, store, None, CPU, quiet=True) for store in stores)
        for one, other in zip(first, second, strict=True):
            assert content(one) == content(other), one.name


def test_a_training_event_does_reach_every_fit(tmp_path: Path) -> None:
    told = histories(1, True, TEMPORAL)
    changed = [(list(items), list(times)) for items, times in told]
    changed[3][0][1] = ITEMS - 1
    stores = [written(tmp_path / name, own, TEMPORAL) for name, own in (("a", told), ("b", changed))]
    for config in CONFIGS:
        first, second = (build_baselines(BASELINES, config, store, None, CPU, quiet=True) for store in stores)
        for one, other in zip(first, second, strict=True):
            assert content(one) != content(other), one.name


def test_a_log_is_what_the_split_gives_to_training(tmp_path: Path) -> None:
    store = written(tmp_path / "store", histories(1, True, TEMPORAL), TEMPORAL)
    learnt_E = training_mask(store.offsets, store.split())
    assert 0 < learnt_E.sum() < store.num_events
    log = training_log(store)
    for size in (1, 20, 10_000):
        blocks = list(log.blocks(size))
        assert (len(blocks) == 1) == (size == 10_000)
        for name in ("item", "timestamp"):
            found = np.concatenate([block.items_E if name == "item" else log.times_S[block.at_E] for block in blocks])
            np.testing.assert_array_equal(found, store.column(name)[learnt_E])
        users_E = np.repeat(np.arange(USERS), np.diff(store.offsets))[learnt_E]
        np.testing.assert_array_equal(np.concatenate([block.users_E for block in blocks]), users_E)
    assert (log.num_users, log.num_items, log.num_events) == (USERS, ITEMS, learnt_E.sum())
    assert log.end == store.column("timestamp")[learnt_E].max()
    np.testing.assert_array_equal(log.plays_N, np.bincount(store.column("item")[learnt_E], minlength=ITEMS))


def test_every_baseline_returns_everything_that_may_be_returned(tmp_path: Path) -> None:
    store = written(tmp_path / "store", histories(1, True, TEMPORAL), TEMPORAL)
    engines = build_baselines(BASELINES, CONFIGS[1], store, np.array([3, 14]), CPU, quiet=True)
    assert [engine.name for engine in engines] == list(BASELINES)
    assert not any(engine.log_probabilities for engine in engines)
    query = query_of([[0, 1, 13], []], [[0, 3, 5], []])
    for engine in engines:
        items_BK, scores_BK = engine.retrieve(query, ITEMS)
        assert sorted(items_BK[0].tolist()) == [-1] * 4 + sorted(set(range(ITEMS)) - {0, 3, 5, 14}), engine.name
        assert sorted(items_BK[1].tolist()) == [-1] * 2 + sorted(set(range(ITEMS)) - {3, 14}), engine.name
        assert torch.equal(scores_BK == -torch.inf, items_BK < 0)
        assert (scores_BK.diff() <= 0)[items_BK[:, 1:] >= 0].all()
        assert (items_BK.dtype, scores_BK.dtype) == (torch.int64, torch.float32)


def test_no_user_is_answered_with_no_list(tmp_path: Path) -> None:
    store = written(tmp_path / "store", histories(1, True, TEMPORAL), TEMPORAL)
    for engine in build_baselines(BASELINES, CONFIGS[0], store, None, CPU, quiet=True):
        items_BK, scores_BK = engine.retrieve(query_of([], []), 4)
        assert items_BK.shape == scores_BK.shape == (0, 4), engine.name


def test_faults_are_told(tmp_path: Path) -> None:
    store = written(tmp_path / "store", histories(1, True, TEMPORAL), TEMPORAL)
    with pytest.raises(
        InputError, match="baseline 'bm25' is unknown, expected one of mostpop, decaypop, item_knn, ials"
    ):
        build_baselines(["mostpop", "bm25"], BaselinesConfig(), store, None, CPU)
    assert build_baselines([], BaselinesConfig(), store, None, CPU) == []
    with pytest.raises(InputError, match="`memory_gb` is 0, must be above 0"):
        BaselinesConfig(memory_gb=0)
    none_U = np.zeros(USERS, np.int64)
    nothing = store.split()
    store.split = lambda: type(nothing)(none_U, nothing.validation, nothing.test)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="leaves no event to train on"):
        build_baselines(["mostpop"], BaselinesConfig(), store, None, CPU)
