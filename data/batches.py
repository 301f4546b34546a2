"""Tokens → one batch of a fixed size, as TorchRec wants it.

A token is one input event. The tokens of all users of a batch lie in one flat buffer of L tokens, user
after user, and what is left at the end is padding: no padding within users, and shapes that never change.
Every categorical feature of a token is a bag of ids in one KeyedJaggedTensor of stride L.

L token budget of the batch, padding included · n tokens in use · B users (windows) in the batch · C code
levels · V codes per level · N items in the catalogue · A artists · R remainders · W windows · E events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from data.examples import Tokens
from data.item_records import ARTIST, ARTISTS, CODES, KNOWN, ItemRecords
from data.schema import MISSING_DURATION, MISSING_ORGANIC, QR_REMAINDERS

FEATURE_KEYS = ("rq", "artist_quotient", "artist_remainder", "event_type")

NO_TARGET = -1
NO_DURATION = -1


@dataclass(frozen=True)
class ItemFeatures:
    """What a batch must know of the items.

    Attributes:
        codes_NC: int16 or int32, whichever holds V, semantic ids, each 0 … V - 1; a row of zeros is an unknown item.
        codes_per_level: V.
        artist_offsets: int64 [N + 1] into `artist_values`; an empty range is an unknown artist.
        artist_values: int32, dense artist indices below `num_artists`.
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
        assert self.codes_NC.dtype == code_dtype(self.codes_per_level)
        assert (self.artist_offsets.dtype, self.artist_values.dtype) == (torch.int64, torch.int32)
        assert self.codes_NC.ndim == 2
        assert self.artist_offsets.shape == (len(self.codes_NC) + 1,)
        assert int(self.artist_offsets[-1]) == len(self.artist_values)
        for values, limit in ((self.codes_NC, self.codes_per_level), (self.artist_values, self.num_artists)):
            assert values.numel() == 0 or (int(values.min()) >= 0 and int(values.max()) < limit)


