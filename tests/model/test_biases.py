from __future__ import annotations

import pytest
import torch

from model.biases import BiasTables, PositionBias, alibi_slopes, bucket_edges, describe_tokens, log_buckets
from model.config import BiasConfig


def _bucket(seconds: int, buckets: int) -> int:
    """The definition, in whole numbers."""
    seconds = max(seconds, 1)
    octave = seconds.bit_length() - 1
    return min(2 * octave + (2 * seconds >= 3 * 2**octave), buckets - 1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("buckets", [5, 64])
def test_log_buckets_follow_their_definition(dtype: torch.dtype, buckets: int) -> None:
    edges = {bound + d for e in range(24) for bound in (2**e, 3 * 2**e // 2) for d in (-1, 0, 1)}
    seconds = [-(2**31), -1, 0, *sorted(edges), 3 * 2**29, 2**31 - 1]
    expected = [_bucket(s, buckets) for s in seconds[:-1]] + [min(62, buckets - 1)]  # 2^31-1 rounds up to 2^31
    assert log_buckets(torch.tensor(seconds, dtype=dtype), buckets).tolist() == expected


def test_log_buckets_leave_their_input_alone() -> None:
    seconds = torch.tensor([5, 0, 77], dtype=torch.int32)
    log_buckets(seconds, 64)
    assert seconds.tolist() == [5, 0, 77]


@pytest.mark.parametrize("buckets", [2, 5, 50, 63])
def test_edges_are_where_buckets_begin(buckets: int) -> None:
    """`log_buckets` of an edge reaches the bucket, a second less does not; bucket 1 is empty and begins with 2."""
    edges, bucket = bucket_edges(buckets), torch.arange(buckets)
    assert (edges.diff() >= 0).all()
    assert (log_buckets(edges, buckets) >= bucket).all()
    assert (log_buckets(edges[1:] - 1, buckets) < bucket[1:]).all()
    assert edges[:5].tolist() == [0, 2, 2, 3, 4][:buckets]


def test_slopes_are_geometric() -> None:
    torch.testing.assert_close(alibi_slopes(4), torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]))


@pytest.mark.parametrize("clock", ["next", "current"])
def test_missing_values_have_buckets_of_their_own_and_the_clock_is_a_switch(clock: str) -> None:
    cfg = BiasConfig(time_reference=clock, duration_buckets=6)
    times, requests = torch.tensor([10, 20, 30, 0]), torch.tensor([20, 30, 40, 0])
    tokens = describe_tokens(
        cfg, torch.tensor([0, 2, 3]), times, requests, torch.tensor([-1, 0, 10**6, -1]), torch.tensor([0, 1, 2, 2])
    )
    assert tokens.duration_buckets_L.tolist() == [5, 0, 4, 5]
    assert tokens.query_times_L is (requests if clock == "next" else times)
    assert tokens.key_times_L is times
    assert tokens.positions_L[:3].tolist() == [0, 1, 0]


def test_what_is_switched_off_has_no_parameter() -> None:
    for name in ("time", "duration", "organic"):
        names = {key for key, _ in BiasTables(BiasConfig(**{name: False}), 2).named_parameters()}
        assert not any(key.startswith(name) for key in names)
        assert len(names) == 2
    off = BiasTables(BiasConfig(alibi=False, time=False, duration=False, organic=False), 2)
    assert not list(off.parameters())
    assert off.slopes_H is None


def test_positions_are_learned_on_demand() -> None:
    tables = BiasTables(BiasConfig(position=True, position_buckets=7), 3)
    assert tables.position_HP is not None
    assert torch.equal(tables.position_HP, torch.zeros(3, 7))
    times = torch.zeros(4, dtype=torch.int64)
    tokens = describe_tokens(BiasConfig(), torch.tensor([0, 4]), times, times, times, times)
    position = tables(tokens).position
    assert isinstance(position, PositionBias)
    assert position.table_HP is tables.position_HP
    assert BiasTables(BiasConfig(), 3)(tokens).position is None
