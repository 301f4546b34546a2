from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.synthetic import catalogue_files
from data.synthetic.catalogue import make_catalogue
from data.synthetic.catalogue_files import _whole_artists, write_embeddings, write_maps

WIDTH = 32
CATALOGUE = make_catalogue(items=6_000, artists=850, begin=0, seed=2)


def vectors(path: Path, name: str) -> np.ndarray:
    """float32 [n, D]."""
    column = pq.read_table(path, columns=[name]).column(0).combine_chunks()
    return column.values.to_numpy().reshape(-1, WIDTH)


def test_embeddings_of_most_items_and_their_normalised_twins(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.parquet"
    count = write_embeddings(path, CATALOGUE, WIDTH, seed=5)
    table = pq.read_table(path)
    assert table.schema.field("embed").type.value_type == "float"
    assert table.num_rows == count
    items = table.column("item_id").to_numpy()
    assert len(set(items.tolist())) == count
    assert set(items.tolist()) < set(CATALOGUE.raw_N.tolist())
    assert 0.80 < count / 6_000 < 0.84
    embed, normalised = vectors(path, "embed"), vectors(path, "normalized_embed")
    assert embed.shape == (count, WIDTH)
    np.testing.assert_allclose(normalised, embed / np.linalg.norm(embed, axis=1, keepdims=True), rtol=1e-5)


def test_items_of_one_artist_are_nearer_than_of_one_genre_and_these_nearer_than_others(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "embeddings.parquet", CATALOGUE, WIDTH, seed=5)
    place = {raw: index for index, raw in enumerate(CATALOGUE.raw_N.tolist())}
    raw = pq.read_table(tmp_path / "embeddings.parquet").column("item_id").to_pylist()
    artist = CATALOGUE.artist_N[[place[item] for item in raw]]
    genre = CATALOGUE.genre_A[artist]
    unit = vectors(tmp_path / "embeddings.parquet", "normalized_embed")[:1500]
    cosine, apart = unit @ unit.T, ~np.eye(1500, dtype=bool)
    same_artist = (artist[:1500, None] == artist[:1500]) & apart
    same_genre = (genre[:1500, None] == genre[:1500]) & ~same_artist & apart
    means = [cosine[mask].mean() for mask in (same_artist, same_genre, ~same_genre & ~same_artist & apart)]
    np.testing.assert_allclose(means, [0.74, 0.37, 0.0], atol=0.06)


def test_row_groups_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_files, "ROW_GROUP_ITEMS", 500)
    write_embeddings(tmp_path / "embeddings.parquet", CATALOGUE, WIDTH, seed=5)
    metadata = pq.read_metadata(tmp_path / "embeddings.parquet")
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert max(sizes) <= 500
    assert len(sizes) > 10


@pytest.mark.parametrize("largest", [1, 20, 10_000])
def test_blocks_are_of_whole_artists_and_together_all(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    monkeypatch.setattr(catalogue_files, "ROW_GROUP_ITEMS", largest)
    blocks = list(_whole_artists(CATALOGUE.first_A))
    assert [first for first, _ in blocks] == [0, *(last for _, last in blocks[:-1])]
    assert blocks[-1][1] == len(CATALOGUE.first_A) - 1
    items = [int(CATALOGUE.first_A[last] - CATALOGUE.first_A[first]) for first, last in blocks]
    assert all(count <= largest or last == first + 1 for count, (first, last) in zip(items, blocks, strict=True))


def test_maps_are_many_to_many_and_leave_some_items_without_an_artist(tmp_path: Path) -> None:
    write_maps(tmp_path, CATALOGUE, seed=5)
    shares = {}
    for name in ("artist", "album"):
        table = pq.read_table(tmp_path / f"{name}_item_mapping.parquet")
        assert table.column_names == [f"{name}_id", "item_id"]
        pairs = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        assert len(set(pairs)) == len(pairs)
        per_item = np.bincount(np.searchsorted(np.sort(CATALOGUE.raw_N), [item for _, item in pairs]), minlength=6_000)
        assert per_item.max() == 2
        shares[name] = np.bincount(per_item, minlength=3) / 6_000
        per_group = np.unique([group for group, _ in pairs], return_counts=True)[1]
        assert per_group.max() > 1
    np.testing.assert_allclose(shares["artist"], [0.03, 0.89, 0.08], atol=0.015)
    np.testing.assert_allclose(shares["album"], [0, 0.95, 0.05], atol=0.015)


def test_first_artists_are_the_catalogues_own(tmp_path: Path) -> None:
    write_maps(tmp_path, CATALOGUE, seed=5)
    table = pq.read_table(tmp_path / "artist_item_mapping.parquet")
    ids, items = (column.to_numpy() for column in table.columns)
    place = {raw: index for index, raw in enumerate(CATALOGUE.raw_N.tolist())}
    first = {int(item): int(group) for group, item in zip(ids[::-1], items[::-1], strict=True)}  # the first row wins
    artists = np.array([CATALOGUE.artist_N[place[item]] for item in first])
    pairs = set(zip(artists.tolist(), first.values(), strict=True))
    assert len(pairs) == len(set(artists.tolist())) == len({group for _, group in pairs})


def test_one_artist_and_one_album(tmp_path: Path) -> None:
    alone = make_catalogue(items=1, artists=1, begin=0, seed=0)
    write_maps(tmp_path, alone, seed=0)
    assert write_embeddings(tmp_path / "embeddings.parquet", alone, WIDTH, seed=0) == 1
    assert pq.read_table(tmp_path / "album_item_mapping.parquet").num_rows == 1
