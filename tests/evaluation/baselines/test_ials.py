"""U users · N items · F factors · B users who ask."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.baselines.ials import IalsConfig, IalsEngine, factorise
from evaluation.baselines.lists import UNSCORED
from tests.evaluation.baselines.helpers import Drawn, drawn, same

SMALL = IalsConfig(factors=3, alpha=4.0, regularisation=0.5, iterations=2, recency=0.5)


def fitted(case: Drawn, config: IalsConfig = SMALL) -> IalsEngine:
    model = factorise(case.log, config, 1.0, quiet=True)
    return IalsEngine(model, config, case.plays_N, case.catalogue)


def rates(histories: list[list[int]], config: IalsConfig, num_items: int, fading: float, newest: int) -> np.ndarray:
    """r [B, N], event by event."""
    played_BN = np.zeros((len(histories), num_items))
    for row, own in enumerate(histories):
        for age, item in enumerate(reversed(own)):
            if not newest or age < newest:
                played_BN[row, item] += fading**age
    return {"plays": played_BN, "log": np.log2(1 + played_BN), "once": np.minimum(played_BN, 1)}[config.plays]


def solved(rates_BN: np.ndarray, items_NF: np.ndarray, config: IalsConfig) -> np.ndarray:
    """[B, F] the normal equations of each user: (Yᵀ C Y + λ) x = Yᵀ C p."""
    items_NF = items_NF.astype(np.float64)
    found_BF = np.zeros((len(rates_BN), items_NF.shape[1]))
    for row, rates_N in enumerate(rates_BN):
        played_N = rates_N > 0
        confidence_N = np.where(played_N, config.alpha * rates_N, 1)
        left_FF = items_NF.T @ np.diag(confidence_N) @ items_NF + config.regularisation * np.eye(config.factors)
        found_BF[row] = np.linalg.solve(left_FF, items_NF.T @ (confidence_N * played_N))
    return found_BF


@settings(deadline=None, max_examples=60)
@given(drawn(), st.sampled_from(["plays", "log", "once"]), st.sampled_from([0, 3]), st.sampled_from([0.5, 4.0]))
def test_whoever_asks_gets_the_factors_that_solve_their_normal_equations(
    case: Drawn, plays: str, history: int, alpha: float
) -> None:
    config = dataclasses.replace(SMALL, plays=plays, history=history, alpha=alpha)
    engine = fitted(case, config)
    wanted_BN = rates(case.asking, config, case.num_items, config.recency, history)
    wanted_BF = solved(wanted_BN, engine.item_factors_NF, config)
    np.testing.assert_allclose(engine.user_factors(case.query), wanted_BF, rtol=1e-3, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(drawn(), st.integers(1, 12))
def test_lists_are_those_of_the_products_and_end_with_what_was_never_played(case: Drawn, k: int) -> None:
    engine = fitted(case)
    items_NF = torch.from_numpy(engine.item_factors_NF)
    scores_BN = (torch.from_numpy(engine.user_factors(case.query)) @ items_NF.T).numpy()
    assert not items_NF[case.plays_N == 0].any()
    scores_BN[:, case.plays_N == 0] = UNSCORED
    items_BK, found_BK = engine.retrieve(case.query, k)
    wanted_BK = case.lists(scores_BN, k)[1]
    torch.testing.assert_close(found_BK, wanted_BK)
    # A product's rounding depends on where its column stands: the items are those of the scores that came with them.
    columns = case.catalogue.column_of_item
    for row, (own, scores) in enumerate(zip(items_BK.tolist(), found_BK.tolist(), strict=True)):
        given_items = [item for item in own if item >= 0]
        assert len(set(given_items)) == len(given_items)
        assert not set(given_items) & {*case.excluded[row], *case.denied}
        for item, score in zip(own, scores, strict=True):
            assert item < 0 or scores_BN[row, item] == pytest.approx(score, rel=1e-4, abs=1e-6)
        order = [(-score, int(columns[item])) for item, score in zip(own, scores, strict=True) if item >= 0]
        assert order == sorted(order)


def taste(users: int = 40, num_items: int = 24) -> Drawn:
    """Two tastes: even items and odd ones."""
    random = np.random.default_rng(3)
    items = [(random.integers(0, num_items // 2, 12) * 2 + user % 2).tolist() for user in range(users)]
    return Drawn(items, [[0] * 12] * users, [12] * users, num_items, [[0, 2, 4], [1, 3], []], [[]] * 3, [])


def loss(engine: IalsEngine, case: Drawn) -> float:
    """Σ c (p − x·y)² + λ (‖X‖² + ‖Y‖²) with the best users for the items as they are."""
    config = engine.config
    rates_UN = rates(case.histories, config, case.num_items, 1.0, 0)
    users_UF, items_NF = solved(rates_UN, engine.item_factors_NF, config), engine.item_factors_NF.astype(np.float64)
    played_UN = rates_UN > 0
    confidence_UN = np.where(played_UN, config.alpha * rates_UN, 1)
    squares = float((confidence_UN * (played_UN - users_UF @ items_NF.T) ** 2).sum())
    return squares + config.regularisation * float((users_UF**2).sum() + (items_NF**2).sum())


def test_a_fit_s_loss_falls_and_tastes_are_told_apart() -> None:
    case = taste()
    engines = [fitted(case, dataclasses.replace(SMALL, iterations=iterations)) for iterations in (1, 2, 4, 16)]
    losses = [loss(engine, case) for engine in engines]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    items_BK, _ = engines[-1].retrieve(case.query, 12)
    assert {item % 2 for item in items_BK[0].tolist()} == {0}
    assert {item % 2 for item in items_BK[1].tolist()} == {1}
    # Without a history all products are 0: by popularity.
    same(
        engines[-1].retrieve(case.query, 24),
        case.lists(engines[-1].user_factors(case.query) @ engines[-1].item_factors_NF.T, 24),
    )
    assert items_BK[2].tolist() == case.catalogue.item_order[:12].tolist()


def test_factors_are_those_of_the_seed_on_any_number_of_threads() -> None:
    case = taste()
    first, again, threads, other = (
        fitted(case, dataclasses.replace(SMALL, **changes)).item_factors_NF
        for changes in ({}, {}, {"threads": 3}, {"seed": 1})
    )
    assert first.tobytes() == again.tobytes() == threads.tobytes()
    assert first.tobytes() != other.tobytes()


def test_faults_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        IalsConfig(alpha=0.0, recency=2.0)
    assert [fault.split(",")[0] for fault in caught.value.faults] == ["`alpha` is 0.0", "`recency` is 2.0"]
    with pytest.raises(InputError, match=r"`baseline.ials.factors` is 3: the factors of 40 users and 24 items .* 480"):
        factorise(taste().log, SMALL, 1e-9)
