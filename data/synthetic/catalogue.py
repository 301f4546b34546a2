"""The items of a synthetic log: who made them, when they came out, how popular and how long they are.

Structure worth learning, and its constants:
 - genres: each artist has one; popular genres have more artists (GENRES, GENRE_SKEW);
 - popularity: artists by Zipf's law (ARTIST_SKEW), items of one artist apart from one another by a lognormal
   factor (ITEM_SPREAD), and what is new is heard more for a while (NOVELTY_HALF_LIFE_DAYS);
 - careers: an artist is active for some years (CAREER_YEARS) and brings out albums (ALBUM_ITEMS) all along,
   so items come out before the log begins and over its whole length. Nothing is heard before its release.

Items stand by (artist, release), so an album's tracks are neighbours. Their raw ids say nothing of this order.

N items · A artists · G genres. Times are in ticks of 5 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.seeding import derive_seed
from data.synthetic.draws import Released, Weighted, generator

TICK_S = 5
"""Yambda rounds time to so many seconds."""
TICKS_A_DAY = 86_400 // TICK_S
END_TICK = 26_000_000 // TICK_S
"""All timestamps lie below this one, as Yambda's do."""

GENRES = 48
GENRE_SKEW = 0.7
ARTIST_SKEW = 0.9
ARTIST_FLATTENING = 3
"""Zipf–Mandelbrot: the artist of rank r weighs (r + 3)^−0.9, so that no one artist rules a genre."""
SIZE_SKEW = 0.4
"""Artists of high rank have more items: (r + 3)^−0.4 of them."""
ITEM_SPREAD = 1.3
"""Standard deviation of the logarithm of an item's popularity among those of its artist."""
DISCOVERY_POWER, NOVELTY_POWER = 0.75, 1.15
"""Popularity to the former power is the weight of what listeners find themselves, to the latter of what is new."""
NOVELTY_HALF_LIFE_DAYS = 40
OLD_NOVELTY = 2.0**-20
"""What is old keeps so much of its weight as news, so that a genre without news has something to give."""
CAREER_YEARS = 5.0
CAREERS_BEGIN_DAYS = 3_000
"""Careers begin from so many days before the log's end on."""
ALBUM_ITEMS = 9
QUALITY_SPREAD = 0.5
"""Standard deviation of what an item itself adds to the odds (in logits) of being skipped."""
MEDIAN_LENGTH_S = 195
LENGTH_SPREAD = 0.3
LENGTH_RANGE_S = (30, 1_200)
SECOND_ARTIST_SHARE = 0.08
NO_ARTIST_SHARE = 0.03
SECOND_ALBUM_SHARE = 0.05
NO_EMBEDDING_SHARE = 0.18


@dataclass(frozen=True)
class Catalogue:
    """All items in order of (artist, release), and how to draw from them.

    Attributes:
        raw_N: uint32, raw item ids, each once, in no order.
        artist_N: int32, main artist. first_A: int64 [A + 1], where each artist's items begin.
        genre_A: int32. release_N: int64, ticks, may be negative. album_N: int32, ascending.
        length_N: int32, ticks. quality_N: float32, added to the logit of a skip.
        by_artist, by_genre: the items out by a time.
        of_artist: weights of an artist's items. discovered, novel: weights of a genre's, of those who search and of
            what is new.
    """

    raw_N: np.ndarray
    artist_N: np.ndarray
    first_A: np.ndarray
    genre_A: np.ndarray
    release_N: np.ndarray
    album_N: np.ndarray
    length_N: np.ndarray
    quality_N: np.ndarray
    by_artist: Released
    by_genre: Released
    of_artist: Weighted
    discovered: Weighted
    novel: Weighted

    @property
    def num_genres(self) -> int:
        """G: fewer than `GENRES` where there are few artists."""
        return int(self.genre_A.max()) + 1


