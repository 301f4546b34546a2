"""How a model starts: from noise, or from the codebooks of its item codes."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig, Vocabulary
from model.embeddings import CODE_TABLE, INITIAL_STD, draw_rows, rows_from_codebooks
from serving.checkpoints.model import build_sharded
from sharding.apply import gather_table, sharded_tables
from sharding.world import open_world

CONFIG = ModelConfig(width=8, heads=2, head_dim_qk=4, head_dim_v=4)
VOCABULARY = Vocabulary(levels=3, codes=16, artists=5, event_types=2)
SEED = 3


def start(codebooks_CVd: Tensor | None) -> tuple[dict[str, Tensor | None], Tensor]:
    """Starting tables, whole, and the heads' code vectors."""
    with open_world() as world:
        model = build_sharded(CONFIG, VOCABULARY, world, seed=SEED, codebooks_CVd=codebooks_CVd)
        tables = {name: gather_table(table, world) for name, table in sharded_tables(model).items()}
        return tables, model.module.tower.heads.weight_CVD.detach().clone()


def test_code_table_and_heads_start_from_the_codebooks_and_nothing_else_does() -> None:
    codebooks_CVd = torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(0))
    noise_RD = draw_rows(SEED, CODE_TABLE, 0, 48, 8, INITIAL_STD)
    expected_RD = rows_from_codebooks(codebooks_CVd, 8, noise_RD)
    tables, weight_CVD = start(codebooks_CVd)
    random_tables, random_weight_CVD = start(None)
    assert torch.equal(tables[CODE_TABLE], expected_RD)
    assert torch.equal(weight_CVD.view(48, 8), expected_RD)
    assert torch.equal(random_tables[CODE_TABLE], noise_RD)
    assert not torch.equal(random_weight_CVD, weight_CVD)
    for name in tables.keys() - {CODE_TABLE}:
        assert torch.equal(tables[name], random_tables[name])
