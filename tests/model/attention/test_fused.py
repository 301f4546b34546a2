"""The kernel against the dense oracle in float64: forward and every gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings

from model.attention import fused
from model.attention.weighting import Weighting
from model.kernels.build import library, without_kernels
from tests.model.attention.strategies import KINDS, Case, cases, worst_error

pytestmark = pytest.mark.skipif(library() is None, reason="needs a compiler")

WHAT_IT_SERVES = {"dtype": torch.float32, "alone": 0.0, "soft_cap": 0.0, "dropout": 0.0}
AROUND_BLOCKS = [3, 48, 0, 49, 1, 95, 96, 97, 112, 191, 193, 240, 5]
"""Users that fill blocks of 48 queries and of 96 keys, and users that just do not."""


def weighting(case: Case) -> Weighting:
    return Weighting(case.kind, case.scale, case.normaliser, case.soft_cap, None)


def assert_equals_oracle(case: Case, tolerance: float = 2e-5) -> None:
    assert fused.serves(case.q, case.mask, weighting(case))
    expected = case.in_float64().forward_and_gradients("dense")
    errors = worst_error(case.forward_and_gradients("jagged"), expected)
    assert max(errors.values(), default=0.0) <= tolerance, errors


@settings(deadline=None, max_examples=150)
@given(case=cases(**WHAT_IT_SERVES))
def test_equals_the_oracle(case: Case) -> None:
    assert_equals_oracle(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width_qk", "width_v"), [(16, 16), (64, 32), (33, 50)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_equals_the_oracle_around_the_edges_of_blocks(kind: str, width_qk: int, width_v: int, contiguous: bool) -> None:
    sizes = {"heads": 2, "width_qk": width_qk, "width_v": width_v, "positions": 100, "scale": width_qk**-0.5}
    assert_equals_oracle(
        Case(AROUND_BLOCKS, padding=7, kind=kind, contiguous=contiguous, dtype=torch.float32, **sizes), 5e-5
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_bfloat16_is_rounded_where_it_comes_in_and_goes_out_alone(kind: str, contiguous: bool) -> None:
    case = Case(AROUND_BLOCKS, padding=7, kind=kind, contiguous=contiguous, dtype=torch.bfloat16, scale=0.5)
    found = case.forward_and_gradients("jagged")
    assert found["out"].dtype == found["dq"].dtype == torch.bfloat16
    errors = worst_error(found, case.in_float64().forward_and_gradients("dense"))
    # 2^-9 of a number is what its rounding may take; softmax's gradients are of an output that is rounded too.
    assert max(errors.values()) <= (2.0**-8 if kind == "silu" else 2.0**-7), errors


@pytest.mark.parametrize("kind", KINDS)
def test_keys_need_not_be_in_the_order_of_time(kind: str) -> None:
    case = Case([30, 70], kind=kind, dtype=torch.float32)
    oracle = case.in_float64()
    for one in (case, oracle):
        assert one.biases.time is not None
        one.biases.time.key_times_L[:] = one.biases.time.key_times_L.flip(0)
    errors = worst_error(case.forward_and_gradients("jagged"), oracle.forward_and_gradients("dense"))
    assert max(errors.values()) <= 2e-5, errors


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_and_any_number_of_threads_give_the_same_bits(kind: str) -> None:
    case, threads = Case(AROUND_BLOCKS, padding=3, kind=kind, dtype=torch.float32), torch.get_num_threads()
    try:
        found = []
        for count in (1, 1, 3):
            torch.set_num_threads(count)
            found.append(case.forward_and_gradients("jagged"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


def test_scores_far_out_stay_finite() -> None:
    for kind in KINDS:
        case = Case([150], kind=kind, dtype=torch.float32, scale=300.0)
        found = case.forward_and_gradients("jagged")
        assert all(value.isfinite().all() for value in found.values())


def test_what_is_no_number_is_not_hidden() -> None:
    for kind in KINDS:
        case = Case([60, 60], kind=kind, dtype=torch.float32)
        with torch.no_grad():
            case.k[70] = torch.nan
        out = case.forward("jagged")
        assert out[:70].isfinite().all()
        assert out[70:].isnan().all()


def test_what_it_does_not_serve_is_left_to_operators() -> None:
    case = Case([20, 3], dtype=torch.float32)
    for change in ({"dtype": torch.float64}, {"dtype": torch.float16}, {"soft_cap": 1.0}, {"alone": 0.5}):
        other = dataclasses.replace(case, leaves={}, **change)
        assert not fused.serves(other.q, other.mask, weighting(other))
    with without_kernels():
        assert not fused.serves(case.q, case.mask, weighting(case))
        by_operators = case.forward_and_gradients("jagged")
    assert max(worst_error(case.forward_and_gradients("jagged"), by_operators).values()) < 1e-5
