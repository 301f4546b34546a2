from __future__ import annotations

import itertools
import math

import pytest
import torch

from model.config import AttentionConfig, BiasConfig, HeadsConfig, ItemTableConfig, ModelConfig, Vocabulary
from model.embeddings import build_embeddings, build_item_table
from model.recommender import Recommender

NO_BIASES = BiasConfig(alibi=False, time=False, duration=False, organic=False)
BASELINE = {"attention": AttentionConfig(kind="softmax", scale="sqrt"), "biases": NO_BIASES}
VARIANTS: dict[str, dict[str, object]] = {
    "hstu": {},
    "hstu-softmax": {"attention": AttentionConfig(kind="softmax")},
    "hstu-all": {
        "qk_norm": True,
        "residual_scale": True,
        "recompute": True,
        "dropout": 0.1,
        "attention": AttentionConfig(scale="sqrt", soft_cap=5.0, dropout=0.1),
        "biases": BiasConfig(alibi=False, position=True),
    },
    "hstu-items": {"items": ItemTableConfig(kind="vocabulary")},
    "hstu-only-items": {"items": ItemTableConfig(kind="vocabulary", only=True)},
    "sasrec": {"architecture": "sasrec", **BASELINE},
    "transformer++": {"architecture": "transformer++", "qk_norm": True, "residual_scale": True, **BASELINE},
}


def make(vocabulary: Vocabulary, **changes: object) -> Recommender:
    torch.manual_seed(0)
    settings = {"width": 16, "heads": 2, "head_dim_qk": 8, "head_dim_v": 8, "qr_remainders": 8, "max_history": 30}
    cfg = ModelConfig(**{**settings, "dropout": 0.0, "input_dropout": 0.0, **changes})
    device = torch.device("cpu")
    items = build_item_table(cfg, vocabulary, device)
    return Recommender(cfg, build_embeddings(cfg, vocabulary, 0, device), vocabulary, items)


def test_loss_is_the_weighted_sum_of_its_levels(batch_of, users, vocabulary) -> None:
    batch = batch_of(users, padding=4)
    loss, output = make(vocabulary)(batch)
    assert output.num_targets.item() == 8 + 1 + 29 + 4
    torch.testing.assert_close(loss, output.level_loss_sum_C.sum() / 42)
    torch.testing.assert_close(output.level_loss_sum_C / 42, torch.full((3,), math.log(7)), atol=0.2, rtol=0)
    torch.testing.assert_close(output.hidden_LD[:42].norm(dim=1), torch.ones(42))
    assert not (output.hidden_LD.requires_grad)
    assert not (output.level_loss_sum_C.requires_grad)


def test_tokens_without_target_do_not_count(batch_of, users, vocabulary) -> None:
    model, batch = make(vocabulary), batch_of(users, padding=4)
    whole = model(batch)[1]
    batch.target_items_L[3], batch.target_codes_LC[3] = -1, -1
    fewer = model(batch)[1]
    assert (whole.num_targets - fewer.num_targets).item() == 1
    logits = model.tower.heads(whole.hidden_LD[3:4], batch_of(users).target_codes_LC[3:4])
    lost = -torch.log_softmax(logits, dim=2).gather(2, batch_of(users).target_codes_LC[3:4, :, None]).flatten()
    torch.testing.assert_close(whole.level_loss_sum_C - fewer.level_loss_sum_C, lost, atol=1e-4, rtol=1e-4)


def test_permuting_users_permutes_outputs(batch_of, users, vocabulary) -> None:
    model = make(vocabulary)
    with torch.no_grad():
        for block in model.tower.encoder.blocks:
            for table in block.biases.parameters():
                table.normal_()
    order = [3, 0, 4, 2, 1]
    first, second = batch_of(users, padding=2), batch_of([users[i] for i in order], padding=2)
    loss_a, out_a = model(first)
    loss_b, out_b = model(second)
    bounds = first.offsets.tolist()
    tokens = [t for i in order for t in range(bounds[i], bounds[i + 1])]
    torch.testing.assert_close(out_b.hidden_LD[:42], out_a.hidden_LD[tokens], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss_a, loss_b)
    assert torch.equal(out_a.level_correct_C, out_b.level_correct_C)


