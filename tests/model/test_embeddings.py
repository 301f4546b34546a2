from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig, Vocabulary
from model.embeddings import (
    BLOCK_ROWS,
    CODE_TABLE,
    CODEBOOK_NOISE,
    INITIAL_STD,
    build_embeddings,
    draw_rows,
    rows_from_codebooks,
    sum_features,
    table_rows,
)

WHOLE = draw_rows(7, "rq", 0, 2 * BLOCK_ROWS + 100, 3, 0.5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
def test_rows_do_not_depend_on_the_slice(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    assert torch.equal(draw_rows(7, "rq", start, stop, 3, 0.5), WHOLE[start:stop])


def test_rows_depend_on_seed_table_and_block() -> None:
    assert abs(WHOLE.std().item() - 0.5) < 0.01
    assert abs(WHOLE.mean().item()) < 0.01
    assert not torch.equal(draw_rows(8, "rq", 0, 9, 3, 0.5), WHOLE[:9])
    assert not torch.equal(draw_rows(7, "event_type", 0, 9, 3, 0.5), WHOLE[:9])
    assert not torch.equal(WHOLE[:9], WHOLE[BLOCK_ROWS : BLOCK_ROWS + 9])


@pytest.mark.parametrize(
    ("artists", "quotients", "remainders"), [(0, 1, 1), (1, 2, 1), (5, 2, 5), (8, 2, 8), (9, 3, 8), (17, 4, 8)]
)
def test_artist_tables_have_a_row_for_the_unknown(artists: int, quotients: int, remainders: int) -> None:
    rows = table_rows(ModelConfig(qr_remainders=8), Vocabulary(levels=2, codes=5, artists=artists, event_types=3))
    assert rows == {"rq": 10, "artist_quotient": quotients, "artist_remainder": remainders, "event_type": 3}
    known = {artist // 8 for artist in range(artists)}
    assert quotients - 1 not in known
    assert all(quotient < quotients - 1 for quotient in known)


def test_pooling_sums_what_a_loop_would_sum(batch_of, users, vocabulary) -> None:
    cfg = ModelConfig(width=6, qr_remainders=8)
    ebc = build_embeddings(cfg, vocabulary, 1, torch.device("cpu"))
    batch = batch_of(users, padding=3)
    x_LD = sum_features(ebc(batch.features), 6)
    expected = torch.zeros_like(x_LD)
    for name, jagged in batch.features.to_dict().items():
        table = ebc.embedding_bags[name].weight
        for token, ids in enumerate(jagged.to_dense()):
            expected[token] += table[ids].sum(dim=0)
    torch.testing.assert_close(x_LD, expected)
    assert torch.equal(x_LD[-3:], torch.zeros(3, 6))


@pytest.mark.parametrize(("dimensions", "width"), [(12, 5), (5, 12), (7, 7)])
def test_rows_from_codebooks_keep_the_codebooks_geometry(dimensions: int, width: int) -> None:
    generator = torch.Generator().manual_seed(3)
    rank = min(dimensions, width)  # codebooks that lie in few directions lose nothing in projection
    codebooks_CVd = torch.randn(3, 16, rank, generator=generator) @ torch.randn(rank, dimensions, generator=generator)
    noise_RD = draw_rows(0, CODE_TABLE, 0, 48, width, INITIAL_STD)
    rows_CVD = (rows_from_codebooks(codebooks_CVd, width, noise_RD) - CODEBOOK_NOISE * noise_RD).view(3, 16, width)
    for level in range(3):
        distances = torch.cdist(rows_CVD[level].double(), rows_CVD[level].double())
        expected = torch.cdist(codebooks_CVd[level].double(), codebooks_CVd[level].double())
        torch.testing.assert_close(distances / distances.max(), expected / expected.max(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows_CVD[:, :, :rank].std(dim=(1, 2)), torch.full((3,), INITIAL_STD), rtol=1e-4, atol=0)


def test_rows_from_codebooks_do_not_depend_on_the_sign_of_singular_vectors() -> None:
    codebooks_CVd = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(4))
    noise_RD = draw_rows(0, CODE_TABLE, 0, 16, 4, INITIAL_STD)
    whole = torch.linalg.svd

    def flipped(*args: Any, **kwargs: Any) -> Any:
        u, s, vh = whole(*args, **kwargs)
        return SimpleNamespace(U=-u, S=s, Vh=-vh)

    expected = rows_from_codebooks(codebooks_CVd, 4, noise_RD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "svd", flipped)
        assert torch.equal(rows_from_codebooks(codebooks_CVd, 4, noise_RD), expected)


@pytest.mark.parametrize("added", [[False, False, True], [True, False, False], [True, True, True]])
def test_a_level_of_zeros_starts_from_usual_values_and_changes_no_other(added: list[bool]) -> None:
    codebooks_CVd = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(5))
    codebooks_CVd[added] = 0
    noise_RD = draw_rows(0, CODE_TABLE, 0, 48, 8, INITIAL_STD)
    rows_CVD = rows_from_codebooks(codebooks_CVd, 8, noise_RD).view(3, 16, 8)
    noise_CVD = noise_RD.view(3, 16, 8)
    assert torch.equal(rows_CVD[added], noise_CVD[added])
    others = [not each for each in added]
    if any(others):
        alone = rows_from_codebooks(codebooks_CVd[others], 8, noise_CVD[others].flatten(0, 1))
        torch.testing.assert_close(rows_CVD[others].flatten(0, 1), alone)
