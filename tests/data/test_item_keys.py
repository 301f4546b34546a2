"""Keys depend on the raw id alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data.batches import BatchMaker
from data.item_keys import item_keys
from data.loader import event_columns, item_features
from data.schema import TIMESTAMP
from data.sequences import request_windows
from data.split import leave_last_out
from tests.data.helpers import CODES, MemorySource, examples_of, make_store, random_codes

PINNED = [1838281907459330133, -606849052844159821]


def test_an_id_has_one_key_in_every_catalogue_and_for_good() -> None:
    names = [str(number) for number in range(70_000)] + ["", "é", "track:1"]  # more than one block
    keys_N = item_keys(pa.array(names))
    assert keys_N.dtype == np.int64
    assert len(np.unique(keys_N)) == len(names)
    assert (keys_N < 0).any()
    assert item_keys(pa.array(names[::-1])).tolist() == keys_N[::-1].tolist()
    assert item_keys(pa.array(["track:1", "0"])).tolist() == [keys_N[-1], keys_N[0]]
    # Checkpoints know items by these: another hash would give every row another owner.
    assert item_keys(pa.array(["0", "é"])).tolist() == PINNED


def test_no_items_no_keys() -> None:
    assert item_keys(pa.array([], pa.string())).shape == (0,)


def test_a_batch_of_items_with_keys_knows_them_by_their_keys(tmp_path: Path) -> None:
    source = MemorySource(lengths_U=[5, 9], artists_N=[[0], [], [1, 0], [1]], num_artists=2)
    store = make_store(tmp_path, source)
    codes_NC = random_codes(store.num_items, seed=0)
    windows = request_windows(leave_last_out(store.offsets, store.column(TIMESTAMP)).test, max_history=20)
    batches = []
    for keys in (False, True):
        features = item_features(store, codes_NC, CODES, keys=keys)
        tokens = examples_of(store, windows).tokens(np.arange(2))
        batches.append(BatchMaker(event_columns(store), features).make(tokens, np.arange(2), 16, 1.0))
    plain, keyed = batches
    assert plain.item_ids.values().numel() > 1
    assert torch.equal(keyed.item_ids.values(), torch.from_numpy(item_keys(store.item_ids))[plain.item_ids.values()])
    assert torch.equal(keyed.features.values(), plain.features.values())
