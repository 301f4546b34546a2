"""The training loop: epochs of pipelined steps, saved as often as asked, validated and saved at the end of epochs.

Everything random in a step follows from (seed, step, rank), and batches from (seed, epoch), so a run resumed from a
checkpoint goes through exactly the steps that the uninterrupted run would have gone through.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from common.errors import InputError, Stopped
from common.seeding import seed_everything
from data.batches import Batch
from data.loader import Loader, LoaderState
from evaluation.ranking.streaming import PredictFirst
from serving.checkpoints.manifest import selection_metric
from sharding.ranks.heartbeat import END, SAVING, TRAINING, VALIDATION
from sharding.ranks.watch import Watch
from sharding.world import World
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.config import TrainConfig
from trainer.debug import Inspection, broken_tensors, lost_numbers
from trainer.optimizers import Optimizers
from trainer.stopping import Agreement, StopRequest
from trainer.stragglers import Pipeline, Stragglers, exchange
from trainer.telemetry import STREAM, IntervalSums, Stopwatch, Telemetry


@dataclass
class Progress:
    """How far a run has come. Travels in the checkpoint's manifest.

    Args:
        step: steps done.
        epoch: epoch of the next step.
        step_in_epoch: place of the next step in it.
        best: largest validation metric so far; None before the first.
        stale: validations since.
        plan: name of the loader's plan, by which epoch and step mean something.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None
    stale: int = 0
    plan: str = ""

    @property
    def loader(self) -> LoaderState:
        """Where the loader is."""
        return LoaderState(self.plan, self.epoch, self.step_in_epoch)


