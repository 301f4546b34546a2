"""Put requests to engines, and say where each engine places what was held out.

Requests are packed into bins that depend on the requests alone; a rank takes every so many of them. A bin is computed
in the same way whoever computes it, so figures are those of one rank on any number, wherever the model itself gives the
same numbers (`sharding.world.alone`).

B requests of a bin · D model width · C code levels · K list length · R requests · T targets · t targets of a bin.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.progress import Progress
from data.batches import Batch, ItemFeatures
from data.event_store import EventStore
from data.loader import Loader
from data.ranges import positions_of
from data.schema import ITEM, TIMESTAMP
from evaluation.levels import level_confidence
from evaluation.parts import Arrays, Parts, joined
from evaluation.requests import Requests
from evaluation.results import KEPT, EngineResult, Evaluation, Ints, LevelResult
from model.heads import CascadedHeads
from serving.engines.base import Engine, History, Query
from serving.engines.overlap import DEPTHS as OVERLAP_DEPTHS
from serving.engines.overlap import engine_overlap
from sharding.world import World

_REQUESTS_AT_ONCE = 256
"""In a bin, where there is no model to bound it by tokens."""


@dataclass(frozen=True)
class Reader:
    """How a model reads requests.

    Args:
        encode: a batch → L2-normalised states [L, D]. Collective where tables are sharded over the ranks.
        features: of the items, what a batch needs.
        tokens: budget of a bin.
        distinct: as in training.
        heads: of a model whose output are codes: they are held against the true codes.
    """

    encode: Callable[[Batch], Tensor]
    features: ItemFeatures
    tokens: int
    distinct: bool = True
    heads: CascadedHeads | None = None


def evaluate_requests(
    reader: Reader | None,
    engines: Sequence[Engine],
    requests: Requests,
    store: EventStore,
    world: World,
    *,
    depth: int,
    label: str,
    filter_history: bool = True,
    parts: Parts | None = None,
) -> Evaluation | None:
    """Put every request to every engine.

    Args:
        reader: what turns histories into vectors; None where no engine wants any.
        depth: K, the length of the lists; an item that stands below it counts as not found.
        filter_history: return no item of the history that a request may see, the whole of it, not only the window.
        parts: what is done already, and where to keep what is done.

    Returns:
        The outcome on rank 0, None elsewhere.
    """
    parts = parts or Parts(None, "", world.rank)
    bins = _Bins(reader, requests, store)
    done = _agreed(parts.read(), world)
    for number in [number for number in parts.kept if number not in done or not world.is_main]:
        del parts.kept[number]  # of what was found before, rank 0 alone keeps a copy
    mine = _Work(reader, engines, requests, store, world, depth, filter_history)
    left = [number for number in range(len(bins)) if number not in done]
    finished = sum(len(bins.requests_of(number)) for number in done)
    if finished and world.is_main:
        print(f"{label}: goes on after {finished} of {len(requests)} requests, which were done before", file=sys.stderr)
    total = len(requests) - finished
    with torch.no_grad(), Progress(label, total, "requests", quiet=not world.is_main) as progress:
        try:
            for first in range(0, len(left), world.size):
                together = left[first : first + world.size]
                # A rank without a bin of its own takes part in what is collective, with the last one's.
                number = together[min(world.rank, len(together) - 1)]
                found = mine.of(bins, number)
                if world.rank < len(together):
                    parts.add(number, found)
                progress.advance(sum(len(bins.requests_of(one)) for one in together))
        finally:
            parts.write()
    return _gathered(parts, engines, requests, world, depth, store.num_items, bins)


class _Bins:
    """The requests in bins: of as many as fit the token budget, or of a fixed number."""

    def __init__(self, reader: Reader | None, requests: Requests, store: EventStore) -> None:
        self.loader: Loader | None = None
        if reader is None:
            cuts = np.arange(0, len(requests), _REQUESTS_AT_ONCE)[1:]
            self._bins = np.split(np.arange(len(requests)), cuts)
            return
        self.loader = Loader(
            store,
            reader.features,
            requests.windows,
            tokens=reader.tokens,
            bins=1,
            rank=0,
            world_size=1,
            seed=0,
            shuffle=False,
            distinct=reader.distinct,
        )
        self._bins = [self.loader.bins_of_step(0, step)[0] for step in range(self.loader.steps_per_epoch(0))]

    def __len__(self) -> int:
        return len(self._bins)

    def requests_of(self, number: int) -> Ints:
        return self._bins[number]

    def batch(self, number: int) -> Batch:
        assert self.loader is not None
        return self.loader.batch(0, number)


@dataclass(frozen=True)
class _Work:
    """What is done with one bin."""

    reader: Reader | None
    engines: Sequence[Engine]
    requests: Requests
    store: EventStore
    world: World
    depth: int
    filter_history: bool

    def of(self, bins: _Bins, number: int) -> Arrays:
        device = self.world.device
        rows_B = bins.requests_of(number)
        found: Arrays = {"requests": rows_B}
        hidden_BD = torch.zeros(len(rows_B), 0, device=device)
        if self.reader is not None:
            batch = bins.batch(number).to(device)
            hidden_BD = self.reader.encode(batch)[batch.offsets[1:] - 1]
            if self.reader.heads is not None:
                found |= self._levels(self.reader.heads, hidden_BD, rows_B)
        query = self._query(hidden_BD, rows_B)
        reference_BK: Ints | None = None
        for engine in self.engines:
            begun = time.perf_counter()
            retrieved = engine.retrieve(query, self.depth)
            items_BK, scores_BK = (values.cpu().numpy() for values in retrieved)  # waits for a GPU
            seconds = time.perf_counter() - begun
            reference_BK = items_BK if reference_BK is None else reference_BK
            overlap = engine_overlap(items_BK, reference_BK)
            found |= {
                f"{engine.name}/seconds": np.array([seconds]),
                f"{engine.name}/places": self._places(items_BK, rows_B),
                f"{engine.name}/items": items_BK[:, :KEPT].astype(np.int32),
                f"{engine.name}/scores": scores_BK[:, :KEPT].astype(np.float32),
                f"{engine.name}/overlap": np.array([[*overlap.values()]]) * len(rows_B),
                f"{engine.name}/longest": (items_BK >= 0).sum(axis=1).max(keepdims=True),
            }
        return found

    def _levels(self, heads: CascadedHeads, hidden_BD: Tensor, rows_B: Ints) -> Arrays:
        assert self.reader is not None
        targets = self.requests.targets
        codes_BC = self.reader.features.codes_NC[targets.items_T[targets.first_T[rows_B]]].long()
        known_B = (codes_BC != 0).any(dim=1)
        device = self.world.device
        confidence_BC, correct_BC = level_confidence(heads, hidden_BD, codes_BC.to(device), known_B.to(device))
        return {"confidence": confidence_BC.cpu().numpy(), "correct": correct_BC.cpu().numpy()}

    def _query(self, hidden_BD: Tensor, rows_B: Ints) -> Query:
        """The vectors, and everything that each request may see, not only its window."""
        targets, store, device = self.requests.targets, self.store, self.world.device
        users_B, seen_B = targets.users_R[rows_B], self.requests.history_stop_R[rows_B]
        at_h = positions_of(store.offsets[users_B], seen_B)

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        history = History(
            tensor(np.concatenate([[0], np.cumsum(seen_B)])),
            tensor(store.column(ITEM)[at_h]),
            tensor(store.column(TIMESTAMP)[at_h]),
            tensor(targets.times_R[rows_B]),
        )
        nothing = hidden_BD.new_zeros(0, dtype=torch.int64)
        excluded = (history.rows_h, history.items_h) if self.filter_history else (nothing, nothing)
        return Query(hidden_BD, *excluded, history)

    def _places(self, items_BK: Ints, rows_B: Ints) -> Ints:
        """1-based place of each of the bin's targets [t], 0 where the list does not hold it."""
        targets, num_items = self.requests.targets, self.store.num_items
        sizes_B = targets.sizes_R[rows_B]
        at_t = positions_of(targets.offsets_R1[rows_B], sizes_B)
        wanted_t = np.repeat(np.arange(len(rows_B)), sizes_B) * num_items + targets.items_T[at_t]
        row_S, column_S = np.nonzero(items_BK >= 0)
        listed_S = row_S * num_items + items_BK[row_S, column_S]
        order_t = np.argsort(wanted_t)
        where_S = np.searchsorted(wanted_t, listed_S, sorter=order_t).clip(max=len(wanted_t) - 1)
        hit_S = np.flatnonzero(wanted_t[order_t[where_S]] == listed_S)
        places_t = np.zeros(len(wanted_t), np.int64)
        places_t[order_t[where_S[hit_S]]] = column_S[hit_S] + 1
        return places_t


