"""Batches of ranking: packed by tokens, each event asked for once."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data import schema
from data.batches import Batch
from data.event_store import EventStore
from data.loader import Loader
from data.ranking.config import FORMS, ActionsConfig
from data.sequences import Plan, Windows, make_plan, request_windows, training_windows
from data.stochastic_length import StochasticLength
from tests.data.helpers import MemorySource, features_of, make_store, sources
from tests.data.ranking.reference import found_bags

TASKS = ["liked: event_type is like"]


def make_loader(store: EventStore, windows: Windows | Plan, form: str, **changes: Any) -> Loader:
    settings: dict[str, Any] = {"tokens": 13, "bins": 6, "rank": 0, "world_size": 1, "seed": 3, "shuffle": True}
    ranking = ActionsConfig(form=form, tasks=TASKS)
    return Loader(store, features_of(store), windows, **{**settings, "ranking": ranking, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    lengths = [1, 2, 3, 30, 7, 7, 12, 4, 5, 19, 8, 3, 3, 10, 6, 40]
    source = MemorySource(lengths, [[], [0], [1, 2], [3], [0, 3]], optional_columns=schema.OPTIONAL_COLUMNS)
    return make_store(tmp_path_factory.mktemp("loader"), source)


def asked_of(batch: Batch, windows: Windows) -> Counter[tuple[int, int, int]]:
    """(user, time, item) of every event whose action is asked for."""
    user_L = np.repeat(windows.user[batch.window_index_B.numpy()], np.diff(batch.offsets.numpy())).tolist()
    found = zip(user_L, batch.request_times_L.tolist(), batch.target_items_L.tolist(), strict=False)
    return Counter(event for event in found if event[2] >= 0)


def training_targets(store: EventStore) -> Counter[tuple[int, int, int]]:
    """All that may be learnt from, but for each user's first event."""
    times, items = store.column(schema.TIMESTAMP), store.column(schema.ITEM)
    ends = store.split().train_end_U.tolist()
    return Counter(
        (user, int(times[store.offsets[user] + place]), int(items[store.offsets[user] + place]))
        for user, end in enumerate(ends)
        for place in range(1, end)
    )


