from __future__ import annotations

import numpy as np
import pytest

from data.synthetic.catalogue import (
    ALBUM_ITEMS,
    END_TICK,
    GENRES,
    LENGTH_RANGE_S,
    MEDIAN_LENGTH_S,
    TICK_S,
    TICKS_A_DAY,
    make_catalogue,
    raw_ids,
)
from tests.data.synthetic.helpers import BEGIN, catalogue


def test_items_stand_by_artist_and_release_and_albums_are_out_at_once() -> None:
    made = catalogue()
    assert (np.diff(made.artist_N) >= 0).all()
    np.testing.assert_array_equal(made.first_A, np.searchsorted(made.artist_N, np.arange(len(made.genre_A) + 1)))
    assert (np.diff(made.first_A) >= 1).all()  # no artist without an item
    same_artist = np.diff(made.artist_N) == 0
    assert (np.diff(made.release_N)[same_artist] >= 0).all()
    assert set(np.diff(made.album_N)) == {0, 1}
    same_album = np.diff(made.album_N) == 0
    assert same_artist[same_album].all()
    assert not np.diff(made.release_N)[same_album].any()
    assert (made.release_N < END_TICK).all()
    # The order by release is the order of indices, on which runs of successive tracks rely.
    np.testing.assert_array_equal(made.by_artist.order_N, np.arange(len(made.artist_N)))


def test_every_genre_has_an_item_from_the_first_moment_on_and_new_ones_all_along() -> None:
    made = catalogue()
    assert made.num_genres == GENRES
    genre_N = made.genre_A[made.artist_N]
    assert set(genre_N[made.release_N <= BEGIN]) == set(range(GENRES))
    arriving = made.release_N[made.release_N >= BEGIN]
    by_month = np.bincount(((arriving - BEGIN) // (30 * TICKS_A_DAY)).astype(int), minlength=10)[:10]
    assert (by_month > 0.004 * len(made.release_N)).all()
    assert by_month.sum() < 0.3 * len(made.release_N)


@pytest.mark.parametrize(("items", "artists"), [(1, 1), (5, 5), (30, 4), (40, 39)])
def test_small_catalogues(items: int, artists: int) -> None:
    made = make_catalogue(items, artists, begin=END_TICK - TICKS_A_DAY, seed=0)
    assert made.artist_N.shape == made.raw_N.shape == (items,)
    genres = np.arange(made.num_genres)
    assert (made.by_genre.ends(genres, np.full_like(genres, END_TICK - TICKS_A_DAY)) > made.by_genre.first_G[:-1]).all()


def test_popularity_is_skewed_as_zipf_has_it() -> None:
    made = catalogue()
    weights = np.diff(made.discovered._sums_N)
    assert (weights > 0).all()
    ranked = np.sort(weights)[::-1]
    middle = np.arange(300, 30_000)
    slope = np.polyfit(np.log(middle), np.log(ranked[middle]), 1)[0]
    assert -1.3 < slope < -0.4
    assert ranked[: len(ranked) // 100].sum() > 0.05 * ranked.sum()


def test_news_are_heard_more_and_with_age_ever_less() -> None:
    made = catalogue()
    novelty = np.diff(made.novel._sums_N)
    release = made.release_N[made.by_genre.order_N]
    means = [
        novelty[(release >= END_TICK - (days + 40) * TICKS_A_DAY) & (release < END_TICK - days * TICKS_A_DAY)].mean()
        for days in (0, 40, 80, 120)
    ]
    ratios = np.array(means[1:]) / means[:-1]
    np.testing.assert_allclose(ratios.prod() ** (1 / 3), 0.5, rtol=0.25)  # forty days halve it


def test_lengths_are_whole_ticks_around_the_median() -> None:
    seconds = catalogue().length_N * TICK_S
    assert LENGTH_RANGE_S[0] <= seconds.min()
    assert seconds.max() <= LENGTH_RANGE_S[1]
    assert abs(np.median(seconds) - MEDIAN_LENGTH_S) <= TICK_S
    album_sizes = np.bincount(catalogue().album_N)
    assert 3 < album_sizes.mean() < ALBUM_ITEMS


def test_raw_ids_are_unique_and_neither_dense_nor_ordered_nor_from_0() -> None:
    ids = raw_ids(1_000, seed=1)
    assert ids.dtype == np.uint32
    assert len(set(ids.tolist())) == 1_000
    assert ids.min() > 100
    assert ids.max() - ids.min() > 5_000
    assert 0.4 < (np.diff(ids.astype(np.int64)) > 0).mean() < 0.6


def test_a_catalogue_follows_from_its_seed() -> None:
    one, same, other = (make_catalogue(500, 60, 0, seed) for seed in (1, 1, 2))
    for name in ("raw_N", "artist_N", "genre_A", "release_N", "album_N", "length_N", "quality_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (one.release_N != other.release_N).any()
