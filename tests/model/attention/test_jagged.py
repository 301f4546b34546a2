"""The jagged backend against the dense oracle: forward and every gradient."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from model.attention import jagged_blocks, jagged_layout
from model.attention.jagged_layout import QUERY_BLOCK
from model.attention.jagged_memory import Scratch
from model.biases import KeyBias
from model.kernels.build import without_kernels
from tests.model.attention.strategies import KINDS, Case, cases, worst_error

BEYOND_A_BLOCK = [
    3,
    QUERY_BLOCK,
    0,
    QUERY_BLOCK + 1,
    1,
    2 * QUERY_BLOCK,
    3 * QUERY_BLOCK + 5,
    2 * QUERY_BLOCK - 1,
    QUERY_BLOCK - 1,
]
"""Users that fill blocks, and users that just do not."""


@pytest.fixture(autouse=True)
def operators() -> Iterator[None]:
    """PyTorch's, which a machine without a compiler has; the kernel is tested beside (test_fused.py)."""
    with without_kernels():
        yield


def assert_equals_oracle(case: Case, tolerance: float, backend: str = "jagged") -> None:
    errors = worst_error(case.forward_and_gradients(backend), case.in_float64().forward_and_gradients("dense"))
    assert max(errors.values()) <= tolerance, errors


def assert_within_rounding_of_inputs(case: Case) -> None:
    """bfloat16 has eight bits: rounding a number changes it by up to 2^-9.

    The oracle says what such changes of the inputs do to each result; four times the worst of ten draws at twice the
    size is allowed, since products, weights and gradients of scores are rounded too. The gradient of a table adds up
    numbers of both signs, which may cancel (all of them do for softmax and one bucket), but their rounding does not.
    """
    oracle = case.in_float64()
    found, expected = case.forward_and_gradients("jagged"), oracle.forward_and_gradients("dense")
    errors = worst_error(found, expected)
    allowed = dict.fromkeys(errors, 2.0**-9)  # of the result itself
    for seed in range(10):
        for name, moved in worst_error(case.nudged(2.0**-8, seed).forward_and_gradients("dense"), expected).items():
            allowed[name] = max(allowed[name], 4 * moved)
    added_up = gradients_by_key(oracle).abs().sum().item()
    for name in ("dtime", "dduration", "dorganic", "dposition"):
        if name in errors:
            allowed[name] += 2.0**-8 * added_up / max(expected[name].abs().amax().item(), 1.0)
    assert all(errors[name] <= allowed[name] for name in errors), (errors, allowed)


def gradients_by_key(oracle: Case) -> Tensor:
    """Of the scores, summed over queries: a bias of nought whose every key has a weight of its own."""
    tokens = oracle.q.shape[0]
    probe = torch.zeros(oracle.heads, tokens, dtype=torch.float64, requires_grad=True)
    by_key = (*oracle.biases.by_key, KeyBias(probe, torch.arange(tokens)))
    oracle.biases = dataclasses.replace(oracle.biases, by_key=by_key)
    total = (oracle.forward("dense") * oracle.weight).sum()
    return torch.autograd.grad(total, probe, materialize_grads=True)[0]


@settings(deadline=None, max_examples=50)
@given(case=cases(dtype=torch.float64))
def test_equals_the_oracle(case: Case) -> None:
    assert_equals_oracle(case, 1e-10)


@pytest.fixture(params=[0, 4])
def keys_a_bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """0: time gradients are searched for however few the keys; 4: as in use, few keys are counted."""
    monkeypatch.setattr(jagged_blocks, "_FEW_KEYS_A_BUCKET", request.param)
    return int(request.param)


@settings(deadline=None, max_examples=30)
@given(case=cases(dtype=torch.float32))
def test_equals_the_oracle_in_float32(case: Case) -> None:
    assert_equals_oracle(case, 1e-5)


