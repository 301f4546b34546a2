"""Candidates behind kept histories against the model's own forward over the history and one candidate."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import InputError
from data.batches import BatchMaker, EventColumns, ItemFeatures
from data.examples import Tokens
from data.schema import MISSING_DURATION
from model.config import AttentionConfig, BiasConfig, HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from model.embeddings import build_embeddings, build_item_table
from model.heads import CascadedHeads
from model.recommender import Recommender
from semantic_ids.codes.trie import build_trie
from serving.checkpoints.model import build_sharded
from serving.engines.base import Query, RankedCatalogue
from serving.engines.exact import ExactEngine
from serving.engines.item_vectors import ItemExactEngine
from serving.kv_cache import CachePool, UserCache
from serving.mfalcon import MFalcon
from serving.user_events import UserEvents
from sharding.world import open_world

ITEMS, LEVELS, CODES, ARTISTS, KINDS = 30, 2, 5, 9, 3
UNKNOWN = [4, 17]
NO_BIASES = BiasConfig(alibi=False, time=False, duration=False, organic=False)
SOFTMAX = AttentionConfig(kind="softmax", scale="sqrt")
ROWS = ItemTableConfig(kind="vocabulary")
VARIANTS: dict[str, dict[str, Any]] = {
    "hstu": {},
    "hstu-current": {"biases": BiasConfig(time_reference="current"), "attention": AttentionConfig(kind="softmax")},
    "hstu-all": {
        "places": True,
        "qk_norm": True,
        "residual_scale": True,
        "attention": AttentionConfig(scale="sqrt", soft_cap=3.0, normalise_by="length"),
        "biases": BiasConfig(position=True, position_buckets=4),
    },
    "hstu-items": {"items": ROWS, "output": HeadsConfig(kind="items")},
    "sasrec": {"architecture": "sasrec", "attention": SOFTMAX, "biases": NO_BIASES},
    "transformer++": {"architecture": "transformer++", "attention": SOFTMAX, "biases": NO_BIASES, "items": ROWS},
}


def features() -> ItemFeatures:
    generator = torch.Generator().manual_seed(5)
    codes_NC = torch.randint(0, CODES, (ITEMS, LEVELS), generator=generator).to(torch.int16)
    codes_NC[(codes_NC == 0).all(dim=1)] = 1
    codes_NC[UNKNOWN] = 0
    counts = torch.randint(0, 3, (ITEMS,), generator=generator)
    artists = torch.randint(0, ARTISTS, (int(counts.sum()),), generator=generator, dtype=torch.int32)
    return ItemFeatures(codes_NC, CODES, torch.cat((torch.zeros(1).long(), counts.cumsum(0))), artists, ARTISTS, 4)


FEATURES = features()


def make(name: str = "hstu", seed: int = 0, **changes: Any) -> Recommender:
    torch.manual_seed(seed)
    shape = {"width": 12, "heads": 2, "head_dim_qk": 6, "head_dim_v": 4, "qr_remainders": 4, "max_history": 12}
    cfg = ModelConfig(**{**shape, **VARIANTS[name], **changes})
    vocabulary = Vocabulary(LEVELS, CODES, ARTISTS, KINDS, ITEMS)
    device = torch.device("cpu")
    tables, items = build_embeddings(cfg, vocabulary, seed, device), build_item_table(cfg, vocabulary, device)
    model = Recommender(cfg, tables, vocabulary, items).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def falcon_of(model: Recommender, **how: Any) -> MFalcon:
    return MFalcon(model, FEATURES, KINDS, **how)


def drawn(length: int, seed: int, start: int = 1_000) -> UserEvents:
    rng = np.random.default_rng(seed)
    gaps = rng.integers(0, 400, length) * rng.integers(0, 2, length)
    durations = np.where(rng.random(length) < 0.2, MISSING_DURATION, rng.integers(0, 300, length))
    items, kinds = rng.integers(0, ITEMS, length), rng.integers(0, KINDS, length)
    return UserEvents.of(items, start + np.cumsum(gaps), kinds, durations, rng.integers(0, 3, length))


@torch.no_grad()
def lone(model: Recommender, events: UserEvents, time: int) -> Tensor:
    """The oracle: the state [D] of the newest event, as evaluation encodes a request."""
    events = events[max(0, len(events) - model.tower.cfg.max_history - 1) :]
    columns = EventColumns(
        np.array([0, len(events)]),
        *(
            c
            for c in (
                events.items.astype(np.uint32),
                events.timestamps.astype(np.uint32),
                events.event_types.astype(np.uint8),
                None if events.durations is None else events.durations.astype(np.uint32),
                None if events.organic is None else events.organic.astype(np.uint8),
            )
        ),
    )
    at_n = np.arange(len(events))
    places = Tokens(at_n, np.minimum(at_n + 1, len(events) - 1), None, columns.offsets, np.array([time]))
    batch = BatchMaker(columns, FEATURES, distinct=False).make(places, np.zeros(1, np.int64), len(events) + 2, 1.0)
    return model.encode(batch)[len(events) - 1]


def window(model: Recommender, events: UserEvents) -> UserEvents:
    return events[max(0, len(events) - model.tower.cfg.max_history) :]


def lone_states(model: Recommender, history: UserEvents, candidates: UserEvents, time: int) -> Tensor:
    """Each candidate alone behind the newest events."""
    rows = []
    for number in range(len(candidates)):
        one = dataclasses.replace(candidates[number : number + 1], timestamps=np.array([time]))
        rows.append(lone(model, window(model, history) + one, time))
    return torch.stack(rows) if rows else torch.zeros(0, model.tower.cfg.width)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(VARIANTS)),
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=2),
    counts=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    microbatch=st.integers(1, 9),
    seed=st.integers(0, 50),
)
def test_states_are_those_of_lone_candidates(
    name: str, lengths: list[int], cuts: list[int], counts: list[int], microbatch: int, seed: int
) -> None:
    """Histories of several lengths, up to beyond the window, read in pieces."""
    model = make(name, seed)
    falcon = falcon_of(model)
    users = [drawn(length, seed + number) for number, length in enumerate(lengths)]
    bounds = [0, *sorted(cuts), 20]
    caches = falcon.prepare([user[: bounds[1]] for user in users])
    for start, stop in itertools.pairwise(bounds[1:]):
        caches = falcon.extend(caches, [user[start:stop] for user in users])
    wanted = [drawn(count, seed + 70) for count, _ in zip(counts, users, strict=False)]
    for time in (10_000, 90_000):
        got = falcon.states(caches, wanted, time, microbatch)
        for user, own, states in zip(users, wanted, got, strict=True):
            close(states, lone_states(model, user, own, time))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_scores_are_those_of_exact_engines(name: str) -> None:
    """Every item of the catalogue, after a history read in two pieces, under the state that evaluation encodes."""
    model, time = make(name), 50_000
    falcon, users = falcon_of(model), [drawn(length, length) for length in (7, 1, 30)]
    caches = falcon.extend(falcon.prepare([user[:4] for user in users]), [user[4:] for user in users])
    states_BD = torch.stack([lone(model, window(model, user), time) for user in users])
    close(falcon.newest(caches, time), states_BD)
    got_BN = torch.stack(falcon.score(caches, [np.arange(ITEMS)] * 3, time))
    nothing = torch.zeros(0, dtype=torch.int64)
    everything, plays_N = Query(states_BD, nothing, nothing), np.zeros(ITEMS, np.int64)
    heads = model.tower.heads
    if isinstance(heads, CascadedHeads):
        codes_NC = FEATURES.codes_NC.numpy()
        known = torch.tensor([item for item in range(ITEMS) if item not in UNKNOWN])
        engine: Any = ExactEngine(heads, build_trie(codes_NC, plays_N, CODES), RankedCatalogue(known, ITEMS))
    else:
        assert model.item_table is not None
        rows_ND = model.item_table.embeddings["item"].weight.detach()
        unit_ND = torch.nn.functional.normalize(rows_ND, dim=1, eps=1e-6)
        catalogue = RankedCatalogue(torch.arange(ITEMS), ITEMS)
        engine = ItemExactEngine(unit_ND, catalogue, heads.temperature)
    items_BK, scores_BK = engine.retrieve(everything, ITEMS)
    want_BN = torch.full((3, ITEMS), -torch.inf)
    for row in range(3):
        listed = items_BK[row] >= 0
        want_BN[row, items_BK[row][listed]] = scores_BK[row][listed]
    close(got_BN, want_BN)
    assert torch.isneginf(got_BN[:, UNKNOWN]).all() == isinstance(heads, CascadedHeads)


def test_candidates_do_not_know_of_one_another() -> None:
    model = make("hstu-all")
    falcon = falcon_of(model)
    caches, wanted = falcon.prepare([drawn(9, 1)]), drawn(8, 2)
    out = falcon.states(caches, [wanted], 10_000)[0]
    order = np.array([3, 1, 5, 0, 7, 2, 4, 6])
    swapped = UserEvents(*(None if column is None else column[order] for column in wanted.columns))
    close(falcon.states(caches, [swapped], 10_000)[0], out[torch.from_numpy(order)])
    items = wanted.items.copy()
    items[2] = (items[2] + 1) % ITEMS
    changed = UserEvents(items, *wanted.columns[1:])
    differs = (falcon.states(caches, [changed], 10_000)[0] - out).abs().amax(dim=1) > 1e-6
    assert differs.tolist() == [number == 2 for number in range(8)]


def test_plain_numbers_are_candidates() -> None:
    falcon = falcon_of(make())
    caches = falcon.prepare([drawn(3, 1), UserEvents.none()])
    items = [[1, 2, 3], []]
    got = falcon.states(caches, items, [9_000, 8_000])
    assert [len(states) for states in got] == [3, 0]
    spelt_out = [UserEvents.of(own, [0] * len(own), [0] * len(own)) for own in items]
    assert torch.equal(falcon.states(caches, spelt_out, [9_000, 8_000])[0], got[0])


def test_a_longer_history_leaves_the_shorter_cache_as_it_was() -> None:
    model = make()
    falcon, user = falcon_of(model), drawn(11, 1)
    start = falcon.prepare([user[:5]])
    before = falcon.states(start, [[1, 2]], 10_000)[0]
    longer, other = falcon.extend(start, [user[5:]]), falcon.extend(start, [drawn(4, 9, start=6_000)])
    assert torch.equal(falcon.states(start, [[1, 2]], 10_000)[0], before)
    wanted = UserEvents.of([1, 2], [0, 0])
    close(falcon.states(longer, [[1, 2]], 10_000)[0], lone_states(model, user, wanted, 10_000))
    close(
        falcon.states(other, [[1, 2]], 10_000)[0],
        lone_states(model, user[:5] + drawn(4, 9, start=6_000), wanted, 10_000),
    )
    assert falcon.extend(longer, [UserEvents.none()])[0] is longer[0]


@pytest.mark.parametrize("name", ["hstu", "hstu-current"])
def test_a_pool_spares_what_has_been_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    falcon, pool, user = falcon_of(model), CachePool(1 << 20), drawn(10, 1)
    read: list[int] = []
    history = falcon.tokens.history

    def counted(users: Any, times: Any, placed: Any = None) -> Any:
        read.append(sum(map(len, users)))
        return history(users, times, placed)

    monkeypatch.setattr(falcon.tokens, "history", counted)
    falcon.recall(pool, ["u"], [user[:8]])
    falcon.recall(pool, ["u"], [user[:8]])
    caches = falcon.recall(pool, ["u"], [user])
    waits = name == "hstu"
    assert read == [8 - waits, 2]
    close(falcon.newest(caches, 9_999)[0], lone(model, user, 9_999))
    other = drawn(10, 2)
    caches = falcon.recall(pool, ["u"], [other])
    close(falcon.newest(caches, 9_999)[0], lone(model, other, 9_999))
    assert (pool.hits, pool.misses) == (3, 1)
    long = drawn(25, 3)
    falcon.recall(pool, ["v"], [long[:20]])
    (cache,) = falcon.recall(pool, ["v"], [long])
    assert (len(cache.events), cache.dropped) == (12, 13)
    del read[:]
    assert falcon.recall(pool, ["v"], [long])[0] is cache
    assert read == []


def test_faults_are_told() -> None:
    falcon = falcon_of(make())
    caches = falcon.prepare([drawn(3, 1), UserEvents.none()])
    newest = caches[0].events.timestamps[-1]
    for what, call in {
        "candidate 1 of user 0 of the batch: item 30 is none of the 30": lambda: falcon.score(
            caches[:1], [[1, ITEMS]], 9_999
        ),
        "item -1 is none of": lambda: falcon.score(caches[:1], [[-1]], 9_999),
        "event type 3 is none of the 3": lambda: falcon.prepare([UserEvents.of([1], [1], [KINDS])]),
        "its request is at 0 s, before the newest event": lambda: falcon.score(caches[:1], [[1]], 0),
        f"its first new event is at {newest - 1} s": lambda: falcon.extend(
            caches[:1], [UserEvents.of([1], [newest - 1])]
        ),
        "microbatch=0": lambda: falcon.score(caches[:1], [[1]], 9_999, 0),
        "user 1 of the batch has no events": lambda: falcon.score(caches, [[1], [2]], 9_999),
        "user 1 of the batch has no events: ": lambda: falcon.newest(caches, 9_999),
        "2 users and candidates of 1": lambda: falcon.score(caches, [[1]], 9_999),
        "2 users and times of 3": lambda: falcon.score(caches, [[1], [2]], [9_999] * 3),
        "2 users and times of 1": lambda: falcon.score(caches, [[1], [2]], [9_999]),
        "times of requests are of type float64": lambda: falcon.score(caches[:1], [[1]], 9_999.5),
        "times of requests: 1700000000000 is no second": lambda: falcon.score(caches[:1], [[1]], 1_700_000_000_000),
        "times of requests: -1 is no second": lambda: falcon.score(caches[1:], [[]], -1),
        "event 1 of user 0 of the batch: 7 in `organic` is none of 0 … 1, nor 2": lambda: falcon.prepare(
            [UserEvents.of([1, 2], 1, organic=[2, 7])]
        ),
        "candidate 0 of user 0 of the batch: -1 in `played` is none of 0 … 65534, nor 65535": lambda: falcon.score(
            caches[:1], [UserEvents.of([1], 1, played=-1)], 9_999
        ),
        "-1 in `durations` is none of 0 … 4294967294": lambda: falcon.prepare([UserEvents.of([1], 1, durations=-1)]),
    }.items():
        with pytest.raises(InputError, match=what):
            call()


def test_a_cache_of_another_model_is_refused_by_name() -> None:
    first, second = make(seed=1), make(seed=2)
    mine, theirs = falcon_of(first), falcon_of(second)
    (cache,) = theirs.prepare([drawn(3, 1)])
    with pytest.raises(InputError, match=f"{theirs.fingerprint}, and this is the model {mine.fingerprint}"):
        mine.score([cache], [[1]], 9_999)
    with pytest.raises(InputError, match="prepare the history anew"):
        mine.extend([cache], [drawn(1, 1, start=9_999)])
    pool = CachePool(1 << 20)
    pool.put("u", cache)
    assert mine.recall(pool, ["u"], [drawn(3, 1)])[0].fingerprint == mine.fingerprint


def test_nobody_asks() -> None:
    for name in VARIANTS:
        falcon = falcon_of(make(name))
        assert falcon.score([], [], 1) == falcon.states([], [], [1][:0]) == falcon.prepare([]) == []
        assert falcon.newest([], 1).shape == (0, 12)


def test_a_cache_holds_the_memory_that_it_counts() -> None:
    """Of a long history the window alone, and of users read together no other's."""
    falcon, pool = falcon_of(make("hstu-current")), CachePool(1 << 20)
    (cache, other) = falcon.recall(pool, ["u", "v"], [drawn(4_000, 1), drawn(5, 2)])
    (cache,) = falcon.extend([cache], [drawn(300, 3, start=int(cache.events.timestamps[-1]))])
    for one in (cache, other):
        for column in one.events.columns:
            while column is not None and column.base is not None:
                column = column.base
            assert column is None or column.nbytes == 8 * len(one.events) <= 8 * 12
        assert one.newest_D is not None
        assert one.newest_D.untyped_storage().nbytes() == 4 * 12


