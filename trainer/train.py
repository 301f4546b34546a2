"""Train a recommender: `torchrun --standalone --nproc-per-node 2 -m trainer.train --config FILE key=value …`

Without torchrun it is one process. Tables lie row-wise over the ranks, everything else is data-parallel.
"""

from __future__ import annotations

import common.startup  # noqa: F401  # isort: skip

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.allocator import keep_freed_memory
from common.config import run_entry, to_plain
from common.files import fingerprint_of
from common.noise import quiet_known_warnings
from common.storage import open_storage
from data.event_store import EventStore
from data.loader import Loader
from data.negatives import NegativeSampler
from data.ranking.moments import label_moments, target_blocks, training_blocks
from data.schema import TIMESTAMP
from data.sequences import make_plan
from data.split import Split
from data.stochastic_length import attention_sparsity, sparsity
from data.store_columns import event_type_rows
from evaluation.engines import exact_engine, list_length
from evaluation.ranking.predictions import held_out_windows
from evaluation.ranking.predictor import Predictor, RankingValidation
from evaluation.ranking.streaming import PredictFirst
from evaluation.validation import Validation
from model.config import Vocabulary
from model.kernels.build import library
from model.products import has_bfloat16
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.manifest import Manifest, blank_manifest
from serving.checkpoints.model import build_sharded, features_of
from sharding.apply import sharded_tables
from sharding.job import describe_plan, plan_job
from sharding.planning.plan_files import write_plan
from sharding.planning.workload import DataSizes, Workload, measure_dense, on_meta, workload_of_batch, workload_of_sizes
from sharding.ranks.watch import Watch
from sharding.world import World, open_world
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.resume import meanings, resume, training_state, warm_start
from trainer.config import TrainConfig
from trainer.debug import describe_debug
from trainer.loop import Progress, Trainer
from trainer.optimizers import Optimizers
from trainer.run_folder import course, prepare_run_folder
from trainer.telemetry import Telemetry


def train(config: TrainConfig) -> dict[str, Any]:
    """Run one training from its configuration; returns a summary."""
    quiet_known_warnings()
    with assembled(config) as (trainer, begun):
        progress = trainer.train(begun)
        return {"run": config.run, **dataclasses.asdict(progress)}


@contextmanager
def assembled(config: TrainConfig) -> Iterator[tuple[Trainer, Progress]]:
    """All that a training is made of, among its ranks, and where it begins or goes on."""
    keep_freed_memory()
    with (
        open_world(timedelta(seconds=config.watch.timeout_s)) as world,
        Watch(world, config.watch, "trainer.train", "start again, with resume=auto, once the cause is mended") as watch,
    ):
        store = EventStore.open(Path(config.store), verify=world.is_first_on_node)
        codes = CodeTable.open(Path(config.codes), store)
        split = store.split()
        loader = training_loader(config, store, codes, split, world)
        vocabulary = vocabulary_of(config, store, codes)
        tables = on_meta(config.model, vocabulary)
        survey = plan_job(tables, world, config.sharding, lambda: one_step(config, vocabulary, loader))
        run = Path(config.run)
        storage = open_storage(config.checkpoint.path or run / "checkpoints")
        chain = prepare_run_folder(config, storage, world)
        watch.attach(run)

        model = build_sharded(
            config.model,
            vocabulary,
            world,
            seed=config.seed,
            learning_rate=config.optimizer.sparse_learning_rate,
            epsilon=config.optimizer.sparse_epsilon,
            codebooks_CVd=torch.from_numpy(codes.codebooks_CVd) if config.code_init == "codebooks" else None,
            label_moments=_label_moments(config, store) if not chain else None,
            placement=survey.placement,
        )
        expected_steps = loader.expected_steps(config.epochs)
        optimizers = Optimizers(model, config.optimizer, expected_steps)
        template = describe_checkpoints(config, store, codes, vocabulary, world)
        started_from, heads_taken, progress = "", False, Progress()
        if chain:
            progress = resume(storage, chain, model, optimizers, loader, store, codes, world)
        elif config.start_from:
            started_from, heads_taken = warm_start(config, model, store, codes)

        telemetry = Telemetry(run, world, resume_step=progress.step if chain else None)
        told = f"{describe_run(model, store, loader, world)}\n{describe_plan(survey)}" + f"\n{started_from}" * bool(
            started_from
        )
        telemetry.say(told + describe_precision(config, world.device) + describe_debug(config))
        if world.is_main:
            write_plan(run, survey.to_plain())
        checkpointer = Checkpointer(
            config.checkpoint,
            storage,
            world,
            model,
            lambda: training_state(model, optimizers),
            template,
            chain,
            say=telemetry.say,
            record=lambda step, values: telemetry.record("checkpoint", step, values),
        )
        trainer = Trainer(
            config=config,
            world=world,
            model=model,
            loader=loader,
            optimizers=optimizers,
            telemetry=telemetry,
            validate=make_validation(config, store, codes, model, world),
            checkpointer=checkpointer,
            watch=watch,
            expected_steps=min(expected_steps, config.max_steps or expected_steps),
            predict_first=_predict_first(
                config, store, codes, model, loader, world, start_heads=not (progress.step or heads_taken)
            ),
        )
        try:
            yield trainer, progress
        finally:
            telemetry.close()