@settings(deadline=None, max_examples=20)
@given(case=cases(dtype=torch.bfloat16))
def test_equals_the_oracle_in_bfloat16(case: Case) -> None:
    assert_within_rounding_of_inputs(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("soft_cap", "dropout"), [(0.0, 0.0), (2.0, 0.3)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, None)]
)
def test_equals_the_oracle_beyond_a_block(
    kind: str, soft_cap: float, dropout: float, dtype: torch.dtype, tolerance: float | None
) -> None:
    case = Case(
        BEYOND_A_BLOCK, padding=7, kind=kind, dtype=dtype, soft_cap=soft_cap, dropout=dropout, positions=QUERY_BLOCK + 9
    )
    if tolerance is None:
        assert_within_rounding_of_inputs(case)
    else:
        assert_equals_oracle(case, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [0.5, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_candidates_amidst_events(kind: str, alone: float, dtype: torch.dtype, tolerance: float) -> None:
    """Beyond a block of queries, for users of all lengths."""
    case = Case(BEYOND_A_BLOCK, padding=7, alone=alone, kind=kind, dtype=dtype, soft_cap=2.0, dropout=0.3, positions=40)
    assert_equals_oracle(case, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("one_time", [False, True])
@pytest.mark.usefixtures("keys_a_bucket")
def test_many_candidates_after_a_history(kind: str, one_time: bool) -> None:
    """One user has a history, another but candidates, a third neither, a fourth no candidate."""
    case = Case([170 + 130, 25, 0, 20], padding=2, alone=[*range(170, 325)], kind=kind, positions=9)
    time = case.biases.time
    assert time is not None
    if one_time:
        time.query_times_L[170:300] = time.query_times_L[170]
    layout = layout_of(case)
    assert sum(group.longest for group in layout.candidates) == 130 + 25
    assert not any(group.is_spread for group in layout.candidates)
    errors = worst_error(case.forward_and_gradients("jagged"), case.forward_and_gradients("dense"))
    assert max(errors.values()) <= 1e-10, errors


def layout_of(case: Case) -> jagged_layout.Layout:
    alone_L = case.mask.alone_L
    alone = None if alone_L is None else alone_L.numpy().tobytes()
    bounds = tuple(case.mask.offsets.tolist())
    return jagged_layout.make_layout(bounds, case.q.shape[0], case.heads, torch.device("cpu"), alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("keys_a_bucket")
def test_equals_the_oracle_on_a_long_history(kind: str) -> None:
    """Beside others, in blocks of more queries than short ones take."""
    case = Case([700, 5, 690], kind=kind, dtype=torch.float32, width_qk=8, positions=300)
    layout = jagged_layout.make_layout(tuple(case.mask.offsets.tolist()), 1395, 2, torch.device("cpu"))
    assert layout.groups[0].block > QUERY_BLOCK
    assert_equals_oracle(case, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_oracle_when_memory_is_short(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few queries, groups of one user."""
    monkeypatch.setattr(jagged_layout, "MAX_SCORES", 500)
    monkeypatch.setattr(jagged_layout, "CHUNK_SCORES", 300)
    jagged_layout.make_layout.cache_clear()
    assert_equals_oracle(Case([61, 60, 61, 7], padding=1, alone=0.5, kind=kind), 1e-10)
    case = Case([61, 60, 61, 7], padding=1, kind=kind)
    layout = jagged_layout.make_layout((0, 61, 121, 182, 189), 190, 2, torch.device("cpu"))
    assert all(g.users * g.heads * g.block * g.longest <= 500 for g in layout.groups)
    assert_equals_oracle(case, 1e-10)
    jagged_layout.make_layout.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_unsorted_times_and_far_apart_ones(kind: str) -> None:
    case = Case([12, 30], kind=kind)
    assert case.biases.time is not None
    order = torch.randperm(42, generator=torch.Generator().manual_seed(1))
    oracle = case.in_float64()
    for one in (case, oracle):
        assert one.biases.time is not None
        one.biases.time.key_times_L.copy_(one.biases.time.key_times_L[order])
        one.biases.time.query_times_L[5] += 2**30
    assert case.biases.time.key_times_L.diff().min() < 0
    errors = worst_error(case.forward_and_gradients("jagged"), oracle.forward_and_gradients("dense"))
    assert max(errors.values()) <= 1e-10, errors


@pytest.mark.parametrize("buckets", [2, 9, 33])
@pytest.mark.parametrize("span", [1, 40, 10**7, 2**31 - 10])
@pytest.mark.usefixtures("keys_a_bucket")
def test_sums_over_time_buckets_with_few_buckets_and_any_span(buckets: int, span: int) -> None:
    """Times in order, queries before and after their keys, up to what int32 tells apart."""
    case = Case([70, 33, 1, 2 * QUERY_BLOCK], padding=2)
    time = case.biases.time
    assert time is not None
    stops = case.mask.offsets.tolist()
    for start, stop in itertools.pairwise(stops):
        drawn = torch.randint(0, span, (stop - start,), generator=case.generator)
        time.key_times_L[start:stop] = drawn.sort().values
        time.query_times_L[start:stop] = drawn + torch.randint(-9, 10, (stop - start,), generator=case.generator)
    with torch.no_grad():
        table = case.normal(case.heads, buckets).requires_grad_()
    object.__setattr__(time, "table_HT", table)
    case.leaves["time"] = table
    errors = worst_error(case.forward_and_gradients("jagged"), case.forward_and_gradients("dense"))
    assert max(errors.values()) <= 1e-10, errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [0.0, 0.5])
def test_two_runs_give_the_same_bits(kind: str, alone: float) -> None:
    lengths = [90, 31, 30, 64, 5, 5, 4]
    case = Case(lengths, padding=2, alone=alone, kind=kind, dtype=torch.float32, dropout=0.2, soft_cap=3.0)
    first, second = case.forward_and_gradients("jagged"), case.forward_and_gradients("jagged")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [0.0, 0.5])
def test_keeps_nothing_quadratic_for_the_backward(kind: str, alone: float) -> None:
    case = Case([400, 300], alone=alone, dtype=torch.float32, kind=kind, dropout=0.2, soft_cap=3.0)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        case.forward("jagged")
    assert kept
    assert max(kept) <= 700 * 2 * 4


def test_work_stays_near_the_causal_half() -> None:
    """Histories like those of MovieLens: a batch padded to its longest would compute 3.4 Σn²."""
    generator = torch.Generator().manual_seed(0)
    lengths = (65 * torch.randn(90, generator=generator).mul(0.9).exp()).clamp(18, 200).long()
    layout = jagged_layout.make_layout((0, *lengths.cumsum(0).tolist()), int(lengths.sum()), 2, torch.device("cpu"))
    assert jagged_layout.padded_scores(layout) < 0.8 * int((lengths**2).sum())
    assert sum(len(group.blocks) for group in layout.groups) < 80


def test_a_candidate_before_each_event_takes_half_the_work_of_a_token_each() -> None:
    """Two tokens for each of n events: n(n+1)/2 pairs of events, as many of a candidate and an event, n of its own."""
    lengths = [200, 190, 60, 60, 58, 20]
    merged = layout_of(Case([2 * n for n in lengths], alone=list(range(0, 2 * sum(lengths), 2)), time=False))
    interleaved = layout_of(Case([2 * n for n in lengths], time=False))
    assert all(group.is_spread for group in merged.candidates)
    assert jagged_layout.padded_scores(merged) < 0.65 * jagged_layout.padded_scores(interleaved)


def test_scratch_memory_is_kept_and_grows() -> None:
    scratch = Scratch(torch.device("cpu"), 6)
    first = scratch.take("scores", (2, 2), torch.float32)
    assert scratch.take("scores", (3, 2), torch.float32).data_ptr() == first.data_ptr()
    assert scratch.take("scores", (2, 2), torch.float64).data_ptr() != first.data_ptr()
    longer = scratch.take("scores", (4, 2), torch.float32)
    assert longer.shape == (4, 2)
    assert scratch.take("scores", (2, 2), torch.float32).data_ptr() == longer.data_ptr()