def test_one_cache_twice_in_a_batch_at_two_times() -> None:
    model = make("hstu", attention=AttentionConfig(kind="silu"))
    falcon, user, times = falcon_of(model), drawn(7, 1), [10_000, 400_000]
    (cache,) = falcon.prepare([user])
    wanted = UserEvents.of([1, 2], 0)
    early, late = falcon.states([cache, cache], [wanted, wanted], times)
    close(early, lone_states(model, user, wanted, times[0]))
    close(late, lone_states(model, user, wanted, times[1]))
    assert (early - late).abs().amax() > 1e-3, "clocks mean something"
    both = falcon.newest([cache, cache], times)
    close(both, torch.stack([lone(model, user, time) for time in times]))
    assert (both[0] - both[1]).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ["hstu", "hstu-items"])
def test_scores_do_not_depend_on_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    want = falcon_of(model)
    caches, asked = want.prepare([drawn(5, 1), drawn(3, 2)]), [np.arange(ITEMS)] * 2
    expected = torch.stack(want.score(caches, asked, 9_999))
    monkeypatch.setattr("serving.token_makers._ITEM_BLOCK", 7)
    for cached_logits in (2 * 9, 4 * LEVELS * CODES):
        monkeypatch.setattr("serving.token_makers.CACHED_LOGITS", {"cpu": cached_logits})
        found = falcon_of(model)
        close(torch.stack(found.score(found.prepare([drawn(5, 1), drawn(3, 2)]), asked, 9_999)), expected)


