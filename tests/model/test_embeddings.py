from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ItemTableConfig, ModelConfig, Vocabulary
from model.embeddings import (
    BLOCK_ROWS,
    CODE_TABLE,
    CODEBOOK_NOISE,
    INITIAL_STD,
    ITEM_TABLE,
    add_items,
    build_embeddings,
    build_item_table,
    draw_rows,
    rows_from_codebooks,
    sum_features,
    table_configs,
    table_rows,
)
from model.hashing_config import HashingConfig

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
    plain, batch = batch_of(users, padding=3), batch_of(users, padding=3, distinct=True)
    x_LD = sum_features(ebc(batch.features), 6).index_select(0, batch.rows_L)
    expected = torch.zeros_like(x_LD)
    for name, jagged in plain.features.to_dict().items():
        table = ebc.embedding_bags[name].weight
        for token, ids in enumerate(jagged.to_dense()):
            expected[token] += table[ids].sum(dim=0)
    torch.testing.assert_close(x_LD, expected)
    assert torch.equal(x_LD[-3:], torch.zeros(3, 6))


def test_without_codes_the_last_table_with_bags_has_rows_for_every_rank() -> None:
    cfg = ModelConfig(items=ItemTableConfig(kind="vocabulary", only=True))
    vocabulary = Vocabulary(levels=2, codes=5, artists=0, event_types=1, items=9)
    assert list(table_rows(cfg, vocabulary).items()) == [
        ("artist_quotient", 1),
        ("event_type", 1),
        ("artist_remainder", 1024),
        ("item", 9),
    ]
    assert [table.name for table in table_configs(cfg, vocabulary)] == list(table_rows(cfg, vocabulary))[:-1]


def test_a_table_of_items_has_a_row_an_item_or_as_many_as_it_is_given(vocabulary) -> None:
    assert build_item_table(ModelConfig(), vocabulary, torch.device("meta")) is None
    for items, rows in (
        (ItemTableConfig(kind="vocabulary"), 50),
        (ItemTableConfig(kind="hashed", hashing=HashingConfig(rows=24, buckets=12)), 24),
    ):
        cfg = ModelConfig(width=6, items=items)
        assert table_rows(cfg, vocabulary)[ITEM_TABLE] == rows
        table = build_item_table(cfg, vocabulary, torch.device("cpu"), seed=3)
        assert torch.equal(table.embeddings[ITEM_TABLE].weight, draw_rows(3, ITEM_TABLE, 0, rows, 6, INITIAL_STD))


@pytest.mark.parametrize("distinct", [False, True])
def test_a_token_gets_its_items_row_and_padding_none(batch_of, users, distinct: bool, vocabulary) -> None:
    table = build_item_table(
        ModelConfig(width=6, items=ItemTableConfig(kind="vocabulary")), vocabulary, torch.device("cpu")
    )
    for padding in (0, 3):
        batch = batch_of(users, padding=padding, distinct=distinct)
        x_PD = torch.randn(len(batch.item_rows_P), 6)
        added_LD = (add_items(x_PD, table(batch.item_ids), batch.item_rows_P) - x_PD).index_select(0, batch.rows_L)
        items = [item for user in users for item, _ in user[:-1]]
        rows = table.embeddings[ITEM_TABLE].weight[items]
        torch.testing.assert_close(added_LD, torch.cat((rows, torch.zeros(padding, 6))), rtol=0, atol=1e-6)


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
