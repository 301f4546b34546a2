"""The whole model where its output are actions, in every form and architecture."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from data.ranking.config import FORMS, INTERACTIONS, MERGED, ActionsConfig
from model.biases import describe_tokens
from model.config import AttentionConfig, BiasConfig, HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from model.recommender import Recommender
from tests.model.conftest import action_of
from tests.model.test_recommender import VARIANTS
from tests.model.test_recommender import make as make_any

TASKS = ["like: event_type is like", "played: played_ratio / 100"]
NAMES = [*VARIANTS, "hstu-places"]
SETTINGS: dict[str, dict[str, Any]] = {**VARIANTS, "hstu-places": {"places": True, "dropout": 0.0}}
ALL = list(itertools.product(FORMS, NAMES))


def make(vocabulary: Vocabulary, form: str, name: str = "hstu", **changes: Any) -> Recommender:
    output = HeadsConfig(kind="actions", actions=ActionsConfig(form=form, tasks=list(TASKS), hidden=8))
    return make_any(vocabulary, **{**SETTINGS[name], "output": output, **changes})


@pytest.mark.parametrize("form", FORMS)
def test_loss_is_the_mean_of_what_is_asked(ranking_batch_of, users, form: str, vocabulary) -> None:
    model, batch = make(vocabulary, form), ranking_batch_of(users, form, padding=4)
    loss, output = model(batch)
    assert output.num_targets.item() == 8 + 1 + 29 + 4
    torch.testing.assert_close(loss, output.level_loss_sum_C.sum() / 42)
    predicted_TK, rows_T = model.predict(batch)
    labels_TK = batch.labels_LT[rows_T]
    like, played = (~labels_TK.isnan()).T
    assert 0 < like.sum() < 42
    assert 0 < played.sum() < 42
    said, was = predicted_TK[like, 0], labels_TK[like, 0]
    cross_entropy = -torch.where(was > 0, said, 1 - said).log().sum()
    squared = (predicted_TK[played, 1] - labels_TK[played, 1]).square().sum()
    torch.testing.assert_close(output.level_loss_sum_C, torch.stack([cross_entropy, squared]))
    assert output.level_correct_C.tolist() == [((said > 0.5) == (was > 0)).sum().item(), 0]


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_of_the_loss_alone(ranking_batch_of, users, form: str, vocabulary) -> None:
    batch = ranking_batch_of(users, form)
    output = HeadsConfig(kind="actions", actions=ActionsConfig(form, list(TASKS), [3.0, 0.5], hidden=8))
    (plain, said), (weighted, said_too) = make(vocabulary, form)(batch), make(vocabulary, form, output=output)(batch)
    assert torch.equal(said.level_loss_sum_C, said_too.level_loss_sum_C)
    torch.testing.assert_close(weighted, (said.level_loss_sum_C * torch.tensor([3.0, 0.5])).sum() / 42)
    assert weighted != plain


@pytest.mark.parametrize("form", FORMS)
def test_predictions_need_no_labels(ranking_batch_of, users, form: str, vocabulary) -> None:
    """One row for each token of which something is asked, whether or not it is known what happened."""
    model, batch = make(vocabulary, form), ranking_batch_of(users, form, padding=3)
    predicted_TK, rows_T = model.predict(batch)
    assert predicted_TK.shape == (42, 2)
    assert rows_T.tolist() == (batch.target_items_L >= 0).nonzero().flatten().tolist()
    assert ((predicted_TK[:, 0] > 0) & (predicted_TK[:, 0] < 1)).all()
    batch.labels_LT = None
    assert torch.equal(model.predict(batch)[0], predicted_TK)
    with pytest.raises(AssertionError, match="without labels"):
        model(batch)
    with pytest.raises(AssertionError, match="a model that predicts actions"):
        make_any(vocabulary).predict(ranking_batch_of(users, form))


@pytest.mark.parametrize("items", ["none", "vocabulary"])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_that_share_bags_train_as_tokens_with_bags_of_their_own(
    ranking_batch_of, users, form: str, items: str, vocabulary
) -> None:
    found = []
    for distinct in (False, True):
        model = make(vocabulary, form, items=ItemTableConfig(kind=items))
        loss, output = model(ranking_batch_of([*users, *users[::-1]], form, padding=5, distinct=distinct))
        loss.backward()
        found.append((loss, output.hidden_LD[:-5], {name: p.grad for name, p in model.named_parameters()}))
    (loss, hidden_LD, gradients), (shared_loss, shared_hidden_LD, shared_gradients) = found
    torch.testing.assert_close(shared_hidden_LD, hidden_LD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("form", "name"), ALL)
def test_no_variant_has_an_unused_parameter(ranking_batch_of, users, form: str, name: str, vocabulary) -> None:
    """Nor on a rank whose batch asks nothing: one of padding, or of events whose labels are all missing."""
    model = make(vocabulary, form, name)
    unasked = ranking_batch_of(users, form, padding=2, distinct=True)
    unasked.labels_LT.fill_(torch.nan)
    for batch in (
        ranking_batch_of(users, form, padding=2, distinct=True),
        ranking_batch_of([[], []], form, padding=5, distinct=True),
        unasked,
    ):
        model.zero_grad(set_to_none=True)
        model(batch)[0].backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("form", "name"), ALL)
def test_later_events_change_no_earlier_prediction(ranking_batch_of, users, form: str, name: str, vocabulary) -> None:
    model = make(vocabulary, form, name).eval()
    long = [user for user in users if len(user) > 4]
    whole, cut = (model.predict(ranking_batch_of(some, form))[0] for some in (long, [user[:4] for user in long]))
    starts = torch.tensor([0, *(len(user) - 1 for user in long)]).cumsum(0)[:-1]
    kept = (starts[:, None] + torch.arange(3)).flatten()
    torch.testing.assert_close(whole[kept], cut, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("form", "name"), ALL)
def test_a_prediction_knows_the_item_and_all_actions_before_but_not_its_own(
    ranking_batch_of, form: str, name: str, vocabulary
) -> None:
    user = [(item, 1000 + 60 * item) for item in (1, 2, 4, 5, 7, 8)]
    model = make(vocabulary, form, name).eval()

    def last(changed: int | None = None, last_item: int = 8) -> torch.Tensor:
        """The last prediction, with another action of one event."""
        events = [*user[:-1], (last_item, user[-1][1])]

        def action(item: int, seconds: int) -> int:
            return (action_of(item, seconds) + (changed is not None and seconds == events[changed][1])) % 4

        return model.predict(ranking_batch_of([events], form, action=action))[0][-1]

    assert torch.equal(last(changed=5), last())
    for earlier in range(5):
        assert not torch.equal(last(changed=earlier), last())
    assert (last(last_item=11) - last()).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["hstu", "sasrec", "transformer++"])
def test_a_candidate_feels_no_other(ranking_batch_of, users, name: str, vocabulary) -> None:
    """Form merged: candidates beside the history in training are predicted as one behind it, when it is asked about."""
    model = make(vocabulary, MERGED, name).eval()
    user = users[3][:9]
    together = model.predict(ranking_batch_of([user], MERGED))[0]
    for asked in range(1, 9):
        alone = ranking_batch_of([user[: asked + 1]], MERGED)
        kept = torch.ones(2 * asked, dtype=torch.bool)
        kept[1:-1:2] = False  # the other candidates
        for column in ("rows_L", "timestamps_L", "request_times_L", "durations_L", "organic_L", "target_items_L"):
            setattr(alone, column, getattr(alone, column)[kept])
        alone.alone_L, alone.offsets = alone.alone_L[kept], torch.tensor([0, asked + 1])
        torch.testing.assert_close(model.predict(alone)[0][0], together[asked - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_longest_window_has_the_most_tokens_and_places(ranking_batch_of, form: str) -> None:
    cfg = ModelConfig(
        max_history=6, output=HeadsConfig(kind="actions", actions=ActionsConfig(form=form, tasks=list(TASKS)))
    )
    batch = ranking_batch_of([[(i, 60 * i) for i in range(7)]], form)
    tokens = describe_tokens(
        BiasConfig(),
        batch.offsets,
        batch.timestamps_L,
        batch.request_times_L,
        batch.durations_L,
        batch.organic_L,
        batch.alone_L,
    )
    assert batch.offsets.tolist() == [0, cfg.max_tokens]
    assert tokens.positions_L.max() == cfg.max_places - 1


def test_places_and_the_fixed_n_are_those_of_the_form(vocabulary) -> None:
    for form, places in zip(FORMS, (61, 31, 30), strict=True):
        model = make(vocabulary, form, "hstu-places")
        assert model.tower.cfg.max_places == places
        assert model.tower.places.weight_PD.shape == (places, 16)
        block = model.tower.encoder.blocks[0]
        assert block.normaliser(torch.arange(3), torch.float32).tolist() == [places] * 3


@pytest.mark.parametrize("form", FORMS)
def test_candidates_are_scaled_like_the_input(ranking_batch_of, users, form: str, vocabulary) -> None:
    """Form interactions: e is the row that the encoder would be given; other forms have none to scale."""
    batch, seen = ranking_batch_of(users, form), []
    for scale in (True, False):
        model = make(vocabulary, form, scale_input=scale).eval()
        heads = model.tower.heads
        heads.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
        model.predict(batch)
    if form != INTERACTIONS:
        assert seen == [None, None]
        return
    torch.testing.assert_close(seen[0], 4 * seen[1])
    rows_PD = model.ebc(batch.features).values().view(-1, 4, 16).sum(dim=1)
    torch.testing.assert_close(seen[1], rows_PD[batch.candidate_rows_L[batch.target_items_L >= 0]])
    batch.candidate_rows_L = None
    with pytest.raises(AssertionError, match="without candidates"):
        model.predict(batch)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "float32") for name in ("hstu", "hstu-softmax", "sasrec", "transformer++")),
        *((name, "bf16") for name in ("hstu", "hstu-all", "transformer++")),
    ],
)
def test_learns_a_small_problem(ranking_batch_of, users, form: str, name: str, precision: str, vocabulary) -> None:
    model, batch = make(vocabulary, form, name, precision=precision), ranking_batch_of(users, form, padding=3)
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss, _output = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_the_dense_reference_predicts_alike(ranking_batch_of, users, name: str, vocabulary) -> None:
    for form in FORMS:
        found = []
        for backend in ("jagged", "dense"):
            kind = {"kind": "softmax", "scale": "sqrt"} if name == "sasrec" else {}
            model = make(vocabulary, form, name, attention=AttentionConfig(backend=backend, **kind))
            found.append(model.predict(ranking_batch_of(users, form, padding=2))[0])
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