def code_dtype(codes_per_level: int) -> torch.dtype:
    """The smallest type for codes below V: every process that makes batches holds those of all items."""
    return torch.int16 if codes_per_level <= 2**15 else torch.int32


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
        loss_weight: float32, 0-d: world size / predictions asked for in the global batch, 0 where there are none. The
            sum of a rank's losses times this, averaged over ranks, is the mean over the global batch, in which a target
            without codes counts as nothing to learn.
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
    """

    def __init__(self, columns: EventColumns, features: ItemFeatures) -> None:
        """Prepare what every batch needs: the records of every item."""
        self.columns = columns
        self._level_ids_C = torch.arange(features.codes_NC.shape[1]) * features.codes_per_level
        self._remainders = features.qr_remainders
        # An unknown artist is an id of its own among the quotients, the table's last row, and no remainder.
        self._unknown_artist = self._remainders * (artist_table_rows(features.num_artists, self._remainders)[0] - 1)
        self._items = ItemRecords(features, self._unknown_artist)

    def make(self, tokens: Tokens, window_index_B: np.ndarray, budget: int, loss_weight: float) -> Batch:
        """The batch of some tokens in a buffer of `budget` tokens; `window_index_B` says which windows they are of."""
        assert len(tokens.at_n) <= budget, f"{len(tokens.at_n)} tokens do not fit a budget of {budget}"
        columns, at = self.columns, tokens.at_n
        items_n = columns.items[at]
        records_n = self._items.of(items_n)
        target_items_L, target_codes_LC = self._targets(tokens, records_n, budget)
        request_times_n = columns.timestamps[tokens.next_at_n].astype(np.int64)
        if tokens.request_times_B is not None:
            request_times_n[tokens.offsets_B[1:] - 1] = tokens.request_times_B
        return Batch(
            features=self._bags(items_n, records_n, columns.event_types[at], budget),
            offsets=torch.from_numpy(tokens.offsets_B),
            timestamps_L=_padded(columns.timestamps[at], budget, 0),
            request_times_L=_padded(request_times_n, budget, 0),
            durations_L=_padded(_or_missing(columns.durations, at, MISSING_DURATION, NO_DURATION), budget, NO_DURATION),
            organic_L=_padded(
                _or_missing(columns.organic, at, MISSING_ORGANIC, MISSING_ORGANIC), budget, MISSING_ORGANIC
            ),
            target_items_L=target_items_L,
            target_codes_LC=target_codes_LC,
            loss_weight=torch.tensor(loss_weight, dtype=torch.float32),
            window_index_B=torch.from_numpy(window_index_B.astype(np.int64)),
        )

    def _targets(self, tokens: Tokens, records_n: np.ndarray, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Items [L] and codes [L, C] to predict. Most are the next token's, whose record is at hand."""
        used = len(records_n)
        targets_n = self.columns.items[tokens.next_at_n].astype(np.int64)
        codes_LC = np.full((budget, len(self._level_ids_C)), NO_TARGET, dtype=np.int64)
        wanted_n = np.zeros(used, dtype=bool)
        elsewhere_n = np.ones(used, dtype=bool)
        if used:
            codes_LC[: used - 1], wanted_n[:-1] = records_n[CODES][1:], records_n[KNOWN][1:]
            elsewhere_n[:-1] = tokens.next_at_n[:-1] != tokens.at_n[1:]
        elsewhere = np.flatnonzero(elsewhere_n)
        looked_up = self._items.of(targets_n[elsewhere])
        codes_LC[elsewhere], wanted_n[elsewhere] = looked_up[CODES], looked_up[KNOWN]
        if tokens.learn_n is not None:
            wanted_n &= tokens.learn_n
        unwanted = np.flatnonzero(~wanted_n)
        codes_LC[unwanted], targets_n[unwanted] = NO_TARGET, NO_TARGET
        return _padded(targets_n, budget, NO_TARGET), torch.from_numpy(codes_LC)

    def _bags(
        self, items_n: np.ndarray, records_n: np.ndarray, event_types_n: np.ndarray, budget: int
    ) -> KeyedJaggedTensor:
        artists = self._items.artists(items_n, records_n)
        counts_n, nobody_n = records_n[ARTISTS], records_n[ARTIST] == self._unknown_artist
        quotients, remainders = artists // self._remainders, artists[artists != self._unknown_artist] % self._remainders
        levels = len(self._level_ids_C)
        lengths = np.zeros((len(FEATURE_KEYS), budget), dtype=np.int64)
        used = lengths[:, : len(items_n)]
        used[0], used[1], used[2], used[3] = levels, counts_n, counts_n - nobody_n, 1
        # Written in place: fresh memory, which the system must first find and clear, is what a large batch waits for.
        ends = np.cumsum([levels * len(items_n), len(quotients), len(remainders), len(items_n)]).tolist()
        values = torch.empty(ends[-1], dtype=torch.int64)
        rq_nC = values[: ends[0]].view(len(items_n), levels)
        torch.add(torch.from_numpy(records_n[CODES]), self._level_ids_C, out=rq_nC)
        for begin, end, ids in zip(ends, ends[1:], (quotients, remainders, event_types_n), strict=False):
            values.numpy()[begin:end] = ids
        return KeyedJaggedTensor(
            keys=list(FEATURE_KEYS), values=values, lengths=torch.from_numpy(lengths.reshape(-1)), stride=budget
        )


def _padded(values_n: np.ndarray, tokens: int, padding: int) -> torch.Tensor:
    padded_L = np.empty(tokens, dtype=np.int64)
    padded_L[: len(values_n)] = values_n
    padded_L[len(values_n) :] = padding
    return torch.from_numpy(padded_L)


def _or_missing(values: np.ndarray | None, at: np.ndarray, stored: int, missing: int) -> np.ndarray:
    """An optional column, int64, with the store's mark of a missing value turned into the batch's."""
    if values is None:
        return np.full(len(at), missing, dtype=np.int64)
    taken: np.ndarray = values[at].astype(np.int64)
    if stored != missing:
        taken[taken == stored] = missing
    return taken
