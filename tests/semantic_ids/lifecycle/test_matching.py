from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from semantic_ids.lifecycle.matching import (
    MOST_CODES,
    changed,
    changed_rows,
    check_matchable,
    common_items,
    format_changed,
    match_labels,
    relabel,
    relabel_codes,
)
from tests.semantic_ids.plain_quantizer import PlainQuantizer


def random_labels(generator: np.random.Generator, levels: int, codes: int) -> np.ndarray:
    return np.stack([generator.permutation(codes) for _ in range(levels)])


def rows_under(labels_CV: np.ndarray, codebooks_CVd: np.ndarray) -> np.ndarray:
    """The obvious relabelling of codebook rows."""
    moved = np.zeros_like(codebooks_CVd)
    for level, code in np.ndindex(*labels_CV.shape):
        moved[level, labels_CV[level, code]] = codebooks_CVd[level, code]
    return moved


shapes = st.tuples(st.integers(1, 4), st.integers(2, 40), st.integers(0, 200), st.integers(0, 2**32 - 1))


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_a_pure_exchange_of_labels_is_undone(shape: tuple[int, int, int, int]) -> None:
    levels, codes, items, seed = shape
    generator = np.random.default_rng(seed)
    old_codes = generator.integers(0, codes, (items, levels)).astype(np.uint16)
    old_rows = generator.standard_normal((levels, codes, 3)).astype(np.float32)
    exchange = random_labels(generator, levels, codes)
    new_codes, new_rows = relabel_codes(old_codes, exchange), rows_under(exchange, old_rows)
    labels = match_labels(old_codes, new_codes, new_rows, old_rows)
    # An inverse: new label exchange[c, v] is called v again, also where no item carries it.
    assert np.array_equal(np.take_along_axis(labels, exchange, axis=1), np.tile(np.arange(codes), (levels, 1)))
    assert np.array_equal(relabel_codes(new_codes, labels), old_codes)
    assert relabel_codes(new_codes, labels).dtype == np.uint16


