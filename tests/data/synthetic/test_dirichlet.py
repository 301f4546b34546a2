"""The process against a slow one drawn as the paper words it, against its moments, and the stream rule exactly."""

from __future__ import annotations

import random as python_random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synthetic import dirichlet
from data.synthetic.config import DIRICHLET, SynthesizeConfig
from data.synthetic.dirichlet import (
    draw_categories,
    draw_priors,
    draw_records,
    draw_slots,
    items_in_use,
    record_blocks,
    write_dirichlet,
)
from data.synthetic.draws import generator


def config(**keys: object) -> SynthesizeConfig:
    return SynthesizeConfig(kind=DIRICHLET, out="out", **keys)  # type: ignore[arg-type]


def slow_slots(prior: list[float], alpha: float, length: int, random: python_random.Random) -> list[int]:
    """One record, case by case."""
    drawn: list[int] = []
    for n in range(1, length + 1):
        if random.random() < alpha / (alpha + n - 1):
            drawn += random.choices(range(len(prior)), prior)
        else:
            drawn.append(random.choice(drawn))  # a category of n_c earlier items has probability n_c/(n − 1)
    return drawn


def test_the_process_is_that_of_a_slow_sampler() -> None:
    prior, alpha, length, records = [0.6, 0.3, 0.1], 4.0, 12, 20_000
    fast = draw_slots(np.tile(prior, (records, 1)), np.full(records, alpha), length, generator(1))
    random = python_random.Random(2)
    slow = np.array([slow_slots(prior, alpha, length, random) for _ in range(records)])
    assert fast.shape == slow.shape
    for statistic in (
        lambda slots: (slots == 0).sum(axis=1),  # how often the first category: all of its distribution
        lambda slots: (slots == 2).sum(axis=1),
        lambda slots: (slots[:, 1:] == slots[:, :-1]).sum(axis=1),  # order, not counts alone
        lambda slots: 4 * slots[:, 0] + slots[:, -1],
    ):
        counts = np.stack([np.bincount(statistic(slots), minlength=16) for slots in (fast, slow)]).astype(float)
        counts = counts[:, counts.sum(axis=0) > 20]
        expected = counts.sum(axis=0) / 2
        chi2 = ((counts - expected) ** 2 / expected).sum()
        freedom = counts.shape[1] - 1
        assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("alpha", [1.0, 10.0, 500.0])
def test_any_two_positions_agree_as_often_as_the_process_says(alpha: float) -> None:
    prior, records = np.array([0.5, 0.25, 0.15, 0.1, 0.0]), 40_000
    slots = draw_slots(np.tile(prior, (records, 1)), np.full(records, alpha), 30, generator(3))
    agree = (alpha * (prior**2).sum() + 1) / (alpha + 1)
    for first, second in ((0, 1), (0, 29), (14, 15)):
        np.testing.assert_allclose((slots[:, first] == slots[:, second]).mean(), agree, atol=0.011)
    for position in (0, 29):
        shares = np.bincount(slots[:, position], minlength=5) / records
        np.testing.assert_allclose(shares, prior, atol=0.011)
    assert slots.max() == 3  # what has no share in the prior is never drawn


def test_a_record_has_one_to_five_categories_with_a_uniform_prior() -> None:
    usable = np.ones((30_000, 100), dtype=bool)
    usable[:, 7] = False
    chosen_RM, prior_RM = draw_priors(usable, generator(4))
    np.testing.assert_allclose(prior_RM.sum(axis=1), 1)
    assert all(len(set(row)) == 5 for row in chosen_RM[:500].tolist())
    numbers = (prior_RM > 0).sum(axis=1)
    np.testing.assert_allclose(np.bincount(numbers, minlength=6) / 30_000, [0, *[0.2] * 5], atol=0.012)
    for number in range(1, 6):
        squares = (prior_RM[numbers == number] ** 2).sum(axis=1)
        np.testing.assert_allclose(squares.mean(), 2 / (number + 1), atol=0.01)
    shares = np.bincount(chosen_RM[:, 0], minlength=100) / 30_000
    assert shares[7] == 0
    np.testing.assert_allclose(np.delete(shares, 7), 1 / 99, atol=0.0035)
    # Which place in the prior a category gets does not depend on its number.
    last = np.bincount(chosen_RM[:, 4], minlength=100) / 30_000
    np.testing.assert_allclose(np.delete(last, 7), 1 / 99, atol=0.0035)


def test_alpha_is_uniform_over_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[np.ndarray] = []

    def spied(prior_RM: np.ndarray, alpha_R: np.ndarray, *rest: Any) -> np.ndarray:
        given.append(alpha_R)
        return draw_slots(prior_RM, alpha_R, *rest)

    monkeypatch.setattr(dirichlet, "draw_slots", spied)
    small = config(records=30_000, record_length=2, items=2_000)
    category_N = draw_categories(small)
    records = np.concatenate([items for _, items in record_blocks(small, category_N)])
    pair = category_N[records]
    drawn = np.sort(np.concatenate(given))
    np.testing.assert_allclose(drawn, np.linspace(1.0, 500.0, 30_000), atol=6.0)
    alphas = np.linspace(1.0, 500.0, 2_001)
    agree = np.mean([((alphas * 2 / (number + 1) + 1) / (alphas + 1)).mean() for number in range(1, 6)])
    np.testing.assert_allclose((pair[:, 0] == pair[:, 1]).mean(), agree, atol=0.012)
    # A small α would show in long records: with α near 1 one category takes nearly all.
    assert abs(agree - (1 + 2 / 3 + 2 / 4 + 2 / 5 + 2 / 6) / 5) < 0.01


