from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data.stochastic_length import SELECTIONS, StochasticLength, attention_sparsity, sparsity


@pytest.mark.parametrize("alpha", [1.6, 1.7, 1.8, 1.9, 2.0])
@pytest.mark.parametrize("longest", [64, 1000])
def test_lengths_follow_equation_4(alpha: float, longest: int) -> None:
    thinning = StochasticLength(alpha=alpha)
    lengths = np.repeat(np.array([1, longest // 4, longest // 2, longest]), 40_000)
    kept = thinning.kept_lengths(lengths, longest, np.random.default_rng(0)).reshape(4, -1)
    limit = int(longest ** (alpha / 2) + 1e-9)
    for row, length in zip(kept, [1, longest // 4, longest // 2, longest], strict=True):
        if length <= limit:
            assert (row == length).all()
            continue
        assert set(np.unique(row)) <= {limit, length}
        whole = longest**alpha / length**2  # the probability of equation (4)
        assert (row == length).mean() == pytest.approx(min(whole, 1.0), abs=0.012)


def test_the_expectation_is_that_of_the_draw() -> None:
    random = np.random.default_rng(1)
    lengths = np.minimum(random.lognormal(8, 1.2, size=200_000).astype(np.int64) + 1, 4096)
    thinning = StochasticLength(alpha=1.7)
    kept = thinning.kept_lengths(lengths, 4096, random)
    assert kept.mean() == pytest.approx(thinning.expected_lengths(lengths, 4096).mean(), rel=0.005)


def test_alpha_2_changes_nothing() -> None:
    lengths = np.array([1, 10, 512])
    assert not StochasticLength().is_on
    np.testing.assert_array_equal(StochasticLength().kept_lengths(lengths, 512, np.random.default_rng(0)), lengths)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.1])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError):
        StochasticLength(alpha=alpha)


WINDOWS = st.lists(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), min_size=1, max_size=6
)


@settings(deadline=None)
@given(WINDOWS, st.sampled_from(SELECTIONS), st.integers(0, 2**40))
def test_each_window_keeps_as_many_as_it_should(windows: list[tuple[int, int]], selection: str, seed: int) -> None:
    lengths, kept = (np.array([pair[i] for pair in windows]) for i in range(2))
    total = int(lengths.sum())
    ages = np.concatenate([np.arange(length)[::-1] * 10 for length in lengths])
    thinning = StochasticLength(alpha=1.5, selection=selection)
    chosen = thinning.chosen(lengths, kept, ages, np.arange(total), seed)
    rows = np.split(chosen, np.cumsum(lengths)[:-1])
    assert [int(row.sum()) for row in rows] == kept.tolist()
    np.testing.assert_array_equal(chosen, thinning.chosen(lengths, kept, ages, np.arange(total), seed))
    if selection == "greedy":
        for row, count in zip(rows, kept, strict=True):
            assert row[len(row) - count :].all()
    # A window alone, in another batch, keeps the same.
    alone = thinning.chosen(lengths[:1], kept[:1], ages[: lengths[0]], np.arange(lengths[0]), seed)
    np.testing.assert_array_equal(alone, rows[0])


def shares(selection: str, ages: np.ndarray, kept: int) -> np.ndarray:
    """How often each input of one window is left, over many draws."""
    thinning = StochasticLength(alpha=1.5, selection=selection)
    count = np.zeros(len(ages))
    draws = 20_000
    windows = np.tile(ages, draws)
    chosen = thinning.chosen(
        np.full(draws, len(ages)), np.full(draws, kept), windows, np.arange(len(windows)), seed=7
    ).reshape(draws, -1)
    count += chosen.sum(axis=0)
    return count / draws


def test_random_selection_is_uniform() -> None:
    np.testing.assert_allclose(shares("random", np.array([90, 50, 20, 0]), 2), np.full(4, 0.5), atol=0.015)


def test_weighted_selection_draws_without_replacement_by_the_weights_of_appendix_f() -> None:
    ages = np.array([80, 15, 5, 0])
    weights = 1 - ages / ages.sum()
    exact = np.zeros(4)  # two draws, one after the other
    for first in range(4):
        for second in set(range(4)) - {first}:
            chance = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
            exact[[first, second]] += chance
    np.testing.assert_allclose(shares("weighted", ages, 2), exact, atol=0.015)


def test_sparsity_is_that_of_the_papers_tables() -> None:
    lengths = np.array([256, 512, 1024, 1024])
    assert sparsity(lengths, 1024) == pytest.approx(1 - 704 / 1024)
    assert attention_sparsity(lengths, 1024) == pytest.approx(1 - (1 / 16 + 1 / 4 + 2) / 4)