@pytest.mark.parametrize("name", ["hstu", "hstu-items"])
def test_tables_sharded_over_one_rank_serve(name: str) -> None:
    model = make(name)
    with open_world() as world:
        built = build_sharded(model.tower.cfg, model.vocabulary, world, seed=0)
        fill_sharded(built.module, model)
        scores = []
        for one in (model, built.module.eval()):
            falcon = falcon_of(one)
            caches = falcon.prepare([drawn(6, 1), drawn(3, 2)])
            scores.append(torch.cat(falcon.score(caches, [[1, 2, 5], [3]], 9_999)))
        close(scores[1], scores[0])


def fill_sharded(sharded: Recommender, model: Recommender) -> None:
    """The same numbers, where one rank has them all."""
    own = sharded.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            whole = own[name].local_shards()[0].tensor if hasattr(own[name], "local_shards") else own[name]
            whole.copy_(value)


def test_users_are_read_together_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    falcon = falcon_of(make("hstu-all"))
    users = [drawn(length, length) for length in (3, 0, 9, 12, 5)]

    def states() -> Tensor:
        caches: list[UserCache] = falcon.prepare(users)
        return torch.cat(falcon.states(caches, [[1, 2, 3]] * 5, 10_000))

    together = states()
    monkeypatch.setattr("serving.mfalcon._READ_TOGETHER", 6)
    close(states(), together)
