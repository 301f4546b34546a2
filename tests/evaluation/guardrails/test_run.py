from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from evaluation.guardrails.base import FAIL, INFO, PASS, Guardrail
from evaluation.guardrails.config import GuardrailsConfig
from evaluation.guardrails.differences import Drawing
from evaluation.guardrails.run import GuardrailContext, run_guardrails
from evaluation.metrics.summary import engine_figures
from evaluation.requests import make_requests
from evaluation.results import EngineResult, Evaluation
from tests.evaluation.helpers import distinct_histories, make_store

NUM_ITEMS, USERS = 40, 150
NAMES = {
    "target leakage",
    "better than chance",
    "better than MostPop",
    "against the reference run",
    "engines against exact scoring",
    "codes against item ids",
    "unknown codes",
    "missingness leakage",
    "popularity",
    "calibration",
    "knowing the time",
    "recall by depth",
    "ablations",
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> GuardrailContext:
    """A model that puts what comes next first, for every second user, beside a list that is the same for all."""
    histories = distinct_histories(USERS, NUM_ITEMS)
    store = make_store(tmp_path_factory.mktemp("run") / "store", histories, NUM_ITEMS)
    requests = make_requests(store, "test", 6, "next")
    targets = requests.targets
    same_RK = np.tile(np.arange(NUM_ITEMS, dtype=np.int32), (len(requests), 1))
    own_RK = same_RK.copy()
    for row in range(0, len(requests), 2):
        item = targets.items_T[row]
        own_RK[row] = [item, *np.delete(same_RK[row], item)]
    engines = {
        name: EngineResult(
            (items_RK == targets.items_T[:, None]).argmax(axis=1) + 1, items_RK, np.zeros(items_RK.shape, np.float32)
        )
        for name, items_RK in (("exact", own_RK), ("mostpop", same_RK))
    }
    evaluation = Evaluation(targets, engines, NUM_ITEMS, NUM_ITEMS)
    plays_N = np.bincount(store.column("item"), minlength=NUM_ITEMS)
    figures = {name: engine_figures(evaluation, name, plays_N, samples=50) for name in engines}
    values = {name: {metric: one.value for metric, one in of.items()} for name, of in figures.items()}
    summary = {"engine": "exact", "baselines": ["mostpop"], "engines": values}
    drawing = Drawing(samples=100, draws=200)
    return GuardrailContext(
        evaluation, summary, requests, store, GuardrailsConfig(), filter_history=False, drawing=drawing
    )


def test_every_guardrail_says_something_and_what_is_missing_never_passes(context: GuardrailContext) -> None:
    found = {one.name: one for one in run_guardrails(context)}
    assert found.keys() == NAMES
    passed = {name for name, one in found.items() if one.verdict == PASS}
    assert passed == {"better than chance", "better than MostPop", "popularity"}
    for name in NAMES - passed - {"recall by depth"}:
        assert found[name].verdict == INFO
        assert found[name].found.startswith("Not judged: ")
    assert all(one.rule for one in found.values())


def test_what_fails_comes_first_and_all_of_it_is_json(context: GuardrailContext) -> None:
    leak = Guardrail("target leakage", FAIL, "it sees", "rule", "mend it")
    found = run_guardrails(dataclasses.replace(context, leak=leak))
    assert found[0] == leak
    plain = json.loads(json.dumps([one.to_plain() for one in found], allow_nan=False))
    assert plain[0] == {
        "name": "target leakage",
        "verdict": "fail",
        "found": "it sees",
        "rule": "rule",
        "advice": "mend it",
        "figures": {},
    }
