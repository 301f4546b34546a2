"""A rank of `benchmarks.train_step`: builds what `trainer.train` builds, and measures steps of its pipeline.

    python -m benchmarks.train_step_child PLAN.json

The plan is `Plan`, as JSON; what a rank found goes to `rank-N.json` beside it.
"""

from __future__ import annotations

import common.startup  # noqa: F401  # isort: skip

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from benchmarks.train_step_operations import Operations, Work, operations
from benchmarks.train_step_parts import STEPS, parts_of
from common.config import resolve
from common.memory import peak_bytes, resident_bytes
from common.noise import quiet_known_warnings
from common.startup import imports_are_done
from evaluation import validation
from evaluation.metrics.ranking import per_request_metrics
from evaluation.results import Evaluation
from model.config import ModelConfig
from serving.checkpoints.model import build_sharded
from sharding.tables import table_shards
from trainer import train
from trainer.config import TrainConfig
from trainer.loop import Progress, Trainer

PRODUCT, SMALLER_PRODUCTS, SMALLEST = 2048, (1024, 512), 256
PRODUCT_LIMIT_S = 1.0
"""Where a product of 2048³ takes longer, a smaller one is measured: bfloat16 on processors that know nothing of it."""
PRODUCTS = 4
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MOST_OPERATORS = 25


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        config: YAML file under the keys; empty for none.
        keys: of `trainer.train`.
        warm: steps before anything is measured, at least 1.
        blocks: of steps; the product rate is measured before and after each.
        steps: of a block, fewer where `seconds` are not enough.
        seconds: that all blocks together may take, about.
        profiled: steps looked at by part; 0 for none.
        looks: epochs after which validation requests are scored; where there are any, nothing else is measured.
    """

    config: str = ""
    keys: list[str] = dataclasses.field(default_factory=list)
    warm: int = 3
    blocks: int = 3
    steps: int = 5
    seconds: float = 60.0
    profiled: int = 2
    looks: list[int] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """Some steps of this rank.

    Attributes:
        seconds: of all of them.
        steps: how many.
        waited: seconds, for data.
        work: of their real tokens.
        budget: tokens with padding.
        counted: operations.
        rate, float32_rate: operations a second of a product in the model's precision and in float32, the mean of right
            before and right after.
    """

    seconds: float
    steps: int
    waited: float
    work: Work
    budget: int
    counted: Operations
    rate: float
    float32_rate: float


@dataclass(frozen=True)
class Look:
    """What a training has come to.

    Attributes:
        epoch: epochs done.
        seconds: of training, looks apart.
        scores: NDCG@10 of each validation request.
    """

    epoch: int
    seconds: float
    scores: list[float]


def main(argv: list[str]) -> int:
    """Measure one plan on this rank."""
    imports_are_done()
    quiet_known_warnings()
    path = Path(argv[0])
    plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
    config = resolve(TrainConfig, "train", Path(plan.config) if plan.config else None, plan.keys)
    with _noting_memory() as memory, train.assembled(config) as (trainer, progress):
        found = _looks(trainer, progress, plan) if plan.looks else _measure(trainer, progress, plan, memory)
        path.with_name(f"rank-{trainer.world.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


@contextmanager
def _noting_memory() -> Iterator[dict[str, int]]:
    """What the process has when it begins to build the model."""
    memory: dict[str, int] = {}

    def build(*arguments: Any, **named: Any) -> Any:
        memory["before_model"] = resident_bytes()
        return build_sharded(*arguments, **named)

    with patch.object(train, "build_sharded", build):
        yield memory


def _measure(trainer: Trainer, progress: Progress, plan: Plan, memory: dict[str, int]) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak of building
    trainer.advance(progress, plan.warm - 1)
    begun = time.perf_counter()
    trainer.advance(progress, 1)
    step_s = _agreed(time.perf_counter() - begun)
    steps = max(1, min(plan.steps, int(plan.seconds / plan.blocks / step_s)))
    rate_of = _Rates(trainer.config.model.precision)
    blocks, before = [], rate_of()
    for _ in range(plan.blocks):
        block, before = _block(trainer, progress, steps, before, rate_of)
        blocks.append(dataclasses.asdict(block))
    memory |= {"peak": peak_bytes(), **_needed(trainer)}
    return {
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "memory": memory,
        "product": rate_of.size,
        "parts": _profiled(trainer, progress, min(plan.profiled, steps)),
        "tokens_per_step": trainer.loader.tokens_per_batch,
        "padding_of_epoch": trainer.loader.padding_share(0),
    }


def _looks(trainer: Trainer, progress: Progress, plan: Plan) -> dict[str, Any]:
    """Train as long as anybody looks."""
    looks: list[Look] = []
    seconds = 0.0
    for epoch in range(1, max(plan.looks) + 1):
        begun = time.perf_counter()
        trainer.advance(progress, trainer.loader.steps_per_epoch(progress.epoch))
        seconds += time.perf_counter() - begun
        if epoch in plan.looks:
            looks.append(Look(epoch, seconds, _scores(trainer)))
    return {"looks": [dataclasses.asdict(look) for look in looks]}


def _scores(trainer: Trainer) -> list[float]:
    """What lies behind the mean that a validation tells."""
    found: list[float] = []

    def figures(result: Evaluation, engine: str) -> dict[str, float]:
        metrics = per_request_metrics(result.engines[engine], result.targets, result.depth)
        found.extend(metrics["ndcg@10"].tolist())
        return {}

    with patch.object(validation, "validation_figures", figures):
        trainer.validate()
    return found


def _agreed(seconds: float) -> float:
    """The longest of all ranks."""
    longest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item()


def _block(
    trainer: Trainer, progress: Progress, steps: int, before: tuple[float, float], rate_of: Callable[[], Any]
) -> tuple[Block, tuple[float, float]]:
    places, waited = [], trainer.wait.in_all
    epoch, at = progress.epoch, progress.step_in_epoch
    dist.barrier()
    begun = time.perf_counter()
    trainer.advance(progress, steps)
    dist.barrier()
    seconds = time.perf_counter() - begun
    waited = trainer.wait.in_all - waited
    after = rate_of()
    for _ in range(steps):  # a batch is a function of its place: it can be made again to be counted
        if at >= trainer.loader.steps_per_epoch(epoch):
            epoch, at = epoch + 1, 0
        places.append((epoch, at))
        at += 1
    works = [_work(trainer, *place) for place in places]
    work = sum(works[1:], works[0])
    vocabulary = trainer.model.module.vocabulary
    block = Block(
        seconds,
        steps,
        waited,
        work,
        steps * trainer.loader.tokens_per_batch,
        operations(trainer.config.model, vocabulary, work),
        (before[0] + after[0]) / 2,
        (before[1] + after[1]) / 2,
    )
    return block, after


def _work(trainer: Trainer, epoch: int, step: int) -> Work:
    batch = trainer.loader.batch(epoch, step)
    targets = int((batch.target_items_L >= 0).sum())
    each, negatives = 0, trainer.config.batch.negatives
    if trainer.config.model.output.kind == "items":
        each = trainer.model.module.vocabulary.items if negatives.kind == "all" else 1 + negatives.count
    return Work.of(batch.offsets.diff().tolist(), targets, each)


class _Rates:
    """Operations a second of products in a precision, and in float32; all ranks measure at once.

    Of two layouts of the second matrix the better one counts: where bfloat16 is emulated they differ eightfold. And a
    product in float32 will do for bfloat16 where it is faster.
    """

    def __init__(self, precision: str) -> None:
        self._dtype = DTYPES[precision]
        small = {turned: _product_seconds(SMALLEST, self._dtype, turned) for turned in (False, True)}
        self._turned = min(small, key=small.__getitem__)
        quick = small[self._turned] / SMALLEST**3
        sizes = [size for size in (PRODUCT, *SMALLER_PRODUCTS) if quick * size**3 < PRODUCT_LIMIT_S]
        self.size = sizes[0] if sizes else SMALLER_PRODUCTS[-1]

    def __call__(self) -> tuple[float, float]:
        """In the precision, in float32."""
        dist.barrier()
        float32 = _rate(PRODUCT, torch.float32, False)
        own = float32 if self._dtype is torch.float32 else _rate(self.size, self._dtype, self._turned)
        return max(own, float32), float32


def _rate(size: int, dtype: torch.dtype, turned: bool) -> float:
    rate: float = 2.0 * size**3 / min(_product_seconds(size, dtype, turned) for _ in range(PRODUCTS))
    return rate


def _product_seconds(size: int, dtype: torch.dtype, turned: bool) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    begun = time.perf_counter()
    torch.mm(a, b.T if turned else b)
    return time.perf_counter() - begun


def _needed(trainer: Trainer) -> dict[str, int]:
    """Bytes of this rank's parameters and optimizer states, and of what the paper says that tokens keep."""
    dense = sum(parameter.nbytes for parameter in trainer.optimizers.combined.dense_parameters.values())
    states = sum(state.nbytes for state in trainer.optimizers.dense_state().values())
    tables = sum(
        shard.weight_RD.nbytes + sum(state.nbytes for state in shard.states.values())
        for shard in table_shards(trainer.model)
    )
    return {"parameters_and_states": dense + states + tables, "fourteen_d": _fourteen_d(trainer)}


def _fourteen_d(trainer: Trainer) -> int:
    """The paper's 14 d bytes a token and layer are 7 d numbers of 2 bytes."""
    cfg: ModelConfig = trainer.config.model
    numbers = 7 * cfg.width * cfg.blocks * trainer.loader.tokens_per_batch
    return numbers * DTYPES[cfg.precision].itemsize


def _profiled(trainer: Trainer, progress: Progress, steps: int) -> dict[str, Any] | None:
    """A step by part: seconds in each, of these in products, and the operators that took most."""
    if not steps:
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        dist.barrier()
        with torch.profiler.record_function(STEPS):
            trainer.advance(progress, steps)
    found = parts_of(profiler.events())
    most = sorted(found.operators.items(), key=lambda item: -item[1])[:MOST_OPERATORS]
    return {
        "seconds": {part: seconds / steps for part, seconds in found.seconds.items()},
        "products": {part: seconds / steps for part, seconds in found.products.items()},
        "operators": {name: seconds / steps for name, seconds in most},
        "whole": found.whole / steps,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
