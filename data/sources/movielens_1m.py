"""MovieLens-1M: 1,000,209 ratings of 3,706 films by 6,040 users, 2000–2003 (grouplens.org/datasets/movielens/1m).

As MovieLens-100K: an event is a rating, the five ratings are the event types, genres take the artist slot. All 3,883
films of `movies.dat` are in the catalogue, rated or not, as in published comparisons. GroupLens lets nobody pass the
data on, and no package carries it, so the user fetches it: `ratings.dat` has UserID::MovieID::Rating::Timestamp,
`movies.dat` MovieID::Title::Genres, genres with bars between them, in Latin-1. `users.dat`, which has
UserID::Gender::Age::Occupation::Zip-code, is read where it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from data.sources.movielens import Layout, MovieLens, clean_title
from data.sources.movielens_lines import whole_number
from data.sources.movielens_origins import read_path
from data.sources.movielens_users import MOVIELENS_1M_USERS

NAME = "movielens-1m"

_ADVICE = (
    "fetch https://files.grouplens.org/datasets/movielens/ml-1m.zip and give it, or the unzipped folder, as `path=…`"
)


def _film(fields: Sequence[str]) -> tuple[int, str, tuple[str, ...]]:
    number, title, genres = fields
    return whole_number("item id", number, 1), clean_title(title), tuple(genres.split("|"))


LAYOUT = Layout(
    "ratings.dat", "movies.dat", None, None, "latin-1", "::", 3, _film, MOVIELENS_1M_USERS, ratings_separator="::"
)


class MovieLens1M(MovieLens):
    """The data set in memory; implements `data.sources.base.Source`."""

    description: Mapping[str, str] = MappingProxyType({"name": NAME})


def load(path: Path, with_users: bool = False) -> MovieLens1M:
    """The data set as it lies in a folder or an archive.

    Args:
        with_users: read `users.dat` too.

    Raises:
        InputError: `path` lacks a file, or lines of it are malformed.
    """
    return MovieLens1M.parse(read_path(path, (LAYOUT,), _ADVICE, with_users))
