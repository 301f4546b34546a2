"""MovieLens-100K: 100,000 ratings of 1,682 films by 943 users, 1997–1998 (grouplens.org/datasets/movielens/100k).

An event is a rating; the five ratings are the event types. A film's genres take the artist slot: as an
artist does, a genre groups items that have something in common, and a film may have several. A film whose
genre GroupLens gives as "unknown" has none. Timestamps are Unix seconds.

Two layouts of the same data are read: GroupLens's own (`u.data`, `u.item`) and RecBole's
(`ml-100k.inter`, `ml-100k.item`). Both give the same store, byte for byte. What is known of users (`u.user`,
`ml-100k.user`) is read where it is asked for (movielens_users.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
import pyarrow as pa

from common.errors import InputError
from data import schema
from data.ranges import run_starts
from data.sources.base import Catalogue, Embeddings, Histories, groups_of_pairs, shown
from data.sources.movielens_lines import lines_of, whole_number
from data.sources.movielens_users import (
    GROUPLENS_USERS,
    RECBOLE_USERS,
    Demographics,
    UserFile,
    UserRow,
    parse_users,
    users_sha256,
)

NAME = "movielens-100k"

CONTENT_SHA256 = "a25f46eef9d58ac106d33e0e203b76024a95f03758ba21fee33f14680df478a4"
"""Of the published data set in canonical form (`MovieLens.content_sha256`), whichever layout it was read from."""

USERS_SHA256 = "6ab6a53466b9eb6531604971a6396cbd4142a9d1697293ed5991a665d51a2b4a"
"""The same of its users (`MovieLens.users_sha256`)."""

RATINGS = (1, 2, 3, 4, 5)

GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""In the order of the flags in `u.item`, which has "unknown" before them."""

UNKNOWN_GENRE = "unknown"
_TIMESTAMP_LIMIT = 2**32


@dataclass(frozen=True)
class RawFiles:
    """The files of one layout, unparsed; the names are for messages. Users are there if they were asked for."""

    ratings: bytes
    ratings_name: str
    items: bytes
    items_name: str
    layout: Layout
    users: bytes | None = None
    users_name: str = ""


@dataclass(frozen=True)
class Layout:
    """How a distribution writes the data set.

    Attributes:
        ratings_file, items_file: file names.
        ratings_header, items_header: the first line of each, None where there is none.
        parse_item: one line of the items file, split, as (id, title, genres).
        users: the file of what is known of users.
        ratings_separator: between the fields of a rating.
    """

    ratings_file: str
    items_file: str
    ratings_header: str | None
    items_header: str | None
    encoding: str
    separator: str
    item_fields: int
    parse_item: Callable[[Sequence[str]], tuple[int, str, tuple[str, ...]]]
    users: UserFile
    ratings_separator: str = "\t"


def _grouplens_item(fields: Sequence[str]) -> tuple[int, str, tuple[str, ...]]:
    flags = fields[5:]
    if set(flags) - {"0", "1"}:
        raise ValueError(f"genre flags are {'|'.join(flags)}, each must be 0 or 1")
    genres = tuple(genre for genre, flag in zip((UNKNOWN_GENRE, *GENRES), flags, strict=True) if flag == "1")
    return whole_number("item id", fields[0], 1), clean_title(fields[1]), genres


def _recbole_item(fields: Sequence[str]) -> tuple[int, str, tuple[str, ...]]:
    """RecBole cuts titles at the last bracket: "Toy Story (1995)" → "Toy Story", "1995"; "unknown" became "unkonwn"."""
    number, title, year, genres = fields
    whole = "unknown" if title == year == "unkonwn" else f"{title} ({year})"
    return whole_number("item id", number, 1), clean_title(whole), tuple(genres.split())


def clean_title(text: str) -> str:
    """A title without blanks to spare."""
    return " ".join(text.split())  # some titles of GroupLens end in a blank


GROUPLENS = Layout(
    "u.data", "u.item", None, None, "latin-1", "|", 5 + 1 + len(GENRES), _grouplens_item, GROUPLENS_USERS
)
RECBOLE = Layout(
    "ml-100k.inter",
    "ml-100k.item",
    "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    "utf-8",
    "\t",
    4,
    _recbole_item,
    RECBOLE_USERS,
)
LAYOUTS = (GROUPLENS, RECBOLE)


