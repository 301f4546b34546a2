from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from semantic_ids.lifecycle.drift import (
    LEAST_ITEMS,
    ErrorSums,
    divergence_bits,
    divergence_by_chance,
    drift,
    drift_rows,
    format_drift,
)

FIT = {"levels": [{"relative_error": 0.5}, {"relative_error": 0.2}], "unknown_share": 0.1}
V = 16


def tuples(generator: np.random.Generator, count: int, shares: np.ndarray | None = None) -> np.ndarray:
    """Two levels; never all zero."""
    codes = generator.choice(V, size=(count, 2), p=shares).astype(np.uint16)
    codes[~codes.any(axis=1), 1] = 1
    return codes


def errors_of(generator: np.random.Generator, count: int, relative: float) -> ErrorSums:
    vectors = generator.standard_normal((count, 8)).astype(np.float32)
    noise = generator.standard_normal((count, 8)).astype(np.float32) * np.float32(np.sqrt(relative))
    sums = ErrorSums()
    for begin in range(0, count, 70):
        sums.add(vectors[begin : begin + 70], (vectors + noise)[begin : begin + 70])
    return sums


def figures_of(new: np.ndarray, table: np.ndarray, errors: ErrorSums, **changes: Any) -> dict[str, Any]:
    arguments = {"diagnostics": FIT, "num_new": len(new), **changes}
    return drift(new, table, V, errors=errors, **arguments)


