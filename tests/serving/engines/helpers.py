"""Small catalogues and heads, and the chain rule written out item by item.

B users · D width · C code levels · V codes per level · N items · d item vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from model.config import HeadsConfig, Vocabulary
from model.heads import CascadedHeads
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.code_table_files import Manifest
from serving.engines.base import Query

WIDTH = 6


def code_table(
    codes_NC: np.ndarray, codes_per_level: int, *, plays_N: np.ndarray | None = None, seed: int = 0, width: int = 4
) -> CodeTable:
    """A table in memory with random codebooks, finer from level to level as fitted ones are."""
    num_items, levels = codes_NC.shape
    random = np.random.default_rng(seed)
    codebooks = random.normal(size=(levels, codes_per_level, width)) * 0.5 ** np.arange(levels)[:, None, None]
    plays = random.integers(0, 4, num_items) if plays_N is None else plays_N
    manifest = Manifest("", 2, "", "", levels, codes_per_level, width, "", {}, "content", {}, {}, {}, {})
    codes = codes_NC.astype(np.uint16)
    return CodeTable(manifest, Path("nowhere"), codes, codebooks.astype(np.float32), plays.astype(np.int64))


def make_heads(levels: int, codes: int, *, gated: bool = True, seed: int = 0, sharpness: float = 1.0) -> CascadedHeads:
    torch.manual_seed(seed)
    heads = CascadedHeads(HeadsConfig(gated=gated, logit_scale=sharpness), WIDTH, Vocabulary(levels, codes, 1, 1))
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    return heads


def hidden(users: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(users, WIDTH, generator=generator), dim=1)


def query_of(hidden_BD: Tensor, seen: list[list[int]]) -> Query:
    rows = [row for row, items in enumerate(seen) for _ in items]
    items = [item for items in seen for item in items]
    return Query(hidden_BD, torch.tensor(rows, dtype=torch.int64), torch.tensor(items, dtype=torch.int64))


@torch.no_grad()
def log_probability(heads: CascadedHeads, x_D: Tensor, codes_C: np.ndarray) -> float:
    """Σ_l log p(code_l | user, codes before l), one level after another."""
    total = 0.0
    for level, code in enumerate(codes_C):
        prefix = torch.tensor(codes_C[None, :level], dtype=torch.int64)
        logits = heads.level_logits(x_D[None], prefix, level).double()
        total += float(torch.log_softmax(logits, dim=-1)[0, code])
    return total


def ranking(scores: dict[int, float], plays_N: np.ndarray, k: int, *, ties_within: float) -> list[int]:
    """The best k items; scores nearer than `ties_within` count as equal: more plays first, then the lower index."""
    steps = {item: round(score / ties_within) for item, score in scores.items()}
    return sorted(scores, key=lambda item: (-steps[item], -plays_N[item], item))[:k]


@dataclass(frozen=True)
class Case:
    """A drawn catalogue, heads and users."""

    table: CodeTable
    heads: CascadedHeads
    hidden_BD: Tensor
    seen: list[list[int]]

    @property
    def query(self) -> Query:
        return query_of(self.hidden_BD, self.seen)

    @property
    def known(self) -> list[int]:
        return np.flatnonzero(self.table.known_N).tolist()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Unknown items, shared tuples, one level, one item: all of them come up."""
    levels, codes = draw(st.integers(1, 3)), draw(st.sampled_from([2, 3, 8]))
    items, users = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    codes_NC = random.integers(0, codes, (items, levels))
    codes_NC[random.random(items) < draw(st.sampled_from([0.0, 0.3]))] = 0
    if not codes_NC.any():
        codes_NC[0, 0] = 1  # fitting refuses a catalogue without a known item
    seen = [random.integers(0, items, random.integers(0, items + 1)).tolist() for _ in range(users)]
    return Case(
        code_table(codes_NC, codes, seed=seed),
        make_heads(levels, codes, gated=draw(st.booleans()), seed=seed % 1000),
        hidden(users, seed % 1000),
        seen,
    )