@settings(max_examples=30, deadline=None)
@given(
    sources(),
    st.sampled_from(FORMS),
    st.sampled_from(["tiled", "stream"]),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
)
def test_each_event_is_asked_for_once_an_epoch_within_the_budget(
    source: MemorySource, form: str, kind: str, max_history: int, world_size: int, ties: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = make_store(Path(folder), source)
        split, times = small.split(), small.column(schema.TIMESTAMP)
        plan = make_plan(kind, small.offsets, times, split, max_history, seed=1, period_seconds=20)
        tokens = 2 * max_history + 1
        changes: dict[str, Any] = {"tokens": tokens, "tie_limit_U": split.train_end_U if ties else None}
        loaders = [
            make_loader(small, plan, form, rank=rank, world_size=world_size, **changes) for rank in range(world_size)
        ]
        seen: Counter[tuple[int, int, int]] = Counter()
        for epoch in range(1 if plan.num_epochs is None else plan.num_epochs):
            used = 0
            for step in range(loaders[0].steps_per_epoch(epoch)):
                shares = [loader.batch(epoch, step) for loader in loaders]
                used += sum(int(share.offsets[-1]) for share in shares)
                lengths_W = loaders[0].lengths(epoch)
                for bin_windows in loaders[0].bins_of_step(epoch, step):
                    assert lengths_W[bin_windows].sum() <= tokens
                asked = [asked_of(share, loaders[0].windows(epoch)) for share in shares]
                assert {len(share.timestamps_L) for share in shares} == {6 * tokens // world_size}
                # A loss of 1 an event, averaged over ranks, has a mean of 1 over the global batch.
                weighted = [float(one.loss_weight) * events.total() for one, events in zip(shares, asked, strict=True)]
                assert sum(weighted) / world_size == pytest.approx(1.0)
                for events in asked:
                    seen += events
            budget = loaders[0].steps_per_epoch(epoch) * 6 * tokens
            assert used == loaders[0].real_tokens(epoch)
            assert loaders[0].padding_share(epoch) == pytest.approx(1 - used / budget if budget else 0.0)
        wanted = training_targets(small)
        if ties:  # which event of a user's first second comes first, and is not asked for, is drawn
            first_U = times[small.offsets[:-1]].tolist()
            seen, wanted = (without_items_at(found, first_U) for found in (seen, wanted))
        assert seen == wanted


def without_items_at(found: Counter[tuple[int, int, int]], time_U: list[int]) -> Counter[tuple[int, int, int]]:
    plain: Counter[tuple[int, int, int]] = Counter()
    for (user, time, item), count in found.items():
        plain[user, time, -1 if time == time_U[user] else item] += count
    return plain


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_global_batches_are_the_same_on_any_number_of_ranks(store: EventStore, world_size: int, form: str) -> None:
    windows = training_windows(store.offsets, store.split(), 6, "tiled")
    whole = make_loader(store, windows, form)
    ranks = [make_loader(store, windows, form, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert whole.steps_per_epoch(1) > 1
    for step in range(whole.steps_per_epoch(1)):
        found = [tokens_of(loader.batch(1, step)) for loader in ranks]
        assert [token for share in found for token in share] == tokens_of(whole.batch(1, step))


def tokens_of(batch: Batch) -> list[Any]:
    """All that belongs to each token in use."""
    names = ("timestamps_L", "request_times_L", "durations_L", "organic_L", "target_items_L", "alone_L")
    columns = [getattr(batch, name).tolist() for name in names if getattr(batch, name) is not None]
    assert batch.labels_LT is not None
    columns += [batch.labels_LT.nan_to_num(-1).tolist(), found_bags(batch)]
    return [list(values) for values in zip(*columns, strict=True)][: int(batch.offsets[-1])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("selection", ["greedy", "random", "weighted"])
@pytest.mark.parametrize("kind", ["newest", "stream"])
def test_thinned_windows_ask_for_what_is_left(store: EventStore, form: str, selection: str, kind: str) -> None:
    plan = make_plan(kind, store.offsets, store.column(schema.TIMESTAMP), store.split(), 30, seed=1, period_seconds=20)
    thinning = StochasticLength(alpha=1.3, selection=selection)
    loader = make_loader(store, plan, form, tokens=70, bins=2, thinning=thinning, longest=30)
    epoch = 0 if kind == "newest" else 1
    assert (loader.inputs(epoch) < loader.windows(epoch).lengths).sum() >= 2
    batches = list(loader.iterate(epoch))
    for batch in batches:
        asked = int((batch.target_items_L >= 0).sum())
        assert float(batch.loss_weight) * asked == pytest.approx(1.0)
        lengths = loader.lengths(epoch)[batch.window_index_B]
        assert np.diff(batch.offsets.numpy()).tolist() == lengths.tolist()
        # The last target of a window is what its newest input was followed by, left or not.
        windows = loader.windows(epoch)
        for row, window in enumerate(batch.window_index_B.tolist()):
            last = int(store.offsets[windows.user[window]] + windows.stop[window])
            end = int(batch.offsets[row + 1]) - 1
            assert int(batch.target_items_L[end]) == store.column(schema.ITEM)[last]
    assert sum(int(batch.offsets[-1]) for batch in batches) == loader.real_tokens(epoch)


@pytest.mark.parametrize("form", FORMS)
def test_requests_ask_for_the_held_out_event_at_its_own_time(store: EventStore, form: str) -> None:
    windows = request_windows(store.split().test, max_history=5)
    loader = make_loader(store, windows, form, shuffle=False, bins=2)
    seen: Counter[tuple[int, int, int]] = Counter()
    for batch in loader.iterate(0):
        seen += asked_of(batch, windows)
    times, items = store.column(schema.TIMESTAMP), store.column(schema.ITEM)
    lasts = {user: int(store.offsets[user + 1]) - 1 for user in windows.user.tolist()}
    assert seen == Counter((user, int(times[last]), int(items[last])) for user, last in lasts.items())


def test_a_budget_is_of_tokens(store: EventStore) -> None:
    windows = training_windows(store.offsets, store.split(), 5)
    for form, longest in zip(FORMS, (11, 10, 5), strict=True):
        assert make_loader(store, windows, form, tokens=longest).lengths(0).max() == longest
        with pytest.raises(InputError, match=f"less than the longest window of {longest} tokens, .* for 5 inputs"):
            make_loader(store, windows, form, tokens=longest - 1).steps_per_epoch(0)


def test_a_resumed_epoch_goes_on_bit_by_bit_and_other_actions_are_another_plan(store: EventStore) -> None:
    windows = training_windows(store.offsets, store.split(), 5, "tiled")
    loader = make_loader(store, windows, "merged", bins=2)
    state = loader.state(0, 2)
    again = make_loader(store, windows, "merged", bins=2)
    again.check_state(state)
    rest = list(again.iterate(0, start_step=2))
    assert [tokens_of(batch) for batch in rest] == [tokens_of(batch) for batch in loader.iterate(0)][2:]
    assert rest
    for ranking in (
        None,
        ActionsConfig(form="interleaved", tasks=TASKS),
        ActionsConfig(form="merged", tasks=["liked: event_type is dislike"]),
        ActionsConfig(form="merged", tasks=TASKS, played_buckets=3),
    ):
        with pytest.raises(InputError, match="cannot be found"):
            make_loader(store, windows, "merged", bins=2, ranking=ranking).check_state(state)
    same = ActionsConfig(form="merged", tasks=TASKS, weights=[2.0], hidden=8)  # the model's, not the batches'
    make_loader(store, windows, "merged", bins=2, ranking=same).check_state(state)


def test_what_the_store_lacks_is_told(tmp_path: Path) -> None:
    bare = make_store(tmp_path, MemorySource([5], [[0]]))
    windows = training_windows(bare.offsets, bare.split(), 5)
    ranking = ActionsConfig(tasks=["half: played_ratio >= 50"])
    with pytest.raises(InputError, match="the store has no column `played_ratio`"):
        make_loader(bare, windows, "merged", ranking=ranking)


@pytest.mark.parametrize("form", FORMS)
def test_without_windows_there_are_no_steps_and_a_rank_without_windows_has_padding_alone(
    tmp_path: Path, form: str
) -> None:
    (tmp_path / "lonely").mkdir()
    lonely = make_store(tmp_path / "lonely", MemorySource([1, 1], [[0]]))
    nothing = training_windows(lonely.offsets, lonely.split(), 5)
    assert make_loader(lonely, nothing, form).steps_per_epoch(0) == 0
    one = make_store(tmp_path, MemorySource([1, 5], [[0]]))
    windows = training_windows(one.offsets, one.split(), 5)
    for distinct in (True, False):
        empty = make_loader(one, windows, form, bins=2, rank=1, world_size=2, distinct=distinct).batch(0, 0)
        assert empty.offsets.tolist() == [0]
        assert (empty.target_items_L == -1).all()
        assert empty.labels_LT is not None
        assert math.isnan(float(empty.labels_LT[0, 0]))
        assert found_bags(empty) == [[[], [], [], []]] * 13
        assert float(empty.loss_weight) == 1.0
        assert torch.equal(empty.request_times_L, torch.zeros(13, dtype=torch.int64))