@dataclass
class Trainer:
    """One run: what it trains, with what, and where it reports.

    Args:
        validate: metrics of the model on the validation items.
        predict_first: predicts an epoch before it is learnt from; None where nobody wants it.
        checkpointer: saves what is trained.
        watch: is told what this rank is at.
        expected_steps: about how many steps there will be, to say how much is left.
    """

    config: TrainConfig
    world: World
    model: DistributedModelParallel
    loader: Loader
    optimizers: Optimizers
    telemetry: Telemetry
    validate: Callable[[], dict[str, float]]
    checkpointer: Checkpointer
    watch: Watch
    expected_steps: int
    predict_first: PredictFirst | None = None

    def __post_init__(self) -> None:
        self.sums = IntervalSums(self.model.module.tower.heads.levels, self.world.device)
        self.pulse, self.blocked = self.watch.pulse, self.watch.blocked
        self.pulse.expected_steps = self.expected_steps
        self.pipeline = Pipeline(
            self.model, self.optimizers.combined, self.world.device, execute_all_batches=True, blocked=self.blocked
        )
        self.step_limit = self.config.max_steps or sys.maxsize
        self.epochs = min(self.config.epochs, self.loader.num_epochs or sys.maxsize)
        self.wait, self.stragglers = Stopwatch(), Stragglers(self.config.watch.straggler_share)
        self._restart_clock()
        self.agreement = Agreement(self.world, 2)
        self.begun_at = 0  # step of the newest checkpoint begun, or of where this process began
        self.stop_signal = 0
        self.sound_until = 0  # step up to which losses have been looked at
        self.inspection = Inspection(self.config, self.model, self.world)

    def train(self, progress: Progress) -> Progress:
        """Train from `progress` to the end of the run, or until validation stops improving.

        Raises:
            Stopped: a signal asked for it; everything is saved.
            InputError: the last checkpoint could not be written, or numbers are not finite.
        """
        with StopRequest() as request, self.inspection, self._settled_on_fault():
            self._train(progress, request)
            self.pulse.enter(END)
            self.agreement.close()
            if self.stop_signal:
                self.checkpointer.settle()  # the ranks must agree on whether this step is saved
            if self.stop_signal and not self.checkpointer.is_saved(progress.step):
                self._check_numbers(progress)
                self._save(progress, {})
            self.checkpointer.finish()
            if self.predict_first is not None and not self.stop_signal:  # who stops it does not wait for figures
                self.predict_first.finish(progress.epoch)
        if self.stop_signal:
            raise Stopped(
                self.stop_signal,
                f"stopped by {signal.Signals(self.stop_signal).name} after step {progress.step}, which is saved; "
                f"go on with resume=true",
            )
        return progress

    def _train(self, progress: Progress, request: StopRequest) -> None:
        first_step, progress.plan = progress.step, self.loader.state(0, 0).plan
        self.begun_at = self.sound_until = progress.step
        while (
            progress.epoch < self.epochs and progress.step < self.step_limit and not self._is_out_of_patience(progress)
        ):
            ended = self._train_epoch(progress, first_step, request)
            last = progress.epoch >= self.epochs or progress.step >= self.step_limit
            if last or (ended and progress.epoch % self.config.validate_every == 0):
                self._validate_and_save(progress)
            if self.stop_signal:
                return
        if self._is_out_of_patience(progress):
            self.telemetry.say(f"no improvement in {progress.stale} validations: training ends")

    def advance(self, progress: Progress, steps: int) -> None:
        """So many steps, over as many epochs as they take, and nothing besides: for those who measure them."""
        before, self.step_limit = self.step_limit, progress.step + steps
        with StopRequest() as request:
            while progress.step < self.step_limit and not self.stop_signal:
                self._train_epoch(progress, progress.step, request)
        self.step_limit = before

    def _predict(self, predict_first: PredictFirst, progress: Progress) -> None:
        """Predict the epoch that comes next."""
        if progress.step:
            self._check_numbers(progress)
        paused, blocked_s = time.perf_counter(), self.blocked.take()
        self.pulse.enter(VALIDATION)
        metrics = predict_first(progress.epoch)
        if metrics:
            self.telemetry.record(STREAM, progress.step, {"epoch": progress.epoch, **metrics})
        self.log_start += time.perf_counter() - paused  # the rate is that of training alone
        self.blocked.put_back(blocked_s)

    def _is_out_of_patience(self, progress: Progress) -> bool:
        return bool(self.config.patience) and progress.stale >= self.config.patience

    def _train_epoch(self, progress: Progress, first_step: int, request: StopRequest) -> bool:
        """Train what is left of an epoch, and of the run's steps, until somebody asks to stop.

        Returns:
            Whether the epoch has ended.
        """
        if self.predict_first is not None and progress.step_in_epoch == 0:
            self._predict(self.predict_first, progress)
        steps = self.loader.steps_per_epoch(progress.epoch) - progress.step_in_epoch
        steps_left = self.step_limit - progress.step
        batches = self.loader.iterate(progress.epoch, progress.step_in_epoch, self.config.batch.workers)
        stream = self.wait.timed(itertools.islice(batches, steps_left))
        self.pipeline.attach()
        self.model.train()
        self.pulse.enter(TRAINING)
        for done in itertools.count():
            self._before_step(progress, request, may_save=done < min(steps, steps_left))
            if (self.stop_signal and done < steps) or not self._step(stream, progress):
                break
            if progress.step % self.config.log_every == 0:
                self._log(progress, first_step)
        self.pipeline.detach()  # validation calls the model itself
        if done < steps:
            return False
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        return True

    def _before_step(self, progress: Progress, request: StopRequest, *, may_save: bool) -> None:
        """Between two steps: whether to stop, and whether a checkpoint is due and nobody is busy with the one before.

        At the end of an epoch a validation may follow, and save with what it finds.
        """
        self.checkpointer.poll()
        self.stop_signal, busy = self.agreement.exchange(request.signal_number, int(self.checkpointer.busy))
        every = self.config.checkpoint.every
        due = every and may_save and progress.step // every > self.begun_at // every
        known_free = not busy and progress.step > self.begun_at + 1  # what was said was said a step ago
        if due and known_free and not self.stop_signal:
            self._check_numbers(progress)
            self._save(progress, {})

    def _step(self, stream: Iterator[Batch], progress: Progress) -> bool:
        """One step of the pipeline; False when the stream has ended and every batch has been used."""
        self.inspection.before_step(progress.step + 1, progress.epoch, progress.step_in_epoch)
        self.optimizers.set_rates(progress.step)
        seed_everything(self.config.seed, "step", progress.step, self.world.rank)
        try:
            output = self.pipeline.progress(stream)
        except StopIteration:
            return False
        self.sums.add(output)
        progress.step += 1
        progress.step_in_epoch += 1
        self.steps_since_log += 1
        self.pulse.step_done(progress.epoch, progress.step)
        return True

    def _restart_clock(self) -> None:
        self.log_start, self.wait.seconds, self.steps_since_log = time.perf_counter(), 0.0, 0
        self.blocked.put_back(0.0)

    def _log(self, progress: Progress, first_step: int) -> None:
        wall_s, blocked_s = time.perf_counter() - self.log_start, self.blocked.take()
        loss, level_loss, accuracy, targets = self.sums.take()
        if not math.isfinite(loss):
            raise self._lost_numbers(progress, loss, {})
        self.sound_until = progress.step
        seconds = time.perf_counter() - self.log_start
        data_wait = self.wait.seconds / seconds
        values: dict[str, Any] = {
            "epoch": progress.epoch,
            "loss": loss,
            "level_loss": level_loss,
            "level_accuracy": accuracy,
            "events_per_s": targets / seconds,
            "data_wait": data_wait,
            "rate_factor": self.optimizers.factor,
        }
        self.telemetry.record("train", progress.step, values)
        self.telemetry.say_step(
            progress.step, self.expected_steps, loss, targets / seconds, data_wait, progress.step - first_step
        )
        if self.world.size > 1:
            self._compare_ranks(progress.step, wall_s, blocked_s)
        self._restart_clock()

    def _compare_ranks(self, step: int, wall_s: float, blocked_s: float) -> None:
        """What each rank's steps took but for waiting for the others, and whether one of them is slow."""
        times = exchange(self.world, self.steps_since_log, wall_s, self.wait.seconds, blocked_s)
        self.telemetry.record("ranks", step, times.as_record(), board=False)
        line = self.stragglers.judge(times, self.steps_since_log, [seen.beat.host for seen in self.watch.seen()])
        if line:
            self.telemetry.say(line)

    def _check_numbers(self, progress: Progress) -> None:
        """See that losses not yet looked at, and the dense parameters, are finite: nothing else is to be saved.

        Collective. Rows of tables, of which there may be too many, are not looked at: a broken one is found by the loss
        of the step that asks for it.

        Raises:
            InputError: they are not, on all ranks alike.
        """
        loss = self.sums.sums[0].sum().cpu()
        dist.all_reduce(loss)
        broken = broken_tensors(self.optimizers.combined.dense_parameters)
        if broken or not loss.isfinite():
            raise self._lost_numbers(progress, loss.item(), broken)
        self.sound_until = progress.step

    def _lost_numbers(self, progress: Progress, loss: float, broken: Mapping[str, Tensor]) -> InputError:
        self.checkpointer.settle()
        first = min(self.sound_until + 1, progress.step)
        return lost_numbers(self.config, loss, broken, first, progress.step, self.checkpointer.chain.newest)

    @contextmanager
    def _settled_on_fault(self) -> Iterator[None]:
        """A checkpoint on its way was of sound numbers: it becomes visible before a fault ends the process."""
        try:
            yield
        except InputError:
            with contextlib.suppress(RuntimeError):  # the other ranks are gone: the fault says more
                self.checkpointer.settle()
            raise

    def _validate_and_save(self, progress: Progress) -> None:
        self._check_numbers(progress)
        paused, blocked_s = time.perf_counter(), self.blocked.take()
        self.pulse.enter(VALIDATION)
        metrics = self.validate()
        # Without validation events the newest checkpoint is the best.
        score = metrics[selection_metric(metrics)] if metrics else None
        improved = score is None or progress.best is None or score > progress.best
        progress.stale = 0 if improved else progress.stale + 1
        progress.best = score if improved else progress.best
        # Reported before it is saved: a run resumed from what is saved does not repeat it.
        self._report_validation(progress, metrics, improved)
        self._save(progress, metrics)
        self.log_start += time.perf_counter() - paused  # the rate is that of training alone
        self.blocked.put_back(blocked_s)

    def _save(self, progress: Progress, metrics: dict[str, float]) -> None:
        with self.pulse.during(SAVING):
            self.checkpointer.begin(progress.step, progress.epoch, dataclasses.asdict(progress), metrics)
        self.begun_at = progress.step

    def _report_validation(self, progress: Progress, metrics: dict[str, float], improved: bool) -> None:
        if not metrics:
            return
        values: dict[str, Any] = {"epoch": progress.epoch, **metrics}
        self.telemetry.record("validation", progress.step, values)
        self.telemetry.say(
            f"epoch {progress.epoch}/{self.epochs}  step {progress.step}  validation  "
            f"{shown_figures(metrics)}{'  best so far' if improved else ''}"
        )


def shown_figures(metrics: Mapping[str, float]) -> str:
    """Of a validation, those that a line has room for: the one that chooses first."""
    chooses = selection_metric(metrics)
    of_tasks = [name for name in metrics if name.endswith(("/ne", "/auc", "/mse"))]
    names = ("hr@10", "mrr") if chooses == "ndcg@10" else of_tasks[:4]
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in (chooses, *names))
