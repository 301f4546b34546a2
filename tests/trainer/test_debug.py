"""`debug=true` against faults planted in real trainings, and what a training without it does about them."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException
from torchrec.distributed import DistributedModelParallel

import model.hstu
import model.recommender
import trainer.train
from common.config import load_resolved
from common.native import SWITCH
from data.batches import ITEM_KEY
from model.kernels.build import without_kernels
from serving.checkpoints.manifest import step_folder
from sharding.tables import table_shards
from tests.conftest import Prepared
from tests.ranks import train_on_ranks
from tests.trainer.test_train import NO_DROPOUT, SMALL, losses, parameters, records, train_here
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[2]
BLOCK = "tower.encoder.blocks.1"

Change = Callable[[Any], Any]
"""What a module gives → what it gives instead."""


@pytest.fixture
def operators() -> Iterator[None]:
    """PyTorch's, by which a block is made of modules; by kernels it is one operation, and they are not called."""
    with without_kernels():
        yield


class InfiniteGradient(torch.autograd.Function):
    """Nothing in the forward; in the backward one row is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[3] = math.inf
        return gradient


def one_nan(x_LD: Tensor) -> Tensor:
    x_LD = x_LD.clone()
    x_LD[2, 1] = math.nan
    return x_LD


def plant(monkeypatch: pytest.MonkeyPatch, module: str, step: int, change: Change) -> list[DistributedModelParallel]:
    """Change what a module gives in one training step, counted from where the process begins; returns the models."""
    build, built = trainer.train.build_sharded, []

    def planted(*args: Any, **named: Any) -> DistributedModelParallel:
        whole = build(*args, **named)
        built.append(whole)
        calls = 0

        def change_at_step(of: nn.Module, _args: Any, given: Any) -> Any:
            nonlocal calls
            calls += of.training
            return change(given) if of.training and calls == step else None

        whole.module.get_submodule(module).register_forward_hook(change_at_step)
        return whole

    monkeypatch.setattr(trainer.train, "build_sharded", planted)
    return built


@pytest.mark.usefixtures("operators")
def test_a_module_whose_output_is_not_finite_is_named(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, f"{BLOCK}.output", 3, one_nan)
    assert train_here(prepared, tmp_path / "run", "debug=true") == 2
    message = capfd.readouterr().err
    for part in ("step 3", "rank 0", f"what `{BLOCK}.output` gives", "1 nan among its 3072 numbers"):
        assert part in message, message
    for part in ("optimizer.learning_rate", "max_steps=2", "resume=true", "batch.tokens=32"):
        assert part in message, message
    assert "Traceback" not in message
    assert [record["step"] for record in records(tmp_path / "run", "train")] == [1, 2]


@pytest.mark.usefixtures("operators")
def test_code_between_modules_is_named_by_the_module_that_it_is_of(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gather, begun = model.hstu.gather, list[Any]()

    def broken(*args: Any, **named: Any) -> Tensor:
        return gather(*args, **named) / (0 if begun else 1)

    plant(monkeypatch, f"{BLOCK}.biases", 3, begun.append)
    monkeypatch.setattr(model.hstu, "gather", broken)
    assert train_here(prepared, tmp_path / "run", "debug=true") == 2
    message = capfd.readouterr().err
    assert "step 3" in message
    assert f"what `{BLOCK}` gives" in message
    assert f"`{BLOCK}.biases` in it has given; the first in it to be given such numbers is `{BLOCK}.output`" in message


@pytest.mark.usefixtures("operators")
def test_a_backward_that_gives_what_is_not_finite_is_named_before_it_reaches_a_table(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    built = plant(monkeypatch, "tower.encoder.blocks.0.uvqk", 3, InfiniteGradient.apply)
    assert train_here(prepared, tmp_path / "run", "debug=true") == 2
    message = capfd.readouterr().err
    for part in ("step 3", "the backward of `tower.encoder.blocks.0.uvqk` in tests/trainer/", "64 inf among"):
        assert part in message, message
    assert "Error detected in" not in message, "autograd's own report hides ours"
    assert all(bool(value.isfinite().all()) for value in built[0].parameters())
    assert all(bool(shard.weight_RD.isfinite().all()) for shard in table_shards(built[0]))


def test_the_backward_of_code_between_modules_is_named_by_the_module_that_it_is_of(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = model.recommender.sum_features
    monkeypatch.setattr(model.recommender, "sum_features", lambda *args: InfiniteGradient.apply(whole(*args)))
    assert train_here(prepared, tmp_path / "run", "debug=true") == 2
    message = capfd.readouterr().err
    assert "step 1 " in message
    assert "the backward of `tower` in " in message
    assert "the run's first step" in message


def nan_in_backward(x_LD: Tensor) -> None:
    x_LD.register_hook(lambda gradient: gradient * math.nan)


def nan_in_backward_of_rows(awaited: Any) -> None:
    awaited.callbacks.append(lambda items: nan_in_backward(items[ITEM_KEY].values()) or items)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(
    ("module", "change", "where"),
    [(BLOCK, nan_in_backward, "model/hstu.py, line "), ("item_table", nan_in_backward_of_rows, "model/embeddings.py")],
)
def test_a_gradient_that_comes_broken_is_named_by_what_it_is_the_gradient_of(
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    module: str,
    change: Change,
    where: str,
) -> None:
    plant(monkeypatch, module, 2, change)
    assert train_here(prepared, tmp_path / "run", "debug=true", "model.items.kind=vocabulary") == 2
    message = capfd.readouterr().err
    assert "step 2" in message
    assert f"the gradient of what `{module}` made in {where}" in message


def break_parameter(built: DistributedModelParallel) -> None:
    built.module.tower.heads.weight_CVD.data[1, 2, 3] = math.inf


def break_row(built: DistributedModelParallel) -> None:
    next(shard for shard in table_shards(built) if shard.table == "rq").weight_RD.data[17, 5] = math.nan


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_parameter, "parameter `tower.heads.weight_CVD` has 1 inf among its 512 numbers"),
        (break_row, "table `rq` has numbers that are not finite in 1 of its 32 rows on this rank: 17"),
    ],
)
def test_a_parameter_or_row_that_is_not_finite_is_named_before_it_is_used(
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[DistributedModelParallel], None],
    named: str,
) -> None:
    built = plant(monkeypatch, "tower", 3, lambda _: damage(built[0]))
    assert train_here(prepared, tmp_path / "run", "debug=true") == 2
    message = capfd.readouterr().err
    assert "before step 4" in message
    assert named in message


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["model.precision=bf16", "model.recompute=true", "optimizer.accumulate=2", "batch.workers=1"],
        ["batch.windows=stream", "batch.period_seconds=4000", "stochastic_length.alpha=1.5"],
        ["model.output.kind=items", "model.items.kind=vocabulary", "batch.negatives.count=8"],
    ],
)
def test_debug_changes_no_number_and_leaves_nothing_on(prepared: Prepared, tmp_path: Path, keys: list[str]) -> None:
    keys = [*keys, "max_steps=8"]
    assert train_here(prepared, tmp_path / "plain", *keys, "batch.tokens=32") == 0
    assert train_here(prepared, tmp_path / "debug", *keys, "debug=true", "log_every=5") == 0
    assert losses(tmp_path / "debug") == losses(tmp_path / "plain")
    assert len(losses(tmp_path / "debug")) > 5
    assert not torch.is_anomaly_enabled()
    config = load_resolved(TrainConfig, tmp_path / "debug" / "config.yaml")
    assert (config.debug, config.batch.tokens, config.batch.workers, config.log_every) == (True, 32, 0, 1)


def test_what_debug_sets_is_said_and_shown(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(prepared, tmp_path / "run", "debug=true", "max_steps=1") == 0
    assert "debug: " in (told := capfd.readouterr().err)
    assert "batch.tokens=32" in told
    for resume, tokens in (("false", 32), ("true", 64), ("auto", 64)):
        with pytest.raises(SystemExit):
            train_here(prepared, tmp_path / "run", "debug=true", f"resume={resume}", "--print-config")
        assert f"tokens: {tokens}\n" in capfd.readouterr().out


def test_a_run_may_be_looked_at_from_a_checkpoint_on_with_its_own_batches(prepared: Prepared, tmp_path: Path) -> None:
    assert train_here(prepared, tmp_path / "whole", "max_steps=9") == 0
    assert train_here(prepared, tmp_path / "cut", "max_steps=5") == 0
    assert train_here(prepared, tmp_path / "cut", "resume=true", "debug=true", "max_steps=7") == 0
    assert train_here(prepared, tmp_path / "cut", "resume=true", "max_steps=9") == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_two_ranks_train_under_debug_as_one_does(prepared: Prepared, tmp_path: Path) -> None:
    keys = [*NO_DROPOUT, "max_steps=4", "batch.tokens=32"]
    assert train_here(prepared, tmp_path / "one", *keys) == 0
    given = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={tmp_path / 'two'}", *SMALL, *keys]
    train_on_ranks(2, *given, "debug=true")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_the_rank_that_finds_a_fault_says_it_under_torchrun(prepared: Prepared, tmp_path: Path) -> None:
    keys = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={tmp_path / 'run'}", *SMALL, "debug=true"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, *keys],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), SWITCH: "off"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("trainer.train: step 3 ")]
    assert len(said) == 1, done.stderr[-4000:]
    assert "rank 1: what `" + BLOCK + ".output` gives has 1 nan among its 1536 numbers" in said[0]


# ── without debug ────────────────────────────────────────────────────────────────────────────────────────


def check_left(run: Path, newest: int | None) -> None:
    """Every line is JSON, every loss finite, and so is the newest checkpoint, of that step."""

    def refuse(constant: str) -> None:
        pytest.fail(f"metrics.jsonl holds {constant}, which is no JSON")

    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    folders = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert folders[-1:] == ([] if newest is None else [step_folder(newest)])
    if newest is not None:
        assert all(bool(value.isfinite().all()) for value in parameters(run).values())


@pytest.mark.usefixtures("operators")  # kernels bear such a rate for longer
def test_a_rate_too_high_ends_the_run_with_a_message_and_a_sound_checkpoint(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = ["optimizer.learning_rate=5e5", "optimizer.clip_norm=0", "log_every=20"]
    keys += ["checkpoint.every=1", "checkpoint.wait=true"]
    assert train_here(prepared, tmp_path / "run", *keys) == 2
    message = capfd.readouterr().err
    found = re.search(r"trainer.train: the loss is nan at step \d+ \(the steps since (\d+)\)", message)
    assert found, message
    newest = int(found[1]) - 1
    assert f"{step_folder(newest)}, with resume=true debug=true" in message
    assert "optimizer.learning_rate" in message
    assert "Traceback" not in message
    check_left(tmp_path / "run", newest)


@pytest.mark.parametrize("step", [4, 6])
def test_a_broken_loss_is_found_at_the_next_line_or_save(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], step: int
) -> None:
    plant(monkeypatch, BLOCK, step, one_nan)
    # Epochs end after steps 4, 8 …; there is a line after steps 3, 6 …
    assert train_here(prepared, tmp_path / "run", "log_every=3", "validate_every=1") == 2
    assert f"the loss is nan at step {step}" in capfd.readouterr().err
    check_left(tmp_path / "run", None if step == 4 else 4)


def test_a_sound_loss_whose_gradient_is_not_is_saved_by_no_checkpoint(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, BLOCK, 8, InfiniteGradient.apply)
    assert train_here(prepared, tmp_path / "run", "optimizer.clip_norm=0", "validate_every=1") == 2
    message = capfd.readouterr().err
    assert "trainer.train: parameter `tower." in message
    assert "after step 8: nothing of these steps is saved" in message
    assert [record["step"] for record in records(tmp_path / "run", "validation")] == [4]
    check_left(tmp_path / "run", 4)


def test_all_ranks_refuse_what_one_of_them_has_found(prepared: Prepared, tmp_path: Path) -> None:
    keys = [f"store={prepared.store}", f"codes={prepared.codes}", f"run={tmp_path / 'run'}", *SMALL]
    with pytest.raises(ProcessRaisedException, match="ended with 2"):
        train_on_ranks(2, *keys, "optimizer.learning_rate=1e30", "optimizer.clip_norm=0", "log_every=20")
    check_left(tmp_path / "run", None)


if __name__ == "__main__":  # a rank of a job of torchrun, of which rank 1 breaks
    if os.environ["RANK"] == "1":
        plant(pytest.MonkeyPatch(), f"{BLOCK}.output", 3, one_nan)
    sys.exit(trainer.train.main(sys.argv[1:]))
