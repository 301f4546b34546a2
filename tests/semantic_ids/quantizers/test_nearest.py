"""The short list in bfloat16 finds what exact distances find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_ids.quantizers.nearest import NearestRows, vectors_of_a_block


def exact_distances(vectors: torch.Tensor, codebook: torch.Tensor) -> np.ndarray:
    """[n, V] in float64."""
    return np.square(vectors.double().numpy()[:, None] - codebook.double().numpy()[None]).sum(axis=2)


def assert_nearest(found_n: torch.Tensor, vectors: torch.Tensor, codebook: torch.Tensor) -> None:
    """The found rows are the nearest; another may be named only where float32 cannot tell the two apart."""
    distances = exact_distances(vectors, codebook)
    chosen = distances[np.arange(len(vectors)), found_n.numpy()]
    scale = vectors.double().square().sum(1).numpy() + float(codebook.double().square().sum(1).max())
    assert (chosen <= distances.min(axis=1) + 2e-6 * scale).all()


CASES = st.fixed_dictionaries(
    {
        "n": st.integers(0, 40),
        "rows": st.sampled_from([1, 2, 15, 16, 17, 63, 256, 300, 1024]),
        "width": st.sampled_from([1, 3, 16, 33, 128]),
        "scale": st.sampled_from([1e-6, 1.0, 1e4]),
        "spread": st.sampled_from([0.0, 1e-3, 1.0]),
        "seed": st.integers(0, 10),
    }
)


def draw(n: int, rows: int, width: int, scale: float, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(width, generator=generator)
    # Rows of very different lengths, close to one another where `spread` is small, some of them twice.
    lengths = torch.rand(rows, 1, generator=generator) ** 4
    codebook = scale * (middle + spread * lengths * torch.randn(rows, width, generator=generator))
    codebook[rows // 2 :: 7] = codebook[0].clone()
    return scale * (middle + spread * torch.randn(n, width, generator=generator)), codebook


@settings(max_examples=150, deadline=None)
@given(case=CASES)
def test_the_short_list_holds_the_nearest_row(case):
    vectors, codebook = draw(**case)
    assert_nearest(NearestRows(codebook, short_list=True).nearest(vectors), vectors, codebook)
    assert_nearest(NearestRows(codebook, short_list=False).nearest(vectors), vectors, codebook)


def test_both_ways_name_the_same_rows():
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(5000, 64, generator=generator), torch.randn(512, 64, generator=generator)
    short, plain = (NearestRows(codebook, short_list=kind).nearest(vectors) for kind in (True, False))
    np.testing.assert_array_equal(short.numpy(), exact_distances(vectors, codebook).argmin(axis=1))
    np.testing.assert_array_equal(plain.numpy(), short.numpy())


def test_most_vectors_have_one_candidate():
    """Else the short list costs more than it saves."""
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(2000, 128, generator=generator), 0.3 * torch.randn(1024, 128, generator=generator)
    rows = NearestRows(codebook, short_list=True)
    candidates, _ = rows._candidates(vectors, None, 1)
    assert 2000 <= len(candidates) < 1.5 * 2000


def test_products_that_differ_by_less_than_their_rounding_are_told_apart():
    """Short vectors among long rows: scores are nearly alike, and far larger than what tells them apart."""
    generator = torch.Generator().manual_seed(0)
    codebook = 10 * torch.nn.functional.normalize(torch.randn(512, 16, generator=generator), dim=1)
    vectors = 0.05 * torch.randn(500, 16, generator=generator)
    found = NearestRows(codebook, short_list=True).nearest(vectors)
    np.testing.assert_array_equal(found, exact_distances(vectors, codebook).argmin(axis=1))


def test_of_equal_rows_the_lowest_is_named():
    codebook = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    codebook[[40, 200, 299]] = codebook[17].clone()
    found = NearestRows(codebook, short_list=True).nearest(codebook[[299, 200, 17, 5]])
    assert found.tolist() == [17, 17, 17, 5]


def test_a_row_does_not_depend_on_what_else_is_in_the_block():
    generator = torch.Generator().manual_seed(3)
    codebook = torch.randn(1024, 32, generator=generator) * torch.rand(1024, 1, generator=generator)
    vectors = torch.randn(3000, 32, generator=generator)
    rows = NearestRows(codebook, short_list=True)
    whole = rows.nearest(vectors)
    np.testing.assert_array_equal(torch.cat([rows.nearest(part) for part in vectors.split(7)]), whole)
    order = torch.randperm(3000, generator=generator)
    np.testing.assert_array_equal(rows.nearest(vectors[order]), whole[order])


@settings(max_examples=100, deadline=None)
@given(case=CASES, beams=st.integers(1, 4), width=st.integers(1, 9))
def test_best_continuations_are_those_of_all_pairs(case, beams, width):
    vectors, codebook = draw(**{**case, "n": case["n"] * beams})
    residuals = vectors.view(-1, beams, vectors.size(1))
    width = min(width, beams * len(codebook))
    distances = exact_distances(vectors, codebook).reshape(len(residuals), beams * len(codebook))
    nearest = np.sort(distances, axis=1)[:, :width]
    scale = vectors.double().square().sum(1).max().item() if len(vectors) else 0.0
    slack = 4e-6 * (scale + float(codebook.double().square().sum(1).max()))
    for short_list in (True, False):
        partial, row = NearestRows(codebook, short_list=short_list).best_continuations(residuals, width)
        pairs = (partial * len(codebook) + row).numpy()
        assert pairs.shape == (len(residuals), width)
        assert all(len(set(one)) == width for one in pairs.tolist()), "a pair came twice"
        found = np.sort(np.take_along_axis(distances, pairs, 1), axis=1)
        assert (np.abs(found - nearest) <= slack).all()


def test_many_equal_rows_do_not_fill_memory():
    """All rows alike: everything is a candidate, and the block is scored plainly."""
    codebook = torch.ones(1024, 4)
    rows = NearestRows(codebook, short_list=True)
    partial, row = rows.best_continuations(torch.ones(50, 2, 4), 3)
    np.testing.assert_array_equal(row.sort(dim=1).values, np.tile([0, 1, 2], (50, 1)))
    assert not partial.any()
    assert not rows.nearest(torch.ones(50, 4)).any()


@pytest.mark.parametrize(("codes", "beams"), [(2, 1), (1024, 1), (1024, 4), (65536, 8)])
def test_blocks_stay_in_the_cache(codes, beams):
    size = vectors_of_a_block(codes, beams)
    assert size >= 256
    assert size == 256 or 2 * size * codes * beams <= 4 << 20
