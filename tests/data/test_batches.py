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
    ITEM_KEY,
    Batch,
    BatchMaker,
    EventColumns,
    ItemFeatures,
    artist_table_rows,
    code_dtype,
)
from data.event_store import EventStore
from data.examples import Tokens
from data.loader import event_columns
from data.sequences import Windows, request_windows, training_windows
from tests.data.helpers import (
    CODES,
    LEVELS,
    MemorySource,
    bags,
    examples_of,
    features_of,
    make_store,
    sources,
    token_bags,
    token_items,
)


@dataclass
class Token:
    """One token as the reference sees it; the defaults are padding."""

    item: int | None = None
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
                item=item,
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
        assert token_bags(batch, key) == [list(getattr(token, key)) for token in tokens], key
    assert token_items(batch) == [token.item for token in tokens]
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


def check_nothing_is_there_twice(batch: Batch, tokens: list[Token]) -> None:
    """One bag an item in order of first appearance, one an event type, one row a pair; padding has the last."""
    items = list(dict.fromkeys(token.item for token in tokens))
    event_types = sorted({token.event_type[0] for token in tokens})
    pairs = {(token.item, token.event_type[0]) for token in tokens}
    by_item = {token.item: token for token in tokens}
    assert batch.item_ids.keys() == [ITEM_KEY]
    assert (batch.item_ids.stride(), batch.item_ids.values().tolist()) == (1, items)
    for key in FEATURE_KEYS[:3]:
        assert bags(batch.features, key) == [*(list(getattr(by_item[item], key)) for item in items), []]
    assert bags(batch.features, "event_type") == [*([kind] for kind in event_types), []]
    keys, inverse_FP = batch.features.inverse_indices()
    assert keys == list(FEATURE_KEYS)
    assert batch.features.stride_per_key() == [len(items) + 1] * 3 + [len(event_types) + 1]
    assert batch.features.stride() == len(batch.item_rows_P) == inverse_FP.shape[1] == len(pairs) + 1
    assert len(set(map(tuple, inverse_FP.T.tolist()))) == len(pairs) + 1
    assert inverse_FP[:, -1].tolist() == [len(items)] * 3 + [len(event_types)]
    assert torch.equal(inverse_FP[0], batch.item_rows_P)
    assert set(batch.rows_L[len(tokens) :].tolist()) <= {len(pairs)}


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
        order = data.draw(st.permutations(range(len(windows))))
        chosen = order[: data.draw(st.integers(0, len(order)))]
        tokens = reference_tokens(store, features, windows, chosen, remainders)
        budget = max(len(tokens) + padding, 1)  # padding 0: the windows fill the budget to the last token
        index = np.array(chosen, dtype=np.int64)
        for distinct in (True, False):
            maker = BatchMaker(event_columns(store), features, distinct=distinct)
            batch = maker.make(examples_of(store, windows).tokens(index), index, budget, 0.25)
            check_batch(batch, tokens, budget)
            assert batch.offsets.tolist() == np.cumsum([0, *windows.lengths[chosen]]).tolist()
            assert batch.window_index_B.tolist() == chosen
            assert batch.loss_weight.dtype == torch.float32
            assert batch.loss_weight.tolist() == 0.25
            if distinct:
                check_nothing_is_there_twice(batch, tokens)
            else:
                assert batch.features.stride() == budget
                assert batch.features.inverse_indices_or_none() is None
                assert batch.rows_L.tolist() == list(range(budget))


def test_a_window_too_many_is_an_error_not_a_cut(tmp_path: Path) -> None:
    store = make_store(tmp_path, MemorySource(lengths_U=[6, 6], artists_N=[[0]] * 6))
    tokens = examples_of(store, training_windows(store.offsets, store.split(), 3)).tokens(np.array([0, 1]))
    with pytest.raises(AssertionError, match="6 tokens do not fit a budget of 5"):
        BatchMaker(event_columns(store), features_of(store)).make(tokens, np.array([0, 1]), 5, 1.0)


def made(items: list[int], event_types: list[int], budget: int, distinct: bool = True) -> Batch:
    """A batch of one user with these events; item 0 has no artist and no codes, item 1 two artists."""
    codes_NC = torch.tensor([[0] * LEVELS, [1, 2, 3], [4, 0, 1]], dtype=torch.int16)
    features = ItemFeatures(codes_NC, CODES, torch.tensor([0, 0, 2, 3]), torch.tensor([0, 1, 1], dtype=torch.int32), 2)
    columns = EventColumns(
        offsets=np.array([0, len(items)]),
        items=np.array(items, dtype=np.uint32),
        timestamps=np.arange(len(items), dtype=np.uint32),
        event_types=np.array(event_types, dtype=np.uint8),
        durations=None,
        organic=None,
    )
    at_n = np.arange(max(len(items) - 1, 0))
    tokens = Tokens(at_n, at_n + 1, None, np.array([0, len(at_n)]), None)
    return BatchMaker(columns, features, distinct=distinct).make(tokens, np.array([0]), budget, 1.0)


