"""The map is held to TorchRec's own module, decision by decision, and to what a map must be whatever it decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from common.errors import InputError
from model.hashing_config import HashingConfig
from sharding.hashing.id_hash import scatter_ids
from sharding.hashing.id_map import FREE, IdMap

CPU = torch.device("cpu")
POLICIES: dict[str, MCHEvictionPolicy] = {
    "lfu": LFU_EvictionPolicy(),
    "lru": LRU_EvictionPolicy(),
    "distance-lfu": DistanceLFU_EvictionPolicy(decay_exponent=1.0),
}
INT64 = st.integers(-(2**63), 2**63 - 1)


def rules(**given: object) -> HashingConfig:
    defaults: dict[str, object] = {"rows": 24, "buckets": 6, "interval": 2, "eviction": "lfu"}
    return HashingConfig(**(defaults | given))  # type: ignore[arg-type]


def look_up(id_map: torch.nn.Module, ids: Tensor | list[int]) -> list[int]:
    ids_n = torch.as_tensor(ids, dtype=torch.int64)
    features = {"item": JaggedTensor(values=ids_n, lengths=torch.tensor([len(ids_n)]))}
    return id_map(features)["item"].values().tolist()


def ids_of(step: int, many: int = 30) -> Tensor:
    """Some ids a step, some of them more often than others, and others as time goes on."""
    generator = torch.Generator().manual_seed(step)
    return (torch.rand(8, generator=generator) ** 3 * many).long().unique() + step // 4 % 8


def test_hashes_are_as_many_as_ids_and_evenly_spread() -> None:
    ids_n = torch.cat([torch.arange(-50_000, 50_000) * 1680, torch.tensor([FREE, -FREE - 1])])
    hashes_n = scatter_ids(ids_n)
    assert hashes_n.unique().numel() == ids_n.unique().numel()
    counts = torch.bincount(hashes_n % 16)
    assert counts.min() > 5900
    assert counts.max() < 6600


@pytest.mark.parametrize("eviction", POLICIES)
def test_one_bucket_decides_as_the_module_of_torchrec(eviction: str) -> None:
    own = IdMap(rules(rows=9, buckets=1, eviction=eviction), CPU)
    theirs = MCHManagedCollisionModule(
        zch_size=9,
        device=CPU,
        eviction_policy=POLICIES[eviction],
        eviction_interval=2,
        input_hash_size=0,
        input_hash_func=lambda ids_n, _size: scatter_ids(ids_n),
    )
    # Its history holds 1.25 times the first batch: a large one first, or later ones would be cut off.
    history = [torch.arange(100, 108), *(ids_of(step) for step in range(60))]
    changes = 0
    for ids_n in history:
        before = own.ids_GS.clone()
        look_up(own, ids_n)
        look_up(theirs, ids_n)
        changes += int((own.ids_GS != before).sum())
        assert own._sorted_GS[0].tolist() == theirs._mch_sorted_raw_ids.tolist()
    assert changes > 8 + 4, "hardly an id lost its row"


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.lists(INT64, max_size=12), min_size=1, max_size=12),
    eviction=st.sampled_from(list(POLICIES)),
    buckets=st.sampled_from([1, 3, 6]),
    interval=st.integers(1, 3),
)
def test_an_owner_is_alone_and_a_newcomer_waits_only_where_nothing_is_free(
    steps: list[list[int]], eviction: str, buckets: int, interval: int
) -> None:
    id_map = IdMap(rules(rows=24, buckets=buckets, eviction=eviction, interval=interval), CPU)
    size = 24 // buckets
    for step, ids in enumerate(steps, start=1):
        before = id_map.ids_GS.clone()
        owners_before = dict(zip(ids, look_up(id_map.eval(), ids), strict=True))
        assert torch.equal(id_map.ids_GS, before), "a lookup in evaluation changed the map"
        rows = dict(zip(ids, look_up(id_map.train(), ids), strict=True))
        given_rows = id_map.evict()
        changed = (id_map.ids_GS != before).view(-1).nonzero().flatten()
        assert sorted([] if given_rows is None else given_rows.tolist()) == changed.tolist()
        if step % interval:
            assert rows == owners_before, "rows changed hands within an interval"
        owned = [row for row in rows.values() if row % size != size - 1]
        assert len(owned) == len(set(owned))
        owners = id_map.ids_GS[id_map.ids_GS != FREE]
        assert owners.unique().numel() == owners.numel()
        assert (id_map.ids_GS[:, -1] == FREE).all()
        hashes = scatter_ids(torch.tensor(list(rows), dtype=torch.int64)).tolist()
        assert [row // size for row in rows.values()] == [hashed % 2**64 % buckets for hashed in hashes]
        if step % interval == 0:
            waiting = {row // size for row in rows.values() if row % size == size - 1}
            assert not any((id_map.ids_GS[bucket, :-1] == FREE).any() for bucket in waiting)


def test_the_one_id_that_hashes_to_the_mark_of_a_free_row_never_owns_one() -> None:
    """The inverse of the hash, step by step backwards."""
    wanted = FREE
    value = wanted ^ (wanted >> 31) ^ (wanted >> 62)
    value = value * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    value = value ^ (value >> 27) ^ (value >> 54)
    value = value * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    value = value ^ (value >> 30) ^ (value >> 60)
    unlucky = value - 2**64 if value >= 2**63 else value
    assert scatter_ids(torch.tensor([unlucky])).tolist() == [FREE]
    id_map = IdMap(rules(rows=4, buckets=1, interval=1), CPU)
    assert [look_up(id_map, [unlucky]) for _ in range(3)] == [[3]] * 3


def test_the_frequent_newcomer_takes_the_row_of_the_rarest_or_of_the_oldest() -> None:
    steps = [[1, 2], [1, 3], [1, 3], [2], [9], [9], [9]]  # 1 in three steps, 2 in two, 3 in two; three rows
    last: dict[str, dict[int, bool]] = {}
    for eviction in ("lfu", "lru", "distance-lfu"):
        id_map = IdMap(rules(rows=4, buckets=1, interval=1, eviction=eviction), CPU)
        for ids in steps:
            look_up(id_map, ids)
        id_map.eval()
        last[eviction] = {item: look_up(id_map, [item]) != [3] for item in (1, 2, 3, 9)}
    # By count the newcomer, once admitted, must beat 2: each round it counts one, so never more than the others have.
    assert last["lfu"] == {1: True, 2: True, 3: True, 9: False}
    assert last["lru"] == {1: False, 2: True, 3: True, 9: True}
    assert last["distance-lfu"] == {1: True, 2: True, 3: False, 9: True}
    id_map = IdMap(rules(rows=4, buckets=1, interval=3, eviction="lfu"), CPU)
    for ids in ([1, 2, 3], [1, 2], [1], [8, 9], [8, 9], [9]):  # 9 in as many steps as 1, 8 in as many as 2
        look_up(id_map, ids)
    id_map.eval()
    assert [item for item in (1, 2, 3, 8, 9) if look_up(id_map, [item]) != [3]] == [1, 2, 9]


@pytest.mark.parametrize(
    ("admission", "threshold", "admitted"),
    [
        ("all", 0.0, {1, 2, 3}),
        ("count", 3.0, {2, 3}),
        ("average", 1.0, {3}),
        ("probabilistic", 0.0, set()),
        ("probabilistic", 1.0, {1, 2, 3}),
    ],
)
def test_ids_below_the_threshold_read_the_shared_row(admission: str, threshold: float, admitted: set[int]) -> None:
    id_map = IdMap(rules(rows=8, buckets=1, interval=6, admission=admission, threshold=threshold), CPU)
    for ids in ([1, 2, 3], [2, 3], [2, 3], [3], [3], [3]):  # counts 1, 3, 6
        look_up(id_map, ids)
    id_map.eval()
    assert {item for item in (1, 2, 3) if look_up(id_map, [item]) != [7]} == admitted


def test_an_owner_is_counted_though_it_would_not_be_admitted_now_and_once_a_step() -> None:
    id_map = IdMap(rules(rows=8, buckets=1, interval=3, admission="count", threshold=2.0), CPU)
    for ids in ([1, 2, 2, 2], [1, 2], [], [1, 1], [], []):
        look_up(id_map, ids)
    rows_n, _ = id_map.find(scatter_ids(torch.tensor([1, 2])))
    assert id_map.counts_GS.view(-1)[rows_n].tolist() == [3, 2]
    assert id_map.last_GS.view(-1)[rows_n].tolist() == [4, 2]


def test_chance_admits_in_proportion_and_alike_on_any_ranks() -> None:
    ids_n = torch.arange(4000)
    id_map = IdMap(rules(rows=48_000, interval=1, admission="probabilistic", threshold=0.25), CPU)
    look_up(id_map, ids_n)
    admitted = int((id_map.ids_GS != FREE).sum())
    assert 900 < admitted < 1100
    half = IdMap(id_map.rules, CPU, first_row=24_000, rows=24_000)
    look_up(half, [item for item, hashed in enumerate(scatter_ids(ids_n).tolist()) if hashed % 2**64 % 6 >= 3])
    assert torch.equal(half.ids_GS, id_map.ids_GS[3:])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"rows": 25}, "rows=25 is not divisible by buckets=6: set rows=30"),
        ({"rows": 6}, "rows=6 are fewer than two for each of buckets=6"),
        ({"admission": "probabilistic", "threshold": 1.5}, "threshold=1.5 of admission=probabilistic"),
    ],
)
def test_what_has_no_meaning_is_refused(given: dict[str, object], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        rules(**given)