@given(st.integers(2, 30), st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_divergence_is_that_of_scipy(codes: int, new: int, table: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    new_V = np.bincount(generator.integers(0, codes, new), minlength=codes)
    table_V = np.bincount(generator.integers(0, codes, table), minlength=codes)
    expected = jensenshannon(new_V, table_V, base=2) ** 2  # SciPy gives the distance, its root
    assert divergence_bits(new_V, table_V) == pytest.approx(expected, abs=1e-9)
    stacked = divergence_bits(np.stack([new_V, table_V]), np.stack([table_V, table_V]))
    assert stacked == pytest.approx([expected, 0], abs=1e-9)


def test_divergence_of_nothing_and_of_strangers() -> None:
    some, none, other = np.array([3, 0]), np.array([0, 0]), np.array([0, 2])
    assert divergence_bits(none, some) == 0
    assert divergence_bits(some, other) == 1


def test_what_sampling_gives_is_what_permuting_items_gives() -> None:
    generator = np.random.default_rng(0)
    table, new = generator.integers(0, V, 400), generator.integers(0, V, 40)
    drawn = divergence_by_chance(np.bincount(new, minlength=V), np.bincount(table, minlength=V), seed=1)
    together = np.concatenate([new, table])
    permuted = []
    for _ in range(400):
        shuffled = generator.permutation(together)
        permuted.append(
            divergence_bits(np.bincount(shuffled[:40], minlength=V), np.bincount(shuffled[40:], minlength=V))
        )
    spread = np.std(permuted)
    assert drawn.mean() == pytest.approx(np.mean(permuted), abs=5 * spread * np.sqrt(1 / len(drawn) + 1 / 400))
    assert drawn.std() == pytest.approx(spread, rel=0.25)
    again = divergence_by_chance(np.bincount(new, minlength=V), np.bincount(table, minlength=V), seed=1)
    assert np.array_equal(drawn, again)


def test_errors_block_by_block_are_those_of_the_whole() -> None:
    generator = np.random.default_rng(2)
    vectors, noise = generator.standard_normal((2, 300, 8)).astype(np.float32)
    whole, blocks = ErrorSums(), ErrorSums()
    whole.add(vectors, vectors + noise)
    for begin in range(0, 300, 7):
        blocks.add(vectors[begin : begin + 7], (vectors + noise)[begin : begin + 7])
    wide = vectors.astype(np.float64)
    exact = np.square(wide - (vectors + noise)).sum() / np.square(wide).sum()
    assert (whole.relative, blocks.relative) == (pytest.approx(exact), pytest.approx(exact))
    assert blocks.standard_error == pytest.approx(whole.standard_error)
    # As a bootstrap over items has it.
    errors, norms = np.square(wide - (vectors + noise)).sum(axis=1), np.square(wide).sum(axis=1)
    picks = generator.integers(0, 300, (2000, 300))
    assert whole.standard_error == pytest.approx((errors[picks].sum(1) / norms[picks].sum(1)).std(), rel=0.1)
    assert (ErrorSums().relative, ErrorSums().standard_error) == (0, 0)


@pytest.mark.parametrize("count", [1, 20, LEAST_ITEMS, 1000])
def test_no_batch_of_the_same_kind_cries_wolf(count: int) -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        shares = generator.dirichlet(np.ones(V))
        table, new = tuples(generator, 3000, shares), tuples(generator, count, shares)
        figures = figures_of(new, table, errors_of(generator, count, 0.2), seed=seed)
        assert figures["verdict"].startswith("no refit needed"), figures
        assert figures["advice"] == []
    assert (count < LEAST_ITEMS) == ("too few" in figures["verdict"])


def test_other_codes_are_noticed_level_by_level() -> None:
    generator = np.random.default_rng(4)
    table, new = tuples(generator, 3000), tuples(generator, 300)
    table[:, 0] %= 8
    new[:, 0] = 8 + new[:, 0] % 8
    figures = figures_of(new, table, errors_of(generator, 300, 0.2))
    first, second = figures["levels"]
    assert first["divergence_bits"] == pytest.approx(1)
    assert (first["dead_share"], first["rare_share"], first["table_rare_share"]) == (1, 1, 0)
    assert second["dead_share"] == 0
    assert second["divergence_bits"] < second["highest_bits"]
    assert figures["collision_rate"] == 0
    assert figures["verdict"].startswith("refit advised: codes of level 1 are used otherwise (1.00 bits apart")
    assert "100% of the new items are on codes of level 1 that hardly any had" in figures["verdict"]
    assert "level 2" not in figures["verdict"]


def test_worse_approximation_is_noticed_and_held_out_errors_are_preferred() -> None:
    generator = np.random.default_rng(5)
    table, new = tuples(generator, 3000), tuples(generator, 400)
    errors = errors_of(generator, 400, 0.4)
    figures = figures_of(new, table, errors)
    assert figures["error_ratio"] == pytest.approx(errors.relative / 0.2)
    assert figures["verdict"].startswith(f"refit advised: new items are approximated {errors.relative / 0.2:.2f} times")
    held_out = {"levels": [{"relative_error": 0.5}, {"relative_error": 0.2, "relative_error_held_out": 0.4}]}
    assert figures_of(new, table, errors, diagnostics=held_out)["verdict"] == "no refit needed"
    # Within two standard errors of the threshold nothing is said.
    close = figures_of(new, table, errors_of(generator, 400, 0.25))
    assert close["verdict"] == "no refit needed"


def test_collisions_item_by_item() -> None:
    table = np.array([[1, 1], [1, 1], [2, 2], [3, 3]], np.uint16)
    new = np.array([[1, 1], [2, 2], [5, 5], [5, 5]], np.uint16)
    figures = figures_of(new, table, ErrorSums())
    assert (figures["collision_rate"], figures["table_collision_rate"]) == (0.5, 0.5)
    many = np.tile(np.array([[2, 2]], np.uint16), (200, 1))
    apart = np.argwhere(np.ones((V, V)))[1:].astype(np.uint16)
    crowded = figures_of(many, apart, ErrorSums())
    assert (crowded["collision_rate"], crowded["table_collision_rate"]) == (1, 0)
    assert "100% of the new items share a tuple with the table, 0% of the table's own do" in crowded["verdict"]


def test_unknown_items_ask_for_vectors_not_for_a_refit() -> None:
    generator = np.random.default_rng(6)
    table, new = tuples(generator, 3000), tuples(generator, 200)
    figures = figures_of(new, table, errors_of(generator, 200, 0.2), num_new=400)
    assert figures["unknown_share"] == 0.5
    assert figures["verdict"] == "no refit needed"
    assert "50% of the new items have no vector" in figures["advice"][0]
    assert figures["advice"][0] in format_drift(figures)


@pytest.mark.parametrize("diagnostics", [{}, {"levels": [{"relative_error": 0.1}, {"relative_error": 0.0}]}])
def test_nothing_new_and_no_error_of_the_fit(diagnostics: dict[str, Any]) -> None:
    none = np.zeros((0, 2), np.uint16)
    figures = figures_of(none, tuples(np.random.default_rng(7), 50), ErrorSums(), diagnostics=diagnostics)
    assert figures["error_ratio"] is None
    assert figures["verdict"].startswith("no refit needed: 0 new items with codes are too few")
    assert "the fit has no error to compare with" in format_drift(figures)
    assert figures_of(none, none, ErrorSums())["collision_rate"] == 0


def test_rows_agree_with_the_findings() -> None:
    generator = np.random.default_rng(8)
    table, new = tuples(generator, 3000), tuples(generator, 300)
    new[:, 0] = 3
    figures = figures_of(new, table, errors_of(generator, 300, 0.6))
    rows = drift_rows(figures)
    passed = [label for label, _, _, said in rows if said == "passed"]
    assert passed == ["relative squared error", "level 1: divergence"]
    assert len(figures["findings"]) == len(passed)
    assert all(isinstance(cell, str) for row in rows for cell in row)
    lines = format_drift(figures).splitlines()
    assert len(lines) == len(rows) + 1
    assert rows[-1][3] == figures["verdict"]
    assert lines[-1] == figures["verdict"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize(
    ("level", "bits", "expected", "highest", "said"),
    [
        (1, 0.15, 0.10, 0.14, "kept"),  # above chance, but by little
        (1, 0.21, 0.10, 0.20, "passed"),
        (1, 0.25, 0.10, 0.30, "kept"),  # sampling alone has given as much
        (2, 0.25, 0.10, 0.20, "kept"),
        (2, 0.31, 0.10, 0.20, "passed"),
    ],
)
def test_divergence_must_pass_both_chance_and_threshold(
    level: int, bits: float, expected: float, highest: float, said: str
) -> None:
    generator = np.random.default_rng(9)
    figures = figures_of(tuples(generator, 300), tuples(generator, 3000), errors_of(generator, 300, 0.2))
    figures["levels"][level - 1] |= {"divergence_bits": bits, "expected_bits": expected, "highest_bits": highest}
    assert {row[0]: row[3] for row in drift_rows(figures)}[f"level {level}: divergence"] == said


@pytest.mark.parametrize(("count", "said"), [(100, "kept"), (10_000, "passed")])
def test_a_share_must_pass_its_threshold_by_more_than_chance(count: int, said: str) -> None:
    generator = np.random.default_rng(10)
    figures = figures_of(tuples(generator, 300), tuples(generator, 3000), errors_of(generator, 300, 0.2))
    figures |= {"coded": count, "new_items": count, "unknown_share": 0.22, "collision_rate": 0.12}
    figures |= {"table_unknown_share": 0.1, "table_collision_rate": 0.0}
    figures["levels"][0] |= {"rare_share": 0.07, "table_rare_share": 0.0}
    found = {row[0]: row[3] for row in drift_rows(figures)}
    assert [found[name] for name in ("unknown", "tuple shared with the table", "level 1: on rare codes")] == [said] * 3


@pytest.mark.parametrize(("deviation", "said"), [(0.011, "kept"), (0.009, "passed")])
def test_an_error_must_pass_its_threshold_by_more_than_chance(deviation: float, said: str) -> None:
    generator = np.random.default_rng(11)
    figures = figures_of(tuples(generator, 300), tuples(generator, 3000), errors_of(generator, 300, 0.2))
    figures |= {"relative_error": 0.27, "relative_error_deviation": deviation, "table_relative_error": 0.2}
    assert {row[0]: row[3] for row in drift_rows(figures)}["relative squared error"] == said
