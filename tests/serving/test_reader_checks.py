"""What does not fit a model is refused, and what it would read otherwise has another fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from common.errors import InputError
from data.batches import ItemFeatures
from data.ranking.config import FORMS
from model.config import AttentionConfig
from serving.mfalcon import MFalcon
from serving.ranking_tokens import RankingTokens
from serving.token_makers import RetrievalTokens
from tests.serving.test_mfalcon import ARTISTS, FEATURES, ITEMS, KINDS, falcon_of, make
from tests.serving.test_ranking_tokens import VALUES
from tests.serving.test_ranking_tokens import falcon_of as ranking_falcon_of
from tests.serving.test_ranking_tokens import make as make_ranking

KEYS_N = torch.arange(ITEMS)


def ranking(has_played: bool = True, event_types: int = KINDS, series: Any = None) -> MFalcon:
    model = make_ranking("merged", "silu", "next", 5 if series else 0)
    tokens = RankingTokens(model, FEATURES, has_played=has_played, series=series)
    return MFalcon(model, FEATURES, event_types, tokens=tokens)


def with_features(name: str = "hstu", **changes: Any) -> MFalcon:
    return MFalcon(make(name), dataclasses.replace(FEATURES, **changes), KINDS)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: ranking(has_played=False), "has_played=False and 0 values of series make 3 rows.* trained with 15"),
        (lambda: ranking(event_types=9), "event_types=9, .* make 45 rows .* trained with 15"),
        (lambda: ranking(series=dataclasses.replace(VALUES, first=3)), "make 15 actions, and the rows .* begin at 3"),
        (lambda: MFalcon(make(), FEATURES, 9), "event_types=9, and the model was trained with 3"),
        (lambda: falcon_of(make_ranking("merged", "silu", "next")), r"output.kind=actions.*tokens=RankingTokens"),
        (lambda: RetrievalTokens(make_ranking("merged", "silu", "next"), FEATURES), "output.kind=actions"),
        (lambda: RankingTokens(make(), FEATURES, has_played=True), "output.kind=codes, .* leave `tokens` out"),
        (lambda: falcon_of(make(), tokens=RetrievalTokens(make(), FEATURES)), "made of another model"),
        (lambda: with_features(num_artists=ARTISTS + 1), "10 artists, and the model was trained with 9"),
        (lambda: with_features(qr_remainders=5), r"5 remainders of artists \(qr_remainders\), .* with 4"),
        (lambda: with_features(codes_per_level=6), "6 codes per level, and the model was trained with 5"),
        (lambda: with_features(codes_NC=FEATURES.codes_NC[:, :1]), "1 code levels, and the model was trained with 2"),
        (lambda: with_features("hstu-items", keys_N=KEYS_N), "have keys of items, and .*items.kind=vocabulary"),
    ],
)
def test_what_does_not_fit_is_told(build: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build()


def test_a_hashed_table_knows_items_by_keys() -> None:
    model = make("hstu-items")
    model.tower.cfg = dataclasses.replace(model.tower.cfg)
    model.tower.cfg.items = dataclasses.replace(model.tower.cfg.items, kind="hashed")
    with pytest.raises(InputError, match=r"have no keys of items, .* items\.kind=hashed.*keys=True"):
        falcon_of(model)


def test_a_newer_catalogue_needs_no_rows_of_its_own() -> None:
    longer = torch.cat((FEATURES.codes_NC, FEATURES.codes_NC[:3]))
    offsets = torch.cat((FEATURES.artist_offsets, FEATURES.artist_offsets[-1:].expand(3)))
    assert with_features(codes_NC=longer, artist_offsets=offsets).num_items == ITEMS + 3
    with pytest.raises(InputError, match="33 items, and the model was trained with 30"):
        with_features("hstu-items", codes_NC=longer, artist_offsets=offsets)


def test_a_fingerprint_is_of_all_that_states_come_from() -> None:
    def of(name: str = "hstu", features: ItemFeatures = FEATURES, seed: int = 1, **changes: Any) -> str:
        return MFalcon(make(name, seed, **changes), features, KINDS).fingerprint

    assert of() == of()
    artists = FEATURES.artist_values.roll(1)
    others = [
        of(seed=2),
        of(max_history=13),
        of(attention=AttentionConfig(soft_cap=3.0)),
        of(features=dataclasses.replace(FEATURES, codes_NC=FEATURES.codes_NC.roll(1, 0))),
        of(features=dataclasses.replace(FEATURES, artist_values=artists)),
        of(features=dataclasses.replace(FEATURES, keys_N=KEYS_N)),
    ]
    assert len({of(), *others}) == 1 + len(others)


@pytest.mark.parametrize("table", ["rq", "artist_quotient", "artist_remainder", "event_type", "item"])
def test_a_fingerprint_tells_tables(table: str) -> None:
    model = make("transformer++")
    before = falcon_of(model).fingerprint
    rows = [value for name, value in model.named_parameters() if f".{table}.weight" in name]
    assert len(rows) == 1
    with torch.no_grad():
        rows[0][1:] += 1.0
    assert falcon_of(model).fingerprint != before


def test_a_ranking_model_has_a_fingerprint_in_every_form() -> None:
    falcons = [ranking_falcon_of(make_ranking(form, "silu", "next", 5)) for form in FORMS]
    assert len({falcon.fingerprint for falcon in falcons}) == len(FORMS)