def _mean_overlap(found: Arrays, engine: str, num_requests: int, depth: int) -> dict[int, float]:
    """At the depths that the engine's lists reach."""
    longest = int(found[f"{engine}/longest"].max())
    shares = found[f"{engine}/overlap"].sum(axis=0) / num_requests
    depths = [one for one in OVERLAP_DEPTHS if one <= depth]
    return {one: float(share) for one, share in zip(depths, shares, strict=True) if one <= longest}


def _agreed(found: set[int], world: World) -> set[int]:
    """The bins that rank 0 found done: folders may be seen later on one machine than on another."""
    told = [found if world.is_main else None]
    dist.broadcast_object_list(told, src=0)
    assert told[0] is not None
    return told[0]


def _gathered(
    parts: Parts,
    engines: Sequence[Engine],
    requests: Requests,
    world: World,
    depth: int,
    num_items: int,
    bins: _Bins,
) -> Evaluation | None:
    everyone: list[dict[int, Arrays] | None] | None = [None] * world.size if world.is_main else None
    dist.gather_object(parts.kept, everyone, dst=0)
    if everyone is None:
        return None
    by_bin: dict[int, Arrays] = {}
    for kept in everyone:
        by_bin |= kept or {}
    assert set(by_bin) == set(range(len(bins)))
    found = joined(by_bin[number] for number in sorted(by_bin))
    targets = requests.targets
    rows_R = found["requests"]
    assert np.array_equal(np.sort(rows_R), np.arange(len(requests)))
    order_R = np.argsort(rows_R)
    sizes_R = targets.sizes_R[rows_R]
    order_T = positions_of((np.cumsum(sizes_R) - sizes_R)[order_R], sizes_R[order_R])
    results = {
        engine.name: EngineResult(
            found[f"{engine.name}/places"][order_T],
            found[f"{engine.name}/items"][order_R],
            found[f"{engine.name}/scores"][order_R],
            engine.log_probabilities,
        )
        for engine in engines
    }
    levels = None
    if "confidence" in found:
        levels = LevelResult(found["confidence"][order_R], found["correct"][order_R])
    seconds = {engine.name: float(found[f"{engine.name}/seconds"].sum()) for engine in engines}
    overlaps = {engine.name: _mean_overlap(found, engine.name, len(targets), depth) for engine in engines}
    return Evaluation(targets, results, depth, num_items, levels, seconds, overlaps)
