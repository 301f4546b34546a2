"""U users · L token budget · D width · S requests of the sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batches import Batch, EventColumns
from data.event_store import EventStore
from data.loader import Loader, item_features
from evaluation.evaluator import Reader
from evaluation.guardrails.base import FAIL, INFO, PASS
from evaluation.guardrails.leak_probe import (
    Excerpt,
    excerpt_batches,
    leak_probe,
    other_future,
    probe_targets,
    take_excerpt,
)
from evaluation.requests import Requests, make_requests
from semantic_ids.codes.code_table import CodeTable
from tests.conftest import Prepared

Encode = Callable[[Batch], Tensor]
MAX_HISTORY, TOKENS = 16, 64


@pytest.fixture(scope="module")
def store(prepared: Prepared) -> EventStore:
    return EventStore.open(prepared.store)


@pytest.fixture(scope="module")
def requests(store: EventStore) -> Requests:
    return make_requests(store, "test", MAX_HISTORY, "next")


@pytest.fixture(scope="module")
def reader(prepared: Prepared, store: EventStore) -> Reader:
    codes = CodeTable.open(prepared.codes, store)
    return Reader(honest, item_features(store, codes.codes_NC, codes.codes_per_level), TOKENS)


def honest(batch: Batch) -> Tensor:
    """A model that looks at everything that it may: each token sums all of its user's tokens up to itself."""
    item_L = torch.cat([batch.item_ids.values(), torch.zeros(1, dtype=torch.int64)])[batch.item_rows_P[batch.rows_L]]
    columns = (item_L, batch.timestamps_L, batch.request_times_L, batch.durations_L, batch.organic_L)
    x_LD = torch.stack([torch.sin(column.double() * 0.37) for column in columns], dim=1)
    for begin, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        x_LD[begin:end] = x_LD[begin:end].cumsum(0)
    return x_LD.float()


def with_column(column: Callable[[Batch], Tensor]) -> Encode:
    return lambda batch: honest(batch) + 1e-5 * column(batch)[:, None].float()


def following(name: str) -> Callable[[EventColumns], EventColumns]:
    """A batch maker's mistake: a column is read one event too late."""
    return lambda columns: dataclasses.replace(columns, **{name: np.roll(getattr(columns, name), -1)})


def probe(
    encode: Encode, excerpt: Excerpt, reader: Reader, mistake: Callable[[EventColumns], EventColumns] = lambda c: c
) -> str:
    def batches(columns: EventColumns) -> Iterator[Batch]:
        return excerpt_batches(mistake(columns), excerpt.windows, reader)

    return probe_targets(encode, batches, excerpt, seed=0).verdict


def test_a_model_that_sees_nothing_of_what_follows_holds(reader: Reader, requests: Requests, store: EventStore) -> None:
    found = leak_probe(reader, requests, store, torch.device("cpu"), sample=40, seed=0)
    assert found.verdict == PASS
    assert found.figures["requests"] == 40
    plain = dataclasses.replace(reader, distinct=False)
    assert leak_probe(plain, requests, store, torch.device("cpu"), sample=10**6, seed=1).verdict == PASS


@pytest.mark.parametrize(
    "column",
    [lambda batch: batch.target_items_L, lambda batch: batch.target_codes_LC[:, -1]],
    ids=["item of the target", "a code of the target"],
)
def test_a_model_that_reads_the_target_is_caught(
    column: Callable[[Batch], Tensor], reader: Reader, requests: Requests, store: EventStore
) -> None:
    leaking = dataclasses.replace(reader, encode=with_column(column))
    found = leak_probe(leaking, requests, store, torch.device("cpu"), sample=40, seed=0)
    assert found.verdict == FAIL
    assert found.figures["moved"] > 30
    assert found.advice