def test_an_unknown_artist_has_a_row_of_its_own(batch_of, users, vocabulary) -> None:
    """Item 3 has no artist; only tokens of such items, and what follows them, feel the reserved row."""
    model = make(vocabulary)
    batch = batch_of([[(1, 10), (3, 20), (4, 30), (5, 40)], [(1, 10), (2, 20), (4, 30)]])
    before = model.encode(batch)
    with torch.no_grad():
        model.ebc.embedding_bags["artist_quotient"].weight[-1].add_(torch.arange(16.0))
    changed = (before != model.encode(batch)).any(dim=1)
    assert changed.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("items", ["none", "vocabulary"])
@pytest.mark.parametrize("padding", [0, 5])
def test_tokens_that_share_bags_train_as_tokens_with_bags_of_their_own(
    batch_of, users, padding: int, items: str, vocabulary
) -> None:
    """Loss, states and every gradient, those of the tables too."""
    many = [*users, *users[::-1], [(7, 10)] * 6]
    found = []
    for distinct in (False, True):
        model = make(vocabulary, items=ItemTableConfig(kind=items))
        batch = batch_of(many, padding, distinct=distinct)
        loss, output = model(batch)
        loss.backward()
        found.append((loss, output.hidden_LD, {name: p.grad for name, p in model.named_parameters()}))
    (loss, hidden_LD, gradients), (shared_loss, shared_hidden_LD, shared_gradients) = found
    assert torch.equal(shared_hidden_LD, hidden_LD)
    assert torch.equal(shared_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, rtol=1e-4, atol=1e-8)


NAMES = ("alibi", "time", "duration", "organic")
SWITCHES = [dict(zip(NAMES, on, strict=True)) for on in itertools.product((True, False), repeat=4)]


@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_no_configuration_has_an_unused_parameter(batch_of, users, kind: str, vocabulary) -> None:
    """DistributedDataParallel waits for every parameter's gradient, also on a rank whose batch is all padding."""
    one_level = Vocabulary(levels=1, codes=7, artists=20, event_types=4)
    for switches, gated in itertools.product(SWITCHES, (True, False)):
        model = make(
            vocabulary,
            attention=AttentionConfig(kind=kind),
            biases=BiasConfig(**switches),
            output=HeadsConfig(gated=gated),
        )
        for batch in (batch_of(users, padding=2), batch_of([[], []], padding=5, distinct=True)):
            model.zero_grad(set_to_none=True)
            model(batch)[0].backward()
            assert [name for name, p in model.named_parameters() if p.grad is None] == []
    single = make(one_level)
    batch = batch_of(users)
    batch.target_codes_LC = batch.target_codes_LC[:, :1]
    single.ebc = make(vocabulary).ebc
    single(batch)[0].backward()
    assert [name for name, p in single.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_has_an_unused_parameter(batch_of, users, name: str, vocabulary) -> None:
    model = make(vocabulary, **VARIANTS[name])
    for batch in (batch_of(users, padding=2, distinct=True), batch_of([[], []], padding=5, distinct=True)):
        model.zero_grad(set_to_none=True)
        model(batch)[0].backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_later_events_change_no_earlier_state(batch_of, users, name: str, vocabulary) -> None:
    """From a user's list of events to the state that the heads see."""
    model = make(vocabulary, **VARIANTS[name]).eval()
    long = [user for user in users if len(user) > 4]
    short = [user[:4] for user in long]
    whole, cut = model.encode(batch_of(long)), model.encode(batch_of(short, padding=7))
    starts = batch_of(long).offsets[:-1]
    kept = (starts[:, None] + torch.arange(3)).flatten()
    torch.testing.assert_close(whole[kept], cut[: len(kept)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "transformer++"])
def test_a_baseline_feels_the_order_of_events(batch_of, name: str, vocabulary) -> None:
    """Without a way to tell places, the last event of one block would see the others as a set."""
    model = make(vocabulary, **VARIANTS[name], blocks=1).eval()
    states = [model.encode(batch_of([[(i, 10) for i in (*order, 7, 8)]]))[-1] for order in ((1, 2, 4), (4, 2, 1))]
    assert (states[0] - states[1]).abs().max() > 1e-4


@pytest.mark.parametrize("distinct", [False, True])
def test_a_batch_of_padding_has_no_loss_and_no_gradient(batch_of, distinct: bool, vocabulary) -> None:
    model = make(vocabulary)
    loss, output = model(batch_of([], padding=5, distinct=distinct))
    loss.backward()
    assert loss.item() == 0.0
    assert output.num_targets.item() == 0
    assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_learns_a_small_problem(batch_of, users, name: str, vocabulary) -> None:
    model, batch = make(vocabulary, **VARIANTS[name]), batch_of(users, padding=3)
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, output = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert (output.level_correct_C >= 38).all()
