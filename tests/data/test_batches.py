from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from data import schema
from data.batches import (
    FEATURE_KEYS,
    Batch,
    BatchMaker,
    ItemFeatures,
    artist_table_rows,
    code_dtype,
)
from data.event_store import EventStore
from data.loader import event_columns
from data.sequences import Windows, request_windows, training_windows
from tests.data.helpers import CODES, LEVELS, MemorySource, bags, examples_of, features_of, make_store, sources


@dataclass
class Token:
    """One token as the reference sees it; the defaults are padding."""

    rq: Any = ()
    artist_quotient: Any = ()
    artist_remainder: Any = ()
    event_type: Any = ()
    time: int = 0
    request_time: int = 0
    duration: int = -1
    organic: int = 2
    target: int = -1
    target_codes: Any = (-1,) * LEVELS


def reference_tokens(
    store: EventStore, features: ItemFeatures, windows: Windows, chosen: list[int], remainders: int
) -> list[Token]:
    """Event by event, straight from the definition."""
    tokens = []
    for window in chosen:
        user, start, stop = int(windows.user[window]), int(windows.start[window]), int(windows.stop[window])
        for position in range(start, stop):
            event = int(store.offsets[user]) + position
            asked = windows.asked is not None and position == stop - 1
            after = int(store.offsets[user]) + (int(windows.asked[window]) if asked else position + 1)  # type: ignore[index]
            item, following = (int(store.column(schema.ITEM)[at]) for at in (event, after))
            codes = features.codes_NC[item].tolist()
            artists = features.artist_values[features.artist_offsets[item] : features.artist_offsets[item + 1]].tolist()
            token = Token(
                rq=[level * CODES + code for level, code in enumerate(codes)],
                artist_quotient=[artist // remainders for artist in artists] or [-(-store.num_artists // remainders)],
                artist_remainder=[artist % remainders for artist in artists],
                event_type=[int(store.column(schema.EVENT_TYPE)[event])],
                time=int(store.column(schema.TIMESTAMP)[event]),
                request_time=int(store.column(schema.TIMESTAMP)[after]),
            )
            if asked:
                token.request_time = int(windows.request_time[window])  # type: ignore[index]
            if store.has_column(schema.DURATION) and store.column(schema.DURATION)[event] != schema.MISSING_DURATION:
                token.duration = int(store.column(schema.DURATION)[event])
            if store.has_column(schema.ORGANIC):
                token.organic = int(store.column(schema.ORGANIC)[event])
            if position >= windows.learn_from[window] and any(features.codes_NC[following].tolist()):
                token.target, token.target_codes = following, features.codes_NC[following].tolist()
            tokens.append(token)
    return tokens


def check_batch(batch: Batch, tokens: list[Token], budget: int) -> None:
    tokens = tokens + [Token()] * (budget - len(tokens))
    for key in FEATURE_KEYS:
        assert bags(batch.features, key) == [list(getattr(token, key)) for token in tokens], key
    columns = {
        "timestamps_L": [token.time for token in tokens],
        "request_times_L": [token.request_time for token in tokens],
        "durations_L": [token.duration for token in tokens],
        "organic_L": [token.organic for token in tokens],
        "target_items_L": [token.target for token in tokens],
    }
    for name, values in columns.items():
        assert torch.equal(getattr(batch, name), torch.tensor(values, dtype=torch.int64)), name
    codes = torch.tensor([list(token.target_codes) for token in tokens], dtype=torch.int64).reshape(budget, LEVELS)
    assert torch.equal(batch.target_codes_LC, codes)


@settings(max_examples=60, deadline=None)
@given(
    sources(),
    st.integers(1, 5),
    st.sampled_from(["newest", "tiled", "test"]),
    st.integers(1, 3),
    st.integers(0, 3),
    st.data(),
)
def test_batches_are_those_of_the_reference(
    source: MemorySource, max_history: int, plan: str, remainders: int, padding: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), source)
        split = store.split()
        if plan == "test":
            windows = request_windows(split.test, max_history)
        else:
            windows = training_windows(store.offsets, split, max_history, plan)
        if plan == "tiled":  # as in a stream: the first inputs of a window are context alone
            learn_from = windows.start + data.draw(st.integers(0, 2)) * (windows.lengths > 2)
            windows = dataclasses.replace(windows, learn_from=learn_from)
        features = features_of(store, source.seed)
        features = dataclasses.replace(features, qr_remainders=remainders)
        maker = BatchMaker(event_columns(store), features)
        order = data.draw(st.permutations(range(len(windows))))
        chosen = order[: data.draw(st.integers(0, len(order)))]
        tokens = reference_tokens(store, features, windows, chosen, remainders)
        budget = max(len(tokens) + padding, 1)  # padding 0: the windows fill the budget to the last token
        index = np.array(chosen, dtype=np.int64)
        batch = maker.make(examples_of(store, windows).tokens(index), index, budget, 0.25)
        check_batch(batch, tokens, budget)
        assert batch.features.stride() == budget
        assert batch.offsets.tolist() == np.cumsum([0, *windows.lengths[chosen]]).tolist()
        assert batch.window_index_B.tolist() == chosen
        assert batch.loss_weight.dtype == torch.float32
        assert batch.loss_weight.tolist() == 0.25