@pytest.mark.parametrize("name", ["durations", "organic", "timestamps", "items"])
def test_a_column_read_one_event_too_late_is_caught(
    name: str, reader: Reader, requests: Requests, store: EventStore
) -> None:
    excerpt = take_excerpt(store, requests, 40, seed=0)
    assert getattr(excerpt.columns, name) is not None
    assert probe(honest, excerpt, reader) == PASS
    assert probe(honest, excerpt, reader, following(name)) == FAIL


def test_an_event_type_of_the_future_is_caught(reader: Reader, requests: Requests, store: EventStore) -> None:
    excerpt = take_excerpt(store, requests, 40, seed=0)

    def typed(batch: Batch) -> Tensor:
        pairs = batch.features["event_type"]
        last = batch.features.inverse_indices()[1][3][batch.rows_L]
        return honest(batch) + torch.cat([pairs.values(), torch.zeros(1, dtype=torch.int64)])[last][:, None]

    assert probe(typed, excerpt, reader) == PASS
    assert probe(typed, excerpt, reader, following("event_types")) == FAIL


def test_the_time_of_the_request_is_no_leak_but_later_times_are(
    reader: Reader, requests: Requests, store: EventStore
) -> None:
    excerpt = take_excerpt(store, requests, 40, seed=0)
    assert probe(with_column(lambda batch: batch.request_times_L % 1000), excerpt, reader) == PASS
    late = dataclasses.replace(excerpt, history_stop_S=excerpt.history_stop_S - 1)
    assert probe(honest, late, reader) == FAIL  # the newest event that may be seen, taken for one that may not


def test_a_model_that_answers_at_random_is_not_judged(reader: Reader, requests: Requests, store: EventStore) -> None:
    noisy = dataclasses.replace(reader, encode=lambda batch: honest(batch) + torch.rand(len(batch.rows_L), 1))
    found = leak_probe(noisy, requests, store, torch.device("cpu"), sample=5, seed=0)
    assert found.verdict == INFO
    assert "Not judged" in found.found


@pytest.mark.parametrize("seed", range(5))
def test_another_future_is_another_and_the_past_stays(store: EventStore, requests: Requests, seed: int) -> None:
    excerpt = take_excerpt(store, requests, 30, seed)
    before, after = excerpt.columns, other_future(excerpt, seed)
    stops_S = before.offsets[:-1] + excerpt.history_stop_S
    seen_e = np.arange(before.offsets[-1]) < np.repeat(stops_S, np.diff(before.offsets))
    assert (~seen_e).any()
    for name in ("items", "timestamps", "event_types", "durations", "organic"):
        old, new = getattr(before, name), getattr(after, name)
        assert old.dtype == new.dtype
        assert np.array_equal(old[seen_e], new[seen_e]), name
        assert (old[~seen_e] != new[~seen_e]).all(), name
    assert after.items.max() < store.num_items
    assert after.event_types.max() < len(store.event_types)
    assert after.organic.max() <= 2
    steps = np.diff(after.timestamps.astype(np.int64))
    steps[before.offsets[1:-1] - 1] = 0  # from one user to the next
    assert (steps >= 0).all()


def test_an_excerpt_is_read_as_an_evaluation_reads_the_store(
    reader: Reader, requests: Requests, store: EventStore
) -> None:
    loader = Loader(
        store, reader.features, requests.windows, tokens=TOKENS, bins=1, rank=0, world_size=1, seed=0, shuffle=False
    )
    whole = states_of([loader.batch(0, step) for step in range(loader.steps_per_epoch(0))])
    excerpt = take_excerpt(store, requests, 10**6, seed=3)
    own = states_of(excerpt_batches(excerpt.columns, excerpt.windows, reader))
    assert len(own) == len(whole) == len(requests) > 50
    assert all(torch.equal(own[row], whole[row]) for row in whole)


def states_of(batches: Iterable[Batch]) -> dict[int, Tensor]:
    """The state of each request, by its number."""
    found = {}
    for batch in batches:
        states_BD = honest(batch)[batch.offsets[1:] - 1]
        found |= dict(zip(batch.window_index_B.tolist(), states_BD, strict=True))
    return found
