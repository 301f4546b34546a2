"""The softmax over a target and its negatives, against the same written out, and what it tends to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import InputError
from model import item_head
from model.config import HeadsConfig, ItemTableConfig, ModelConfig
from model.embeddings import build_embeddings, build_item_table
from model.item_head import ItemHead, sampled_softmax, unit_rows
from model.kernels.build import library, without_kernels
from model.losses import CascadeLoss
from model.recommender import Recommender

TAU = 0.3


@dataclass
class Case:
    """Targets of some groups; hits, repeated negatives and items that nobody asks for are among them."""

    x_TD: Tensor
    rows_dD: Tensor
    positives_T: Tensor
    negatives_GM: Tensor
    groups_T: Tensor
    offsets_d: Tensor | None

    @staticmethod
    def draw(tokens: int, per: str, *, offsets: bool, items: int = 9, negatives: int = 6, seed: int = 0) -> Case:
        generator = torch.Generator().manual_seed(seed)
        groups_T = torch.arange(tokens) if per == "target" else torch.arange(tokens) * 3 // max(tokens, 1)
        groups = int(groups_T[-1]) + 1 if tokens else 0
        return Case(
            F.normalize(torch.randn(tokens, 5, dtype=torch.float64, generator=generator), dim=1).requires_grad_(),
            torch.randn(items, 5, dtype=torch.float64, generator=generator).requires_grad_(),
            torch.randint(0, items, (tokens,), generator=generator),
            torch.randint(0, items - 1, (groups, negatives), generator=generator),
            groups_T,
            torch.randn(items, dtype=torch.float64, generator=generator) if offsets else None,
        )

    def loss(self, chunk_tokens: int = 4) -> CascadeLoss:
        return sampled_softmax(
            self.x_TD,
            self.rows_dD,
            self.positives_T,
            self.negatives_GM,
            self.groups_T,
            temperature=TAU,
            chunk_tokens=chunk_tokens,
            offsets_d=self.offsets_d,
        )

    def obvious(self) -> tuple[Tensor, Tensor]:
        """Loss and hits of each target."""
        unit_dD = F.normalize(self.rows_dD, dim=1, eps=1e-6)
        negatives_TM = self.negatives_GM[self.groups_T]
        scores_TJ = torch.einsum(
            "td,tjd->tj", self.x_TD, unit_dD[torch.cat([self.positives_T[:, None], negatives_TM], dim=1)]
        )
        masked_TJ = F.pad(negatives_TM == self.positives_T[:, None], (1, 0))
        logits_TJ = (scores_TJ / TAU).masked_fill(masked_TJ, -torch.inf)
        hits_T = logits_TJ[:, 0] >= logits_TJ[:, 1:].amax(dim=1)
        if self.offsets_d is not None:
            logits_TJ = logits_TJ + F.pad(self.offsets_d[negatives_TM], (1, 0))
        nought_T = torch.zeros(len(logits_TJ), dtype=torch.int64)
        return F.cross_entropy(logits_TJ, nought_T, reduction="none"), hits_T


@pytest.fixture(params=["bin", "gathered", "picked"])
def per(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to the negatives; a block of copied rows is of two tokens."""
    monkeypatch.setattr(item_head, "ITEMS_PER_NEGATIVE", 0 if request.param == "gathered" else 100)
    monkeypatch.setattr(item_head, "BLOCK_NUMBERS", 2 * 6 * 5)
    return "bin" if request.param == "bin" else "target"


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 4, 13])
def test_chunks_equal_the_obvious_in_value_and_gradient(per: str, tokens: int, offsets: bool) -> None:
    case = Case.draw(tokens, per, offsets=offsets, seed=tokens)
    leaves = [case.x_TD, case.rows_dD]
    loss_T, hits_T = case.obvious()
    expected = torch.autograd.grad(loss_T.sum() * 0.3, leaves)
    for chunk in (1, 4, 100):
        found = case.loss(chunk)
        torch.testing.assert_close(found.loss_sum, loss_T.sum())
        torch.testing.assert_close(found.level_loss_sum_C, loss_T.sum()[None])
        assert found.level_correct_C.tolist() == [int(hits_T.sum())]
        for want, have in zip(expected, torch.autograd.grad(found.loss_sum * 0.3, leaves), strict=True):
            torch.testing.assert_close(have, want)
        with torch.no_grad():
            assert torch.equal(case.loss(chunk).loss_sum, found.loss_sum)


def test_gradients_are_those_of_differences(per: str) -> None:
    case = Case.draw(5, per, offsets=True)
    constants = (case.positives_T, case.negatives_GM, case.groups_T, case.offsets_d, 1 / TAU, 2, True)
    unit_dD = unit_rows(case.rows_dD).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x_TD, unit: item_head._SampledSoftmax.apply(x_TD, unit, *constants)[0], (case.x_TD, unit_dD)
    )


