from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data import schema
from data.batches import FEATURE_KEYS, Batch, ItemFeatures
from data.event_store import EventStore
from data.loader import Loader, LoaderState, item_features
from data.sequences import Plan, SampledPrefixes, TimeStream, Windows, make_plan, request_windows, training_windows
from data.stochastic_length import StochasticLength
from tests.data.helpers import (
    CODES,
    LEVELS,
    MemorySource,
    examples_of,
    features_of,
    make_store,
    sources,
    token_bags,
    token_items,
)


def make_loader(store: EventStore, windows: Windows | Plan, **changes: Any) -> Loader:
    settings: dict[str, Any] = {"tokens": 6, "bins": 6, "rank": 0, "world_size": 1, "seed": 3, "shuffle": True}
    return Loader(store, features_of(store), windows, **{**settings, **changes})


def windows_of(store: EventStore, max_history: int = 5) -> Windows:
    return training_windows(store.offsets, store.split(), max_history, "tiled")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    lengths = [1, 2, 3, 30, 7, 7, 12, 4, 5, 19, 8, 3, 3, 10, 6, 40]
    source = MemorySource(lengths, [[], [0], [1, 2], [3], [0, 3]], optional_columns=schema.OPTIONAL_COLUMNS)
    return make_store(tmp_path_factory.mktemp("loader"), source)


def parts(batch: Batch) -> dict[str, torch.Tensor]:
    whole = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    whole = {name: part for name, part in whole.items() if part is not None}
    features, item_ids = whole.pop("features"), whole.pop("item_ids")
    keyed = {"values": features.values(), "lengths": features.lengths(), "inverse": features.inverse_indices()[1]}
    return whole | keyed | {"item_values": item_ids.values(), "item_lengths": item_ids.lengths()}


def assert_identical(one: Batch, other: Batch) -> None:
    for name, tensor in parts(one).items():
        assert torch.equal(tensor, parts(other)[name]), name
        assert tensor.dtype == parts(other)[name].dtype, name


