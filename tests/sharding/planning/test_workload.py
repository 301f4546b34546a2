"""What a step asks of a rank: counts of look-ups, and the dense part's memory, against direct counts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import InputError
from data.event_store import EventStore
from data.negatives import NegativesConfig
from data.ranking.config import FORMS, ActionsConfig
from model.config import AttentionConfig, BiasConfig, HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from model.item_head import sampled_softmax
from model.kernels.build import library, without_kernels
from sharding.planning.action_look_ups import action_look_ups
from sharding.planning.dense_part import Line, _peaks, count_tower
from sharding.planning.memory_watch import MemoryWatch
from sharding.planning.workload import (
    DataSizes,
    DenseModel,
    DenseUse,
    expected_distinct,
    measure_dense,
    vocabulary_of,
    workload_of_batch,
    workload_of_sizes,
)
from tests.data.helpers import CODES, LEVELS
from tests.data.test_negatives import WAYS, item_loader
from tests.data.test_negatives import store as store  # a fixture
from tests.model.conftest import VOCABULARY, make_ranking_batch

DENSE = DenseModel(
    parameters=10,
    optimizer=80,
    forward=Line(100.0, 3.5),
    backward=Line(0.0, 0.0),
    chunk=0,
    per_row=0,
    flops_per_token=7.0,
)


def exact_distinct(items: int, draws: int) -> float:
    shares = 1 / np.arange(1, items + 1)
    shares /= shares.sum()
    return float((1 - (1 - shares) ** draws).sum())


@pytest.mark.parametrize("items", [1, 2, 3, 50, 199, 200, 201, 1000, 30_000])
@pytest.mark.parametrize("draws", [1, 10, 4096])
def test_expected_distinct_items_are_the_exact_sum(items: int, draws: int) -> None:
    assert expected_distinct(items, draws) == pytest.approx(exact_distinct(items, draws), rel=2e-3)


def test_expected_distinct_items_are_those_of_draws() -> None:
    items, draws = 100_000, 8192
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, items + 1)
    found = [len(np.unique(rng.choice(items, draws, p=shares / shares.sum()))) for _ in range(20)]
    assert expected_distinct(items, draws) == pytest.approx(np.mean(found), rel=0.01)
    assert expected_distinct(10**9, draws) < draws


def test_look_ups_of_a_step_by_hand() -> None:
    sizes = DataSizes(
        items=1000, artists=50, event_types=3, levels=2, codes=16, artists_per_item=1.5, distinct_share=0.25
    )
    cfg = ModelConfig(width=8, qr_remainders=10)
    workload = workload_of_sizes(cfg, sizes, 400, DENSE)
    counted = {use.name: (use.bags, use.ids, use.plain_bags, use.plain_ids) for use in workload.tables}
    assert counted == {
        "artist_quotient": (101, 150, 400, 600),
        "artist_remainder": (101, 150, 400, 600),
        "event_type": (4, 3, 400, 400),
        "rq": (101, 200, 400, 800),
    }
    assert {use.name: use.rows for use in workload.tables} == {
        "artist_quotient": 6,
        "artist_remainder": 10,
        "event_type": 3,
        "rq": 32,
    }
    assert workload.rows == 301
    assert dataclasses.astuple(workload.dense) == (10, 80, 100 + 1400, 2800.0)
    plain = workload_of_sizes(cfg, sizes, 400, DENSE, distinct=False)
    assert plain.rows == 400
    assert [(use.bags, use.ids) for use in plain.tables] == [(400, 600), (400, 600), (400, 400), (400, 800)]


def test_no_more_items_than_tokens_or_than_there_are() -> None:
    for tokens, items, asked in ((100, 7, 7), (5, 10**6, 5)):
        sizes = DataSizes(items=items, distinct_share=1.0)
        use = workload_of_sizes(ModelConfig(), sizes, tokens, DENSE).table("rq")
        assert use.bags == asked + 1
    with pytest.raises(InputError, match=r"`distinct_share` is 1\.5, must be at most 1"):
        DataSizes(distinct_share=1.5)


NO_BIASES = BiasConfig(alibi=False, time=False, duration=False, organic=False)
TRANSFORMER: dict[str, Any] = {"biases": NO_BIASES, "attention": AttentionConfig(kind="softmax", scale="sqrt")}
MODELS: dict[str, dict[str, Any]] = {
    "hstu": {},
    "hstu, recompute": {"recompute": True},
    "sasrec": {"architecture": "sasrec", **TRANSFORMER},
    "transformer++": {"architecture": "transformer++", **TRANSFORMER},
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_memory_of_a_deeper_model_and_a_longer_step_is_that_of_running_it(name: str, precision: str) -> None:
    cfg = ModelConfig(width=64, blocks=3, max_history=128, precision=precision, **MODELS[name])
    vocabulary = Vocabulary(levels=4, codes=64, artists=0, event_types=1)
    found = measure_dense(cfg, vocabulary)
    for tokens in (1024, 4096):  # the loss's chunk fewer than 2,048 of them, and all of it
        measured = max(_peaks(cfg, vocabulary, 3, tokens, cfg.output.chunk_tokens))
        assert found.at(tokens).activations == pytest.approx(measured, rel=0.08)


def test_heads_that_are_large_beside_a_short_step_hide_no_block_of_a_long_one() -> None:
    cfg = ModelConfig(width=128, blocks=3, heads=2, max_history=512)
    vocabulary = Vocabulary(levels=8, codes=1024, artists=0, event_types=1)
    measured = max(_peaks(cfg, vocabulary, 3, 8192, cfg.output.chunk_tokens))
    assert measure_dense(cfg, vocabulary).at(8192).activations == pytest.approx(measured, rel=0.08)


def test_recomputed_activations_and_shorter_products_take_less() -> None:
    vocabulary = Vocabulary(levels=4, codes=64, artists=0, event_types=1)

    def per_token(**options: Any) -> float:
        return measure_dense(ModelConfig(blocks=4, **options), vocabulary).forward.per_token

    assert per_token(recompute=True) < 0.8 * per_token()
    on_gpu = AttentionConfig(backend="triton")
    assert per_token(recompute=True, attention=on_gpu) < 0.8 * per_token(attention=on_gpu)
    assert per_token(precision="bf16", attention=on_gpu) < per_token(attention=on_gpu)
    assert library() is None or per_token() < 0.6 * per_token(attention=on_gpu)  # a block in one function keeps less


def test_numbers_and_operations_of_the_dense_part() -> None:
    cfg = ModelConfig(width=16, blocks=5, heads=2, head_dim_qk=8, head_dim_v=4, max_history=99)
    vocabulary = Vocabulary(levels=2, codes=32, artists=0, event_types=1)
    sizes = count_tower(cfg, vocabulary, 5)
    found = measure_dense(cfg, vocabulary, mean_history=9.0)
    assert found.parameters == sizes.parameters
    assert found.optimizer == 8 * sizes.parameters
    assert measure_dense(cfg, vocabulary, optimizer="muon").optimizer == 8 * sizes.parameters - 4 * sizes.in_matrices
    # Q, K, V and U from 16 columns, the output from 2 · 4; forward and twice as much backward, a product is two.
    assert sizes.in_matrices == 5 * (16 * 2 * (8 + 8 + 4 + 4) + 2 * 4 * 16)
    products = 6 * (sizes.in_matrices + 2 * 32 * 16)
    attention = 3 * 2 * 2 * (8 + 4) * 5 * (9 + 1) / 2  # a token sees 5 of 9, itself included
    assert found.flops_per_token == pytest.approx(products + attention)


def test_heads_beyond_measure() -> None:
    with pytest.raises(InputError, match=r"make output heads of .* give fewer codes"):
        measure_dense(ModelConfig(), vocabulary_of(DataSizes(codes=10**9)))
    assert math.isfinite(measure_dense(ModelConfig(), vocabulary_of(DataSizes(levels=1, codes=1))).forward.per_token)


# ── an output of items ───────────────────────────────────────────────────────────────────────────────────

ITEMS = ModelConfig(
    width=8, qr_remainders=10, items=ItemTableConfig(kind="vocabulary"), output=HeadsConfig(kind="items")
)


@pytest.mark.parametrize(
    ("keys", "draws"),
    [({"count": 8}, 3200), ({"count": 300, "per": "bin"}, 300), ({"kind": "mixed", "count": 8}, 1600)],
)
def test_rows_of_inputs_targets_and_negatives_are_those_of_draws(keys: dict[str, Any], draws: int) -> None:
    """400 tokens of 100 different items, in windows of 100 whose last targets are 4 more, and items drawn alike."""
    sizes = DataSizes(items=1000, distinct_share=0.25)
    use = workload_of_sizes(ITEMS, sizes, 400, DENSE, negatives=NegativesConfig(**keys)).table("item")
    rng = np.random.default_rng(0)
    found = [len(np.union1d(np.arange(104), rng.integers(0, 1000, draws))) for _ in range(20)]
    assert use.ids == pytest.approx(np.mean(found), rel=0.02)
    assert use.plain_ids == 400 + use.ids


def test_rows_of_a_bin_are_targets_and_those_of_all_are_all() -> None:
    sizes = DataSizes(items=1000, distinct_share=0.25)
    for keys, rows in (({"kind": "in-batch"}, 104), ({"kind": "all"}, 1000)):
        negatives = NegativesConfig(**keys)
        assert workload_of_sizes(ITEMS, sizes, 400, DENSE, negatives=negatives).table("item").ids == rows
        plain = workload_of_sizes(ITEMS, sizes, 400, DENSE, negatives=negatives, distinct=False)
        assert plain.table("item").ids == 400 + rows
    codes = dataclasses.replace(ITEMS, output=HeadsConfig())
    assert workload_of_sizes(codes, sizes, 400, DENSE).table("item").ids == 100


@pytest.mark.parametrize("keys", WAYS)
def test_rows_of_a_batch_are_counted_and_so_are_those_of_a_plain_one(store: EventStore, keys: dict[str, Any]) -> None:
    vocabulary = Vocabulary(LEVELS, CODES, 4, 3, store.num_items)
    batch, plain = (item_loader(store, keys, distinct=distinct).batch(0, 0) for distinct in (True, False))
    cfg = dataclasses.replace(ITEMS, qr_remainders=1024)
    use = workload_of_batch(cfg, vocabulary, batch, DENSE).table("item")
    assert use.ids == batch.item_ids.values().numel()
    assert use.plain_ids == plain.item_ids.values().numel()
    assert use.plain_ids > use.ids


@pytest.mark.parametrize(
    ("items", "negatives", "groups"),
    [(2000, 128, 512), (20_000, 128, 512), (5000, 5000, 1), (5000, 128, 1), (9000, 512, 512)],
)
def test_memory_of_scores_is_that_of_scoring(items: int, negatives: int, groups: int) -> None:
    cfg = dataclasses.replace(ITEMS, width=64)
    x_TD, rows_dD = torch.randn(512, 64, requires_grad=True), torch.randn(items, 64, requires_grad=True)
    positives_T, group_T = torch.randint(0, items, (512,)), torch.arange(512) * groups // 512
    negatives_GM = torch.randint(0, items, (groups, negatives))
    x_TD.grad, rows_dD.grad = torch.zeros_like(x_TD), torch.zeros_like(rows_dD)
    known = [x_TD, rows_dD, positives_T, group_T, negatives_GM, x_TD.grad, rows_dD.grad]
    with without_kernels(), MemoryWatch(known) as watch:  # as on a GPU: kernels need less
        sampled_softmax(
            x_TD, rows_dD, positives_T, negatives_GM, group_T, temperature=0.05, chunk_tokens=256
        ).loss_sum.backward()
    said = DenseUse(0, 0, 0, 0.0).with_items(cfg, 512, items, negatives, shared=groups < 512)
    assert watch.peak == pytest.approx(said.activations, rel=0.3)


def test_a_model_without_heads_has_none_to_measure() -> None:
    vocabulary = Vocabulary(levels=4, codes=512, artists=5, event_types=2, items=10)
    cfg = dataclasses.replace(ITEMS, width=32, max_history=64)
    codes, items = (
        measure_dense(dataclasses.replace(cfg, output=output), vocabulary) for output in (HeadsConfig(), cfg.output)
    )
    assert items.parameters == count_tower(cfg, vocabulary, 2).parameters < codes.parameters
    assert items.flops_per_token == codes.flops_per_token - 6 * 4 * 512 * 32


# ── an output of actions ─────────────────────────────────────────────────────────────────────────────────


def actions(form: str, series: int = 0, **changes: Any) -> ModelConfig:
    tasks = ["like: event_type is like", "played: played_ratio / 100"]
    output = HeadsConfig(kind="actions", actions=ActionsConfig(form=form, tasks=tasks, hidden=24, series=series))
    return ModelConfig(**{"width": 8, "qr_remainders": 8, "max_history": 20, "output": output, **changes})


BY_HAND: dict[str, tuple[int, dict[str, tuple[int, int, int, int]]]] = {
    # 420 tokens in 20 windows of 21: 220 items, a quarter of them distinct, and 200 actions
    "interleaved": (
        55 + 3 + 1,
        {
            "artist_quotient": (56, 82, 420, 330),
            "event_type": (4, 3, 420, 200),
            "rq": (56, 110, 420, 440),
            "item": (1, 55, 1, 220),
        },
    ),
    # 21 windows of 20: 210 inputs, 21 more items; a row for each of these and each input
    "merged": (
        210 - 36 + 58 + 1,
        {
            "artist_quotient": (59, 87, 420, 630),
            "event_type": (4, 3, 420, 210),
            "rq": (59, 116, 420, 840),
            "item": (1, 58, 1, 420),
        },
    ),
    # 42 windows of 10: 420 inputs and 42 more items; candidates have rows beside the tokens
    "interactions": (
        348 + 116 + 1,
        {
            "artist_quotient": (117, 174, 841, 1260),
            "event_type": (4, 3, 841, 420),
            "rq": (117, 232, 841, 1680),
            "item": (1, 116, 1, 840),
        },
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_look_ups_of_items_and_actions_by_hand(form: str) -> None:
    sizes = DataSizes(
        items=1000, artists=50, event_types=3, levels=2, codes=16, artists_per_item=1.5, distinct_share=0.25
    )
    cfg = actions(form, items=ItemTableConfig(kind="vocabulary"))
    workload = workload_of_sizes(cfg, sizes, 420, DENSE)
    counted = {use.name: (use.bags, use.ids, use.plain_bags, use.plain_ids) for use in workload.tables}
    rows, wanted = BY_HAND[form]
    assert counted == {**wanted, "artist_remainder": wanted["artist_quotient"]}
    assert workload.rows == rows
    assert workload.dense == DENSE.at(420)
    plain = workload_of_sizes(cfg, sizes, 420, DENSE, distinct=False)
    assert plain.rows == wanted["rq"][2]
    assert [(use.bags, use.ids) for use in plain.tables] == [
        (bags, ids) for _, _, bags, ids in map(counted.get, counted)
    ]


@pytest.mark.parametrize(
    ("form", "items", "shown", "done"),
    # 520 tokens in 20, 21 and 35 windows of 26, 25 and 15; of each window 5 are values of series
    [("interleaved", 55, 220, 300), ("merged", 58, 415, 208 + 105), ("interactions", 95, 690, 520)],
)
def test_tokens_of_series_look_up_no_item(form: str, items: int, shown: int, done: int) -> None:
    asked = action_look_ups(actions(form, series=5), 520, 10, 40, lambda draws: math.ceil(draws / 4))
    assert (asked.items, asked.shown, asked.done) == (items, shown, done)
    assert asked.alone == items + 40


def made_up_users(windows: int, inputs: int) -> list[list[tuple[int, int]]]:
    random = np.random.default_rng(0)
    return [
        list(
            zip(
                random.integers(0, 50, inputs + 1).tolist(),
                random.integers(0, 10**6, inputs + 1).cumsum().tolist(),
                strict=True,
            )
        )
        for _ in range(windows)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_look_ups_of_a_batch_of_actions_are_counted_and_so_are_those_of_a_plain_one(form: str) -> None:
    batch, plain = (
        make_ranking_batch(made_up_users(6, 8), form, padding=9, distinct=distinct) for distinct in (True, False)
    )
    cfg = actions(form, items=ItemTableConfig(kind="vocabulary"))
    workload = workload_of_batch(cfg, VOCABULARY, batch, DENSE)
    assert workload.rows == batch.item_rows_P.numel()
    assert workload.table("item").ids == batch.item_ids.values().numel()
    assert workload.table("item").plain_ids == plain.item_ids.values().numel()
    for index, name in enumerate(batch.features.keys()):
        use = workload.table(name)
        assert (use.bags, use.ids) == (batch.features.stride_per_key()[index], batch.features.length_per_key()[index])
        assert (use.plain_bags, use.plain_ids) == (plain.features.stride(), plain.features.length_per_key()[index])


@pytest.mark.parametrize("form", FORMS)
def test_look_ups_of_sizes_are_about_those_of_a_batch_of_such_sizes(form: str) -> None:
    """40 windows of 20 events, whose items are drawn evenly: all 50 are found, so their share is known."""
    batch = make_ranking_batch(made_up_users(40, 20), form, distinct=True)
    cfg, tokens = actions(form, items=ItemTableConfig(kind="vocabulary")), batch.timestamps_L.numel()
    sizes = DataSizes(
        items=50, artists=20, event_types=4, levels=3, codes=7, mean_history=20.0, distinct_share=50 / 800
    )
    said, found = workload_of_sizes(cfg, sizes, tokens, DENSE), workload_of_batch(cfg, VOCABULARY, batch, DENSE)
    assert said.rows == pytest.approx(found.rows, rel=0.05)
    for one in said.tables:
        other = found.table(one.name)
        assert one.bags == pytest.approx(other.bags, rel=0.1)
        if one.name in ("rq", "event_type", "item"):  # an item has one artist or none, and half a remainder
            assert one.ids == pytest.approx(other.ids, rel=0.1)
            assert one.plain_ids == pytest.approx(other.plain_ids, rel=0.03)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_memory_of_a_model_of_actions_is_that_of_running_it(form: str, name: str) -> None:
    cfg = actions(form, width=64, blocks=3, max_history=128, **MODELS[name])
    vocabulary = Vocabulary(levels=4, codes=64, artists=0, event_types=1)
    assert measure_dense(cfg, vocabulary).at(1024).activations == pytest.approx(
        max(_peaks(cfg, vocabulary, 3, 1024)), rel=0.05
    )


@pytest.mark.parametrize(
    ("form", "seen", "share", "columns"),
    [("interleaved", 10, 0.5, 16), ("merged", 5.5, 0.5, 16), ("interactions", 5, 1, 48)],
)
def test_operations_of_a_model_of_actions(form: str, seen: float, share: float, columns: int) -> None:
    """Windows of 9 events: 19, 18 or 9 tokens, of which one sees half; a candidate half of the inputs, and itself."""
    cfg = actions(form, width=16, blocks=5, heads=2, head_dim_qk=8, head_dim_v=4, max_history=99)
    vocabulary = Vocabulary(levels=2, codes=32, artists=0, event_types=1)
    found, sizes = measure_dense(cfg, vocabulary, mean_history=9.0), count_tower(cfg, vocabulary, 5)
    assert found.parameters == sizes.parameters
    heads = 2 * 24 * columns + 2 * 24
    attention = 3 * 2 * 2 * (8 + 4) * 5 * seen
    assert found.flops_per_token == pytest.approx(6 * (sizes.in_matrices + heads * share) + attention)
    codes = count_tower(dataclasses.replace(cfg, output=HeadsConfig()), vocabulary, 5)
    assert sizes.in_matrices == codes.in_matrices


def test_networks_beyond_measure() -> None:
    output = HeadsConfig(kind="actions", actions=ActionsConfig(tasks=["like: event_type is like"], hidden=10**8))
    with pytest.raises(InputError, match=r"1 tasks × 100000000 .* set a smaller model\.output\.actions\.hidden"):
        measure_dense(ModelConfig(output=output), VOCABULARY)
