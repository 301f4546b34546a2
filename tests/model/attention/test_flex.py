"""The flex backend: its mask against FlexAttention's own, its numbers against the dense oracle, what it refuses.

Without a GPU it is inference only, so gradients are not tested here but by `benchmarks/gpu_check.py`. Most tests let
FlexAttention run without compiling, which computes the same from the same `score_mod` and mask.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from common.errors import InputError
from model.attention import attention, flex
from model.attention.dropout import Dropout
from model.biases import MAX_SECONDS, KeyBias, PositionBias, ScoreBiases, TimeBias, alibi_slopes, log_buckets
from model.mask import Mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def make_mask(lengths: list[int], tokens: int, alone: float) -> Mask:
    """With that share of tokens alone, at random; all of the latter half where it is negative."""
    alone_L = None
    if alone > 0:
        alone_L = torch.rand(tokens, generator=torch.Generator().manual_seed(1)) < alone
    elif alone < 0:
        alone_L = torch.arange(tokens) >= tokens // 2
    return Mask(torch.tensor([0, *lengths]).cumsum(0), alone_L)


ALONE = st.sampled_from((0.0, 0.005, 0.6, 1.0, -1.0))


def both(
    lengths: list[int],
    padding: int,
    *,
    heads: int = 2,
    width_qk: int = 16,
    width_v: int = 16,
    switches: tuple[bool, ...] = (True,) * 5,
    soft_cap: float = 0.0,
    alone: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The output of flex in float32 and of the oracle in float64."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths) + padding
    mask = make_mask(lengths, tokens, alone)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def integers(below: int) -> Tensor:
        return torch.randint(0, below, (tokens,), generator=generator)

    q, k, v = normal(tokens, heads, width_qk), normal(tokens, heads, width_qk), normal(tokens, heads, width_v)
    times = 1_600_000_000 + (integers(4) * integers(50_000) // 3).cumsum(0)
    alibi, time, duration, organic, position = switches
    tables = [normal(heads, size) for size in (64, 5, 3, 20)]
    query_times, buckets = times + integers(3) * 1000, (integers(5), integers(3))
    found = []
    for backend, dtype in (("flex", torch.float32), ("dense", torch.float64)):
        by_time, by_duration, by_organic, by_position = (table.to(dtype) for table in tables)
        biases = ScoreBiases(
            slopes_H=alibi_slopes(heads) if alibi else None,
            time=TimeBias(by_time, query_times, times) if time else None,
            by_key=(KeyBias(by_duration, buckets[0]),) * duration + (KeyBias(by_organic, buckets[1]),) * organic,
            position=PositionBias(by_position) if position else None,
        )
        found.append(
            attention(
                q.to(dtype),
                k.to(dtype),
                v.to(dtype),
                mask,
                biases,
                backend=backend,
                kind="softmax",
                scale=0.3,
                normaliser_L=None,
                soft_cap=soft_cap,
            )
        )
    assert found[0].dtype == torch.float32
    return found[0].double(), found[1]


@pytest.fixture
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "compiled", lambda: flex_attention)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 400), max_size=7), padding=st.integers(0, 300), alone=ALONE)
def test_block_mask_is_that_of_trying_all_pairs(lengths: list[int], padding: int, alone: float) -> None:
    tokens = sum(lengths) + padding
    if not tokens:
        return
    mask = make_mask(lengths, tokens, alone)
    found = flex.make_block_mask(mask, tokens)
    expected = create_block_mask(flex.make_mask_mod(mask, tokens), None, None, tokens, tokens, device="cpu")
    assert found.shape == expected.shape
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, columns = (getattr(found, f"{name}_{part}") for part in ("num_blocks", "indices"))
        wanted_counts, wanted_columns = (getattr(expected, f"{name}_{part}") for part in ("num_blocks", "indices"))
        assert torch.equal(counts, wanted_counts), name
        is_used = torch.arange(columns.shape[-1]) < counts[..., None]
        assert torch.equal(columns[is_used], wanted_columns[is_used]), name


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(0, 20), max_size=6), padding=st.integers(0, 9), alone=ALONE)
def test_mask_mod_is_the_definition_except_for_padding(lengths: list[int], padding: int, alone: float) -> None:
    tokens = sum(lengths) + padding
    mask = make_mask(lengths, tokens, alone)
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    zero = torch.zeros((), dtype=torch.int64)
    expected = mask.visible(i, j) | ((i == j) & (i >= sum(lengths)))
    assert torch.equal(flex.make_mask_mod(mask, tokens)(zero, zero, i, j), expected)


def test_time_buckets_are_those_of_the_biases() -> None:
    near = torch.arange(-5, 5000)
    far = torch.cat([2**exponent + torch.arange(-3, 4) for exponent in range(12, 40)])
    seconds = torch.cat((near, far, torch.tensor([MAX_SECONDS - 1, MAX_SECONDS, MAX_SECONDS + 1, -(2**40)])))
    for buckets in (2, 30, 63, 64):
        assert torch.equal(flex._log_bucket(seconds, buckets), log_buckets(seconds, buckets))


@pytest.mark.usefixtures("_not_compiled")
@pytest.mark.parametrize("without", range(-1, 5))
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
def test_equals_dense(without: int, soft_cap: float) -> None:
    switches = tuple(place != without for place in range(5))
    found, expected = both([0, 1, 140, 30, 0, 129], 9, heads=3, switches=switches, soft_cap=soft_cap, seed=without + 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found[300:].any()


@pytest.mark.usefixtures("_not_compiled")
@pytest.mark.parametrize("alone", [0.5, 1.0, -1.0])
def test_equals_dense_with_tokens_that_are_alone(alone: float) -> None:
    found, expected = both([0, 1, 140, 30, 0, 129], 9, heads=3, soft_cap=2.0, alone=alone)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found[300:].any()


@pytest.mark.usefixtures("_not_compiled")
def test_equals_dense_without_biases_and_with_other_widths() -> None:
    found, expected = both([60, 3], 0, heads=1, width_qk=16, width_v=32, switches=(False,) * 5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_not_compiled")
@pytest.mark.parametrize(("lengths", "padding"), [([], 3), ([0, 0], 4), ([], 0), ([1], 0)])
def test_next_to_nothing(lengths: list[int], padding: int) -> None:
    found, expected = both(lengths, padding)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_compiled_equals_dense_and_is_compiled_once() -> None:
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for lengths in ([100, 0, 1, 140], [241], [30, 150, 50]):
            found, expected = both(lengths, 256 - sum(lengths), soft_cap=5.0)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_equals_dense_with_tokens_that_are_alone() -> None:
    with torch.no_grad():
        found, expected = both([100, 0, 1, 140], 15, soft_cap=5.0, alone=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def run(*, kind: str = "softmax", dropout: Dropout | None = None, leaf: str = "") -> Tensor:
    q = torch.ones(4, 1, 16, requires_grad=leaf == "q")
    biases = ScoreBiases(position=PositionBias(torch.ones(1, 3, requires_grad=leaf == "table")))
    normaliser = torch.ones(4) if kind == "silu" else None
    mask = Mask(torch.tensor([0, 4]))
    return attention(
        q, q, q, mask, biases, backend="flex", kind=kind, scale=1.0, normaliser_L=normaliser, dropout=dropout
    )


@pytest.mark.parametrize("leaf", ["q", "table"])
def test_a_gradient_on_a_cpu_is_refused(leaf: str) -> None:
    with pytest.raises(InputError, match=r"no gradient on a CPU.*backend=jagged"):
        run(leaf=leaf)


@pytest.mark.usefixtures("_not_compiled")
@pytest.mark.parametrize("leaf", ["q", "table"])
def test_parameters_are_no_obstacle_to_inference(leaf: str) -> None:
    with torch.no_grad():
        assert torch.equal(run(leaf=leaf), torch.ones(4, 1, 16))


def test_all_faults_at_once() -> None:
    with pytest.raises(InputError) as caught:
        run(kind="silu", dropout=Dropout(0.5, 1), leaf="q")
    assert [fault.split(": set")[0] for fault in caught.value.faults] == [
        "attention.backend=flex computes kind=softmax, not silu",
        "attention.backend=flex cannot drop weights after their softmax",
        "attention.backend=flex has no gradient on a CPU, where PyTorch computes FlexAttention for inference only",
    ]