def test_all_items_as_negatives_are_the_softmax_over_the_catalogue() -> None:
    case = Case.draw(7, "target", offsets=False)
    case.groups_T, case.negatives_GM = torch.zeros(7, dtype=torch.int64), torch.arange(9)[None]
    logits_TN = case.x_TD @ F.normalize(case.rows_dD, dim=1).T / TAU
    expected = F.cross_entropy(logits_TN, case.positives_T, reduction="sum")
    found = case.loss()
    torch.testing.assert_close(found.loss_sum, expected)
    assert found.level_correct_C.item() == (logits_TN.argmax(dim=1) == case.positives_T).sum()
    leaves = [case.x_TD, case.rows_dD]
    for want, have in zip(
        torch.autograd.grad(expected, leaves), torch.autograd.grad(found.loss_sum, leaves), strict=True
    ):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("correct", [True, False])
def test_many_weighed_negatives_tend_to_the_softmax_and_others_do_not(correct: bool) -> None:
    """Draws by plays: with weights, 16 times as many quarter the distance of the gradient; without, nothing does."""
    generator = torch.Generator().manual_seed(0)
    items, width, tokens = 40, 4, 16
    rows_dD = torch.randn(items, width, dtype=torch.float64, generator=generator).requires_grad_()
    x_TD = F.normalize(torch.randn(tokens, width, dtype=torch.float64, generator=generator), dim=1)
    positives_T = torch.randint(0, items, (tokens,), generator=generator)
    q_d = (1.0 / torch.arange(1, items + 1, dtype=torch.float64)) / sum(1 / k for k in range(1, items + 1))
    whole = F.cross_entropy(x_TD @ F.normalize(rows_dD, dim=1).T / TAU, positives_T, reduction="sum")
    wanted = torch.autograd.grad(whole, rows_dD)[0]
    distances = []
    for count in (500, 8_000, 128_000):
        drawn_GM = torch.multinomial(q_d.expand(4, -1), count, replacement=True, generator=generator)
        found = sampled_softmax(
            x_TD,
            rows_dD,
            positives_T,
            drawn_GM,
            torch.arange(tokens) // 4,
            temperature=TAU,
            chunk_tokens=16,
            offsets_d=-torch.log(count * q_d) if correct else None,
        )
        distances.append(((torch.autograd.grad(found.loss_sum, rows_dD)[0] - wanted).norm() / wanted.norm()).item())
    if correct:
        assert distances[0] > 2 * distances[1] > 4 * distances[2]
        assert distances[2] < 0.01
    else:
        assert min(distances) > 0.1


