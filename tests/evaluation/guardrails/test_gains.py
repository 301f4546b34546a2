"""R requests · T targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from evaluation.guardrails.base import FAIL, INFO, PASS, WARN
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.guardrails.differences import Drawing
from evaluation.guardrails.gains import (
    better_than_mostpop,
    codes_against_items,
    knowing_the_time,
    no_regression,
    paired_ndcg,
)
from evaluation.outputs import Ranks
from evaluation.results import EngineResult, Evaluation, LevelResult, Targets

CONFIG = GuardrailsConfig()
DRAWING = Drawing(seed=0, samples=300, draws=500)
REQUESTS = 400
LEVELS = LevelResult(np.zeros((REQUESTS, 2), np.float32), np.zeros((REQUESTS, 2), bool))


def targets(users: int = REQUESTS) -> Targets:
    ones = np.ones(users, np.int64)
    return Targets(np.arange(users), np.arange(users) * 10, np.arange(users + 1), np.arange(users) % 7, ones)


def result(places: np.ndarray) -> EngineResult:
    return EngineResult(places, np.zeros((len(places), 0), np.int32), np.zeros((len(places), 0), np.float32))


def evaluation(levels: LevelResult | None = LEVELS, **places: np.ndarray) -> Evaluation:
    return Evaluation(targets(), {name: result(one) for name, one in places.items()}, 100, 100, levels)


def first_for(share: float, seed: int = 0) -> np.ndarray:
    """First for a share of the requests, elsewhere not found: NDCG@10 is that share."""
    return (np.random.default_rng(seed).permutation(REQUESTS) < share * REQUESTS).astype(np.int64)


@pytest.mark.parametrize(
    ("own", "other", "verdict"), [(0.5, 0.2, PASS), (0.2, 0.5, FAIL), (0.3, 0.3, WARN), (0.32, 0.3, WARN)]
)
def test_a_model_must_be_better_than_mostpop(own: float, other: float, verdict: str) -> None:
    one = evaluation(exact=first_for(own), mostpop=first_for(other, seed=1))
    found = better_than_mostpop(one, "exact", drawing=DRAWING)
    assert found.verdict == verdict, found.found
    assert found.figures["ratio"] == pytest.approx(own / other)
    assert bool(found.advice) == (verdict != PASS)


def test_without_mostpop_nothing_is_claimed() -> None:
    assert better_than_mostpop(evaluation(exact=first_for(0.5)), "exact", drawing=DRAWING).verdict == INFO
    nothing = evaluation(exact=first_for(0.5), mostpop=first_for(0.0))
    found = better_than_mostpop(nothing, "exact", drawing=DRAWING)
    assert (found.verdict, found.figures["ratio"]) == (PASS, None)


@pytest.mark.parametrize(("without", "verdict"), [(0.5, INFO), (0.47, INFO), (0.3, WARN), (0.6, INFO)])
def test_what_the_clock_gives_away_is_told(without: float, verdict: str) -> None:
    one = evaluation(exact=first_for(0.5))
    found = knowing_the_time(one, "exact", result(first_for(without)), CONFIG, drawing=DRAWING)
    assert found.verdict == verdict
    assert found.figures["share"] == pytest.approx((0.5 - without) / 0.5)
    assert f"{without:.4f}" in found.found
    assert ("costs" in found.found) == (without > 0.5)


def test_a_model_that_is_not_told_the_time_says_so() -> None:
    found = knowing_the_time(evaluation(exact=first_for(0.5)), "exact", None, CONFIG, why_not="it has no clock")
    assert found.verdict == INFO
    assert "it has no clock" in found.found


def ranks(places: np.ndarray, of: Targets | None = None) -> Ranks:
    return Ranks(of or targets(), {"exact": places, "beam": np.zeros_like(places)}, {})


@pytest.mark.parametrize(("codes", "verdict"), [(0.5, PASS), (0.6, PASS), (0.3, FAIL)])
def test_codes_must_not_lose_much_to_items(codes: float, verdict: str) -> None:
    one = evaluation(exact=first_for(codes))
    found = codes_against_items(one, "exact", ranks(first_for(0.5)), CONFIG, name="items", drawing=DRAWING)
    assert found.verdict == verdict, found.found
    assert found.figures["share"] == pytest.approx((codes - 0.5) / 0.5)


def test_a_loss_that_these_requests_do_not_settle_is_weighed() -> None:
    one = evaluation(exact=first_for(0.5, seed=3))  # as good on average, but on other requests
    found = codes_against_items(one, "exact", ranks(first_for(0.5)), CONFIG, drawing=DRAWING)
    assert found.verdict == WARN
    lenient = dataclasses.replace(CONFIG, quantised_loss=0.9)
    assert codes_against_items(one, "exact", ranks(first_for(0.5)), lenient, drawing=DRAWING).verdict == PASS


def test_codes_are_compared_with_items_only_where_they_can_be() -> None:
    items = ranks(first_for(0.5))
    assert codes_against_items(evaluation(None, exact=first_for(0.5)), "exact", items, CONFIG).verdict == INFO
    assert codes_against_items(evaluation(exact=first_for(0.5)), "exact", None, CONFIG).verdict == INFO
    codes = dataclasses.replace(items, about={"output": "codes"})
    assert codes_against_items(evaluation(exact=first_for(0.5)), "exact", codes, CONFIG).verdict == INFO
    later = dataclasses.replace(targets(), times_R=targets().times_R + 5)
    other = codes_against_items(evaluation(exact=first_for(0.5)), "exact", ranks(first_for(0.5), later), CONFIG)
    assert other.verdict == INFO
    assert "no request in common" in other.found
    with pytest.raises(InputError):
        paired_ndcg(ranks(first_for(0.5), later), "exact", targets(), first_for(0.5))


def test_requests_are_paired_by_user_and_time_in_whatever_order() -> None:
    order = np.random.default_rng(5).permutation(REQUESTS)[:300]
    own, there = targets(), targets()
    mixed = Targets(
        there.users_R[order], there.times_R[order], np.arange(301), there.items_T[order], there.counts_T[order]
    )
    places = np.arange(REQUESTS) % 12
    other, mine, users = paired_ndcg(ranks(places[order], mixed), "faiss", own, places)
    assert np.array_equal(other, mine)
    assert sorted(users) == sorted(order)
    assert other.std() > 0


def test_regressions_fail_by_name() -> None:
    row = {"name": "ndcg@10", "difference": -0.05, "low": -0.07, "high": -0.03}
    against: dict[str, Any] = {"run": "before", "requests": 9, "differences": [row], "fallen": ["ndcg@10 fell"]}
    found = no_regression(against)
    assert found.verdict == FAIL
    assert "ndcg@10 fell" in found.found
    assert no_regression({**against, "fallen": []}).verdict == PASS
    assert no_regression({**against, "fallen": [], "differences": []}).verdict == INFO
    assert no_regression(None).verdict == INFO