def token_rows(batches: list[Batch]) -> list[Any]:
    """All tokens in use of some ranks' batches of one step, rank after rank, each with all that belongs to it."""
    rows = []
    for batch in batches:
        features = [token_bags(batch, key) for key in FEATURE_KEYS] + [token_items(batch)]
        names = [name for name in parts(batch) if name.endswith(("_L", "_LC")) and name != "rows_L"]
        for token in range(int(batch.offsets[-1])):
            dense = [getattr(batch, name)[token].tolist() for name in names]
            rows.append((dense, [bags_of_key[token] for bags_of_key in features]))
    return rows


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_global_batches_are_the_same_on_any_number_of_ranks(store: EventStore, world_size: int, shuffle: bool) -> None:
    windows = windows_of(store)
    alone = list(make_loader(store, windows, shuffle=shuffle).iterate(epoch=1))
    loaders = [
        make_loader(store, windows, rank=rank, world_size=world_size, shuffle=shuffle) for rank in range(world_size)
    ]
    ranks = [list(loader.iterate(epoch=1)) for loader in loaders]
    assert [len(batches) for batches in ranks] == [len(alone)] * world_size
    assert {len(batch.timestamps_L) for batches in ranks for batch in batches} == {6 * 6 // world_size}
    for step, whole in enumerate(alone):
        shares = [batches[step] for batches in ranks]
        assert token_rows(shares) == token_rows([whole])
        assert torch.equal(torch.cat([share.window_index_B for share in shares]), whole.window_index_B)
        # A loss of 1 a prediction, averaged over ranks, must have a mean of 1 over the global batch on any world size.
        predictions = [int(share.offsets[-1]) for share in shares]
        mean = sum(float(share.loss_weight) * count for share, count in zip(shares, predictions, strict=True))
        assert mean / world_size == pytest.approx(1.0, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(sources(), st.integers(1, 4), st.integers(0, 3), st.sampled_from([1, 2, 3]), st.booleans())
def test_each_window_comes_exactly_once(
    source: MemorySource, max_history: int, spare: int, world_size: int, shuffle: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = make_store(Path(folder), source)
        windows = windows_of(small, max_history)
        tokens = max_history + spare  # spare 0: a bin is exactly one full window
        changes: dict[str, Any] = {"tokens": tokens, "world_size": world_size, "shuffle": shuffle}
        loaders = [make_loader(small, windows, rank=rank, **changes) for rank in range(world_size)]
        seen = torch.cat(
            [batch.window_index_B for loader in loaders for batch in loader.iterate(0)] or [torch.zeros(0)]
        )
        assert sorted(seen.tolist()) == list(range(len(windows)))
        used = sum(int(batch.offsets[-1]) for loader in loaders for batch in loader.iterate(0))
        budget = loaders[0].steps_per_epoch(0) * 6 * tokens
        assert loaders[0].padding_share(0) == pytest.approx(1 - used / budget if budget else 0.0)


@pytest.mark.parametrize("start_step", [0, 1, 2])
def test_a_new_loader_resumes_with_the_same_batches_bit_by_bit(store: EventStore, start_step: int) -> None:
    windows = windows_of(store)
    whole = list(make_loader(store, windows, bins=4, world_size=2, rank=1).iterate(epoch=7))
    resumed = list(make_loader(store, windows, bins=4, world_size=2, rank=1).iterate(epoch=7, start_step=start_step))
    assert len(whole) > 3
    assert len(resumed) == len(whole) - start_step
    for one, other in zip(whole[start_step:], resumed, strict=True):
        assert_identical(one, other)


def test_order_depends_on_epoch_and_seed_alone(store: EventStore) -> None:
    windows = windows_of(store)
    loader = make_loader(store, windows)

    def order(of: Loader, epoch: int) -> list[int]:
        return torch.cat([batch.window_index_B for batch in of.iterate(epoch)]).tolist()

    first = order(loader, 0)
    assert order(loader, 1) != first
    assert order(make_loader(store, windows, seed=4), 0) != first
    assert order(loader, 0) == first == order(make_loader(store, windows), 0)


def test_without_shuffling_every_epoch_is_the_same(store: EventStore) -> None:
    loader = make_loader(store, windows_of(store), shuffle=False)
    for one, other in zip(loader.iterate(0), loader.iterate(5), strict=True):
        assert_identical(one, other)


def test_requests_have_the_held_out_event_as_the_only_target(store: EventStore) -> None:
    windows = request_windows(store.split().test, max_history=5)
    codes = torch.ones(store.num_items, 2, dtype=torch.int16)
    known = features_of(store)
    features = ItemFeatures(codes, 5, known.artist_offsets, known.artist_values, known.num_artists)
    loader = Loader(store, features, windows, tokens=6, bins=2, rank=0, world_size=1, seed=0, shuffle=False)
    targets = {}
    for batch in loader.iterate(0):
        for row, window in enumerate(batch.window_index_B.tolist()):
            of_user = batch.target_items_L[batch.offsets[row] : batch.offsets[row + 1]]
            assert (of_user[:-1] == -1).all()
            targets[int(windows.user[window])] = int(of_user[-1])
    items = store.column(schema.ITEM)
    lengths = np.diff(store.offsets)
    assert targets == {user: int(items[store.offsets[user + 1] - 1]) for user in np.flatnonzero(lengths >= 3).tolist()}


def test_a_plan_without_windows_has_no_steps(tmp_path: Path) -> None:
    lonely = make_store(tmp_path, MemorySource(lengths_U=[1, 1], artists_N=[[0]]))
    loader = make_loader(lonely, windows_of(lonely))
    assert loader.steps_per_epoch(0) == 0
    assert loader.padding_share(0) == 0.0
    assert list(loader.iterate(0)) == []


def test_a_step_whose_targets_all_lack_codes_teaches_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, MemorySource(lengths_U=[5], artists_N=[[0], [1]]))
    known = features_of(store)
    unknown = ItemFeatures(
        torch.zeros_like(known.codes_NC), 5, known.artist_offsets, known.artist_values, known.num_artists
    )
    loader = Loader(store, unknown, windows_of(store), tokens=6, bins=1, rank=0, world_size=1, seed=0, shuffle=True)
    (batch,) = loader.iterate(0)
    assert (batch.target_codes_LC == -1).all()
    assert batch.loss_weight.item() == 0.5  # 2 predictions asked for, none to be learnt from


@pytest.mark.parametrize(("codes", "dtype"), [(2**15, torch.int16), (2**15 + 1, torch.int32), (2**16, torch.int32)])
def test_codes_of_16_bits_without_a_sign_keep_their_values(store: EventStore, codes: int, dtype: torch.dtype) -> None:
    codes_NC = np.arange(2 * store.num_items).reshape(-1, 2) + (codes - 2 * store.num_items)
    features = item_features(store, codes_NC.astype(np.uint16), codes)
    assert features.codes_NC.dtype == dtype
    assert features.codes_NC.tolist() == codes_NC.tolist()


def test_impossible_budgets_are_told(store: EventStore) -> None:
    with pytest.raises(InputError, match="bins=4 does not divide among 3 ranks"):
        make_loader(store, windows_of(store, 5), bins=4, world_size=3)
    with pytest.raises(InputError, match=r"tokens=4 is less than the longest window of 5 tokens, .* 5 inputs"):
        make_loader(store, windows_of(store, 5), tokens=4).steps_per_epoch(0)


# ── plans that differ by epoch ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["newest", "tiled", "sampled", "stream"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_plan_gives_each_window_once_on_any_number_of_ranks(
    store: EventStore, kind: str, world_size: int
) -> None:
    times = store.column(schema.TIMESTAMP)
    plan = make_plan(kind, store.offsets, times, store.split(), 5, seed=2, period_seconds=20)
    loaders = [make_loader(store, plan, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(3):
        seen = [batch.window_index_B for loader in loaders for batch in loader.iterate(epoch)]
        assert sorted(torch.cat(seen).tolist()) == list(range(len(plan.windows(epoch))))


def test_a_stream_is_used_in_time_order(store: EventStore) -> None:
    plan = TimeStream(store.offsets, store.column(schema.TIMESTAMP), store.split(), 5, period_seconds=20)
    loader = make_loader(store, plan, shuffle=True, bins=2)
    assert loader.num_epochs == plan.num_epochs == 3
    for epoch in range(3):
        steps = [batch.window_index_B for batch in loader.iterate(epoch)]
        assert len(steps) > 2
        for earlier, later in itertools.pairwise(steps):
            assert earlier.max() < later.min()
    expected = sum(loader.steps_per_epoch(epoch) for epoch in range(3))
    assert loader.expected_steps(99) == pytest.approx(expected, abs=0.35 * expected)


def test_sampled_prefixes_change_with_the_epoch(store: EventStore) -> None:
    loader = make_loader(store, SampledPrefixes(store.split(), 5, seed=0))
    assert loader.windows(0).stop.tolist() != loader.windows(1).stop.tolist()
    assert loader.num_epochs is None


# ── thinning ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("selection", ["greedy", "random", "weighted"])
def test_thinned_windows_keep_inputs_of_theirs_and_the_events_that_followed(store: EventStore, selection: str) -> None:
    windows = training_windows(store.offsets, store.split(), 30)
    thinning = StochasticLength(alpha=1.3, selection=selection)
    changes: dict[str, Any] = {"tokens": 40, "bins": 2, "thinning": thinning, "longest": 30}
    loader = make_loader(store, windows, **changes)
    times = store.column(schema.TIMESTAMP)
    thinned = 0
    for batch in loader.iterate(0):
        for row, window in enumerate(batch.window_index_B.tolist()):
            begin, end = batch.offsets[row : row + 2].tolist()
            first = int(store.offsets[windows.user[window]])
            of_window = times[first + windows.start[window] : first + windows.stop[window] + 1].tolist()
            pairs = list(itertools.pairwise(of_window))
            found = zip(batch.timestamps_L[begin:end].tolist(), batch.request_times_L[begin:end].tolist(), strict=True)
            for pair in found:  # each in its order, none twice
                assert pair in pairs
                del pairs[: pairs.index(pair) + 1]
            thinned += end - begin < windows.lengths[window]
            assert end - begin in (windows.lengths[window], thinning.threshold(30))
    assert thinned >= 2
    assert loader.real_tokens(0) < windows.lengths.sum()
    ranks = [make_loader(store, windows, rank=rank, world_size=2, **changes) for rank in range(2)]
    for step, whole in enumerate(loader.iterate(0)):
        assert token_rows([rank.batch(0, step) for rank in ranks]) == token_rows([whole])


# ── ties ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(sources(), st.integers(1, 4), st.integers(0, 5))
def test_shuffling_ties_reorders_within_one_user_and_second_and_spares_what_is_held_out(
    source: MemorySource, max_history: int, epoch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), source)
        split, times = store.split(), store.column(schema.TIMESTAMP)
        windows = windows_of(store, max_history)
        examples = examples_of(store, windows, tie_limit_U=split.train_end_U, seed=epoch)
        for user, end in enumerate(split.train_end_U.tolist()):
            of_user = np.flatnonzero(windows.user == user)
            if not len(of_user):
                continue
            tokens = examples.tokens(of_user)
            first = int(store.offsets[user])
            # Tiled windows see every training event once as an input, but for the last, which is a target.
            order = [*tokens.at_n.tolist(), int(tokens.next_at_n[-1])]
            assert sorted(order) == list(range(first, first + end))
            np.testing.assert_array_equal(times[order], times[first : first + end])
            assert tokens.next_at_n.tolist() == order[1:]
            # Alone, or in any company, a window is the same.
            alone = examples.tokens(of_user[-1:])
            assert alone.at_n.tolist() == tokens.at_n[-len(alone.at_n) :].tolist()


def test_ties_are_shuffled_anew_each_epoch_and_alike_on_all_ranks(tmp_path: Path) -> None:
    source = MemorySource(lengths_U=[40, 60], artists_N=[[0]] * 50)
    busy = make_store(tmp_path, source)  # 50 seconds: most events share theirs with another
    windows, limit = windows_of(busy), busy.split().train_end_U

    def epoch_of(epoch: int, **changes: Any) -> list[Batch]:
        return list(make_loader(busy, windows, shuffle=False, tie_limit_U=limit, **changes).iterate(epoch))

    first, again, later = epoch_of(0), epoch_of(0), epoch_of(1)
    for one, other in zip(first, again, strict=True):
        assert_identical(one, other)
    assert any(
        not torch.equal(one.target_items_L, other.target_items_L) for one, other in zip(first, later, strict=True)
    )
    halves = [epoch_of(0, rank=rank, world_size=2) for rank in range(2)]
    for step, whole in enumerate(first):
        assert token_rows([half[step] for half in halves]) == token_rows([whole])
    for batch in later:  # a token's target is still the event after it
        inside = torch.ones(len(batch.timestamps_L), dtype=torch.bool)
        inside[batch.offsets[1:] - 1] = False
        inside[int(batch.offsets[-1]) :] = False
        at = inside.nonzero().flatten()
        of_tokens = token_bags(batch, "rq")
        codes = [of_tokens[token + 1] for token in at.tolist()]
        wanted = [
            [level * CODES + code for level, code in enumerate(row)]
            if row[0] >= 0
            else [level * CODES for level in range(LEVELS)]
            for row in batch.target_codes_LC[at].tolist()
        ]
        assert codes == wanted


# ── resuming, and batches made ahead ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_made_ahead_are_the_same_bit_by_bit(store: EventStore, workers: int) -> None:
    loader = make_loader(store, windows_of(store), bins=2, tie_limit_U=store.split().train_end_U)
    expected = list(loader.iterate(1, start_step=1))
    found = list(loader.iterate(1, start_step=1, workers=workers))
    assert len(found) == len(expected) > 3
    for one, other in zip(expected, found, strict=True):
        assert_identical(one, other)


class EndsInTheParentAlone:
    """Garbage, being a part of itself, that must not be cleared away elsewhere."""

    def __init__(self) -> None:
        self.itself, self.pid = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_makes_batches_clears_away_nothing_of_its_parents(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(store, windows_of(store), bins=2)
    make = loader.batch

    def batch(epoch: int, step: int) -> Batch:
        gc.collect()
        return make(epoch, step)

    gc.disable()
    try:
        EndsInTheParentAlone()
        monkeypatch.setattr(loader, "batch", batch)
        batches = loader.iterate(0, workers=1)
    finally:
        gc.enable()
    assert len(list(batches)) == loader.steps_per_epoch(0)


@settings(max_examples=30, deadline=None)
@given(
    sources(),
    st.sampled_from(["tiled", "sampled", "stream"]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 3]),
    st.data(),
)
def test_an_epoch_begun_on_some_ranks_and_ended_on_others_has_every_window_once(
    source: MemorySource, kind: str, before: int, after: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = make_store(Path(folder), source)
        times = small.column(schema.TIMESTAMP)
        plan = make_plan(kind, small.offsets, times, small.split(), 3, seed=1, period_seconds=30)
        first = [make_loader(small, plan, rank=rank, world_size=before) for rank in range(before)]
        cut = data.draw(st.integers(0, first[0].steps_per_epoch(0)))
        state = first[0].state(0, cut)
        rest = [make_loader(small, plan, rank=rank, world_size=after) for rank in range(after)]
        seen = [loader.batch(0, step).window_index_B for step in range(cut) for loader in first]
        for loader in rest:
            loader.check_state(LoaderState(**json.loads(json.dumps(dataclasses.asdict(state)))))
            seen += [batch.window_index_B for batch in loader.iterate(state.epoch, state.step)]
        found = torch.cat(seen).tolist() if seen else []
        assert sorted(found) == list(range(len(plan.windows(0))))


@pytest.mark.parametrize("change", [{"seed": 9}, {"tokens": 7}, {"bins": 3}, {"shuffle": False}])
def test_a_state_of_another_plan_is_refused(store: EventStore, change: dict[str, Any]) -> None:
    state = make_loader(store, windows_of(store)).state(0, 2)
    make_loader(store, windows_of(store), world_size=3, rank=2).check_state(state)
    with pytest.raises(InputError, match="so the rest of its epoch cannot be found"):
        make_loader(store, windows_of(store), **change).check_state(state)
    with pytest.raises(InputError, match="cannot be found"):
        make_loader(store, windows_of(store, 4)).check_state(state)
