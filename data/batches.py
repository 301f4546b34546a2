"""Windows → one batch of a fixed number of tokens, as TorchRec wants it.

A token is one input event. The tokens of all users of a batch lie in one flat buffer of L tokens, user
after user, and what is left at the end is padding: no padding within users, and shapes that never change.
Every categorical feature of a token is a bag of ids in one KeyedJaggedTensor of stride L.

L token budget of the batch, padding included · n tokens in use · B users (windows) in the batch · C code
levels · V codes per level · N items in the catalogue · A artists · R remainders · W windows · E events.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from data.schema import MISSING_DURATION, MISSING_ORGANIC, QR_REMAINDERS
from data.sequences import Windows

FEATURE_KEYS = ("rq", "artist_quotient", "artist_remainder", "event_type")

NO_TARGET = -1
NO_DURATION = -1

_WINDOWS_PER_COUNT = 65536
"""Windows whose targets are counted at once: bounds memory."""


@dataclass(frozen=True)
class ItemFeatures:
    """What a batch must know of the items.

    Attributes:
        codes_NC: int64, semantic ids, each 0 … V - 1; a row of zeros is an unknown item.
        codes_per_level: V.
        artist_offsets: int64 [N + 1] into `artist_values`; an empty range is an unknown artist.
        artist_values: int64, dense artist indices below `num_artists`.
        num_artists: A.
        qr_remainders: R, the remainders of the quotient-remainder artist ids; the model's tables must have the same.
    """

    codes_NC: torch.Tensor
    codes_per_level: int
    artist_offsets: torch.Tensor
    artist_values: torch.Tensor
    num_artists: int
    qr_remainders: int = QR_REMAINDERS

    def __post_init__(self) -> None:
        """Check shapes and ranges once, so that no embedding table is ever indexed outside."""
        assert self.codes_NC.dtype == self.artist_offsets.dtype == self.artist_values.dtype == torch.int64
        assert self.codes_NC.ndim == 2
        assert self.artist_offsets.shape == (len(self.codes_NC) + 1,)
        assert int(self.artist_offsets[-1]) == len(self.artist_values)
        for values, limit in ((self.codes_NC, self.codes_per_level), (self.artist_values, self.num_artists)):
            assert values.numel() == 0 or (int(values.min()) >= 0 and int(values.max()) < limit)

    @property
    def known_N(self) -> torch.Tensor:
        """Bool: which items have a code of their own."""
        return self.codes_NC.any(dim=1)


def artist_table_rows(num_artists: int, remainders: int) -> tuple[int, int]:
    """Rows of the quotient table, whose last is the unknown artist's, and of the remainder table."""
    return -(-num_artists // remainders) + 1, min(remainders, max(num_artists, 1))


@dataclass(frozen=True)
class EventColumns:
    """A store's flat columns as arrays; `durations` and `organic` are None where the store has none.

    `offsets` is int64 [U + 1], all others are [E] in the dtypes of data/schema.py.
    """

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    event_types: np.ndarray
    durations: np.ndarray | None
    organic: np.ndarray | None

    def reordered(self, order_E: np.ndarray) -> EventColumns:
        """Copies of the columns with event `order_E[i]` in place i, which must be of the same user and second."""
        return EventColumns(
            offsets=self.offsets,
            items=self.items[order_E],
            timestamps=self.timestamps,
            event_types=self.event_types[order_E],
            durations=None if self.durations is None else self.durations[order_E],
            organic=None if self.organic is None else self.organic[order_E],
        )


@dataclass
class Batch(Pipelineable):
    """One rank's share of a step.

    Attributes:
        features: stride L, keys FEATURE_KEYS. `rq`: C ids `l * V + code_l`. `artist_quotient`, `artist_remainder`: one
            id each per artist of the item, `id // R` and `id % R`; an item without artists has the one id ceil(A / R)
            in `artist_quotient` and an empty bag in `artist_remainder`. `event_type`: one id. Padding: empty bags.
        offsets: int64 [B + 1], the users' ranges in the flat buffer; from `offsets[-1]` to L all is padding.
        timestamps_L: int64, seconds; 0 in padding.
        request_times_L: int64, seconds: when the next event, which is to be predicted, happened; 0 in padding.
        durations_L: int64, seconds; -1 missing, and in padding.
        organic_L: int64, 0, 1 or 2 = missing, also in padding.
        target_items_L: int64, dense index of the next item; -1 = nothing to learn here: padding, an input of a
            request other than its last, or a target whose code is all zero (evaluation still counts it, as a miss).
        target_codes_LC: int64, its codes; -1 where there is no target.
        loss_weight: float32, 0-d: world size / targets in the global batch, 0 where it has none. The sum of a rank's
            losses times this, averaged over ranks, is the mean over the global batch.
        window_index_B: int64, which of the loader's windows each user row is.
    """

    features: KeyedJaggedTensor
    offsets: torch.Tensor
    timestamps_L: torch.Tensor
    request_times_L: torch.Tensor
    durations_L: torch.Tensor
    organic_L: torch.Tensor
    target_items_L: torch.Tensor
    target_codes_LC: torch.Tensor
    loss_weight: torch.Tensor
    window_index_B: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """A copy on `device`."""
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which `to` a GPU is asynchronous."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has used it. The CPU has one order of work, so nothing to record."""
        if self.offsets.device.type == "cpu":
            return
        for field in dataclasses.fields(self):
            getattr(self, field.name).record_stream(stream)

    def _map(self, change: Callable[[torch.Tensor | KeyedJaggedTensor], torch.Tensor | KeyedJaggedTensor]) -> Batch:
        return Batch(**{field.name: change(getattr(self, field.name)) for field in dataclasses.fields(self)})


class BatchMaker:
    """Cuts batches out of a store's columns.

    Args:
        columns: the store's.
        features: codes and artists of its items.
        windows: the plan of which batches take windows by index.
    """

    def __init__(self, columns: EventColumns, features: ItemFeatures, windows: Windows) -> None:
        """Prepare what every batch needs: where windows begin, and the ids of every item."""
        self.columns = columns
        self.features = features
        self.windows = windows
        self._first_W = columns.offsets[windows.user] + windows.start  # flat position of each window's first input
        self._lengths_W = windows.lengths
        self._known_N: np.ndarray = features.known_N.numpy()
        levels = torch.arange(features.codes_NC.shape[1])
        self._rq_ids_NC = features.codes_NC + levels * features.codes_per_level
        self._quotients, self._remainders = _quotient_remainder(features)

    def over(self, columns: EventColumns) -> BatchMaker:
        """The same windows and items over other columns with the same offsets."""
        assert columns.offsets is self.columns.offsets
        other = copy.copy(self)
        other.columns = columns
        return other

    def count_targets(self) -> np.ndarray:
        """Targets to learn from in each window, int64 [W]."""
        if self.windows.last_target_only:
            known_W: np.ndarray = self._known_N[self.columns.items[self._first_W + self._lengths_W]]
            return known_W.astype(np.int64)
        counts = np.zeros(len(self.windows), dtype=np.int64)
        for begin in range(0, len(self.windows), _WINDOWS_PER_COUNT):
            block = slice(begin, begin + _WINDOWS_PER_COUNT)
            positions, offsets = expand_ranges(self._first_W[block] + 1, self._lengths_W[block])
            known = self._known_N[self.columns.items[positions.numpy()]]
            counts[block] = np.add.reduceat(known, offsets[:-1].numpy(), dtype=np.int64)
        return counts

    def make(self, window_index_B: np.ndarray, tokens: int, loss_weight: float) -> Batch:
        """The batch of the given windows, in this order, in a buffer of `tokens` tokens."""
        positions_n, offsets = expand_ranges(self._first_W[window_index_B], self._lengths_W[window_index_B])
        assert len(positions_n) <= tokens, f"{len(positions_n)} tokens do not fit a budget of {tokens}"
        at = positions_n.numpy()
        columns = self.columns
        items_n = torch.from_numpy(columns.items[at].astype(np.int64))
        target_items_L = self._targets(at, offsets, tokens)
        return Batch(
            features=self._bags(items_n, columns.event_types[at], tokens),
            offsets=offsets,
            timestamps_L=_padded(columns.timestamps[at], tokens, 0),
            request_times_L=_padded(columns.timestamps[at + 1], tokens, 0),
            durations_L=_padded(_or_missing(columns.durations, at, MISSING_DURATION, NO_DURATION), tokens, NO_DURATION),
            organic_L=_padded(
                _or_missing(columns.organic, at, MISSING_ORGANIC, MISSING_ORGANIC), tokens, MISSING_ORGANIC
            ),
            target_items_L=target_items_L,
            target_codes_LC=self._target_codes(target_items_L),
            loss_weight=torch.tensor(loss_weight, dtype=torch.float32),
            window_index_B=torch.from_numpy(window_index_B.astype(np.int64)),
        )

    def _targets(self, at: np.ndarray, offsets: torch.Tensor, tokens: int) -> torch.Tensor:
        targets_n = self.columns.items[at + 1].astype(np.int64)
        wanted_n = self._known_N[targets_n]
        if self.windows.last_target_only:
            last_n = np.zeros(len(at), dtype=bool)
            last_n[offsets[1:].numpy() - 1] = True
            wanted_n = wanted_n & last_n
        return _padded(np.where(wanted_n, targets_n, NO_TARGET), tokens, NO_TARGET)

    def _target_codes(self, target_items_L: torch.Tensor) -> torch.Tensor:
        codes_LC = self.features.codes_NC[target_items_L.clamp(min=0)]
        codes_LC[target_items_L == NO_TARGET] = NO_TARGET
        return codes_LC

    def _bags(self, items_n: torch.Tensor, event_types_n: np.ndarray, tokens: int) -> KeyedJaggedTensor:
        quotients, quotient_lengths_n = self._quotients.of(items_n)
        remainders, remainder_lengths_n = self._remainders.of(items_n)
        lengths = torch.zeros(len(FEATURE_KEYS), tokens, dtype=torch.int64)
        used = lengths[:, : len(items_n)]
        used[0], used[1], used[2], used[3] = self._rq_ids_NC.shape[1], quotient_lengths_n, remainder_lengths_n, 1
        return KeyedJaggedTensor(
            keys=list(FEATURE_KEYS),
            values=torch.cat(
                [
                    self._rq_ids_NC[items_n].flatten(),
                    quotients,
                    remainders,
                    torch.from_numpy(event_types_n.astype(np.int64)),
                ]
            ),
            lengths=lengths.flatten(),
            stride=tokens,
        )


@dataclass(frozen=True)
class _ItemBags:
    """A bag of ids for each item: `values[starts_N[i] : starts_N[i] + lengths_N[i]]`."""

    values: torch.Tensor
    starts_N: torch.Tensor
    lengths_N: torch.Tensor

    def of(self, items_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The bags of some items, end to end, and their lengths."""
        lengths_n = self.lengths_N[items_n]
        positions, _ = expand_ranges(self.starts_N[items_n], lengths_n)
        return self.values[positions], lengths_n


def _quotient_remainder(features: ItemFeatures) -> tuple[_ItemBags, _ItemBags]:
    """An unknown artist is an id of its own among the quotients, and nothing among the remainders."""
    remainders = features.qr_remainders
    starts_N, lengths_N = features.artist_offsets[:-1], features.artist_offsets.diff()
    remainder_bags = _ItemBags(features.artist_values % remainders, starts_N, lengths_N)
    unknown = artist_table_rows(features.num_artists, remainders)[0] - 1
    quotients = torch.cat([features.artist_values // remainders, torch.tensor([unknown])])
    empty_N = lengths_N == 0
    starts_N = torch.where(empty_N, len(features.artist_values), starts_N)  # all empty items share the appended id
    return _ItemBags(quotients, starts_N, lengths_N + empty_N), remainder_bags


def expand_ranges(
    starts: torch.Tensor | np.ndarray, lengths: torch.Tensor | np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the ranges [start, start + length), end to end, and the offsets of each range among them.

    `[10, 7]`, `[2, 3]` → `[10, 11, 7, 8, 9]`, `[0, 2, 5]`; all int64.
    """
    starts, lengths = torch.as_tensor(starts), torch.as_tensor(lengths)
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    if len(starts) == 0:
        return starts, offsets
    ends = torch.cat(
        [starts, starts[-1:]]
    )  # the operator wants as many as there are offsets, and reads all but the last
    positions = torch.ops.fbgemm.expand_into_jagged_permute(torch.arange(len(starts)), ends, offsets, int(offsets[-1]))
    return positions, offsets


def _padded(values_n: np.ndarray, tokens: int, padding: int) -> torch.Tensor:
    padded_L = torch.full((tokens,), padding, dtype=torch.int64)
    padded_L[: len(values_n)] = torch.from_numpy(values_n)
    return padded_L


def _or_missing(values: np.ndarray | None, at: np.ndarray, stored: int, missing: int) -> np.ndarray:
    """An optional column, int64, with the store's mark of a missing value turned into the batch's."""
    if values is None:
        return np.full(len(at), missing, dtype=np.int64)
    taken = values[at].astype(np.int64)
    return np.where(taken == stored, missing, taken)