def vocabulary_of(config: TrainConfig, store: EventStore, codes: CodeTable) -> Vocabulary:
    """Sizes of the tables; a model that predicts actions reads actions, and series, where others read event types."""
    event_types = event_type_rows(store, config.model.output.ranking)
    return Vocabulary(codes.num_levels, codes.codes_per_level, store.num_artists, event_types, store.num_items)


def _label_moments(config: TrainConfig, store: EventStore) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation of what each task asks of the events that may be learnt from.

    None where the output are no actions, and where periods are predicted before any of them may be known.
    """
    if config.model.output.kind != "actions" or config.batch.predict_first:
        return None
    moments = label_moments(store, config.model.output.actions.tasks, training_blocks(store))
    return moments[0], moments[1]


def training_loader(config: TrainConfig, store: EventStore, codes: CodeTable, split: Split, world: World) -> Loader:
    """What an epoch trains on, packed and shuffled."""
    timestamps_E = store.column(TIMESTAMP)
    plan = make_plan(
        config.batch.windows,
        store.offsets,
        timestamps_E,
        split,
        config.model.max_history,
        seed=config.seed,
        period_seconds=config.batch.period_seconds,
    )
    return Loader(
        store,
        features_of(store, codes, config.model),
        plan,
        tokens=config.batch.tokens,
        bins=config.batch.bins,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        shuffle=True,
        tie_limit_U=split.train_end_U if config.batch.shuffle_ties else None,
        thinning=config.stochastic_length,
        longest=config.model.max_history,
        distinct=config.batch.distinct,
        negatives=_negatives(config, codes),
        ranking=config.model.output.ranking,
    )


def _negatives(config: TrainConfig, codes: CodeTable) -> NegativeSampler | None:
    """What draws them, where the output are items."""
    if config.model.output.kind != "items":
        return None
    return NegativeSampler(config.batch.negatives, codes.training_plays_N)


def one_step(config: TrainConfig, vocabulary: Vocabulary, loader: Loader) -> Workload:
    """What a step asks of a rank, by the first batch; an epoch without steps asks nothing worth planning for."""
    lengths = loader.lengths(0)
    dense = measure_dense(
        config.model, vocabulary, float(lengths.mean()) if len(lengths) else 0.0, config.optimizer.dense
    )
    batch = loader.batch(0, 0) if loader.steps_per_epoch(0) else None
    if batch is None:
        return workload_of_sizes(config.model, DataSizes(), loader.tokens_per_batch, dense)
    return workload_of_batch(config.model, vocabulary, batch, dense)


def make_validation(
    config: TrainConfig, store: EventStore, codes: CodeTable, model: Any, world: World
) -> Callable[[], dict[str, float]]:
    """Metrics on the validation events: of exact scoring, or of predicted actions."""
    features, batch = features_of(store, codes, config.model), config.batch
    if config.model.output.kind == "actions":
        windows = held_out_windows(store, "validation", config.model.max_history)
        predictor = Predictor(model, features, store, world, windows, tokens=batch.tokens, distinct=batch.distinct)
        return RankingValidation(predictor)
    validation = Validation(model, features, store, world, tokens=batch.tokens, distinct=batch.distinct)
    engine, depth = exact_engine(model, store, codes, world), list_length(store.num_items)
    return lambda: validation(engine(), depth)


def _predict_first(
    config: TrainConfig,
    store: EventStore,
    codes: CodeTable,
    model: Any,
    loader: Loader,
    world: World,
    *,
    start_heads: bool,
) -> PredictFirst | None:
    """What predicts a period before it is learnt from, where that is asked for.

    Args:
        start_heads: whether heads know of nothing yet, and begin at the labels of the first period.
    """
    batch = config.batch
    if not batch.predict_first:
        return None
    features = features_of(store, codes, config.model)
    predictor = Predictor(model, features, store, world, loader.plan, tokens=batch.tokens, distinct=batch.distinct)
    after_first = _start_heads(config, store, model, loader, world) if start_heads else None
    return PredictFirst(predictor, Path(config.run), after_first)


def _start_heads(
    config: TrainConfig, store: EventStore, model: Any, loader: Loader, world: World
) -> Callable[[int], None]:
    """What begins the heads at the labels of a period's targets. Until then they know of no label."""
    heads = model.module.tower.heads
    # A run that was stopped before its first step has begun them already, and predicts the period again.
    heads.start_from(torch.where(heads.binary_K, 0.5, 0.0), torch.ones_like(heads.mean_K))

    def start(period: int) -> None:
        blocks = target_blocks(store, loader.plan.windows(period))
        heads.start_from(*label_moments(store, config.model.output.actions.tasks, blocks).to(world.device))

    return start