def test_a_window_too_many_is_an_error_not_a_cut(tmp_path: Path) -> None:
    store = make_store(tmp_path, MemorySource(lengths_U=[6, 6], artists_N=[[0]] * 6))
    tokens = examples_of(store, training_windows(store.offsets, store.split(), 3)).tokens(np.array([0, 1]))
    with pytest.raises(AssertionError, match="6 tokens do not fit a budget of 5"):
        BatchMaker(event_columns(store), features_of(store)).make(tokens, np.array([0, 1]), 5, 1.0)


@pytest.mark.parametrize(
    ("num_artists", "remainders", "rows"), [(0, 1024, 1), (1, 1024, 2), (1024, 1024, 2), (1025, 1024, 3), (5, 2, 4)]
)
def test_artist_ids_fit_their_tables(num_artists: int, remainders: int, rows: int) -> None:
    assert artist_table_rows(num_artists, remainders) == (rows, min(remainders, max(num_artists, 1)))
    if num_artists:
        assert (
            num_artists - 1
        ) // remainders == rows - 2  # the last artist's quotient is the row before the unknown one


def test_codes_outside_their_table_are_refused() -> None:
    def features(codes: list[list[int]], artists: list[int]) -> ItemFeatures:
        artist_values = torch.tensor(artists, dtype=torch.int32)
        return ItemFeatures(
            torch.tensor(codes, dtype=torch.int16), CODES, torch.tensor([0, len(artists)]), artist_values, 2
        )

    features([[0, CODES - 1]], [1])
    for codes, artists in [([[0, CODES]], [1]), ([[-1, 0]], [1]), ([[0, 0]], [2])]:
        with pytest.raises(AssertionError):
            features(codes, artists)


def test_codes_are_held_in_the_smallest_type_that_has_room() -> None:
    assert code_dtype(1024) == code_dtype(2**15) == torch.int16
    assert code_dtype(2**15 + 1) == torch.int32


# ── as input of TorchRec's pipeline ──────────────────────────────────────────────────────────────────────


def small_batches(tmp_path: Path, count: int) -> list[Batch]:
    store = make_store(tmp_path, MemorySource(lengths_U=[8] * count, artists_N=[[], [0], [1, 2], [3]]))
    examples = examples_of(store, training_windows(store.offsets, store.split(), 5))
    maker = BatchMaker(event_columns(store), features_of(store))
    return [maker.make(examples.tokens(np.array([window])), np.array([window]), 7, 0.5) for window in range(count)]


def test_to_copies_every_part(tmp_path: Path) -> None:
    batch = small_batches(tmp_path, 1)[0]
    moved = batch.to(torch.device("meta"))
    assert {
        part.device.type for part in (moved.offsets, moved.loss_weight, moved.target_codes_LC, moved.features.values())
    } == {"meta"}
    same = batch.to(torch.device("cpu"), non_blocking=True)
    assert torch.equal(same.features.values(), batch.features.values())
    assert torch.equal(same.features.lengths(), batch.features.lengths())
    assert same.features.keys() == list(FEATURE_KEYS)
    assert torch.equal(same.target_items_L, batch.target_items_L)


def test_record_stream_takes_a_cpu_stream(tmp_path: Path) -> None:
    small_batches(tmp_path, 1)[0].record_stream(torch.Stream(device="cpu"))


@torch.no_grad()
def count_up(weight: torch.Tensor) -> torch.Tensor:
    return weight.copy_(torch.arange(weight.numel()).reshape(weight.shape))


class SumOfBags(nn.Module):
    """The least model that the pipeline can look into: pooled embeddings of the batch's features, summed."""

    def __init__(self) -> None:
        super().__init__()
        rows = {"rq": LEVELS * CODES, "artist_quotient": 3, "artist_remainder": 1024, "event_type": 3}
        tables = [
            EmbeddingBagConfig(
                name=key,
                embedding_dim=4,
                num_embeddings=rows[key],
                feature_names=[key],
                pooling=PoolingType.SUM,
                init_fn=count_up,  # sharding initialises anew
            )
            for key in FEATURE_KEYS
        ]
        self.ebc = EmbeddingBagCollection(tables=tables)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        by_key = self.ebc(batch.features).to_dict()  # a sharded module has its keys in an order of its own
        pooled = torch.cat([by_key[key] for key in FEATURE_KEYS], dim=1)
        return pooled.sum() * batch.loss_weight * 0.0, pooled  # no gradient: the tables stay as they are


def test_the_sparse_pipeline_takes_batches(tmp_path: Path) -> None:
    from torch import distributed
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

    batches = small_batches(tmp_path, 3)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = SumOfBags()
        expected = [model(batch)[1].detach().clone() for batch in batches]
        device = torch.device("cpu")
        sharded = DistributedModelParallel(model, device=device, init_data_parallel=False)
        optimizer = torch.optim.SGD(sharded.parameters(), lr=0.0)
        pipeline = TrainPipelineSparseDist(sharded, optimizer, device)
        stream = iter(batches)
        for pooled_LD in expected:
            assert torch.equal(pipeline.progress(stream).detach(), pooled_LD)
        with pytest.raises(StopIteration):
            pipeline.progress(stream)
    finally:
        distributed.destroy_process_group()