def test_a_batch_made_by_hand() -> None:
    batch = made([2, 0, 2, 1, 0, 2, 1], [3, 3, 7, 3, 3, 3, 0], budget=8)
    assert batch.item_ids.values().tolist() == [2, 0, 1]
    assert bags(batch.features, "rq") == [[4, 5, 11], [0, 5, 10], [1, 7, 13], []]
    assert bags(batch.features, "artist_quotient") == [[0], [1], [0, 0], []]
    assert bags(batch.features, "artist_remainder") == [[1], [], [0, 1], []]
    assert bags(batch.features, "event_type") == [[3], [7], []]
    assert batch.features.inverse_indices()[1].tolist() == [[0, 0, 1, 2, 3]] * 3 + [[0, 1, 0, 0, 2]]
    assert batch.item_rows_P.tolist() == [0, 0, 1, 2, 3]
    assert batch.rows_L.tolist() == [0, 2, 1, 3, 2, 0, 4, 4]


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("budget", [1, 3])
def test_a_batch_without_tokens_is_padding_alone(budget: int, distinct: bool) -> None:
    batch = made([], [], budget, distinct)
    rows = 1 if distinct else budget
    assert batch.item_ids.values().tolist() == []
    assert batch.item_ids.lengths().tolist() == [0]
    assert batch.item_rows_P.tolist() == [0] * rows
    assert all(bags(batch.features, key) == [[]] * rows for key in FEATURE_KEYS)
    assert batch.rows_L.tolist() == ([0] * budget if distinct else list(range(budget)))


def test_one_item_throughout_is_one_bag() -> None:
    batch = made([1] * 6, [2] * 6, budget=5)
    assert bags(batch.features, "rq") == [[1, 7, 13], []]
    assert batch.rows_L.tolist() == [0] * 5


def test_as_many_kinds_of_events_as_a_byte_can_tell_apart() -> None:
    kinds = [*range(255, -1, -1), 0]
    batch = made([2] * 257, kinds, budget=256)
    assert bags(batch.features, "event_type") == [*([kind] for kind in range(256)), []]
    assert batch.rows_L.tolist() == list(range(255, -1, -1))


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
    store = make_store(tmp_path, MemorySource(lengths_U=[8, 4, 6][:count], artists_N=[[], [0], [1, 2], [3]]))
    examples = examples_of(store, training_windows(store.offsets, store.split(), 5))
    maker = BatchMaker(event_columns(store), features_of(store))
    return [maker.make(examples.tokens(np.array([window])), np.array([window]), 7, 0.5) for window in range(count)]


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    """Every tensor of a batch."""
    whole = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    whole = {name: part for name, part in whole.items() if part is not None}
    for name in ("features", "item_ids"):
        keyed = whole.pop(name)
        whole |= {f"{name} values": keyed.values(), f"{name} lengths": keyed.lengths()}
    inverse = batch.features.inverse_indices_or_none()
    return whole if inverse is None else whole | {"inverse": inverse[1]}


@pytest.mark.parametrize("distinct", [True, False])
def test_to_copies_every_part(distinct: bool) -> None:
    batch = made([2, 0, 2, 1], [3, 3, 7, 3], 8, distinct)
    moved = tensors_of(batch.to(torch.device("meta")))
    assert {name: part.device.type for name, part in moved.items()} == dict.fromkeys(tensors_of(batch), "meta")
    same = batch.to(torch.device("cpu"), non_blocking=True)
    for name, part in tensors_of(batch).items():
        assert torch.equal(tensors_of(same)[name], part), name
    assert same.features.keys() == list(FEATURE_KEYS)
    assert same.features.stride_per_key() == batch.features.stride_per_key()


@pytest.mark.parametrize("distinct", [True, False])
def test_a_pinned_batch_is_pinned_whole(distinct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has memory of its own is pinned; here pinning is but remembered, as it needs a GPU's driver."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    found = tensors_of(made([2, 0, 2, 1], [3, 3, 7, 3], 8, distinct).pin_memory())
    memory = {tensor.data_ptr() for tensor in pinned}
    assert [name for name, part in found.items() if part.data_ptr() not in memory] == []


@pytest.mark.parametrize("distinct", [True, False])
def test_a_recorded_batch_is_recorded_whole(distinct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, _stream: recorded.append(id(tensor)))
    batch = made([2, 0, 2, 1], [3, 3, 7, 3], 8, distinct).to(torch.device("meta"))
    batch.record_stream(torch.Stream(device="cpu"))
    assert [name for name, part in tensors_of(batch).items() if id(part) not in recorded] == []


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
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
    from torchrec.distributed.types import ShardingPlan

    batches = small_batches(tmp_path, 3)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = SumOfBags()
        expected = [model(batch)[1].detach().clone() for batch in batches]
        assert len({len(pooled_PD) for pooled_PD in expected}) > 1, "the numbers of rows should differ"
        device = torch.device("cpu")
        # Chosen here: a data-parallel table beside sharded ones does not take bags of distinct items on the CPU.
        by_rows = {key: row_wise(compute_kernel="fused") for key in FEATURE_KEYS}
        placed = construct_module_sharding_plan(model.ebc, by_rows, local_size=1, world_size=1, device_type="cpu")
        plan = ShardingPlan(plan={"ebc": placed})
        sharded = DistributedModelParallel(model, device=device, plan=plan, init_data_parallel=False)
        optimizer = torch.optim.SGD(sharded.parameters(), lr=0.0)
        pipeline = TrainPipelineSparseDist(sharded, optimizer, device)
        stream = iter(batches)
        for pooled_PD in expected:
            assert torch.equal(pipeline.progress(stream).detach(), pooled_PD)
        with pytest.raises(StopIteration):
            pipeline.progress(stream)
    finally:
        distributed.destroy_process_group()
