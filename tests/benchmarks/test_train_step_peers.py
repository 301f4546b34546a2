"""What is read off two curves of quality over time."""

from __future__ import annotations

import numpy as np

from benchmarks.train_step_peers import Curve

CURVE = Curve((1, 2, 3), (10.0, 20.0, 30.0), tuple(np.array(scores) for scores in ([0.0, 0.2], [0.5, 0.5], [0.4, 0.4])))


def test_the_best_look_is_the_first_with_the_highest_mean() -> None:
    assert CURVE.best == 1
    assert CURVE.until(15.0) == 0
    assert CURVE.until(30.0) == 1
    assert CURVE.until(5.0) is None


def test_a_score_is_reached_at_the_first_look_that_is_as_good() -> None:
    assert CURVE.reaches(0.4) == 20.0
    assert CURVE.reaches(0.1) == 10.0
    assert CURVE.reaches(0.6) is None
