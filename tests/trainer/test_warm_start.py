"""A new run that starts from another run's parameters: all, some, and with a vocabulary that has grown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from data import prepare
from data.event_store import EventStore
from model.embeddings import ARTIST_QUOTIENT, ARTIST_REMAINDER, CODE_TABLE
from semantic_ids import fit
from tests.conftest import Prepared
from tests.trainer.test_train import parameters, train_here

FEW_REMAINDERS = "model.qr_remainders=4"


def write_log(folder: Path, artists: list[str], *, seed: int) -> Prepared:
    """A table of plays of two songs by each artist."""
    rng = np.random.default_rng(seed)
    songs = [f"{artist}-{number}" for artist in artists for number in range(2)]
    folder.mkdir()
    users = np.repeat(np.arange(40), 30)
    plays = {
        "user": users,
        "song": rng.choice(songs, len(users)),
        "time": np.tile(np.arange(30) * 100, 40) + users,
    }
    pq.write_table(pa.table(plays), folder / "plays.parquet")
    catalogue = {"song": songs, "artist": [song.rsplit("-", 1)[0] for song in songs]}
    pq.write_table(pa.table(catalogue), folder / "songs.parquet")
    keys = ["columns.user=user", "columns.item=song", "columns.timestamp=time", "timestamp_unit=s"]
    keys += [f"catalogue.path={folder / 'songs.parquet'}", "catalogue.item=song", "catalogue.artist=artist"]
    made = Prepared(folder / "store", folder / "codes")
    assert prepare.main(["source=table", f"path={folder / 'plays.parquet'}", f"out={made.store}", *keys]) == 0
    assert fit.main([f"store={made.store}", f"out={made.codes}", "levels=2", "codes=8"]) == 0
    return made


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """A log, the same with artists added behind, and with one in between."""
    folder = tmp_path_factory.mktemp("logs")
    names = [f"a{number:02d}" for number in range(10)]
    return {
        "old": write_log(folder / "old", names, seed=1),
        "grown": write_log(folder / "grown", [*names, "b1", "b2", "b3", "b4", "b5"], seed=2),
        "mixed": write_log(folder / "mixed", ["a00x", *names], seed=3),
    }


@pytest.fixture(scope="module")
def trained(logs: dict[str, Prepared], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train_here(logs["old"], run, FEW_REMAINDERS, "max_steps=4") == 0
    return run


def first_values(prepared: Prepared, run: Path, *keys: str) -> dict[str, Tensor]:
    """What a run starts from: its parameters after a step without rates."""
    still = ["max_steps=1", "optimizer.learning_rate=0", "optimizer.sparse_learning_rate=0", FEW_REMAINDERS]
    assert train_here(prepared, run, *still, *keys) == 0
    return parameters(run)


def is_table(name: str) -> bool:
    return name in (ARTIST_QUOTIENT, ARTIST_REMAINDER, CODE_TABLE, "event_type")


@pytest.mark.parametrize("parts", ["all", "tables", "dense"])
def test_parts_are_taken_and_the_rest_starts_as_ever(
    logs: dict[str, Prepared], trained: Path, tmp_path: Path, parts: str
) -> None:
    fresh = first_values(logs["old"], tmp_path / "fresh")
    theirs = parameters(trained)
    given = first_values(logs["old"], tmp_path / "run", f"start_from={trained}", f"start_parts={parts}")
    assert given.keys() == theirs.keys() == fresh.keys()
    for name, value in given.items():
        taken = parts == "all" or (parts == "tables") == is_table(name)
        assert torch.equal(value, theirs[name] if taken else fresh[name]), name
    assert any(not torch.equal(theirs[name], fresh[name]) for name in fresh if is_table(name))


def test_a_grown_vocabulary_keeps_its_rows_and_starts_the_others(
    logs: dict[str, Prepared], trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = first_values(logs["grown"], tmp_path / "fresh")
    theirs = parameters(trained)
    given = first_values(logs["grown"], tmp_path / "run", f"start_from={trained / 'checkpoints'}")
    assert "its codebooks are others" in capfd.readouterr().err
    # 10 artists over 4 remainders: three quotient rows and the unknown artist's; 15 artists: four and the unknown's.
    old, new = theirs[ARTIST_QUOTIENT], given[ARTIST_QUOTIENT]
    assert (len(old), len(new)) == (4, 5)
    assert torch.equal(new[:3], old[:3])
    assert torch.equal(new[3], fresh[ARTIST_QUOTIENT][3])
    assert torch.equal(new[4], old[3])
    assert torch.equal(given[ARTIST_REMAINDER], theirs[ARTIST_REMAINDER])
    assert torch.equal(given[CODE_TABLE], theirs[CODE_TABLE])


def test_artists_added_in_between_begin_anew_and_it_is_said(
    logs: dict[str, Prepared], trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = first_values(logs["mixed"], tmp_path / "fresh")
    capfd.readouterr()
    given = first_values(logs["mixed"], tmp_path / "run", f"start_from={trained}")
    told = capfd.readouterr().err
    assert "table `artist_quotient` begins anew: the first 10 of this store's 11 artists are not those there" in told
    assert torch.equal(given[ARTIST_QUOTIENT], fresh[ARTIST_QUOTIENT])
    assert torch.equal(given[CODE_TABLE], parameters(trained)[CODE_TABLE])
    assert EventStore.open(logs["mixed"].store).num_artists == 11


def test_what_does_not_fit_or_is_not_there_is_one_message(
    logs: dict[str, Prepared], trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for keys, parts in [
        (["model.width=32", f"start_from={trained}"], ["table `rq` is 16 × 16 there and 16 × 32 in this model"]),
        ([f"start_from={tmp_path / 'nowhere'}"], ["nowhere", "holds no checkpoint"]),
        ([f"start_from={trained}", "start_checkpoint=step-00000099"], ["step-00000099: no such checkpoint"]),
        ([f"start_from={trained}", "resume=true"], ["`start_from`", "`resume=true`"]),
    ]:
        capfd.readouterr()
        assert train_here(logs["old"], tmp_path / "run", FEW_REMAINDERS, "overwrite=true", *keys) == 2
        told = capfd.readouterr().err
        assert all(part in told for part in parts), told
        assert "Traceback" not in told