def make_catalogue(items: int, artists: int, begin: int, seed: int) -> Catalogue:
    """Items and artists of a log that begins at tick `begin`; each genre has an item out by then."""
    random = generator(derive_seed(seed, "catalogue"))
    rank_A = random.permutation(artists)
    genre_A = _genres(rank_A, random)
    sizes_A = 1 + random.multinomial(items - artists, _shares((rank_A + ARTIST_FLATTENING) ** -SIZE_SKEW))
    first_A = np.concatenate([[0], np.cumsum(sizes_A)])
    artist_N = np.repeat(np.arange(artists, dtype=np.int32), sizes_A)
    release_N = _releases(artist_N, first_A, genre_A, begin, random)
    album_N = _albums(artist_N, random)
    release_N = release_N[np.searchsorted(album_N, album_N)]  # an album is out with its first track
    fame_N = ((rank_A + float(ARTIST_FLATTENING)) ** -ARTIST_SKEW / sizes_A)[artist_N]
    appeal_N = np.exp(ITEM_SPREAD * random.standard_normal(items))
    popularity_N = fame_N * appeal_N
    novelty_N = np.exp2((release_N - END_TICK) / (NOVELTY_HALF_LIFE_DAYS * TICKS_A_DAY))
    by_artist = Released(artist_N, release_N, artists)
    by_genre = Released(genre_A[artist_N], release_N, int(genre_A.max()) + 1)
    return Catalogue(
        raw_N=raw_ids(items, derive_seed(seed, "item ids")),
        artist_N=artist_N,
        first_A=first_A,
        genre_A=genre_A,
        release_N=release_N,
        album_N=album_N,
        length_N=_lengths(items, random),
        quality_N=(QUALITY_SPREAD * random.standard_normal(items)).astype(np.float32),
        by_artist=by_artist,
        by_genre=by_genre,
        of_artist=Weighted(by_artist, appeal_N),
        discovered=Weighted(by_genre, popularity_N**DISCOVERY_POWER),
        novel=Weighted(by_genre, popularity_N**NOVELTY_POWER * np.maximum(novelty_N, OLD_NOVELTY)),
    )


def raw_ids(count: int, seed: int) -> np.ndarray:
    """Ids that are neither dense nor ordered nor begin at 0: uint32 [count], each once."""
    random = generator(seed)
    ids: np.ndarray = 101 + 10 * random.permutation(count) + random.integers(0, 10, count)
    return ids.astype(np.uint32)


def _shares(weights: np.ndarray) -> np.ndarray:
    shares: np.ndarray = weights / weights.sum()
    return shares


def _genres(rank_A: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A genre an artist; the most popular artists take one each in turn, so that no genre is empty."""
    artists = len(rank_A)
    genres = max(min(GENRES, artists // 4), 1)
    drawn_A = random.choice(genres, size=artists, p=_shares(np.arange(1.0, genres + 1) ** -GENRE_SKEW))
    return np.where(rank_A < genres, rank_A, drawn_A).astype(np.int32)


def _releases(
    artist_N: np.ndarray, first_A: np.ndarray, genre_A: np.ndarray, begin: int, random: np.random.Generator
) -> np.ndarray:
    """Moments uniform over each artist's career, ascending within an artist."""
    artists = len(genre_A)
    start_A = END_TICK - random.random(artists) * CAREERS_BEGIN_DAYS * TICKS_A_DAY
    years_A = random.exponential(CAREER_YEARS, artists) + 0.2
    stop_A = np.minimum(start_A + years_A * 365 * TICKS_A_DAY, END_TICK)
    place_N = random.random(len(artist_N))
    release_N = (start_A[artist_N] + place_N * (stop_A - start_A)[artist_N]).astype(np.int64)
    # The first artist of each genre was there from the start.
    veteran_G = np.unique(genre_A, return_index=True)[1]
    release_N[first_A[veteran_G]] = begin - CAREERS_BEGIN_DAYS * TICKS_A_DAY
    ordered_N: np.ndarray = release_N[np.lexsort((release_N, artist_N))]
    return ordered_N


def _albums(artist_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Album index a track: runs of an artist's tracks, about `ALBUM_ITEMS` long where the artist has as many."""
    begins_N = random.random(len(artist_N)) < 1 / ALBUM_ITEMS
    begins_N[0] = True
    begins_N[1:] |= artist_N[1:] != artist_N[:-1]
    return (np.cumsum(begins_N) - 1).astype(np.int32)


def _lengths(items: int, random: np.random.Generator) -> np.ndarray:
    seconds_N = np.clip(MEDIAN_LENGTH_S * np.exp(LENGTH_SPREAD * random.standard_normal(items)), *LENGTH_RANGE_S)
    ticks_N: np.ndarray = np.rint(seconds_N / TICK_S).astype(np.int32)
    return ticks_N
