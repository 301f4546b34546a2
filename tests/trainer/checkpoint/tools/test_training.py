"""A run goes on from a compacted checkpoint as it would have gone on from the chain."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from serving.checkpoints.chain import Checkpoints
from serving.checkpoints.manifest import DELTA
from serving.checkpoints.model import run_storage
from serving.checkpoints.restore import open_chain
from sharding.tables import TableShard
from tests.conftest import Prepared
from tests.trainer.test_train import SMALL
from trainer.checkpoint.__main__ import main
from trainer.train import main as train

KEYS = ["checkpoint.every=2", "checkpoint.chain_share=1000", "checkpoint.keep=3"]


def whole_state(run: Path) -> dict[str, Tensor]:
    """All that the newest checkpoint restores: tables with their optimizer's accumulators, dense, random states."""
    storage = run_storage(run)
    chain, passed = Checkpoints(storage).newest_whole_chain()
    assert passed == []
    state: dict[str, Tensor] = {}
    with open_chain(storage, chain) as reader:
        for table, (rows, width) in reader.manifest.tables.items():
            whole = TableShard(table, rows, width, 0, 0, torch.empty(rows, width), {"momentum1": torch.empty(rows)})
            reader.fill([whole])
            state |= {f"{table}.values": whole.weight_RD, f"{table}.momentum1": whole.states["momentum1"]}
        return state | reader.dense() | reader.random(0)


def test_a_run_goes_on_from_a_compacted_checkpoint_bit_for_bit(prepared: Prepared, tmp_path: Path) -> None:
    found = {}
    for name in ("chain", "compacted"):
        run = tmp_path / name
        arguments = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={run}", *SMALL, *KEYS]
        assert train([*arguments, "max_steps=7"]) == 0
        if name == "compacted":
            newest = Checkpoints(run_storage(run)).links()[-1]
            assert newest.manifest.kind == DELTA
            assert main(["compact", str(run), "--prune"]) == 0
            assert Checkpoints(run_storage(run)).whole_chain(newest.name)[0].name == newest.name
        assert train([*arguments, "resume=true"]) == 0
        assert main(["verify", str(run)]) == 0
        found[name] = whole_state(run)
    assert found["chain"].keys() == found["compacted"].keys()
    for name, value in found["chain"].items():
        assert torch.equal(value, found["compacted"][name]), name