class MovieLens:
    """The data set in memory; implements `data.sources.base.Source`.

    Attributes:
        user, item, rating, timestamp: int64, one value a rating, in file order.
        items: item id → (title, genres), in file order.
        users: user id → what is known of the user; None where it was not read.
    """

    def __init__(
        self,
        ratings: np.ndarray,
        items: dict[int, tuple[str, tuple[str, ...]]],
        users: dict[int, UserRow] | None = None,
    ) -> None:
        """Take ratings int64 [E, 4] (user, item, rating, timestamp), the films and, where they were read, the users."""
        self.user, self.item, self.rating, self.timestamp = ratings.T
        self.items = items
        self.users = users

    @classmethod
    def parse(cls, raw: RawFiles) -> Self:
        """Read the files.

        Raises:
            InputError: with the malformed lines by file and number.
        """
        faults: list[str] = []
        items = _parse_items(raw, faults)
        ratings = _parse_ratings(raw, items, faults)
        users = None
        if raw.users is not None:
            file = raw.layout.users
            users = parse_users(raw.users, raw.users_name, file, np.unique(ratings[:, 0]), raw.ratings_name, faults)
        if faults:
            raise InputError(*shown(faults))
        return cls(ratings, items, users)

    def content_sha256(self) -> str:
        """SHA-256 of the content in one canonical text, the same for both layouts."""
        digest = hashlib.sha256()
        for row in zip(self.user, self.item, self.rating, self.timestamp, strict=True):
            digest.update(("\t".join(str(value) for value in row) + "\n").encode())
        for number, (title, genres) in self.items.items():
            digest.update(f"{number}\t{title}\t{' '.join(genres)}\n".encode())
        return digest.hexdigest()

    def users_sha256(self) -> str | None:
        """The same of what was read of the users, None where it was not read."""
        return users_sha256(self.users) if self.users is not None else None

    def demographics(self, names: Sequence[str]) -> Demographics:
        """What is known of the users, as series; they must have been read."""
        assert self.users is not None
        return Demographics(self.users, names)

    description: Mapping[str, str] = MappingProxyType({"name": NAME})
    event_types = tuple(f"rating-{rating}" for rating in RATINGS)
    optional_columns: tuple[str, ...] = ()
    embedding_width: int | None = None
    left_out: Mapping[str, int] = MappingProxyType({})
    least_bytes = 0

    @property
    def num_events(self) -> int:
        """Ratings."""
        return len(self.user)

    def catalogue(self) -> Catalogue:
        """All films of the items file, rated or not, in file order."""
        genre = {name: number for number, name in enumerate(GENRES)}
        pairs = np.array(
            [
                (item, genre[name])
                for item, (_, names) in enumerate(self.items.values())
                for name in names
                if name != UNKNOWN_GENRE
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        return Catalogue(
            item_ids=pa.array([str(number) for number in self.items], type=pa.string()),
            artists=groups_of_pairs(pairs[:, 0], pairs[:, 1], pa.array(GENRES, type=pa.string()), len(self.items)),
            titles=pa.array([title for title, _ in self.items.values()], type=pa.string()),
        )

    def histories(self) -> Iterator[Histories]:
        """All users at once, by number; ratings by time, those of one second in file order."""
        order = np.lexsort((self.timestamp, self.user))  # a stable sort
        user = self.user[order]
        starts = run_starts(user)
        numbers = np.fromiter(self.items, dtype=np.int64)
        by_number = np.argsort(numbers)
        dense = by_number[np.searchsorted(numbers[by_number], self.item[order])]
        columns = {
            schema.ITEM: dense,
            schema.TIMESTAMP: self.timestamp[order],
            schema.EVENT_TYPE: self.rating[order] - RATINGS[0],
        }
        yield Histories(
            user_ids=pa.array([str(number) for number in user[starts]], type=pa.string()),
            offsets=np.append(starts, len(user)),
            columns={name: values.astype(schema.EVENT_COLUMNS[name].dtype) for name, values in columns.items()},
        )

    def embeddings(self) -> Iterator[Embeddings]:
        """None: MovieLens has no content embeddings."""
        return iter(())


# ── parsing ──────────────────────────────────────────────────────────────────────────────────────────────


def _parse_items(raw: RawFiles, faults: list[str]) -> dict[int, tuple[str, tuple[str, ...]]]:
    layout = raw.layout
    items: dict[int, tuple[str, tuple[str, ...]]] = {}
    for place, line in lines_of(raw.items, raw.items_name, layout.encoding, layout.items_header, faults):
        fields = line.split(layout.separator)
        try:
            if len(fields) != layout.item_fields:
                raise ValueError(
                    f"has {len(fields)} fields, expected {layout.item_fields} separated by {layout.separator!r}"
                )
            number, title, genres = layout.parse_item(fields)
            unknown = sorted(set(genres) - {*GENRES, UNKNOWN_GENRE})
            if unknown:
                raise ValueError(f"genre {unknown[0]!r} is none of {', '.join(GENRES)}, {UNKNOWN_GENRE}")
            if number in items:
                raise ValueError(f"item id {number} stands here for the second time; ids must be unique")
            # One order for both layouts, so that their stores are equal.
            items[number] = title, tuple(sorted(set(genres), key=(*GENRES, UNKNOWN_GENRE).index))
        except ValueError as error:
            faults.append(f"{place}: {error}")
    return items


def _parse_ratings(raw: RawFiles, items: dict[int, tuple[str, tuple[str, ...]]], faults: list[str]) -> np.ndarray:
    layout = raw.layout
    rows: list[tuple[int, int, int, int]] = []
    for place, line in lines_of(raw.ratings, raw.ratings_name, "ascii", layout.ratings_header, faults):
        fields = line.split(layout.ratings_separator)
        try:
            if len(fields) != 4:
                separated = "tabs" if layout.ratings_separator == "\t" else repr(layout.ratings_separator)
                raise ValueError(
                    f"has {len(fields)} fields, expected 4 (user, item, rating, timestamp) separated by {separated}"
                )
            user, item = whole_number("user id", fields[0], 1), whole_number("item id", fields[1], 1)
            rating, timestamp = (
                whole_number("rating", fields[2], RATINGS[0]),
                whole_number("timestamp", fields[3], 0, _TIMESTAMP_LIMIT),
            )
            if item not in items:
                raise ValueError(f"item id {item} is not in {raw.items_name}; every rated item must be listed there")
            if rating > RATINGS[-1]:
                raise ValueError(f"rating is {rating}, must be {RATINGS[0]} … {RATINGS[-1]}")
            rows.append((user, item, rating, timestamp))
        except ValueError as error:
            faults.append(f"{place}: {error}")
    if raw.ratings.strip() and not rows and not faults:
        faults.append(f"{raw.ratings_name}: holds no ratings, only a header")
    return np.array(rows, dtype=np.int64).reshape(-1, 4)
