from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.synthetic.draws import Released, Weighted, choice, generator, hashed_uniform

# group, release, weight; whole weights make sums exact
members = st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5), st.integers(1, 9)), min_size=1, max_size=20)
queries = st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 6), st.integers(0, 63)), min_size=1, max_size=20)


@given(members, queries)
def test_draws_are_from_what_is_out_by_weight(
    members: list[tuple[int, int, int]], asked: list[tuple[int, int, int]]
) -> None:
    groups, releases, weights = (np.array(column) for column in zip(*members, strict=True))
    released = Released(groups, releases, num_groups=4)
    weighted = Weighted(released, weights)
    for group, time, share in asked:
        # By release; members of one release stay in their order.
        out = sorted(
            (m for m in range(len(members)) if groups[m] == group and releases[m] <= time), key=releases.__getitem__
        )
        end = released.ends(np.array([group]), np.array([time]))
        assert end[0] - released.first_G[group] == len(out)
        if not out:
            continue
        sums = list(accumulate(weights[m] for m in out))
        point = share / 64 * sums[-1]
        expected = out[next(place for place, total in enumerate(sums) if point < total)]
        assert weighted.draw(np.array([group]), end, np.array([share / 64]))[0] == expected


def test_rounding_never_leaves_the_prefix() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 50)
    weighted = Weighted(released := Released(groups, np.tile(np.arange(50), 3), 3), random.random(150) * 1e-9 + 1e-12)
    asked, times = random.integers(0, 3, 2_000), random.integers(0, 50, 2_000)
    highest = np.full(2_000, np.nextafter(1.0, 0.0))
    drawn = weighted.draw(asked, released.ends(asked, times), highest)
    np.testing.assert_array_equal(groups[drawn], asked)
    assert (drawn % 50 <= times).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.integers(0, 63), max_size=20))
def test_choice_counts_the_shares_at_or_below(weights: list[int], shares: list[int]) -> None:
    cumulative = np.cumsum(weights) / sum(weights)
    expected = [next(k for k, limit in enumerate([*cumulative[:-1], 2]) if share / 64 < limit) for share in shares]
    np.testing.assert_array_equal(choice(cumulative, np.array(shares) / 64), expected)


def test_a_generator_is_pcg64_of_the_seed() -> None:
    assert isinstance(generator(3).bit_generator, np.random.PCG64)
    np.testing.assert_array_equal(generator(3).random(4), generator(3).random(4))


def test_hashed_numbers_are_uniform_and_follow_from_all_parts() -> None:
    first, second = (axis.ravel() for axis in np.meshgrid(np.arange(300), np.arange(200), indexing="ij"))
    drawn = hashed_uniform(5, first, second)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.bincount((drawn * 100).astype(int), minlength=100)
    assert ((counts - 600) ** 2 / 600).sum() < 99 + 4 * np.sqrt(2 * 99)
    grid = drawn.reshape(300, 200)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02
    np.testing.assert_array_equal(drawn[::-1], hashed_uniform(5, first[::-1], second[::-1]))
    assert len(np.unique(drawn)) == len(drawn)
    assert (drawn != hashed_uniform(6, first, second)).all()
    assert not np.array_equal(drawn, hashed_uniform(5, second, first))