@given(st.integers(2, 5), st.integers(0, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_no_relabelling_keeps_more_nor_lies_nearer(codes: int, items: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # A second level that no tuple of zeros comes from, so that every item counts.
    old_codes = np.stack([generator.integers(0, codes, items), np.ones(items)], axis=1).astype(np.uint16)
    new_codes = np.stack([generator.integers(0, codes, items), np.ones(items)], axis=1).astype(np.uint16)
    old_rows, new_rows = generator.standard_normal((2, 2, codes, 2)).astype(np.float32)

    def worth(labels: tuple[int, ...]) -> tuple[int, float]:
        kept = int((np.array(labels)[new_codes[:, 0]] == old_codes[:, 0]).sum())
        return kept, -float(((new_rows[0].astype(np.float64) - old_rows[0][list(labels)]) ** 2).sum())

    best = max(map(worth, itertools.permutations(range(codes))))
    found = worth(tuple(match_labels(old_codes, new_codes, new_rows, old_rows)[0]))
    assert found[0] == best[0]
    assert found[1] == pytest.approx(best[1], abs=1e-6)


def test_unknown_items_do_not_count() -> None:
    rows = np.zeros((1, 2, 1), np.float32)
    rows[0, :, 0] = [0, 1]
    old = np.array([[1], [1], [0], [0], [0]], np.uint16)
    new = np.array([[1], [1], [1], [1], [1]], np.uint16)
    assert np.array_equal(match_labels(old, new, rows, rows), [[0, 1]])  # with the unknown ones, 1 would be called 0


def test_relabelled_and_encoded_anew_nothing_is_all_zero() -> None:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((2, 6, 2)).astype(np.float32) * np.array([1, 0.1], np.float32)[:, None, None]
    old = PlainQuantizer(rows)
    # Many vectors whose nearest codes are all zero.
    spread = generator.standard_normal((300, 2))
    vectors = np.concatenate([spread, rows[:, 0].sum(axis=0) + 1e-3 * spread]).astype(np.float32)
    exchange = random_labels(generator, 2, 6)
    new = PlainQuantizer(rows_under(exchange, old.codebooks_CVd))
    old_codes, new_codes = old.encode(vectors), new.encode(vectors)
    labels = match_labels(old_codes, new_codes, new.codebooks_CVd, old.codebooks_CVd)
    renamed = relabel(new, labels)
    assert isinstance(renamed, PlainQuantizer)
    assert np.array_equal(renamed.codebooks_CVd, rows_under(labels, new.codebooks_CVd))
    assert renamed.encode(vectors).any(axis=1).all()
    assert np.array_equal(renamed.encode(vectors), old_codes)
    # Why codes are made anew: the rule led other vectors away under the other labels.
    moved = relabel_codes(new_codes, labels)
    assert not np.array_equal(moved, old_codes)
    # And these are the only ones: nearest codes all zero under one set of labels or the other.
    nearest = np.array([_nearest(old, vector) for vector in vectors])
    led_away = ~nearest.any(axis=1) | ~np.array([_nearest(new, vector) for vector in vectors]).any(axis=1)
    assert np.array_equal(moved[~led_away], old_codes[~led_away])


def _nearest(quantizer: PlainQuantizer, vector: np.ndarray) -> list[int]:
    """Greedy codes without the rule."""
    rest, codes = vector.astype(np.float64), []
    for rows in quantizer.codebooks_CVd:
        codes.append(int(np.argmin(((rest - rows) ** 2).sum(axis=1))))
        rest = rest - rows[codes[-1]]
    return codes


def test_other_shapes_and_too_many_codes_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        check_matchable(np.zeros((4, 256, 8), np.float32), np.zeros((3, 512, 8), np.float32))
    assert len(caught.value.faults) == 2
    assert "has 4 code levels and this fit has 3" in caught.value.faults[0]
    assert "set codes=256" in caught.value.faults[1]
    large = np.zeros((1, MOST_CODES + 1, 1), np.float32)
    with pytest.raises(InputError, match=f"at most {MOST_CODES} codes"):
        check_matchable(large, large)
    with pytest.raises(InputError, match="leave out refit_of"):
        match_labels(np.ones((1, 1), np.uint16), np.ones((1, 1), np.uint16), np.ones((1, 2, 1)), np.ones((1, 3, 1)))


def test_items_of_both_lists() -> None:
    old = pa.array(["a", "b", "c", "d"])
    new = pa.array(["d", "x", "b", "a", "y"])
    old_places, new_places = common_items(old, new)
    assert (old_places.tolist(), new_places.tolist()) == ([3, 1, 0], [0, 2, 3])
    assert [len(places) for places in common_items(old, pa.array([], pa.string()))] == [0, 0]


@given(st.integers(1, 4), st.integers(0, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_what_changed_item_by_item(levels: int, items: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    old = generator.integers(0, 3, (items, levels)).astype(np.uint16)
    new = np.where(generator.random((items, levels)) < 0.3, generator.integers(0, 3, (items, levels)), old)
    new = new.astype(np.uint16)
    figures = changed(old, new)
    pairs = [(a, b) for a, b in zip(old.tolist(), new.tolist(), strict=True) if any(a) and any(b)]
    assert figures["items"] == items
    assert figures["known_in_both"] == len(pairs)
    assert figures["became_known"] == sum(not any(a) and any(b) for a, b in zip(old, new, strict=True))
    assert figures["became_unknown"] == sum(any(a) and not any(b) for a, b in zip(old, new, strict=True))
    assert figures["changed"] == sum(a != b for a, b in pairs)
    assert figures["changed_share"] == figures["changed"] / max(len(pairs), 1)
    for level, row in enumerate(figures["levels"]):
        assert row["changed"] == sum(a[level] != b[level] for a, b in pairs)
        assert row["prefix_changed"] == sum(a[: level + 1] != b[: level + 1] for a, b in pairs)
    assert figures["levels"][-1]["prefix_changed"] == figures["changed"]
    assert len(format_changed(figures).splitlines()) == levels + 2
    assert [len(row) for row in changed_rows(figures)] == [4] * (levels + 4)


def test_the_changes_are_told() -> None:
    old = np.array([[1, 1], [1, 2], [2, 2], [0, 0]], np.uint16)
    new = np.array([[1, 1], [1, 3], [0, 0], [2, 2]], np.uint16)
    text = format_changed(changed(old, new))
    assert text.splitlines()[2].split() == ["2", "50.00%", "50.00%"]
    assert "1 of 2 items known before and now have another tuple (50.00%); 1 became known, 1 unknown" in text
