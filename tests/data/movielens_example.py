"""A few films and ratings in both layouts of MovieLens-100K, with the quirks of the real files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from data.sources.movielens import GENRES, RECBOLE
from data.sources.movielens_users import RECBOLE_USERS

# (id, title in u.item, title and year in RecBole's file, genres)
FILMS = [
    (1, "Toy Story (1995)", "Toy Story", "1995", ["Animation", "Children's", "Comedy"]),
    (2, "Misérables, Les (1995)", "Misérables, Les", "1995", ["Drama", "Musical"]),
    (3, "unknown", "unkonwn", "unkonwn", ["unknown"]),
    (4, "Marlene Dietrich: Shadow and Light (1996) ", "Marlene Dietrich: Shadow and Light", "1996", ["Documentary"]),
    (5, "Giving (1995) (V)", "Giving (1995)", "V", ["Animation", "Children's"]),
    (6, "Never Rated (1997)", "Never Rated", "1997", ["Film-Noir"]),
]


# (id, age, gender, occupation, postcode); user 4 rates nothing
USERS = [
    (2, 53, "F", "other", "94043"),
    (3, 7, "M", "student", "V1G4L"),
    (4, 24, "M", "technician", "43537"),
    (5, 17, "F", "none", "15213"),
    (10, 56, "M", "lawyer", "90703"),
]


def ratings(seed: int = 0) -> list[tuple[int, int, int, int]]:
    """(user, item, rating, timestamp) in no order, with ties in time; users 2, 3, 5, 10; film 6 unrated."""
    random = np.random.default_rng(seed)
    rows = [
        (user, int(item) + 1, int(random.integers(1, 6)), 880000000 + int(random.integers(4)))
        for user in (10, 2, 5, 3)
        for item in random.permutation(5)[: 1 if user == 3 else 5]
    ]
    return [rows[index] for index in random.permutation(len(rows))]


def grouplens_files(rows: list[tuple[int, int, int, int]] | None = None) -> dict[str, bytes]:
    lines = ["\t".join(map(str, row)) for row in (ratings() if rows is None else rows)]
    items = []
    for number, title, _, _, genres in FILMS:
        flags = "|".join("1" if genre in genres else "0" for genre in ("unknown", *GENRES))
        items.append(f"{number}|{title}|01-Jan-1995||http://example.org/{number}|{flags}")
    return {"u.data": ("\n".join(lines) + "\n").encode(), "u.item": ("\n".join(items) + "\n").encode("latin-1")}


def recbole_files(rows: list[tuple[int, int, int, int]] | None = None) -> dict[str, bytes]:
    lines = [RECBOLE.ratings_header or ""] + ["\t".join(map(str, row)) for row in (ratings() if rows is None else rows)]
    items = [RECBOLE.items_header or ""]
    items += ["\t".join([str(number), title, year, " ".join(genres)]) for number, _, title, year, genres in FILMS]
    return {RECBOLE.ratings_file: "\n".join(lines).encode(), RECBOLE.items_file: "\n".join(items).encode()}


def grouplens_users() -> dict[str, bytes]:
    return {"u.user": "".join("|".join(map(str, user)) + "\n" for user in USERS).encode()}


def recbole_users() -> dict[str, bytes]:
    lines = [RECBOLE_USERS.header or "", *("\t".join(map(str, user)) for user in USERS)]
    return {RECBOLE_USERS.name: "\n".join(lines).encode()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive(files: dict[str, bytes], prefix: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(f"{prefix}{name}", content)
    return buffer.getvalue()
