"""MovieLens-1M in GroupLens's own layout, against what the files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import prepare
from data.event_store import EventStore
from data.schema import EVENT_TYPE, ITEM, TIMESTAMP
from tests.data.movielens_example import archive, write

FILMS = [
    (1, "Toy Story (1995)", "Animation|Children's|Comedy"),
    (4, "Misérables, Les (1995) ", "Drama"),
    (3, "Never Rated (1998)", "Film-Noir|Drama"),
]
RATINGS = [(7, 4, 5, 978300760), (2, 1, 3, 978302109), (7, 1, 1, 978300760), (2, 4, 4, 978301968)]


def files(lines: list[str] | None = None) -> dict[str, bytes]:
    rows = ["::".join(map(str, row)) for row in RATINGS] if lines is None else lines
    films = ["::".join(map(str, film)) for film in FILMS]
    return {
        "ratings.dat": ("\n".join(rows) + "\n").encode(),
        "movies.dat": ("\n".join(films) + "\n").encode("latin-1"),
        "users.dat": b"2::M::25::15::55117\n",
    }


def make(path: Path, out: Path) -> int:
    return prepare.main([f"source={prepare.movielens_1m.NAME}", f"path={path}", f"out={out}"])


def test_folder_and_archive_give_the_store_that_the_files_say(tmp_path: Path) -> None:
    assert make(write(tmp_path / "ml-1m", files()), tmp_path / "store") == 0
    (tmp_path / "ml-1m.zip").write_bytes(archive(files(), "ml-1m/"))
    assert make(tmp_path / "ml-1m.zip", tmp_path / "zipped") == 0
    store = EventStore.open(tmp_path / "store")
    assert EventStore.open(tmp_path / "zipped").fingerprint == store.fingerprint
    assert store.item_ids.to_pylist() == ["1", "4", "3"]
    assert store.item_titles == ["Toy Story (1995)", "Misérables, Les (1995)", "Never Rated (1998)"]
    artists = [
        [store.artist_ids[int(artist)].as_py() for artist in store.artist_values[begin:end]]
        for begin, end in zip(store.artist_offsets, store.artist_offsets[1:], strict=False)
    ]
    assert artists == [["Animation", "Children's", "Comedy"], ["Drama"], ["Drama", "Film-Noir"]]
    assert store.offsets.tolist() == [0, 2, 4]
    assert np.asarray(store.column(ITEM)).tolist() == [1, 0, 1, 0]  # user 2 by time, user 7's tie in file order
    assert np.asarray(store.column(TIMESTAMP)).tolist() == [978301968, 978302109, 978300760, 978300760]
    assert np.asarray(store.column(EVENT_TYPE)).tolist() == [3, 2, 4, 0]
    assert store.event_types == tuple(f"rating-{rating}" for rating in range(1, 6))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("2\t1\t3\t978302109", "has 1 fields, expected 4 (user, item, rating, timestamp) separated by '::'"),
        ("2::9::3::978302109", "item id 9 is not in"),
        ("2::1::6::978302109", "rating is 6, must be 1 … 5"),
        ("2::1::3.5::978302109", "rating is '3.5', must be a whole number"),
    ],
)
def test_a_faulty_rating_is_told_with_its_line(
    tmp_path: Path, line: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ml-1m", files(["2::1::3::978302109", line]))
    assert make(path, tmp_path / "store") == 2
    message = capsys.readouterr().err
    assert f"{path}/ratings.dat: line 2: {fault}" in message
    assert not (tmp_path / "store").exists()


def test_what_is_not_there_is_told_with_where_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = files()
    del content["movies.dat"]
    assert make(write(tmp_path / "half", content), tmp_path / "store") == 2
    message = capsys.readouterr().err
    assert "has ratings.dat, expected ratings.dat and movies.dat; fetch https://files.grouplens.org" in message
    assert make(tmp_path / "gone.zip", tmp_path / "store") == 2
    assert "gone.zip: no such file or folder; fetch" in capsys.readouterr().err
    assert prepare.main(["source=movielens-1m", f"out={tmp_path / 'store'}"]) == 2
    assert "`path` is required by source=movielens-1m" in capsys.readouterr().err
