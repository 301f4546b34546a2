from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.files import sha256_of_file
from common.seeding import derive_seed
from data.synthetic import log_files, yambda
from data.synthetic.catalogue import make_catalogue
from data.synthetic.config import KINDS, LAYOUTS, SynthesizeConfig
from data.synthetic.yambda import Blocks, write_yambda

CONFIG = SynthesizeConfig(
    kind="yambda",
    out="out",
    seed=8,
    users=120,
    items=4_000,
    median_history=150,
    embedding_width=8,
    layouts=list(LAYOUTS),
    kinds=list(KINDS),
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yambda, "BLOCK_LISTENS", 4_000)  # several blocks, so that their order matters
    monkeypatch.setattr(log_files, "ROW_GROUP_ROWS", 1_000)


def written(folder: Path, config: SynthesizeConfig = CONFIG) -> Path:
    folder.mkdir()
    write_yambda(config, folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of_file(path) for path in sorted(folder.rglob("*.parquet"))}


def test_one_configuration_gives_one_log_on_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = digests(written(tmp_path / "several"))
    monkeypatch.setattr(yambda, "_MOST_WORKERS", 1)
    assert digests(written(tmp_path / "one")) == several
    assert len(several) == len(KINDS) * len(LAYOUTS) + 3
    other = digests(written(tmp_path / "other", replace(CONFIG, seed=9)))
    assert other.keys() == several.keys()
    assert all(other[name] != several[name] for name in several)


def test_a_file_is_the_same_whatever_else_is_written(tmp_path: Path) -> None:
    whole = digests(written(tmp_path / "whole"))
    for layout, kind in (("flat", "listens"), ("sequential", "likes"), ("flat", "multi_event")):
        alone = replace(CONFIG, layouts=[layout], kinds=[kind], embedding_width=0)
        found = digests(written(tmp_path / f"{layout}-{kind}", alone))
        assert found == {name: whole[name] for name in found}
        assert set(found) == {
            "album_item_mapping.parquet",
            "artist_item_mapping.parquet",
            f"{layout}/50m/{kind}.parquet",
        }


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    counts = write_yambda(CONFIG, tmp_path / "log")
    flat = {kind: pq.read_table(tmp_path / "log" / "flat" / "50m" / f"{kind}.parquet") for kind in KINDS}
    listens = flat["listens"]
    seconds = listens.column("timestamp").to_numpy()
    assert counts == {
        "users": 120,
        "items": 4_000,
        "artists": 571,
        "embeddings": pq.read_metadata(tmp_path / "log" / "embeddings.parquet").num_rows,
        **{kind: len(table) for kind, table in flat.items()},
        "items_heard": len(set(listens.column("item_id").to_pylist())),
        "first_second": seconds.min(),
        "last_second": seconds.max(),
    }
    assert counts["multi_event"] == sum(counts[kind] for kind in KINDS[:-1])
    alone = replace(CONFIG, layouts=["sequential"], kinds=["likes"], embedding_width=0)
    (tmp_path / "alone").mkdir()
    users = len(set(flat["likes"].column("uid").to_pylist()))
    assert write_yambda(alone, tmp_path / "alone")["users_of_likes"] == users