def test_ids_come_into_use_as_the_paper_has_it() -> None:
    paper = config()
    assert (paper.records, paper.record_length, paper.num_items, paper.categories) == (1_000_000, 128, 20_000, 100)
    in_use = items_in_use(paper, np.arange(1_000_000))
    assert in_use[0] == 8_000
    assert in_use[500_000] == 14_000
    assert in_use[-1] == 19_999
    assert set(np.diff(in_use)) == {0, 1}


def test_no_record_holds_an_item_that_is_not_in_use_and_all_get_drawn() -> None:
    small = config(records=20_000, record_length=16, items=1_000, categories=20, initial_share=0.4)
    category_N = draw_categories(small)
    assert set(category_N.tolist()) == set(range(20))
    items_RL = np.concatenate([items for _, items in record_blocks(small, category_N)])
    limit_R = np.array([int((0.4 + 0.6 * record / 20_000) * 1_000 + 1e-9) for record in range(20_000)])
    assert items_RL.shape == (20_000, 16)
    assert (items_RL < limit_R[:, None]).all()
    assert (items_RL.max(axis=1) > 0.8 * limit_R).mean() > 0.8  # and the newest are drawn as the old
    assert len(np.unique(items_RL)) > 990
    distinct = [len(set(row)) for row in category_N[items_RL].tolist()]
    assert max(distinct) == 5
    assert min(distinct) == 1


def test_items_of_a_category_are_drawn_uniformly() -> None:
    small = config(records=4_000, record_length=50, items=60, categories=3, initial_share=1.0)
    category_N = draw_categories(small)
    counts = np.bincount(np.concatenate([items.ravel() for _, items in record_blocks(small, category_N)]), minlength=60)
    for category in range(3):
        of = counts[category_N == category]
        chi2 = ((of - of.mean()) ** 2 / of.mean()).sum()
        assert chi2 < len(of) - 1 + 4 * np.sqrt(2 * (len(of) - 1))


@given(
    items=st.integers(1, 30),
    categories=st.integers(1, 12),
    records=st.integers(1, 20),
    length=st.integers(1, 6),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 1_000),
)
@settings(deadline=None)
def test_tiny_streams_draw_from_categories_that_have_an_item(
    items: int, categories: int, records: int, length: int, share: float, seed: int
) -> None:
    share = max(share, 1.0 / items + 1e-6) if items > 1 else 1.0
    tiny = config(
        items=items, categories=categories, records=records, record_length=length, initial_share=share, seed=seed
    )
    category_N = draw_categories(tiny)
    drawn_RL = draw_records(category_N, tiny, np.arange(records), generator(seed))
    assert drawn_RL.shape == (records, length)
    in_use_R = items_in_use(tiny, np.arange(records))
    assert (in_use_R >= 1).all()
    assert (drawn_RL < in_use_R[:, None]).all()
    assert max(len(set(row)) for row in category_N[drawn_RL].tolist()) <= 5


def test_the_files_hold_the_records_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirichlet, "BLOCK_RECORDS", 64)  # the last block is not full
    small = config(records=150, record_length=7, items=200, categories=9)
    counts = write_dirichlet(small, tmp_path)
    assert counts == {"records": 150, "events": 1_050, "items": 200, "categories": 9}
    log, items = pq.read_table(tmp_path / "log.parquet"), pq.read_table(tmp_path / "items.parquet")
    assert [(field.name, str(field.type)) for field in log.schema] == [
        ("user", "uint32"),
        ("item", "uint32"),
        ("timestamp", "uint32"),
    ]
    np.testing.assert_array_equal(log.column("user").to_numpy(), np.repeat(np.arange(150), 7))
    np.testing.assert_array_equal(log.column("timestamp").to_numpy(), np.repeat(np.arange(150), 7))
    category_N = draw_categories(small)
    expected = np.concatenate([block.ravel() for _, block in record_blocks(small, category_N)])
    np.testing.assert_array_equal(log.column("item").to_numpy(), expected)
    np.testing.assert_array_equal(items.column("item").to_numpy(), np.arange(200))
    np.testing.assert_array_equal(items.column("artist").to_numpy(), category_N)


def test_the_stream_follows_from_its_seed() -> None:
    one, other = (
        np.concatenate([items for _, items in record_blocks(made, draw_categories(made))])
        for made in (config(records=100, seed=1), config(records=100, seed=2))
    )
    again = config(records=100, seed=1)
    np.testing.assert_array_equal(one, np.concatenate([i for _, i in record_blocks(again, draw_categories(again))]))
    assert (one != other).mean() > 0.9
    assert Counter(one.ravel().tolist()) != Counter(other.ravel().tolist())
