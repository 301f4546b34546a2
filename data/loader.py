"""Batches for one rank: planned alike on every rank, so that nothing need be said between them.

A global step is `bins` bins of `tokens` tokens each. Windows are packed whole into bins, those of a step are dealt to
its bins so that attention work is alike, and each rank takes `bins / world_size` consecutive bins of a step in one
batch. So one configuration gives the same global batches on 1, 2, 3 … ranks, every rank has as many steps as the
others, and the number of predictions in a global batch, by which its loss is divided, is known everywhere.

A plan is a function of (seed, epoch) alone. To resume is to begin at a step: the whole state of a loader is
`LoaderState`, two numbers and the name of the plan, on any number of ranks.

W windows · L token budget of the batch · B windows in the batch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset

from common.errors import InputError
from common.files import fingerprint_of
from common.seeding import derive_seed
from data.batches import Batch, BatchMaker, ItemFeatures
from data.event_store import EventStore
from data.examples import Examples
from data.negatives import BinSeeds, NegativeSampler
from data.packing import balance, pack, pack_in_order, pack_with_room
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import ActionsConfig
from data.sequences import Plan, SameEveryEpoch, Windows
from data.stochastic_length import StochasticLength
from data.store_columns import event_columns as event_columns
from data.store_columns import item_features as item_features
from data.store_columns import ranking_maker as ranking_maker


@dataclass(frozen=True)
class LoaderState:
    """Where a loader is. Travels in a checkpoint; any rank's serves all ranks.

    Attributes:
        plan: fingerprint of what decides the batches; another plan has other steps.
        epoch, step: of the next batch.
    """

    plan: str
    epoch: int
    step: int


@dataclass(frozen=True)
class _Epoch:
    """Windows in bins: bin b holds `order[offsets[b] : offsets[b + 1]]`; bins come in whole steps.

    `lengths_W` are in tokens, of which an input may have several.
    """

    examples: Examples
    lengths_W: np.ndarray
    order: np.ndarray
    offsets: np.ndarray


class Loader:
    """The batches of one rank.

    Args:
        store: where the events are.
        item_features: codes and artists of its items.
        plan: what to batch, or one set of windows for all epochs; each window comes exactly once an epoch.
        tokens: budget of one bin, at least the longest window, of which an input may take several (`ranking`).
        bins: bins of a global step; `world_size` must divide it.
        rank, world_size: whose batches.
        seed: of all that is drawn.
        shuffle: whether windows and bins come in an order drawn from (seed, epoch), or as the plan has them. A plan in
            time order is never shuffled: a window is used no earlier than those before it.
        tie_limit_U: int64 [U] or None. Where given, events of one user in one second, whose order in the log says
            nothing, are ordered anew in each epoch, those before this position of the user's history.
        thinning: Stochastic Length, off where not given.
        longest: N of Stochastic Length.
        distinct: whether a batch has one bag for each of its distinct items, or one for each token. All loaders of one
            model must have the same: a sharded collection of tables learns from its first batch which of the two it is.
        negatives: what targets are held against, for training a model whose output are items. Drawn for each bin by
            (seed, epoch, step, place of the bin in the step) alone.
        ranking: where given, batches are those of a model that predicts actions (`data.ranking`), and a prediction is
            an event whose action is asked for. Without negatives.

    Raises:
        InputError: `world_size` does not divide `bins`, or the store lacks what `ranking` asks for.
    """

    def __init__(
        self,
        store: EventStore,
        item_features: ItemFeatures,
        plan: Plan | Windows,
        *,
        tokens: int,
        bins: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        tie_limit_U: np.ndarray | None = None,
        thinning: StochasticLength | None = None,
        longest: int = 0,
        distinct: bool = True,
        negatives: NegativeSampler | None = None,
        ranking: ActionsConfig | None = None,
    ) -> None:
        """Check that the bins divide among the ranks."""
        assert ranking is None or negatives is None, "actions are held against no negatives"
        assert 0 <= rank < world_size
        assert len(item_features.codes_NC) == store.num_items
        if bins < 1 or bins % world_size:
            raise InputError(
                f"bins={bins} does not divide among {world_size} ranks; the bins of a global step must be a multiple "
                "of the number of ranks"
            )
        self.plan: Plan = SameEveryEpoch(plan) if isinstance(plan, Windows) else plan
        self.tokens, self.bins, self.rank, self.world_size = tokens, bins, rank, world_size
        self.seed, self.shuffle = seed, shuffle and not self.plan.in_time_order
        self.tie_limit_U = tie_limit_U
        self.thinning, self.longest = thinning or StochasticLength(), longest
        self.tokens_per_batch = tokens * bins // world_size
        self.store_fingerprint = store.fingerprint
        self.negatives, self.ranking = negatives, ranking
        self._maker: BatchMaker | RankingBatchMaker
        if ranking is None:
            self._maker = BatchMaker(event_columns(store), item_features, distinct=distinct, negatives=negatives)
        else:
            self._maker = ranking_maker(store, item_features, ranking, distinct=distinct)
        self._planned: tuple[int, _Epoch] | None = None

    @property
    def num_epochs(self) -> int | None:
        """How many epochs the plan has; None where there is no end."""
        return self.plan.num_epochs

    def windows(self, epoch: int) -> Windows:
        """The windows of an epoch, by which `Batch.window_index_B` counts."""
        return self._epoch(epoch).examples.windows

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each of the epoch's windows, thinned where they are; int64 [W]."""
        return self._epoch(epoch).lengths_W

    def inputs(self, epoch: int) -> np.ndarray:
        """Inputs that each of the epoch's windows is left with; int64 [W]. As many as tokens, but where it ranks."""
        return self._epoch(epoch).examples.kept_W

    def steps_per_epoch(self, epoch: int) -> int:
        """Steps, the same on every rank; epochs of a shuffled loader may differ by a few."""
        return (len(self._epoch(epoch).offsets) - 1) // self.bins

    def expected_steps(self, epochs: int) -> int:
        """About how many steps `epochs` epochs have; exact but for what packing and drawing move by a few."""
        epochs = min(epochs, self.num_epochs) if self.num_epochs is not None else epochs
        if not self.plan.in_time_order:
            return epochs * self.steps_per_epoch(0)
        budget = self.bins * self.tokens
        windows = (self.plan.windows(epoch) for epoch in range(epochs))
        return sum(-(-int(self._maker.token_lengths(of_epoch).sum()) // budget) for of_epoch in windows)

    def real_tokens(self, epoch: int) -> int:
        """Tokens of the epoch that are no padding, over all ranks."""
        return int(self.lengths(epoch).sum())

    def padding_share(self, epoch: int) -> float:
        """Share of the epoch's token budget that holds no token, over all ranks; 0 where there are no steps."""
        budget = self.steps_per_epoch(epoch) * self.bins * self.tokens
        return 1.0 - self.real_tokens(epoch) / budget if budget else 0.0

    def bins_of_step(self, epoch: int, step: int) -> list[np.ndarray]:
        """Indices of the windows in each bin of a global step, work dealt out."""
        planned = self._epoch(epoch)
        first = planned.offsets[step * self.bins : (step + 1) * self.bins + 1]
        everyone = planned.order[first[0] : first[-1]]
        bin_of = np.repeat(np.arange(self.bins), np.diff(first))
        bin_of = balance(planned.lengths_W[everyone], bin_of, self.bins, self.tokens)
        return [everyone[bin_of == place] for place in range(self.bins)]

    def batch(self, epoch: int, step: int) -> Batch:
        """This rank's batch of one step, of L = `tokens_per_batch` tokens."""
        examples = self._epoch(epoch).examples
        bins = self.bins_of_step(epoch, step)
        share = self.bins // self.world_size
        parts = [np.concatenate(bins[rank * share : (rank + 1) * share]) for rank in range(self.world_size)]
        predictions = examples.predictions if self.ranking is None else examples.actions
        asked = int(predictions(np.concatenate(parts)).sum())
        weight = self.world_size / asked if asked else 0.0
        own = parts[self.rank]
        tokens = examples.tokens(own)
        bin_seeds = None
        if self.negatives is not None:
            places = range(self.rank * share, (self.rank + 1) * share)
            windows_of_bins = np.cumsum([0, *(len(bins[place]) for place in places)])
            seeds = [derive_seed(self.seed, "negatives", epoch, step, place) for place in places]
            bin_seeds = BinSeeds(tokens.offsets_B[windows_of_bins], seeds)
        return self._maker.make(tokens, own, self.tokens_per_batch, weight, bin_seeds)

    def iterate(self, epoch: int, start_step: int = 0, workers: int = 0) -> Iterator[Batch]:
        """This rank's batches of the epoch from `start_step` on.

        Args:
            workers: processes that make batches ahead; 0 makes each when it is asked for. The batches are the same.
        """
        steps = range(start_step, self.steps_per_epoch(epoch))
        if not workers or not steps:
            return (self.batch(epoch, step) for step in steps)
        # Forked after the epoch is planned, so that the plan, the item features and the mapped columns are shared; and
        # frozen, since a collector that cleared away the parent's garbage, such as a process group, would wait for
        # threads that a fork does not take along.
        return iter(
            DataLoader(
                _Steps(self, epoch),
                batch_size=None,
                sampler=steps,
                num_workers=workers,
                multiprocessing_context="fork",
                worker_init_fn=lambda _: gc.freeze(),
            )
        )

    def state(self, epoch: int, step: int) -> LoaderState:
        """What to keep in order to go on from a step."""
        return LoaderState(self._plan_name(), epoch, step)

    def check_state(self, state: LoaderState) -> None:
        """See that a state is of a loader with the same batches.

        Raises:
            InputError: it is not: going on would skip events and repeat others.
        """
        if state.plan != self._plan_name():
            raise InputError(
                f"the checkpoint's loader has plan {state.plan}, this one {self._plan_name()}: store, windows, token "
                "budget, bins, seed, thinning, actions or negatives differ, so the rest of its epoch cannot be found; "
                "resume with the same"
            )

    def _plan_name(self) -> str:
        planned = self._epoch(0)
        plan = {
            "store": self.store_fingerprint,
            "tokens": self.tokens,
            "bins": self.bins,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "ties": self.tie_limit_U is not None,
            "thinning": [self.thinning.alpha, self.thinning.selection, self.longest],
            "windows": [len(planned.order), int(planned.examples.windows.stop.sum()), type(self.plan).__name__],
        }
        if self.negatives is not None:
            plan["negatives"] = self.negatives.describe()
        if self.ranking is not None:
            plan["actions"] = [self.ranking.form, self.ranking.tasks, self.ranking.played_buckets]
            if self.ranking.series:
                plan["series"] = self.ranking.series
        return fingerprint_of(plan)

    def _epoch(self, epoch: int) -> _Epoch:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan_epoch(epoch)
        return self._planned[1]

    def _plan_epoch(self, epoch: int) -> _Epoch:
        windows = self.plan.windows(epoch)
        random = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "loader", epoch)))
        kept_W = windows.lengths
        if self.thinning.is_on:
            kept_W = self.thinning.kept_lengths(kept_W, self.longest, random)
        columns = self._maker.columns
        examples = Examples(
            offsets=columns.offsets,
            timestamps_E=columns.timestamps,
            windows=windows,
            kept_W=kept_W,
            thinning=self.thinning,
            tie_limit_U=self.tie_limit_U,
            seed=derive_seed(self.seed, "examples", epoch),
        )
        lengths_W = self._maker.token_lengths(examples)
        _check_budget(lengths_W, kept_W, self.tokens)
        order, bin_of = self._packed(lengths_W, random)
        by_bin = np.argsort(bin_of, kind="stable")
        num_bins = int(bin_of.max()) + 1 if len(bin_of) else 0
        whole_steps = -(-num_bins // self.bins) * self.bins
        offsets = np.zeros(whole_steps + 1, dtype=np.int64)
        np.cumsum(np.bincount(bin_of, minlength=whole_steps), out=offsets[1:])
        return _Epoch(examples, lengths_W, order[by_bin], offsets)

    def _packed(self, lengths_W: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The order in which windows were packed, and the bin of each."""
        order = np.arange(len(lengths_W))
        if self.plan.in_time_order:
            return order, pack_in_order(lengths_W, self.tokens, self.bins)
        if not self.shuffle:
            return order, self._pack(lengths_W)
        random.shuffle(order)
        bin_of = self._pack(lengths_W[order])
        # Packing tops up the first bins with the last windows and leaves the last bins the emptiest.
        return order, random.permutation(int(bin_of.max()) + 1 if len(bin_of) else 0)[bin_of]

    def _pack(self, lengths: np.ndarray) -> np.ndarray:
        return pack(lengths, self.tokens) if self.bins == 1 else pack_with_room(lengths, self.tokens)


class _Steps(Dataset[Batch]):
    """The steps of an epoch as torch's DataLoader wants them: by number."""

    def __init__(self, loader: Loader, epoch: int) -> None:
        self.loader, self.epoch = loader, epoch

    def __getitem__(self, step: int) -> Batch:
        return self.loader.batch(self.epoch, step)


def _check_budget(lengths_W: np.ndarray, inputs_W: np.ndarray, tokens: int) -> None:
    longest = int(np.argmax(lengths_W)) if len(lengths_W) else 0
    if len(lengths_W) and lengths_W[longest] > tokens:
        raise InputError(
            f"tokens={tokens} is less than the longest window of {lengths_W[longest]} tokens, which it has for "
            f"{inputs_W[longest]} inputs; a bin must hold a window whole: raise tokens or lower the longest history"
        )
