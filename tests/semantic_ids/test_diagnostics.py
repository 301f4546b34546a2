"""Figures checked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from semantic_ids.diagnostics import diagnose, format_diagnostics

CODES = np.array([[0, 1], [1, 1], [2, 1], [3, 1], [0, 1], [1, 1], [2, 1], [3, 1]])


def test_even_and_single_use():
    figures = diagnose(CODES, np.array([2, 2, 2, 2]), 4, np.array([0.5, 0.25]), num_items=10)
    even, single = figures["levels"]
    assert even == {
        "utilisation": 1.0,
        "dead_codes": 0,
        "entropy_bits": 2.0,
        "gini": 0.0,
        "largest_code_share": 0.25,
        "relative_error": 0.5,
    }
    assert single == {
        "utilisation": 0.25,
        "dead_codes": 3,
        "entropy_bits": 0.0,
        "gini": 0.75,
        "largest_code_share": 1.0,
        "relative_error": 0.25,
    }
    assert figures["unknown_share"] == 0.2
    assert json.loads(json.dumps(figures)) == figures


def test_gini_is_the_mean_difference():
    codes = np.repeat(np.arange(4), [5, 1, 0, 2])
    counts = np.bincount(codes, minlength=4)
    expected = np.abs(counts[:, None] - counts[None]).sum() / (2 * 4**2 * counts.mean())
    figures = diagnose(codes[:, None], np.array([5, 1, 2]), 4, np.zeros(1), num_items=8)
    assert figures["levels"][0]["gini"] == pytest.approx(expected)


def test_collisions():
    figures = diagnose(CODES, np.array([1, 1, 4, 2]), 4, np.zeros(2), num_items=8)
    assert figures["unique_tuples"] == 4
    assert figures["collision_rate"] == 6 / 8
    assert figures["largest_group"] == 4


def test_table_has_a_line_a_level_and_one_on_tuples():
    text = format_diagnostics(diagnose(CODES, np.array([2, 2, 2, 2]), 4, np.array([0.5, 0.25]), num_items=10), 4)
    assert len(text.splitlines()) == 4
    assert "100.00% of known items share theirs, at most 2 items one tuple; 20.00% of items are unknown" in text
