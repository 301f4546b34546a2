"""Batches for one rank: planned alike on every rank, so that nothing need be said between them.

A global step is `bins` bins of `tokens` tokens each. Windows are packed whole into bins, and each rank
takes `bins / world_size` consecutive bins of a step in one batch. So one configuration gives the same
global batches on 1, 2, 3 … ranks, every rank has as many steps as the others, and the number of targets in
a global batch, by which its loss is divided, is known everywhere.

A plan is a function of (seed, epoch) alone: to resume, begin at a step.

Shapes: W windows · L token budget of the batch · B users in the batch · N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from common.errors import InputError
from common.seeding import derive_seed
from data import schema
from data.batches import Batch, BatchMaker, EventColumns, ItemFeatures
from data.event_store import EventStore
from data.sequences import Windows


@dataclass(frozen=True)
class _Plan:
    """Windows in bins: bin b holds `windows[offsets[b] : offsets[b + 1]]`; bins come in whole steps.

    `maker` cuts the epoch's batches; `targets_W` is how many targets each window has in it.
    """

    windows: np.ndarray
    offsets: np.ndarray
    maker: BatchMaker
    targets_W: np.ndarray


def event_columns(store: EventStore) -> EventColumns:
    """The columns of a store that batches are made of."""
    return EventColumns(
        offsets=store.offsets,
        items=store.column(schema.ITEM),
        timestamps=store.column(schema.TIMESTAMP),
        event_types=store.column(schema.EVENT_TYPE),
        durations=store.column(schema.DURATION) if store.has_column(schema.DURATION) else None,
        organic=store.column(schema.ORGANIC) if store.has_column(schema.ORGANIC) else None,
    )


def item_features(
    store: EventStore, codes_NC: np.ndarray, codes_per_level: int, qr_remainders: int = schema.QR_REMAINDERS
) -> ItemFeatures:
    """The items of a store with their codes (all zero where unknown)."""
    assert len(codes_NC) == store.num_items, f"{len(codes_NC)} codes for {store.num_items} items"
    return ItemFeatures(
        codes_NC=torch.from_numpy(codes_NC.astype(np.int64)),
        codes_per_level=codes_per_level,
        artist_offsets=torch.from_numpy(store.artist_offsets.astype(np.int64)),
        artist_values=torch.from_numpy(store.artist_values.astype(np.int64)),
        num_artists=store.num_artists,
        qr_remainders=qr_remainders,
    )


class Loader:
    """The batches of one rank.

    Args:
        store: where the events are.
        item_features: codes and artists of its items.
        windows: what to batch; each window comes exactly once an epoch.
        tokens: budget of one bin, at least the longest window.
        bins: bins of a global step; `world_size` must divide it.
        rank, world_size: whose batches.
        seed: of the shuffling.
        shuffle: whether windows and bins come in an order drawn from (seed, epoch), or as they are in `windows`.
        shuffle_ties: whether events of one user in one second, whose order in the log says nothing, are ordered anew
            in each epoch, drawn from (seed, epoch). Held-out events keep their places. Costs each epoch a copy of the
            columns.

    Raises:
        InputError: `world_size` does not divide `bins`, or a window is longer than `tokens`.
    """

    def __init__(
        self,
        store: EventStore,
        item_features: ItemFeatures,
        windows: Windows,
        *,
        tokens: int,
        bins: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        shuffle_ties: bool = False,
    ) -> None:
        """Check that the windows fit the budget."""
        assert 0 <= rank < world_size
        assert len(item_features.codes_NC) == store.num_items
        _check_budget(windows, tokens, bins, world_size)
        self.tokens, self.bins, self.rank, self.world_size = tokens, bins, rank, world_size
        self.seed, self.shuffle, self.shuffle_ties = seed, shuffle, shuffle_ties
        self.windows = windows
        self.tokens_per_batch = tokens * bins // world_size
        self._in_order = BatchMaker(event_columns(store), item_features, windows)
        self._planned: tuple[int, _Plan] | None = None

    def steps_per_epoch(self, epoch: int) -> int:
        """Steps, the same on every rank; epochs of a shuffled loader may differ by a few."""
        return (len(self._plan(epoch).offsets) - 1) // self.bins

    def padding_share(self, epoch: int) -> float:
        """Share of the epoch's token budget that holds no token, over all ranks; 0 where there are no steps."""
        budget = self.steps_per_epoch(epoch) * self.bins * self.tokens
        return 1.0 - int(self.windows.lengths.sum()) / budget if budget else 0.0

    def iterate(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of the epoch from `start_step` on; each has L = `tokens_per_batch` tokens."""
        plan = self._plan(epoch)
        bins_per_rank = self.bins // self.world_size
        for step in range(start_step, self.steps_per_epoch(epoch)):
            first = step * self.bins
            everyone = plan.windows[plan.offsets[first] : plan.offsets[first + self.bins]]
            mine = first + self.rank * bins_per_rank
            own = plan.windows[plan.offsets[mine] : plan.offsets[mine + bins_per_rank]]
            targets = int(plan.targets_W[everyone].sum())
            yield plan.maker.make(own, self.tokens_per_batch, self.world_size / targets if targets else 0.0)

    def _plan(self, epoch: int) -> _Plan:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._make_plan(epoch)
        return self._planned[1]

    def _make_plan(self, epoch: int) -> _Plan:
        order = np.arange(len(self.windows))
        random = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "loader", epoch)))
        if self.shuffle:
            random.shuffle(order)
        bin_of = pack(self.windows.lengths[order], self.tokens)
        num_bins = int(bin_of.max()) + 1 if len(bin_of) else 0
        if self.shuffle:
            # Packing tops up the first bins with the last windows and leaves the last bins the emptiest.
            bin_of = random.permutation(num_bins)[bin_of]
        by_bin = np.argsort(bin_of, kind="stable")
        whole_steps = -(-num_bins // self.bins) * self.bins
        offsets = np.zeros(whole_steps + 1, dtype=np.int64)
        np.cumsum(np.bincount(bin_of, minlength=whole_steps), out=offsets[1:])
        maker = self._in_order
        if self.shuffle_ties:
            maker = maker.over(shuffle_ties(maker.columns, self.windows, random))
        return _Plan(order[by_bin], offsets, maker, maker.count_targets())


def shuffle_ties(columns: EventColumns, windows: Windows, random: np.random.Generator) -> EventColumns:
    """The columns with events of one user and one second in random order, up to the user's last training target.

    What comes after it, held-out events above all, stays in place.
    """
    lengths_U = np.diff(columns.offsets)
    last_U = np.full(len(lengths_U), -1, dtype=np.int64)
    np.maximum.at(last_U, windows.user, windows.stop)
    user_E = np.repeat(np.arange(len(lengths_U)), lengths_U)
    free_E = np.arange(len(user_E)) - columns.offsets[user_E] <= last_U[user_E]
    # Runs of free events that share user and second; every other event is a run of its own.
    starts_E = np.ones(len(user_E), dtype=bool)
    starts_E[1:] = (np.diff(user_E) != 0) | (np.diff(columns.timestamps) != 0) | ~free_E[1:]
    run_E = np.cumsum(starts_E)
    tied = np.flatnonzero(np.bincount(run_E)[run_E] > 1)
    order_E = np.arange(len(user_E))
    order_E[tied] = tied[np.lexsort((random.random(len(user_E))[tied], run_E[tied]))]
    return columns.reordered(order_E)


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Bin of each length, best fit: the fullest bin that still has room (of several, the last used), else a new one.

    Which capacities are free in some bin is kept as the bits of one integer, so a window costs a shift and a
    bit count, not a search through the bins.
    """
    bins_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # free capacity → bins
    free = 0  # bit c is set where bins_with[c] is not empty
    result = np.empty(len(lengths), dtype=np.int64)
    opened = 0
    for index, length in enumerate(lengths.tolist()):
        fitting = free >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = bins_with[room].pop()
            if not bins_with[room]:
                free &= ~(1 << room)
        else:
            room, chosen = capacity, opened
            opened += 1
        result[index] = chosen
        left = room - length
        if left:
            bins_with[left].append(chosen)
            free |= 1 << left
    return result


def _check_budget(windows: Windows, tokens: int, bins: int, world_size: int) -> None:
    faults = []
    if bins < 1 or bins % world_size:
        faults.append(
            f"bins={bins} does not divide among {world_size} ranks; the bins of a global step must be a multiple of "
            "the number of ranks"
        )
    longest = int(windows.lengths.max()) if len(windows) else 0
    if longest > tokens:
        faults.append(
            f"tokens={tokens} is less than the longest window of {longest} inputs; a bin must hold a window whole: "
            "raise tokens or lower the longest history"
        )
    if faults:
        raise InputError(*faults)