def describe_checkpoints(
    config: TrainConfig, store: EventStore, codes: CodeTable, vocabulary: Vocabulary, world: World
) -> Manifest:
    """The manifest of this run's checkpoints, but for what changes from one to the next."""
    return blank_manifest(
        world_size=world.size,
        store=config.store,
        codes=config.codes,
        store_fingerprint=store.fingerprint,
        codes_fingerprint=codes.fingerprint,
        config_fingerprint=fingerprint_of(course(config)),
        model=to_plain(config.model),
        vocabulary=dataclasses.asdict(vocabulary),
        meanings=meanings(store, codes, config.model),
    )


def describe_run(model: Any, store: EventStore, loader: Loader, world: World) -> str:
    """What is about to be trained, in a few lines."""
    tables = sum(table.size().numel() for table in sharded_tables(model).values())
    dense = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith("tower."))
    return (
        f"{store.num_users} users, {store.num_items} items, {store.num_events} events; "
        f"{dense} dense and {tables} table parameters on {world.size} × {world.device.type}\n"
        f"{loader.steps_per_epoch(0)} steps an epoch; {loader.padding_share(0):.1%} of the token budget is padding\n"
        f"{describe_lengths(loader)}"
    )


def describe_precision(config: TrainConfig, device: torch.device) -> str:
    """What is to be known of a precision that is made up, from a new line on; else nothing."""
    if config.model.precision != "bf16" or device.type != "cpu" or has_bfloat16() or library() is not None:
        return ""
    return (
        "\nmodel.precision=bf16: this processor has no such products, and without kernels PyTorch makes them up at a "
        "fraction of the speed: set model.precision=float32"
    )


def describe_lengths(loader: Loader) -> str:
    """Sparsity of the first epoch's windows, as in Tables 3, 14 and 15 of the HSTU paper, before and after thinning."""

    def figures(lengths_W: np.ndarray) -> str:
        shares = sparsity(lengths_W, loader.longest), attention_sparsity(lengths_W, loader.longest)
        return f"sparsity {shares[0]:.1%}, s2 {shares[1]:.1%}"

    before_W, after_W = loader.windows(0).lengths, loader.inputs(0)
    if not len(before_W):
        return "no windows in the first epoch"
    whole = f"windows of at most {loader.longest} inputs, {before_W.mean():.1f} on average: {figures(before_W)}"
    if not loader.thinning.is_on:
        return whole
    return (
        f"{whole}\nthinned with α = {loader.thinning.alpha}, {loader.thinning.selection}: {after_W.mean():.1f} on "
        f"average: {figures(after_W)}; {1 - after_W.sum() / before_W.sum():.1%} of the tokens are left out"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_entry("trainer.train", "train", TrainConfig, train, argv)


if __name__ == "__main__":
    sys.exit(main())