def test_the_flat_files_keep_yambdas_rules(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    for kind in KINDS:
        file = pq.ParquetFile(folder / "flat" / "50m" / f"{kind}.parquet")
        table = file.read()
        uid, time = (table.column(name).to_numpy().astype(np.int64) for name in ("uid", "timestamp"))
        assert (np.diff(uid * 2**32 + time) >= 0).all()
        assert not (time % 5).any()
        assert time.max() < 26_000_000
        assert set(table.column("is_organic").to_pylist()) <= {0, 1}
        users = np.unique(uid)
        assert users.min() > 100
        assert len(users) == 1 or np.diff(users).max() > 1
    file = pq.ParquetFile(folder / "flat" / "50m" / "listens.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups - 1)] == [1_000] * (
        file.num_row_groups - 1
    )
    cut = file.read_row_group(0).column("uid").to_pylist()[-1]
    assert cut == file.read_row_group(1).column("uid").to_pylist()[0]  # a user straddles row groups
    lengths = np.unique(file.read().column("uid").to_numpy(), return_counts=True)[1]
    np.testing.assert_allclose(np.median(lengths), 150, rtol=0.05)


def test_both_layouts_hold_the_same_events(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    for kind in KINDS:
        flat, lists = (pq.read_table(folder / layout / "50m" / f"{kind}.parquet") for layout in LAYOUTS)
        assert lists.column("uid").to_pylist() == list(dict.fromkeys(flat.column("uid").to_pylist()))
        for name in flat.column_names[1:]:
            flattened = [value for values in lists.column(name).to_pylist() for value in values]
            assert flattened == flat.column(name).to_pylist()


def test_every_block_is_made_once_and_none_depends_on_another() -> None:
    catalogue = make_catalogue(CONFIG.num_items, CONFIG.num_artists, CONFIG.begin_tick, CONFIG.seed)
    blocks = Blocks(CONFIG, catalogue)
    assert len(blocks) > 3
    made = [blocks.heard(block) for block in reversed(range(len(blocks)))][::-1]
    assert sum(len(heard.item_E) for heard in made) == blocks.num_listens
    again = Blocks(CONFIG, catalogue).heard(2)
    np.testing.assert_array_equal(made[2].item_E, again.item_E)


def test_blocks_of_equal_users_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yambda, "published_lengths", lambda count, *_: np.full(count, 100))
    catalogue = make_catalogue(CONFIG.num_items, CONFIG.num_artists, CONFIG.begin_tick, CONFIG.seed)
    blocks = Blocks(CONFIG, catalogue)
    one, other = blocks.heard(0), blocks.heard(1)
    np.testing.assert_array_equal(one.user_E, other.user_E)
    for name in ("item_E", "tick_E", "ratio_E", "organic_E"):
        assert (getattr(one, name) != getattr(other, name)).mean() > 0.3


def test_listens_and_reactions_of_each_block_have_a_seed_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = make_catalogue(CONFIG.num_items, CONFIG.num_artists, CONFIG.begin_tick, CONFIG.seed)
    blocks = Blocks(CONFIG, catalogue)
    asked: list[tuple[int | str, ...]] = []

    def spied(*parts: int | str) -> int:
        asked.append(parts)
        return derive_seed(*parts)

    monkeypatch.setattr(yambda, "derive_seed", spied)
    for block in range(2):
        blocks.heard(block)
    assert asked == [(8, what, block) for block in range(2) for what in ("listens", "reactions")]


def test_a_short_log_ends_where_yambda_ends(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    short = replace(CONFIG, days=20, layouts=["flat"], kinds=["listens"], size="tiny")
    counts = write_yambda(short, tmp_path / "log")
    assert 26_000_000 - 21 * 86_400 <= counts["first_second"] < 26_000_000 - 20 * 86_400
    assert 26_000_000 - 3_600 < counts["last_second"] < 26_000_000
    assert (tmp_path / "log" / "flat" / "tiny" / "listens.parquet").exists()


def test_what_follows_a_track_tells_more_than_what_is_popular() -> None:
    """Guess a listen by what followed the same item before, with other users; against the most heard item."""
    catalogue = make_catalogue(2_000, 280, 0, seed=1)
    blocks = Blocks(replace(CONFIG, items=2_000, users=200, median_history=300), catalogue)
    made = [blocks.heard(block) for block in range(len(blocks))]
    item, user = (np.concatenate([getattr(heard, name) for heard in made]) for name in ("item_E", "user_E"))
    follows = np.diff(user) == 0
    pairs = np.stack([item[:-1][follows], item[1:][follows]])
    half = pairs.shape[1] // 2
    counts = np.zeros((2_000, 2_000), dtype=np.int32)
    np.add.at(counts, (pairs[0, :half], pairs[1, :half]), 1)
    by_sequence = (counts.argmax(axis=1)[pairs[0, half:]] == pairs[1, half:]).mean()
    by_popularity = (counts.sum(axis=0).argmax() == pairs[1, half:]).mean()
    assert by_sequence > 0.2
    assert by_sequence > 10 * by_popularity
