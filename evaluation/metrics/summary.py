"""All figures of one engine, by their published names.

R requests · T targets · N items.
"""

from __future__ import annotations

from evaluation.metrics.intervals import RESAMPLES, Figure, Metric, figures_of
from evaluation.metrics.lists import coverage_and_gini, novelty
from evaluation.metrics.ranking import per_request_metrics
from evaluation.metrics.segments import stratified_recall
from evaluation.metrics.yambda import yambda_coverage, yambda_metrics
from evaluation.results import Evaluation, Ints


def engine_figures(
    evaluation: Evaluation,
    engine: str,
    training_plays_N: Ints,
    *,
    yambda: bool = False,
    table_items: int = 0,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Figure]:
    """Every figure of an engine: means over requests, ratios and figures of all lists; those of lists without interval.

    Args:
        training_plays_N: plays of each item in training.
        yambda: give the figures of Yambda's benchmark too.
        table_items: items of the model's item table, for Yambda's coverage; N where it is 0.
    """
    result, targets, depth = evaluation.engines[engine], evaluation.targets, evaluation.depth
    metrics: dict[str, Metric] = {
        **per_request_metrics(result, targets, depth),
        **stratified_recall(result, targets, training_plays_N, depth),
        **novelty(result.items_RK, training_plays_N),
        **(yambda_metrics(result, targets, depth) if yambda else {}),
    }
    of_all_lists = coverage_and_gini(result.items_RK, evaluation.num_items)
    if yambda:
        of_all_lists |= yambda_coverage(result.items_RK, table_items or evaluation.num_items)
    figures = figures_of(metrics, targets.users_R, samples, seed)
    return figures | {name: Figure(value) for name, value in of_all_lists.items()}
