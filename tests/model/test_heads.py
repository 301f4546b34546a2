from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import HeadsConfig, Vocabulary
from model.heads import CascadedHeads


def make(gated: bool, levels: int = 4) -> tuple[CascadedHeads, Tensor, Tensor]:
    torch.manual_seed(0)
    heads = CascadedHeads(HeadsConfig(gated=gated, logit_scale=3.0), 5, Vocabulary(levels, 6, 1, 1)).double()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    return heads, torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 6, (9, levels))


@pytest.mark.parametrize("gated", [True, False])
def test_forward_is_the_formula(gated: bool) -> None:
    heads, x, codes = make(gated)
    expected = torch.zeros(9, 4, 6, dtype=torch.float64)
    for token in range(9):
        for level in range(4):
            gate, shift = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
            for before in range(level):
                row = before * 6 + int(codes[token, before])
                shift += heads.shift[row]
                gate += heads.gate[row] if gated else 0.0
            state = x[token] * gate + shift
            expected[token, level] = 3.0 * heads.weight_CVD[level] @ state + heads.bias_CV[level]
    torch.testing.assert_close(heads(x, codes), expected)


@pytest.mark.parametrize("gated", [True, False])
def test_teacher_forced_equals_step_by_step(gated: bool) -> None:
    heads, x, codes = make(gated)
    steps = [heads.level_logits(x, codes[:, :level], level) for level in range(4)]
    assert torch.equal(heads(x, codes), torch.stack(steps, dim=1))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("levels", [1, 4])
def test_prefixes_made_longer_step_by_step_are_those_made_at_once(gated: bool, levels: int) -> None:
    """Three prefixes a vector, each longer by a code a level; then some of them again, in another order."""
    heads, x, _ = make(gated, levels)
    codes = torch.randint(0, 6, (27, levels))
    prefixes = heads.empty_prefixes(x)
    longer = torch.arange(9).repeat_interleave(3)  # of no codes there is one prefix a vector
    for level in range(levels):
        at_once = heads.level_logits(x.repeat_interleave(3, dim=0), codes[:, :level], level)
        logits = heads.state_logits(prefixes.state(x), level)
        torch.testing.assert_close(logits if level else logits.repeat_interleave(3, dim=0), at_once)
        prefixes = heads.extend(prefixes, longer, codes[:, level], level)
        longer = torch.arange(27)
    if levels > 1:
        order = torch.tensor([2, 0, 0])
        again = heads.extend(heads.empty_prefixes(x), order, codes[:3, 0], 0)
        expected = heads.level_logits(x[:1].expand(3, -1), codes[:3, :1], 1)
        shared = again.state(x[:1])  # three prefixes of one vector
        torch.testing.assert_close(heads.state_logits(shared, 1), expected)


def test_a_level_sees_earlier_codes_and_no_later_ones() -> None:
    heads, x, codes = make(gated=True)
    before = heads(x, codes)
    codes[:, 1] = (codes[:, 1] + 1) % 6
    changed = (before != heads(x, codes)).any(dim=(0, 2))
    assert changed.tolist() == [False, False, True, True]


def test_unused_tables_do_not_exist() -> None:
    heads, x, codes = make(gated=True, levels=1)
    assert heads.shift is None
    assert heads.gate is None
    assert heads(x, codes).shape == (9, 1, 6)
    assert make(gated=False)[0].gate is None
    for gated in (True, False):
        heads, x, codes = make(gated)
        heads(x, codes).square().sum().backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in heads.parameters())


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("levels", [1, 4])
def test_all_pairs_are_every_vector_after_every_prefix(gated: bool, levels: int) -> None:
    heads, x, codes = make(gated, levels)
    for level in range(levels):
        prefixes = codes[:5, :level]
        expected = torch.stack([heads.level_logits(row.expand(5, -1), prefixes, level) for row in x])
        torch.testing.assert_close(heads.all_pairs_logits(x, prefixes, level), expected)