def test_hopeless_scores_give_a_finite_loss_and_a_lone_target_none() -> None:
    x_TD, rows_dD = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    ways: dict[str, Any] = {"temperature": 1e-3, "chunk_tokens": 8}
    nought = torch.tensor([0])
    worst = sampled_softmax(x_TD, rows_dD, nought, torch.tensor([[1, 1]]), nought, **ways)
    assert worst.loss_sum.item() == pytest.approx(2000 + math.log(2))
    alone = sampled_softmax(x_TD, rows_dD, nought, torch.tensor([[0, 0]]), nought, **ways)
    assert (alone.loss_sum.item(), alone.level_correct_C.item()) == (0.0, 1)
    (worst.loss_sum + alone.loss_sum).backward()
    assert torch.isfinite(x_TD.grad).all()


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("missing", [True, False])
def test_every_row_once_is_the_softmax_over_all(offsets: bool, missing: bool) -> None:
    """In any order; with one row twice in the place of another it is no longer, and offsets make it another loss."""
    torch.manual_seed(0)
    x_TD, rows_dD = F.normalize(torch.randn(40, 8)), torch.randn(30, 8)
    everything_1M = torch.randperm(30)[None]
    if missing:
        everything_1M[0, 3] = everything_1M[0, 4]
    positives_T, group_T = torch.randint(0, 30, (40,)), torch.zeros(40, dtype=torch.int64)
    offsets_d = torch.randn(30) if offsets else None

    def run() -> list[Tensor]:
        x, rows = x_TD.clone().requires_grad_(), rows_dD.clone().requires_grad_()
        found = sampled_softmax(
            x, rows, positives_T, everything_1M, group_T, temperature=0.2, chunk_tokens=16, offsets_d=offsets_d
        )
        found.loss_sum.backward()
        assert x.grad is not None
        assert rows.grad is not None
        return [found.loss_sum.detach(), found.level_correct_C, x.grad, rows.grad]

    by_kernels = run()
    with without_kernels():
        for got, want in zip(by_kernels, run(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if not offsets and not missing:
        logits = x_TD @ F.normalize(rows_dD).T / 0.2
        torch.testing.assert_close(by_kernels[0], F.cross_entropy(logits, positives_T, reduction="sum"))


def test_a_row_of_zeros_has_no_direction_and_harms_nobody() -> None:
    rows_dD = torch.zeros(3, 4, requires_grad=True)
    nought = torch.tensor([0])
    loss = sampled_softmax(
        torch.ones(1, 4) / 2, rows_dD, nought, torch.tensor([[1, 2]]), nought, temperature=0.05, chunk_tokens=8
    ).loss_sum
    assert loss.item() == pytest.approx(math.log(3))
    loss.backward()
    assert torch.isfinite(rows_dD.grad).all()


def blocks(tokens: int) -> int:
    """How many blocks of logits there are at once: one a thread."""
    kernels = library()
    assert kernels is not None
    return min(torch.get_num_threads(), -(-tokens // kernels.segue_linear_loss_rows()))


def test_holds_one_chunk_at_most() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape[-1:] in ((400,), (401,)):
                largest = max(largest, out.numel())
            return out

    x_TD, rows_dD = torch.randn(300, 4, requires_grad=True), torch.randn(400, 4, requires_grad=True)
    group = torch.zeros(300, dtype=torch.int64)

    def lose() -> int:
        nonlocal largest
        largest = 0
        with Watch():
            sampled_softmax(
                x_TD, rows_dD, group, torch.arange(400)[None], group, temperature=0.05, chunk_tokens=32
            ).loss_sum.backward()
        return largest

    with without_kernels():
        assert lose() == 32 * 401
    kernels = library()
    if kernels is not None:
        assert lose() == blocks(300) * kernels.segue_linear_loss_rows() * 400


# ── in the model ─────────────────────────────────────────────────────────────────────────────────────────


def make(vocabulary, **changes: object) -> Recommender:
    torch.manual_seed(0)
    cfg = ModelConfig(
        width=16,
        heads=2,
        head_dim_qk=8,
        head_dim_v=8,
        qr_remainders=8,
        max_history=30,
        dropout=0.0,
        input_dropout=0.0,
        items=ItemTableConfig(kind="vocabulary"),
        output=HeadsConfig(kind="items"),
        **changes,
    )
    device = torch.device("cpu")
    items = build_item_table(cfg, vocabulary, device)
    return Recommender(cfg, build_embeddings(cfg, vocabulary, 0, device), vocabulary, items)


def with_negatives(batch: Any, negatives_GM: Tensor) -> Any:
    """Items of the batch's own as targets and negatives: its list of items becomes the catalogue."""
    targets_L = batch.target_items_L
    batch.item_ids = type(batch.item_ids)(
        keys=batch.item_ids.keys(), values=torch.arange(50), lengths=torch.tensor([50]), stride=1
    )
    batch.target_rows_L = torch.where(targets_L < 0, 50, targets_L)
    batch.negative_rows_GM, batch.negative_group_L = negatives_GM, torch.where(targets_L < 0, len(negatives_GM), 0)
    return batch


def test_the_loss_of_a_batch_is_that_of_its_targets(batch_of, users, vocabulary) -> None:
    model = make(vocabulary)
    batch = with_negatives(batch_of(users, padding=4), torch.arange(50)[None])
    loss, output = model(batch)
    rows_T = (batch.target_items_L >= 0).nonzero().flatten()
    table_ND = model.item_table.embeddings["item"].weight
    logits_TN = output.hidden_LD[rows_T] @ F.normalize(table_ND, dim=1).T / 0.05
    expected = F.cross_entropy(logits_TN, batch.target_items_L[rows_T], reduction="sum")
    assert output.num_targets.item() == len(rows_T) == 42
    torch.testing.assert_close(loss, expected * batch.loss_weight)
    torch.testing.assert_close(output.level_loss_sum_C, expected.detach()[None])
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.tower.parameters())
    assert (table_ND.grad != 0).any(dim=1).all(), "every item is a negative"
    assert not list(model.tower.heads.parameters())


def test_a_batch_without_negatives_gives_states_and_nothing_to_learn(batch_of, users, vocabulary) -> None:
    model = make(vocabulary).eval()
    batch = batch_of(users, padding=4)
    loss, output = model(batch)
    assert (loss.item(), output.num_targets.item()) == (0.0, 0)
    assert torch.equal(output.hidden_LD, model.encode(batch))
    assert output.level_correct_C.tolist() == [0]


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"kind": "items", "gated": False}, "gated=false means nothing with kind=items"),
        ({"kind": "items", "logit_scale": 5.0}, r"logit_scale=5\.0 means nothing with kind=items"),
        ({"temperature": 0.1}, r"temperature=0\.1 means nothing with kind=codes"),
        ({"kind": "items", "temperature": 0.0}, r"temperature=0\.0 makes scores infinite"),
    ],
)
def test_options_of_the_other_output_are_refused(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        HeadsConfig(**keys)


@pytest.mark.parametrize("kind", ["none", "hashed"])
def test_items_are_scored_by_rows_of_their_own(kind: str) -> None:
    with pytest.raises(InputError, match=f"items.kind is {kind}: set items.kind=vocabulary"):
        ModelConfig(items=ItemTableConfig(kind=kind), output=HeadsConfig(kind="items"))
    assert ItemHead(HeadsConfig(kind="items")).levels == 1
