from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from evaluation.metrics.intervals import mean_of
from evaluation.metrics.ranking import metric_names, per_request_metrics
from evaluation.metrics.summary import engine_figures
from evaluation.metrics.yambda import yambda_coverage, yambda_metrics
from tests.evaluation.metrics.helpers import random_evaluation


def test_every_figure_under_its_name() -> None:
    evaluation = random_evaluation(0, 60, 150, 120, users=25)
    plays = np.random.default_rng(0).integers(0, 99, 150)
    result, targets = evaluation.engines["made"], evaluation.targets
    figures = engine_figures(evaluation, "made", plays, yambda=True, table_items=200, samples=100)
    extra = ["stratified-recall", "novelty", "yambda/ndcg", "yambda/recall", "coverage", "gini", "yambda/coverage"]
    assert sorted(figures) == sorted([*metric_names(120), *(f"{name}@{k}" for name in extra for k in (10, 100))])
    for name, values in per_request_metrics(result, targets, 120).items():
        assert figures[name].value == pytest.approx(values.mean())
    for name, metric in yambda_metrics(result, targets, 120).items():
        assert figures[name].value == pytest.approx(mean_of(metric))
    assert figures["yambda/coverage@10"].value == yambda_coverage(result.items_RK, 200)["yambda/coverage@10"]
    for name, figure in figures.items():
        if "coverage" in name or "gini" in name:
            assert (figure.low, figure.high) == (None, None)
        else:
            assert figure.low <= figure.value <= figure.high
    plain = engine_figures(evaluation, "made", plays, samples=100)
    assert list(plain) == [name for name in figures if not name.startswith("yambda/")]
    for name, figure in plain.items():
        assert astuple(figure) == pytest.approx(astuple(figures[name]), abs=1e-12)
