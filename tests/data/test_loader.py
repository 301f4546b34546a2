from __future__ import annotations

import dataclasses
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
from data.loader import Loader, event_columns, pack, shuffle_ties
from data.sequences import Windows, request_windows, training_windows
from data.split import leave_last_out, training_events
from tests.data.helpers import CODES, LEVELS, MemorySource, bags, features_of, make_store, sources


def make_loader(store: EventStore, windows: Windows, **changes: Any) -> Loader:
    settings: dict[str, Any] = {"tokens": 6, "bins": 6, "rank": 0, "world_size": 1, "seed": 3, "shuffle": True}
    return Loader(store, features_of(store), windows, **{**settings, **changes})


def windows_of(store: EventStore, max_history: int = 5) -> Windows:
    return training_windows(store.offsets, leave_last_out(np.diff(store.offsets)), max_history, "tiled")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    lengths = [1, 2, 3, 30, 7, 7, 12, 4, 5, 19, 8, 3, 3, 10, 6, 40]
    source = MemorySource(lengths, [[], [0], [1, 2], [3], [0, 3]], optional_columns=schema.OPTIONAL_COLUMNS)
    return make_store(tmp_path_factory.mktemp("loader"), source)


def parts(batch: Batch) -> dict[str, torch.Tensor]:
    tensors = {
        field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "features"
    }
    return tensors | {"values": batch.features.values(), "lengths": batch.features.lengths()}


def assert_identical(one: Batch, other: Batch) -> None:
    for name, tensor in parts(one).items():
        assert torch.equal(tensor, parts(other)[name]), name
        assert tensor.dtype == parts(other)[name].dtype, name


def token_rows(batches: list[Batch]) -> list[Any]:
    """All tokens in use of some ranks' batches of one step, rank after rank, each with all that belongs to it."""
    rows = []
    for batch in batches:
        features = [bags(batch.features, key) for key in FEATURE_KEYS]
        for token in range(int(batch.offsets[-1])):
            dense = [getattr(batch, name)[token].tolist() for name in parts(batch) if name.endswith(("_L", "_LC"))]
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
        # One loss per target; averaged over ranks it must be the mean over the global batch on any world size.
        targets = sum(int((share.target_items_L >= 0).sum()) for share in shares)
        mean = sum(float(share.loss_weight) * int((share.target_items_L >= 0).sum()) for share in shares) / world_size
        assert mean == pytest.approx(1.0 if targets else 0.0, rel=1e-6)


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
    split = leave_last_out(np.diff(store.offsets))
    windows = request_windows(split.test_U, max_history=5)
    codes = torch.ones(store.num_items, 2, dtype=torch.int64)
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


def test_a_step_without_targets_weighs_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, MemorySource(lengths_U=[5], artists_N=[[0], [1]]))
    known = features_of(store)
    unknown = ItemFeatures(
        torch.zeros_like(known.codes_NC), 5, known.artist_offsets, known.artist_values, known.num_artists
    )
    loader = Loader(store, unknown, windows_of(store), tokens=6, bins=1, rank=0, world_size=1, seed=0, shuffle=True)
    (batch,) = loader.iterate(0)
    assert batch.loss_weight.item() == 0.0
    assert (batch.target_codes_LC == -1).all()


def test_impossible_budgets_are_told_together(store: EventStore) -> None:
    with pytest.raises(InputError) as caught:
        make_loader(store, windows_of(store, 5), tokens=4, bins=4, world_size=3)
    assert len(caught.value.faults) == 2
    assert "bins=4 does not divide among 3 ranks" in caught.value.faults[0]
    assert "tokens=4 is less than the longest window of 5 inputs" in caught.value.faults[1]


@given(st.lists(st.integers(1, 10), max_size=60))
def test_packing_never_overfills_and_never_wastes_what_fits(lengths: list[int]) -> None:
    bins = pack(np.array(lengths, dtype=np.int64), 10)
    fill = np.bincount(bins, weights=lengths)
    assert (fill <= 10).all()
    # Best fit opens a bin only when no other has room: so of two bins, the later one's first window did not fit.
    for later in range(len(fill)):
        first = int(np.argmax(bins == later))
        before = np.bincount(bins[:first], weights=lengths[:first], minlength=later)[:later]
        assert (before + lengths[first] > 10).all()


def test_packing_leaves_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, size=5000)
    fill = np.bincount(pack(lengths, 1024), weights=lengths)
    assert fill.sum() / (len(fill) * 1024) > 0.99


# ── ties ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(sources(), st.integers(0, 5))
def test_shuffling_ties_reorders_within_one_user_and_second_and_spares_what_is_held_out(
    source: MemorySource, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        columns = event_columns(make_store(Path(folder), source))
    events = len(columns.items)
    # Each event carries its own place, so that it can be found again.
    marked = dataclasses.replace(columns, items=np.arange(events), durations=np.arange(events))
    split = leave_last_out(np.diff(columns.offsets))
    windows = training_windows(columns.offsets, split, 3, "tiled")
    shuffled = shuffle_ties(marked, windows, np.random.default_rng(seed))
    assert shuffled.durations is not None
    np.testing.assert_array_equal(shuffled.durations, shuffled.items)
    np.testing.assert_array_equal(shuffled.event_types, columns.event_types[shuffled.items])
    np.testing.assert_array_equal(shuffled.timestamps, columns.timestamps)
    assert sorted(shuffled.items) == list(range(events))
    user = np.repeat(np.arange(len(columns.offsets) - 1), np.diff(columns.offsets))
    np.testing.assert_array_equal(user[shuffled.items], user)
    np.testing.assert_array_equal(columns.timestamps[shuffled.items], columns.timestamps)
    held_out = ~training_events(columns.offsets, split)
    np.testing.assert_array_equal(shuffled.items[held_out], np.arange(events)[held_out])


def test_ties_are_shuffled_anew_each_epoch_and_alike_on_all_ranks(tmp_path: Path) -> None:
    source = MemorySource(lengths_U=[40, 60], artists_N=[[0]] * 50)
    busy = make_store(tmp_path, source)  # 50 seconds: most events share theirs with another
    windows = windows_of(busy)

    def epoch_of(epoch: int, **changes: Any) -> list[Batch]:
        return list(make_loader(busy, windows, shuffle=False, shuffle_ties=True, **changes).iterate(epoch))

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
        codes = [bags(batch.features, "rq")[token + 1] for token in at.tolist()]
        wanted = [
            [level * CODES + code for level, code in enumerate(row)]
            if row[0] >= 0
            else [level * CODES for level in range(LEVELS)]
            for row in batch.target_codes_LC[at].tolist()
        ]
        assert codes == wanted
