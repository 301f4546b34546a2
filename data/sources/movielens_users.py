"""What MovieLens tells of its users: age, gender and occupation, as series of one entry, from a user's first event on.

Ages become the groups in which MovieLens-1M publishes them. Occupations are MovieLens-100K's names as they are; the
numbers of MovieLens-1M are given the names of its README. Postcodes are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.series.change_points import Entries
from data.series.values import SeriesValues
from data.sources.movielens_lines import lines_of, whole_number

AGE_GROUP, GENDER, OCCUPATION = "age_group", "gender", "occupation"
DEMOGRAPHICS = (AGE_GROUP, GENDER, OCCUPATION)

AGE_GROUPS: Mapping[int, str] = MappingProxyType(
    {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
)
"""Youngest age of each → name; the ages are also the numbers by which MovieLens-1M writes them."""

GENDERS = ("F", "M")

OCCUPATIONS_100K = (
    "administrator",
    "artist",
    "doctor",
    "educator",
    "engineer",
    "entertainment",
    "executive",
    "healthcare",
    "homemaker",
    "lawyer",
    "librarian",
    "marketing",
    "none",
    "other",
    "programmer",
    "retired",
    "salesman",
    "scientist",
    "student",
    "technician",
    "writer",
)
OCCUPATIONS_1M = (
    "other or not specified",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
"""By number."""


class UserRow(NamedTuple):
    """What is known of a user."""

    age: int
    gender: str
    occupation: str

    def of(self, series: str) -> str:
        """The value of one of DEMOGRAPHICS."""
        if series == AGE_GROUP:
            return AGE_GROUPS[max(youngest for youngest in AGE_GROUPS if youngest <= self.age)]
        return self.gender if series == GENDER else self.occupation


@dataclass(frozen=True)
class UserFile:
    """How a distribution writes its users.

    Attributes:
        name: of the file.
        header: its first line, None where there is none.
        parse: one line, split, as (id, user).
    """

    name: str
    header: str | None
    separator: str
    fields: int
    parse: Callable[[Sequence[str]], tuple[int, UserRow]]
    encoding: str = "latin-1"


def _user_100k(fields: Sequence[str]) -> tuple[int, UserRow]:
    number, age, gender, occupation, _ = fields
    if occupation not in OCCUPATIONS_100K:
        raise ValueError(f"occupation {occupation!r} is none of {', '.join(OCCUPATIONS_100K)}")
    return whole_number("user id", number, 1), UserRow(whole_number("age", age, 1, 151), _gender(gender), occupation)


def _user_1m(fields: Sequence[str]) -> tuple[int, UserRow]:
    number, gender, age_text, occupation, _ = fields
    age = whole_number("age", age_text, 1)
    if age not in AGE_GROUPS:
        raise ValueError(f"age is {age}, must be one of {', '.join(map(str, AGE_GROUPS))}")
    job = OCCUPATIONS_1M[whole_number("occupation", occupation, 0, len(OCCUPATIONS_1M))]
    return whole_number("user id", number, 1), UserRow(age, _gender(gender), job)


def _gender(text: str) -> str:
    if text not in GENDERS:
        raise ValueError(f"gender is {text!r}, must be {' or '.join(GENDERS)}")
    return text


GROUPLENS_USERS = UserFile("u.user", None, "|", 5, _user_100k)
RECBOLE_USERS = UserFile(
    "ml-100k.user",
    "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
    "\t",
    5,
    _user_100k,
    encoding="utf-8",
)
MOVIELENS_1M_USERS = UserFile("users.dat", None, "::", 5, _user_1m)


def parse_users(
    content: bytes, name: str, file: UserFile, needed: np.ndarray, ratings_name: str, faults: list[str]
) -> dict[int, UserRow]:
    """User id → user.

    Args:
        name: of the file in messages; `ratings_name` likewise.
        needed: ids of the users who rate; each must be told of.
        faults: malformed lines and missing users are added here.
    """
    users: dict[int, UserRow] = {}
    before = len(faults)
    for place, line in lines_of(content, name, file.encoding, file.header, faults):
        fields = line.split(file.separator)
        try:
            if len(fields) != file.fields:
                raise ValueError(f"has {len(fields)} fields, expected {file.fields} separated by {file.separator!r}")
            number, user = file.parse(fields)
            if number in users:
                raise ValueError(f"user id {number} stands here for the second time; ids must be unique")
            users[number] = user
        except ValueError as error:
            faults.append(f"{place}: {error}")
    missing = [number for number in needed.tolist() if number not in users]
    if missing and len(faults) == before:  # a malformed line is why a user lacks
        more = f" (and {len(missing) - 1} more users)" if len(missing) > 1 else ""
        faults.append(f"{name}: lacks user {missing[0]}{more}; every user of {ratings_name} must be listed there")
    return users


def users_sha256(users: Mapping[int, UserRow]) -> str:
    """SHA-256 of what was read of the users in one canonical text, the same for all layouts."""
    digest = hashlib.sha256()
    for number, user in sorted(users.items()):
        digest.update(f"{number}\t{user.age}\t{user.gender}\t{user.occupation}\n".encode())
    return digest.hexdigest()


class Demographics:
    """Some of DEMOGRAPHICS; implements `data.sources.base.UserSeries`."""

    def __init__(self, users: Mapping[int, UserRow], names: Sequence[str]) -> None:
        """Take what is known of each user, and which of it is asked for."""
        assert set(names) <= set(DEMOGRAPHICS)
        self._users, self._names = users, tuple(sorted(set(names)))
        orders: dict[str, Sequence[str]] = {AGE_GROUP: tuple(AGE_GROUPS.values()), GENDER: GENDERS}
        found = {name: {user.of(name) for user in users.values()} for name in self._names}
        # Age groups by age, the others by name.
        self._texts = {
            name: sorted(texts, key=orders[name].index) if name in orders else sorted(texts)
            for name, texts in found.items()
        }

    def values(self) -> SeriesValues:
        """All values that occur."""
        counts = [len(self._texts[name]) for name in self._names]
        texts = [text for name in self._names for text in self._texts[name]]
        series_V = np.repeat(np.arange(len(counts)), counts)
        return SeriesValues(self._names, series_V, pa.array(texts, type=pa.string()))

    def entries(self, user_ids: pa.Array, first_times: np.ndarray) -> Entries:
        """One entry for each user and series, at the user's first event."""
        pairs = [(name, text) for name in self._names for text in self._texts[name]]
        numbers = {pair: number for number, pair in enumerate(pairs)}
        users = [self._users[int(user)] for user in user_ids.to_pylist()]
        values = [numbers[name, user.of(name)] for user in users for name in self._names]
        count = len(self._names)
        return Entries(
            np.repeat(np.arange(len(users)), count), np.repeat(first_times, count), np.array(values, dtype=np.int64)
        )
