"""Negatives drawn, the columns that say where they are looked up, and that neither depends on who draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from data import schema
from data.batches import Batch, BatchMaker
from data.event_store import EventStore
from data.item_columns import item_columns
from data.loader import Loader, event_columns
from data.negatives import BinSeeds, NegativeSampler, NegativesConfig
from data.sequences import training_windows
from tests.data.helpers import MemorySource, examples_of, features_of, make_store
from tests.data.test_loader import assert_identical, make_loader, parts, windows_of

PLAYS_N = np.array([50, 0, 7, 3, 1, 39])
TARGETS = [np.array([0, 0, 2, 5]), np.array([], dtype=np.int64), np.array([5, 5, 3])]
SEEDS = [11, 12, 13]
WAYS = [
    {},
    {"per": "bin", "count": 5},
    {"kind": "in-batch", "count": 4},
    {"kind": "in-batch", "per": "bin"},
    {"kind": "mixed", "count": 6, "share_in_batch": 0.5},
    {"kind": "all"},
]


def sampler(plays_N: np.ndarray = PLAYS_N, **keys: Any) -> NegativeSampler:
    return NegativeSampler(NegativesConfig(**keys), plays_N)


@pytest.mark.parametrize(
    ("keys", "faults"),
    [
        ({"kind": "all", "count": 64, "per": "bin", "correct": "true"}, ["count=64", "per=bin", "correct=true"]),
        ({"share_in_batch": 0.25}, ["share_in_batch=0.25 means nothing with kind=uniform"]),
        ({"kind": "in-batch", "share_in_batch": 0.25}, ["share_in_batch=0.25 means nothing with kind=in-batch"]),
        ({"kind": "mixed", "share_in_batch": 0.0}, ["share_in_batch=0.0 of count=128 makes 0"]),
        ({"kind": "mixed", "share_in_batch": 1.5}, ["share_in_batch=1.5 of count=128 makes 192"]),
        ({"kind": "mixed", "count": 1}, ["share_in_batch=0.5 of count=1 makes 0"]),
    ],
)
def test_what_has_no_meaning_is_refused_all_at_once(keys: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        NegativesConfig(**keys)
    assert len(raised.value.faults) == len(faults)
    for found, expected in zip(raised.value.faults, faults, strict=True):
        assert expected in found


@pytest.mark.parametrize("per", ["target", "bin"])
def test_groups_are_targets_or_bins_that_have_any(per: str) -> None:
    drawn = sampler(per=per, count=9).draw(TARGETS, SEEDS)
    groups = [0, 1, 2, 3, 4, 5, 6] if per == "target" else [0, 0, 0, 0, 1, 1, 1]
    assert drawn.group_T.tolist() == groups
    assert drawn.items_GM.shape == (groups[-1] + 1, 9)
    assert drawn.items_GM.max() < len(PLAYS_N)


@pytest.mark.parametrize("keys", WAYS)
def test_a_bin_is_drawn_for_by_its_own_seed_whoever_else_is_there(keys: dict[str, Any]) -> None:
    of = sampler(**keys)
    together, first, last = (of.draw(TARGETS[part], SEEDS[part]) for part in (slice(None), slice(2), slice(2, 3)))
    if of.cfg.kind == "all":
        assert together.items_GM.tolist() == first.items_GM.tolist() == [list(range(len(PLAYS_N)))]
        return
    assert together.items_GM.tolist() == first.items_GM.tolist() + last.items_GM.tolist()
    other = of.draw(TARGETS[2:], [14])
    assert other.items_GM.shape == last.items_GM.shape
    assert other.items_GM.tolist() != last.items_GM.tolist()


@pytest.mark.parametrize("keys", WAYS)
def test_bins_without_targets_ask_for_nothing(keys: dict[str, Any]) -> None:
    of = sampler(**keys)
    drawn = of.draw([np.array([], dtype=np.int64)] * 2, [1, 2])
    assert drawn.items_GM.shape == (0, of.cfg.size(len(PLAYS_N)))
    assert drawn.group_T.shape == (0,)


def test_negatives_come_as_often_as_expected_and_are_weighed_by_that() -> None:
    """10,000 bins whose targets are drawn by their plays: what is counted is exp(−offset) a target."""
    random = np.random.default_rng(0)
    share_N = PLAYS_N / PLAYS_N.sum()
    targets = [random.choice(len(PLAYS_N), 3, p=share_N) for _ in range(10_000)]
    for keys in ({"kind": "in-batch", "count": 4}, {"kind": "mixed", "count": 8, "share_in_batch": 0.25}):
        of = sampler(**keys)
        assert of.offsets_N is not None
        drawn = of.draw(targets, list(range(10_000)))
        counted_N = np.bincount(drawn.items_GM.ravel(), minlength=len(PLAYS_N)) / len(drawn.group_T)
        played = (PLAYS_N > 0) | (of.cfg.kind == "mixed")
        expected_N = np.exp(-of.offsets_N)
        np.testing.assert_allclose(counted_N[played], expected_N[played], rtol=0.1)
    uniform = sampler(count=12, correct="true")
    np.testing.assert_allclose(uniform.offsets_N, np.log(len(PLAYS_N) / 12), rtol=1e-6)
    for keys in ({}, {"kind": "all"}, {"kind": "mixed", "correct": "false"}):
        assert sampler(**keys).offsets_N is None


def test_negatives_of_the_bin_are_its_targets() -> None:
    drawn = sampler(kind="mixed", count=40, share_in_batch=0.5).draw(TARGETS, SEEDS)
    assert set(drawn.items_GM[:4, :20].ravel().tolist()) == {0, 2, 5}
    assert set(drawn.items_GM[4:, :20].ravel().tolist()) == {3, 5}
    assert set(drawn.items_GM[:, 20:].ravel().tolist()) == set(range(len(PLAYS_N)))


# ── places in one list of items ──────────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.integers(0, 30), unique=True, max_size=12),
    st.lists(st.integers(-1, 30), max_size=12),
    st.sampled_from(WAYS),
    st.booleans(),
    st.data(),
)
def test_columns_name_the_same_items_whichever_way_they_are_looked_up(
    inputs: list[int], targets: list[int], keys: dict[str, Any], distinct: bool, data: st.DataObject
) -> None:
    plays_N = np.arange(31)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(targets)), min_size=2, max_size=2)))
    bins = BinSeeds(np.array([0, *cuts, len(targets)]), [5, 6, 7])
    targets_n, inputs_d = np.array(targets, dtype=np.int64), np.array(inputs, dtype=np.uint32)
    of = sampler(plays_N, **keys)
    found = item_columns(of, inputs_d, targets_n, bins, distinct=distinct)
    drawn = of.draw([part[part >= 0] for part in np.split(targets_n, cuts)], [5, 6, 7])
    items = found.items_d.tolist()
    assert items[: len(inputs)] == inputs
    wanted = [target for target in targets if target >= 0]
    further = [*wanted, *drawn.items_GM.ravel().tolist()]
    assert items[len(inputs) :] == [item for item in dict.fromkeys(further) if not distinct or item not in inputs]
    columns = found.padded(len(targets) + 2)
    assert columns["target_rows_L"] is not None
    assert columns["negative_group_L"] is not None
    named = [*items, -1]
    assert [named[place] for place in columns["target_rows_L"].tolist()] == [*targets, -1, -1]
    np.testing.assert_array_equal(found.items_d[found.negative_rows_GM], drawn.items_GM)
    groups = iter(drawn.group_T.tolist())
    expected = [next(groups) if target >= 0 else len(drawn.items_GM) for target in [*targets, -1, -1]]
    assert columns["negative_group_L"].tolist() == expected
    if of.offsets_N is not None:
        np.testing.assert_array_equal(columns["negative_offsets_d"], of.offsets_N[items])


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    lengths = [1, 2, 3, 30, 7, 7, 12, 4, 5, 19, 8, 3, 3, 10, 6, 40]
    source = MemorySource(lengths, [[number % 4] for number in range(40)], optional_columns=schema.OPTIONAL_COLUMNS)
    return make_store(tmp_path_factory.mktemp("negatives"), source)


def item_loader(store: EventStore, keys: dict[str, Any], **changes: Any) -> Loader:
    plays_N = np.bincount(store.column(schema.ITEM), minlength=store.num_items)
    return make_loader(store, windows_of(store), negatives=sampler(plays_N, **keys), **changes)


def chosen(batches: list[Batch]) -> list[tuple[int, list[int]]]:
    """Target and negatives of every token that has a target, rank after rank, by their items."""
    found = []
    for batch in batches:
        assert batch.target_rows_L is not None
        assert batch.negative_rows_GM is not None
        assert batch.negative_group_L is not None
        items = batch.item_ids.values()
        for target, group in zip(batch.target_rows_L.tolist(), batch.negative_group_L.tolist(), strict=True):
            assert (target == len(items)) == (group == len(batch.negative_rows_GM))
            if target < len(items):
                found.append((int(items[target]), items[batch.negative_rows_GM[group]].tolist()))
    return found


@pytest.mark.parametrize("keys", WAYS)
def test_global_batches_are_the_same_on_any_number_of_ranks_and_either_way(
    store: EventStore, keys: dict[str, Any]
) -> None:
    whole = item_loader(store, keys)
    for step in range(whole.steps_per_epoch(1)):
        one = chosen([whole.batch(1, step)])
        assert chosen([item_loader(store, keys, distinct=False).batch(1, step)]) == one
        for ranks in (2, 3):
            shared = [item_loader(store, keys, rank=rank, world_size=ranks).batch(1, step) for rank in range(ranks)]
            assert chosen(shared) == one


@pytest.mark.parametrize("keys", WAYS)
def test_what_a_batch_has_besides_is_as_without_negatives(store: EventStore, keys: dict[str, Any]) -> None:
    """But for targets without codes, which have a row and can be learnt."""
    plain, own = make_loader(store, windows_of(store)).batch(0, 1), item_loader(store, keys).batch(0, 1)
    known_L = plain.target_items_L >= 0
    changed = ("item_values", "item_lengths", "item_rows_P", "target_items_L")
    before, after = ({name: part for name, part in parts(one).items() if name not in changed} for one in (plain, own))
    items = len(plain.item_ids.values())
    assert torch.equal(own.item_ids.values()[:items], plain.item_ids.values())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (own.item_rows_P - plain.item_rows_P).unique().tolist() == [0, len(own.item_ids.values()) - items]
    assert torch.equal(own.target_items_L[known_L], plain.target_items_L[known_L])
    used = int(plain.offsets[-1])
    assert (own.target_items_L[:used] >= 0).all()
    assert (own.target_items_L[used:] < 0).all()
    assert not known_L[:used].all()
    assert before.keys() | {"target_rows_L", "negative_rows_GM", "negative_group_L"} <= after.keys()


@pytest.mark.parametrize("keys", WAYS)
def test_a_resumed_loader_draws_the_same_bit_by_bit(store: EventStore, keys: dict[str, Any]) -> None:
    whole = [item_loader(store, keys).batch(1, step) for step in range(3)]
    for workers in (0, 1):
        resumed = item_loader(store, keys).iterate(1, start_step=1, workers=workers)
        for expected, found in zip(whole[1:], resumed, strict=False):
            assert_identical(expected, found)
    if keys != {"kind": "all"}:
        assert chosen(whole[:1]) != chosen([item_loader(store, keys, seed=4).batch(1, 0)])
        assert chosen(whole[:1]) != chosen(whole[1:2])


def test_draws_are_others_in_every_epoch_step_and_bin_and_for_every_seed(store: EventStore) -> None:
    """Of uniform draws the first few of a bin are the same whoever the targets are, if the seed is."""
    first: set[tuple[int, ...]] = set()
    for epoch, step, seed in ((0, 0, 3), (0, 1, 3), (1, 0, 3), (0, 0, 4)):
        batch = item_loader(store, {"per": "bin", "count": 9}, seed=seed).batch(epoch, step)
        assert batch.negative_rows_GM is not None
        drawn = batch.item_ids.values()[batch.negative_rows_GM].tolist()
        assert len(drawn) > 3
        assert not first & set(map(tuple, drawn))
        first |= set(map(tuple, drawn))
        assert len(set(map(tuple, drawn))) == len(drawn)


def test_other_negatives_are_another_plan(store: EventStore) -> None:
    state = item_loader(store, {}).state(0, 1)
    item_loader(store, {}, world_size=3, rank=2).check_state(state)
    for keys in ({"count": 64}, {"per": "bin"}, {"correct": "true"}, {"kind": "all"}):
        with pytest.raises(InputError, match="negatives differ"):
            item_loader(store, keys).check_state(state)
    with pytest.raises(InputError, match="negatives differ"):
        make_loader(store, windows_of(store)).check_state(state)


@pytest.mark.parametrize("keys", WAYS)
def test_a_batch_is_moved_pinned_and_recorded_whole(
    store: EventStore, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = item_loader(store, keys).batch(0, 0)
    columns = [field.name for field in dataclasses.fields(batch) if field.name.startswith(("target_r", "negative"))]
    there = [name for name in columns if getattr(batch, name) is not None]
    assert len(there) == (4 if sampler(**keys).offsets_N is not None else 3)
    moved = batch.to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in there} == {"meta"}
    pinned: list[torch.Tensor] = []
    recorded: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, _stream: recorded.append(id(tensor)))
    held = batch.pin_memory()
    moved.record_stream(torch.Stream(device="cpu"))
    for name in columns:
        assert (getattr(held, name) is None) == (getattr(moved, name) is None) == (name not in there)
    assert {id(getattr(batch, name)) for name in there} <= {id(tensor) for tensor in pinned}
    assert {id(getattr(moved, name)) for name in there} <= set(recorded)


def test_a_batch_without_tokens_has_columns_without_content(tmp_path: Path) -> None:
    store = make_store(tmp_path, MemorySource(lengths_U=[4, 4], artists_N=[[0]] * 5))
    windows = training_windows(store.offsets, store.split(), 3)
    none = np.array([], dtype=np.int64)
    for keys in WAYS:
        for distinct in (True, False):
            maker = BatchMaker(
                event_columns(store), features_of(store), distinct=distinct, negatives=sampler(np.ones(5), **keys)
            )
            batch = maker.make(examples_of(store, windows).tokens(none), none, 3, 0.0, BinSeeds(np.array([0, 0]), [1]))
            assert batch.item_ids.values().tolist() == []
            assert chosen([batch]) == []
