"""Cascaded output heads: one distribution per code level, each knowing the codes chosen before it.

Shapes: T tokens · D width · C code levels · V codes per level · l codes of a prefix · X vectors · M prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import HeadsConfig, Vocabulary

INITIAL_STD = 0.02


@dataclass(frozen=True)
class Prefixes:
    """What the codes of prefixes have added up to, so that a search need not begin anew at each level: [T, D] each."""

    shift_TD: Tensor
    gate_TD: Tensor | None
    """1 + Σ G; None without gates."""

    def state(self, x_TD: Tensor) -> Tensor:
        """z after these prefixes; each vector is that of as many prefixes as there are to one, in their order."""
        x_T1D, shift_TbD = x_TD[:, None], self.shift_TD.view(len(x_TD), -1, x_TD.size(1))
        if self.gate_TD is None:
            return (x_T1D + shift_TbD).flatten(0, 1)
        return torch.addcmul(shift_TbD, x_T1D, self.gate_TD.view_as(shift_TbD)).flatten(0, 1)


class CascadedHeads(nn.Module):
    """logits of level l = s · W_l z_l + b_l, with z_l = x ⊙ (1 + Σ_{j<l} G_j[c_j]) + Σ_{j<l} P_j[c_j].

    x is L2-normalised, s is `cfg.logit_scale`. G starts at zero, so that the cascade is a plain shift at first;
    without `cfg.gated` it does not exist. The last level's code is a prefix of nothing and has no rows in G and P.
    """

    def __init__(self, cfg: HeadsConfig, width: int, vocabulary: Vocabulary) -> None:
        """Heads for hidden vectors of `width`."""
        super().__init__()
        self.scale, self.levels, self.codes = cfg.logit_scale, vocabulary.levels, vocabulary.codes
        prefix_rows = (self.levels - 1) * self.codes
        self.weight_CVD = nn.Parameter(torch.randn(self.levels, self.codes, width) * INITIAL_STD)
        self.bias_CV = nn.Parameter(torch.zeros(self.levels, self.codes))
        # Rows of all levels in one table: level j's begin at j·V.
        self.shift = nn.Parameter(torch.randn(prefix_rows, width) * INITIAL_STD) if prefix_rows else None
        self.gate = nn.Parameter(torch.zeros(prefix_rows, width)) if prefix_rows and cfg.gated else None

    def start_from(self, code_rows: Tensor) -> None:
        """Start each code's output vector from a row of [C·V, D], level l's codes from row l·V on."""
        with torch.no_grad():
            self.weight_CVD.copy_(code_rows.view_as(self.weight_CVD))

    def states(self, x_TD: Tensor, prefix_codes_Tl: Tensor) -> Iterator[Tensor]:
        """z_0 … z_l, each [T, D], for prefixes of l codes."""
        level_l = torch.arange(prefix_codes_Tl.shape[1], device=x_TD.device)
        rows_Tl = prefix_codes_Tl + level_l * self.codes
        shift, gate = torch.zeros_like(x_TD), torch.ones_like(x_TD)
        yield x_TD
        if self.shift is None or rows_Tl.shape[1] == 0:
            return
        for rows_T in rows_Tl.unbind(1):
            shift = shift + F.embedding(rows_T, self.shift)
            if self.gate is not None:
                gate = gate + F.embedding(rows_T, self.gate)
            yield torch.addcmul(shift, x_TD, gate)

    def forward(self, x_TD: Tensor, codes_TC: Tensor) -> Tensor:
        """Teacher-forced logits [T, C, V]: level l is given the true codes of the levels before it."""
        states = self.states(x_TD, codes_TC[:, : self.levels - 1])
        return torch.stack([self._logits(state, level) for level, state in enumerate(states)], dim=1)

    def level_logits(self, x_TD: Tensor, prefix_codes_Tl: Tensor, level: int) -> Tensor:
        """Logits [T, V] of one level after the given codes of all levels before it."""
        assert prefix_codes_Tl.shape[1] == level < self.levels, (prefix_codes_Tl.shape, level)
        *_, state = self.states(x_TD, prefix_codes_Tl)
        return self._logits(state, level)

    def empty_prefixes(self, x_TD: Tensor) -> Prefixes:
        """Prefixes of no codes, one a vector."""
        return Prefixes(torch.zeros_like(x_TD), None if self.gate is None else torch.ones_like(x_TD))

    def extend(self, prefixes: Prefixes, longer_T: Tensor, codes_T: Tensor, level: int) -> Prefixes:
        """Prefixes `longer_T`, any of them and any number of times, each with a code of `level` at its end."""
        shift_TD = prefixes.shift_TD.index_select(0, longer_T)
        gate_TD = None if prefixes.gate_TD is None else prefixes.gate_TD.index_select(0, longer_T)
        if self.shift is not None and level < self.levels - 1:
            rows_T = codes_T + level * self.codes
            shift_TD += F.embedding(rows_T, self.shift)
            if gate_TD is not None and self.gate is not None:
                gate_TD += F.embedding(rows_T, self.gate)
        return Prefixes(shift_TD, gate_TD)

    def state_logits(self, state_TD: Tensor, level: int, out: Tensor | None = None) -> Tensor:
        """Logits [T, V] of one level given z, which `Prefixes.state` makes. `out` needs `torch.no_grad`."""
        weight_DV = self.weight_CVD[level].T
        return torch.addmm(self.bias_CV[level], state_TD, weight_DV, alpha=self.scale, out=out)

    def all_pairs_logits(self, x_XD: Tensor, prefix_codes_Ml: Tensor, level: int) -> Tensor:
        """`level_logits` [X, M, V] of every vector after every prefix, without a copy of either for each pair."""
        assert prefix_codes_Ml.shape[1] == level < self.levels, (prefix_codes_Ml.shape, level)
        state_XMD = x_XD[:, None].expand(-1, len(prefix_codes_Ml), -1)
        if level and self.shift is not None:
            rows_Ml = prefix_codes_Ml + torch.arange(level, device=x_XD.device) * self.codes
            shift_MD = F.embedding(rows_Ml, self.shift).sum(1)
            if self.gate is None:
                state_XMD = state_XMD + shift_MD
            else:
                state_XMD = torch.addcmul(shift_MD, state_XMD, 1 + F.embedding(rows_Ml, self.gate).sum(1))
        logits_XMV: Tensor = self._logits(state_XMD.flatten(0, 1), level).unflatten(0, state_XMD.shape[:2])
        return logits_XMV

    def _logits(self, state_TD: Tensor, level: int) -> Tensor:
        return self.state_logits(state_TD, level)
