"""Ranking models one candidate at a time behind kept histories, against their own forward over lone windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import InputError
from data.batches import EventColumns
from data.examples import Tokens
from data.ranking.actions import num_actions
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import FORMS, ActionsConfig
from data.ranking.tasks import Labels
from model.config import AttentionConfig, BiasConfig, HeadsConfig, ModelConfig, Vocabulary
from model.embeddings import build_embeddings
from model.recommender import Recommender
from serving.kv_cache import UserEvents
from serving.mfalcon import MFalcon
from serving.ranking_tokens import RankingTokens
from tests.serving.test_mfalcon import ARTISTS, CODES, FEATURES, ITEMS, KINDS, LEVELS, close, drawn

ACTIONS = ActionsConfig(tasks=["like: event_type is 1", "played: played_ratio / 100"], played_buckets=3)


def make(form: str, kind: str, clock: str) -> Recommender:
    torch.manual_seed(1)
    cfg = ModelConfig(
        width=12,
        heads=2,
        head_dim_qk=6,
        head_dim_v=4,
        qr_remainders=4,
        max_history=9,
        places=True,
        attention=AttentionConfig(kind=kind),
        biases=BiasConfig(position=True, time_reference=clock),
        output=HeadsConfig(kind="actions", actions=dataclasses.replace(ACTIONS, form=form)),
    )
    vocabulary = Vocabulary(LEVELS, CODES, ARTISTS, num_actions(KINDS, 3, True), ITEMS)
    model = Recommender(cfg, build_embeddings(cfg, vocabulary, 0, torch.device("cpu")), vocabulary).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def with_played(events: UserEvents, seed: int) -> UserEvents:
    return dataclasses.replace(events, played=np.random.default_rng(seed).integers(0, 130, len(events)))


@torch.no_grad()
def lone(model: Recommender, history: UserEvents, candidate: UserEvents) -> Tensor:
    """The oracle: what `Recommender.predict` says of the last target of a window, [K]."""
    events = history + candidate
    columns = EventColumns(np.array([0, len(events)]), *(np.asarray(column) for column in events.columns))
    at_n = np.arange(len(history))
    actions = model.tower.cfg.output.actions
    maker = RankingBatchMaker(columns, FEATURES, actions, Labels((), (), True), distinct=False)
    places = Tokens(at_n, at_n + 1, None, np.array([0, len(history)]), None)
    predicted, _ = model.predict(maker.make(places, np.zeros(1, np.int64), 2 * len(events), 1.0))
    return predicted[-1]


@pytest.mark.parametrize("clock", ["next", "current"])
@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_predictions_of_lone_windows(form: str, kind: str, clock: str) -> None:
    """Histories of several lengths, one beyond the window, read in two pieces."""
    model, time = make(form, kind, clock), 60_000
    falcon = MFalcon(model, FEATURES, KINDS, tokens=RankingTokens(model, FEATURES, has_played=True))
    users = [with_played(drawn(length, length), length) for length in (5, 1, 14, 9)]
    caches = falcon.extend(falcon.prepare([user[:3] for user in users]), [user[3:] for user in users])
    wanted = [with_played(drawn(count, 50 + count), 0) for count in (4, 1, 0, 3)]
    got = falcon.score(caches, wanted, time, microbatch=3)
    for user, own, scores in zip(users, wanted, got, strict=True):
        assert scores.shape == (len(own), 2)
        asked = dataclasses.replace(own, timestamps=np.full(len(own), time))
        for row in range(len(own)):
            close(scores[row], lone(model, user[max(0, len(user) - 9) :], asked[row : row + 1]))


def test_what_a_form_does_not_have_is_told() -> None:
    model = make("interactions", "silu", "next")
    falcon = MFalcon(model, FEATURES, KINDS, tokens=RankingTokens(model, FEATURES, has_played=True))
    caches = falcon.prepare([drawn(4, 1)])
    with pytest.raises(InputError, match="no token of this model"):
        falcon.states(caches, [[1]], 60_000)
    with pytest.raises(InputError, match="has no events"):
        falcon.score(falcon.prepare([UserEvents.none()]), [[1]], 60_000)
    appending = make("merged", "silu", "next")
    falcon = MFalcon(appending, FEATURES, KINDS, tokens=RankingTokens(appending, FEATURES, has_played=True))
    (scores,) = falcon.score(falcon.prepare([UserEvents.none()]), [[1, 2]], 60_000)
    assert torch.isfinite(scores).all()
