"""Figures of codes against counting one by one, and sentences against tables made for them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.quality import diagnostics
from semantic_ids.quality.diagnostics import code_counts, diagnose, format_diagnostics, unique_prefixes, usage_curves

CODES = np.array([[0, 1], [1, 1], [2, 1], [3, 1], [0, 1], [1, 1], [2, 1], [3, 1]], np.uint16)
ERRORS = np.array([0.5, 0.25])


def test_even_and_single_use():
    figures = diagnose(CODES, np.array([2, 2, 2, 2]), 4, ERRORS, num_items=10)
    even, single = figures["levels"]
    assert even == {
        "utilisation": 1.0,
        "dead_codes": 0,
        "entropy_bits": 2.0,
        "gini": 0.0,
        "largest_code_share": 0.25,
        "top_1_percent_share": 0.25,
        "count_deviation": 0.0,
        "count_deviation_relative": 0.0,
        "unique_prefixes": 4,
        "relative_error": 0.5,
        "error_decay": 0.5,
    }
    assert single == {
        "utilisation": 0.25,
        "dead_codes": 3,
        "entropy_bits": 0.0,
        "gini": 0.75,
        "largest_code_share": 1.0,
        "top_1_percent_share": 1.0,
        "count_deviation": pytest.approx(12**0.5),  # counts 0, 8, 0, 0 about a mean of 2
        "count_deviation_relative": pytest.approx(12**0.5 / 2),
        "unique_prefixes": 4,
        "relative_error": 0.25,
        "error_decay": 0.5,
    }
    assert figures["unknown_share"] == 0.2
    assert figures["known"] == 8
    assert json.loads(json.dumps(figures)) == figures


def test_gini_is_the_mean_difference():
    codes = np.repeat(np.arange(4), [5, 1, 0, 2])
    counts = np.bincount(codes, minlength=4)
    expected = np.abs(counts[:, None] - counts[None]).sum() / (2 * 4**2 * counts.mean())
    figures = diagnose(codes[:, None], np.array([5, 1, 2]), 4, np.zeros(1), num_items=8)
    assert figures["levels"][0]["gini"] == pytest.approx(expected)


def test_share_of_the_most_used_hundredth():
    codes = np.concatenate([np.arange(300), [7] * 50, [9] * 30, [11] * 20, [13] * 10]).astype(np.uint16)
    figures = diagnose(codes[:, None], np.array([1]), 300, np.zeros(1), num_items=410)
    assert figures["levels"][0]["top_1_percent_share"] == (51 + 31 + 21) / 410


@st.composite
def tuples(draw):
    codes = draw(st.sampled_from([2, 3, 5, 65_536]))
    levels = draw(st.integers(1, 9))
    row = st.lists(st.sampled_from([0, 1, codes - 1]), min_size=levels, max_size=levels)
    rows = draw(st.lists(row, max_size=40))
    return np.array(rows, np.uint16).reshape(-1, levels), codes


@given(tuples())
@settings(max_examples=150, deadline=None)
def test_counts_equal_counting_one_by_one(drawn):
    codes_nC, codes = drawn
    rows = [tuple(row) for row in codes_nC.tolist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "_BLOCK", 7)
        prefixes = unique_prefixes(codes_nC, codes)
        counts = code_counts(codes_nC, codes)
    expected = [len({row[: level + 1] for row in rows}) for level in range(codes_nC.shape[1])]
    np.testing.assert_array_equal(prefixes, expected)
    by_hand = np.zeros_like(counts)
    for row in rows:
        for level, code in enumerate(row):
            by_hand[level, code] += 1
    np.testing.assert_array_equal(counts, by_hand)


def test_many_tuples_of_many_words():
    generator = np.random.default_rng(0)
    codes_nC = generator.integers(0, 6, (5000, 8)).astype(np.uint16) * 13_000  # 16 bits a code: two words
    rows = codes_nC.tolist()
    expected = [len({tuple(row[: level + 1]) for row in rows}) for level in range(8)]
    np.testing.assert_array_equal(unique_prefixes(codes_nC, 65_536), expected)


@given(st.lists(st.integers(1, 2500), min_size=1, max_size=60))
def test_group_histogram_holds_every_tuple_and_item_once(sizes):
    known = min(sum(sizes), 50)
    figures = diagnose(np.zeros((known, 1), np.uint16), np.array(sizes), 2, np.zeros(1), num_items=known)
    bins = figures["group_histogram"]
    for row in bins:
        inside = [size for size in sizes if row["from"] <= size <= row["to"]]
        assert (row["tuples"], row["items"]) == (len(inside), sum(inside))
    assert sum(row["tuples"] for row in bins) == len(sizes)
    assert bins[-1]["to"] == figures["largest_group"] == max(sizes)
    assert [row["from"] for row in bins[1:]] == [row["to"] + 1 for row in bins[:-1]]


def test_group_histogram_has_the_bounds_that_are_promised():
    figures = diagnose(CODES, np.array([1, 1, 2, 4, 6, 10, 11]), 4, ERRORS, num_items=8)
    assert [(row["from"], row["to"], row["tuples"], row["items"]) for row in figures["group_histogram"]] == [
        (1, 1, 2, 2),
        (2, 2, 1, 2),
        (3, 5, 1, 4),
        (6, 10, 2, 16),
        (11, 11, 1, 11),
    ]


def test_collisions():
    figures = diagnose(CODES, np.array([1, 1, 4, 2]), 4, np.zeros(2), num_items=8)
    assert figures["unique_tuples"] == 4
    assert figures["collision_rate"] == 6 / 8
    assert figures["largest_group"] == 4


def test_an_added_level_adds_no_error_and_no_findings():
    spread = np.stack([np.arange(64) % 4, np.arange(64) // 16, np.zeros(64)], axis=1).astype(np.uint16)
    figures = diagnose(
        spread, np.full(16, 4), 4, np.array([0.5, 0.05]), num_items=64, errors_held_out_C=np.array([0.6, 0.06])
    )
    assert [row["relative_error"] for row in figures["levels"]] == [0.5, 0.05, 0.05]
    assert [row["relative_error_held_out"] for row in figures["levels"]] == [0.6, 0.06, 0.06]
    assert [row["error_decay"] for row in figures["levels"]] == [0.5, pytest.approx(0.1), 1.0]
    assert figures["findings"] == []  # though the third level uses one code of four


def test_plain_item_ids_have_no_errors_and_no_findings():
    figures = diagnose(np.arange(1, 33, dtype=np.uint16)[:, None], np.ones(32, int), 64, np.zeros(0), num_items=32)
    assert figures["levels"][0]["relative_error"] == 0
    assert figures["levels"][0]["dead_codes"] == 32
    assert figures["findings"] == []


def test_no_known_item():
    figures = diagnose(np.zeros((0, 3), np.uint16), np.zeros(0, int), 8, np.ones(3), num_items=5)
    assert figures["unknown_share"] == 1
    assert figures["group_histogram"] == figures["findings"] == []
    assert [row["dead_codes"] for row in figures["levels"]] == [8, 8, 8]
    assert "100.00% of items are unknown" in format_diagnostics(figures, 8)
    json.dumps(figures, allow_nan=False)


def skewed(entropies: list[str], items: int = 4096, codes: int = 64) -> np.ndarray:
    """Levels that are even, or that hold half their items on one code."""
    generator = np.random.default_rng(0)
    columns = []
    for kind in entropies:
        column = np.arange(items) % codes
        if kind == "narrow":
            column[: items // 2] = 5
        columns.append(generator.permutation(column))
    return np.stack(columns, axis=1).astype(np.uint16)


def findings(codes_nC: np.ndarray, codes: int = 64, **changes: object) -> list[str]:
    levels = codes_nC.shape[1]
    arguments = {"errors_C": 0.6 ** np.arange(1, levels + 1), "num_items": len(codes_nC)} | changes
    tuples = Counter(map(tuple, codes_nC.tolist()))
    return diagnose(codes_nC, np.array(list(tuples.values())), codes, **arguments)["findings"]


@pytest.mark.parametrize(
    ("levels", "waist"),
    [
        (["even", "narrow", "even"], 2),
        (["even", "even", "narrow", "even"], 3),
        (["even", "even", "even"], None),
        (["narrow", "even", "even"], None),
        (["narrow", "narrow", "even"], None),  # falls towards one end: no waist
        (["even", "narrow", "narrow"], None),
        (["even", "narrow"], None),
    ],
)
def test_hourglass_is_a_middle_level_narrower_than_both_ends(levels, waist):
    said = [sentence for sentence in findings(skewed(levels)) if "Hourglass" in sentence]
    assert len(said) == (waist is not None)
    if waist:
        assert f"level {waist} has" in said[0]
        assert "more than 0.30" in said[0]  # 5% of 6 bits


def test_underfit_by_the_error_that_is_left_and_by_how_it_falls():
    even = skewed(["even", "even"])
    poor = findings(even, errors_C=np.array([0.8, 0.6]))
    assert any("60% of the squared vectors are left" in sentence for sentence in poor)
    falling = findings(even, errors_C=np.array([0.6, 0.3]))
    assert any("takes away 50% of the error before it" in sentence for sentence in falling)
    for settled in ([0.35, 0.3], [0.5, 0.05]):
        assert not any("underfit" in sentence for sentence in findings(even, errors_C=np.array(settled)))


def test_oversized_by_dead_codes_by_held_out_error_and_by_levels_that_separate_nothing():
    even = skewed(["even", "even"])
    assert any("at level 1;" in sentence for sentence in findings(even // np.array([2, 1], np.uint16)))
    assert not any("oversized" in sentence for sentence in findings(even))
    errors = np.array([0.3, 0.2])
    remembered = findings(even, errors_C=errors, errors_held_out_C=errors * 1.5)
    assert any("keep 1.50 times the error" in sentence for sentence in remembered)
    assert not any("sample" in s for s in findings(even, errors_C=errors, errors_held_out_C=errors * 1.2))
    own = np.stack([np.arange(64), np.arange(64)], axis=1).astype(np.uint16)
    assert any("The first 1 of 2 levels" in sentence for sentence in findings(own))


def test_usage_curves_are_sorted_shares_at_ranks_of_even_ratio():
    generator = np.random.default_rng(0)
    codes_nC = np.minimum(generator.geometric(0.01, (3000, 2)), 1000).astype(np.uint16)
    curves = usage_curves(codes_nC, 1024)
    assert curves["ranks"][0] == 1
    assert curves["ranks"][-1] == 1024
    assert len(curves["ranks"]) <= 60
    for level in range(2):
        falling = sorted(np.bincount(codes_nC[:, level], minlength=1024) / 3000, reverse=True)
        assert curves["shares"][level] == [falling[rank - 1] for rank in curves["ranks"]]
    assert usage_curves(codes_nC[:0], 1024)["shares"] == [[0.0] * len(curves["ranks"])] * 2
    assert usage_curves(np.array([[0], [1], [1]], np.uint16), 2) == {"ranks": [1, 2], "shares": [[2 / 3, 1 / 3]]}
    assert len(json.dumps(curves)) < 5000


def test_table_has_a_line_a_level_one_on_tuples_and_the_findings():
    figures = diagnose(CODES, np.array([2, 2, 2, 2]), 4, ERRORS, num_items=10, errors_held_out_C=np.array([0.6, 0.3]))
    lines = format_diagnostics(figures, 4).splitlines()
    assert len(lines) == 4 + len(figures["findings"])
    assert len({len(line) for line in lines[:3]}) == 1, "columns stand beneath their heads"
    assert lines[1].endswith("0.6000")
    assert "100.00% of known items share theirs, at most 2 items one tuple; 20.00% of items are unknown" in lines[3]
    assert lines[4:] == figures["findings"] != []
