from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stream_ceiling import ceilings, expected_hits
from data.synthetic.config import SynthesizeConfig


def test_expected_hits_of_a_record_by_hand() -> None:
    """Four items of the first category come first (.6 / 4), then six of the eight of the second (.4 / 8)."""
    true, items = np.array([[0.6, 0.4]]), np.array([[4, 8]])
    assert expected_hits(true, true, items) == pytest.approx(0.6 + 0.4 * 6 / 8)
    assert expected_hits(np.array([[0.0, 1.0]]), true, items) == pytest.approx(0.4 + 0.6 * 2 / 4)


def test_a_predictor_that_knows_all_is_the_better_one_and_right_as_often_as_it_says() -> None:
    config = SynthesizeConfig(kind="dirichlet", out="x", items=400, categories=20, records=1000)
    best, counted = ceilings(config, 400)
    assert 0.9 * best < counted < best < 1
    # One item a category and at most five categories: ten places hold them all.
    alone = SynthesizeConfig(kind="dirichlet", out="x", items=100, categories=100, records=1000, initial_share=1.0)
    assert ceilings(alone, 50)[0] > 0.99
