from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.ranking.config import FORMS, INTERACTIONS, INTERLEAVED, ActionsConfig
from model.heads_config import HeadsConfig
from model.task_heads import RAREST, TaskHeads

TASKS = ["like: event_type is like", "played: played_ratio / 100", "listened: played_ratio >= 50"]
NAN = math.nan


def make(form: str = INTERLEAVED, tasks: list[str] = TASKS, weights: tuple[float, ...] = ()) -> TaskHeads:
    torch.manual_seed(0)
    heads = TaskHeads(HeadsConfig(kind="actions", actions=ActionsConfig(form, list(tasks), list(weights), hidden=5)), 8)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return heads


def given(heads: TaskHeads, tokens: int = 6) -> tuple[Tensor, Tensor | None]:
    x_TD = F.normalize(torch.randn(tokens, 8), dim=1).requires_grad_()
    return x_TD, torch.randn(tokens, 8, requires_grad=True) if heads.meets_candidates else None


def task_by_task(heads: TaskHeads, x_TD: Tensor, candidates_TD: Tensor | None) -> Tensor:
    """The definition: a network a task."""
    x_TI = math.sqrt(8) * x_TD
    if candidates_TD is not None:
        x_TI = torch.cat((x_TI, candidates_TD, math.sqrt(8) * x_TD * candidates_TD), dim=1)
    logits = []
    for task in range(heads.levels):
        rows = slice(5 * task, 5 * task + 5)
        network = nn.Sequential(nn.Linear(x_TI.shape[1], 5), nn.SiLU(), nn.Linear(5, 1))
        for mine, theirs in zip(
            network.parameters(),
            (heads.inner.weight[rows], heads.inner.bias[rows], heads.outer_KW[task, None], heads.bias_K[task, None]),
            strict=True,
        ):
            mine.data = theirs.detach()
        logits.append(network(x_TI))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("form", FORMS)
def test_is_a_network_a_task(form: str) -> None:
    heads = make(form)
    inputs = given(heads)
    assert heads.levels == 3
    assert [task.name for task in heads.tasks] == ["like", "played", "listened"]
    torch.testing.assert_close(heads(*inputs), task_by_task(heads, *inputs))


def test_candidates_are_read_where_the_states_have_not_seen_them() -> None:
    assert [make(form).meets_candidates for form in FORMS] == [form == INTERACTIONS for form in FORMS]
    for form in FORMS:
        heads = make(form)
        x_TD, candidates_TD = given(heads)
        with pytest.raises(AssertionError, match="candidates are for form=interactions"):
            heads(x_TD, x_TD if candidates_TD is None else None)


def test_predictions_are_probabilities_and_values() -> None:
    logits_TK = torch.tensor([[0.0, -2.0, 1.0]])
    wanted = torch.tensor([[0.5, -2.0, 1 / (1 + math.exp(-1))]])
    torch.testing.assert_close(make().predictions(logits_TK), wanted)


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = make(weights=(2.0, 0.5, 1.0))
    logits_TK = torch.tensor([[0.0, 3.0, -1.0], [2.0, 1.0, 5.0], [-1.0, 0.0, 0.5]])
    monkeypatch.setattr(heads, "forward", lambda x_TD, candidates_TD: logits_TK)
    labels_TK = torch.tensor([[1.0, 1.0, 1.0], [1.0, NAN, NAN], [0.0, -0.5, NAN]])
    found = heads.loss(torch.zeros(3, 8), None, labels_TK)
    like = math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    played, listened = 4 + 0.25, math.log(1 + math.exp(1))
    torch.testing.assert_close(found.level_loss_sum_C, torch.tensor([like, played, listened]))
    torch.testing.assert_close(found.loss_sum, torch.tensor(2 * like + 0.5 * played + listened))
    assert found.level_correct_C.tolist() == [2, 0, 0]  # a logit of 0 is no prediction of a like
    assert found.level_correct_C.dtype == torch.int64


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_what_is_asked(form: str) -> None:
    heads = make(form, weights=(1.0, 2.0, 3.0))
    inputs = given(heads, 40)
    labels_TK = torch.where(torch.rand(40, 3) < 0.5, torch.rand(40, 3).round(), NAN)
    loss = heads.loss(*inputs, labels_TK)
    logits_TK = heads(*inputs)
    wanted = torch.zeros(())
    for row, task in (~labels_TK.isnan()).nonzero().tolist():
        logit, label = logits_TK[row, task], labels_TK[row, task]
        error = (logit - label) ** 2 if task == 1 else F.binary_cross_entropy(logit.sigmoid(), label)
        wanted = wanted + (1.0, 2.0, 3.0)[task] * error
    torch.testing.assert_close(loss.loss_sum, wanted)
    leaves = [*heads.parameters(), *(leaf for leaf in inputs if leaf is not None)]
    for ours, theirs in zip(
        torch.autograd.grad(loss.loss_sum, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [0, 4])
def test_nothing_asked_is_no_loss_and_a_gradient_of_zero(form: str, tokens: int) -> None:
    heads = make(form)
    loss = heads.loss(*given(heads, tokens), torch.full((tokens, 3), NAN))
    loss.loss_sum.backward()
    assert loss.loss_sum.item() == 0
    assert loss.level_loss_sum_C.tolist() == [0, 0, 0]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in heads.parameters())


def test_starts_near_one_half_and_without_preference() -> None:
    torch.manual_seed(0)
    heads = TaskHeads(HeadsConfig(kind="actions", actions=ActionsConfig(tasks=TASKS)), 64)
    logits_TK = heads(F.normalize(torch.randn(1000, 64), dim=1))
    assert logits_TK.abs().mean() < 0.5
    assert 0.05 < logits_TK.std() < 1


def test_predictions_begin_at_the_mean_label() -> None:
    heads = make()
    with torch.no_grad():
        heads.outer_KW.zero_()
    heads.start_from(torch.tensor([0.25, 3.5, 0.0]), torch.tensor([0.4, 2.0, 0.0]))
    x_TD, _ = given(heads)
    said_TK = heads.predictions(heads(x_TD))
    wanted_K = torch.tensor([0.25, 3.5, RAREST])  # never so sure that the first exception costs everything
    torch.testing.assert_close(said_TK, wanted_K.expand(6, 3))
    loss = heads.loss(x_TD, None, torch.tensor([[NAN, 5.5, NAN]] * 6))
    assert loss.level_loss_sum_C[1].item() == pytest.approx(6 * 1.0), "of one deviation, whatever the unit"


def test_labels_that_are_all_alike_are_measured_as_they_are() -> None:
    heads = make(tasks=["rating: event_type number"])
    heads.start_from(torch.tensor([4.0]), torch.tensor([0.0]))
    assert heads.deviation_K.tolist() == [1.0]
    assert heads.mean_K.tolist() == [4.0]
