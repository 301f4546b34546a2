"""Tokens → one batch of a fixed size, as TorchRec wants it.

A token is one input event. The tokens of all users of a batch lie in one flat buffer of L tokens, user
after user, and what is left at the end is padding: no padding within users, and shapes that never change.
Every categorical feature is bags of ids in one KeyedJaggedTensor: one bag an item or event type of the batch, however
many tokens have it, since what tables over several ranks send grows with the bags. A token says which row of the
pooled bags is its own.

L token budget of the batch, padding included · n tokens in use · B users (windows) in the batch · F features · d
distinct items · k distinct event types · P distinct pairs of item and event type, and padding's · C code levels · V
codes per level · N items in the catalogue · A artists · R remainders · W windows · E events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from data.bags import FEATURE_KEYS as FEATURE_KEYS
from data.bags import ITEM_KEY as ITEM_KEY
from data.bags import BagMaker, Rows, codes_of, padded
from data.distinct import keep_all, take_distinct
from data.examples import Examples, Tokens
from data.item_columns import item_columns
from data.item_records import CODES, KNOWN
from data.item_records import ItemFeatures as ItemFeatures
from data.item_records import artist_table_rows as artist_table_rows
from data.item_records import code_dtype as code_dtype
from data.negatives import BinSeeds, NegativeSampler
from data.schema import MISSING_DURATION, MISSING_ORGANIC
from data.sequences import Windows

NO_TARGET = -1
NO_DURATION = -1


@dataclass(frozen=True)
class EventColumns:
    """A store's flat columns as arrays; `durations`, `organic` and `played` are None where the store has none.

    `offsets` is int64 [U + 1], all others are [E] in the dtypes of data/schema.py.
    """

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    event_types: np.ndarray
    durations: np.ndarray | None
    organic: np.ndarray | None
    played: np.ndarray | None = None


@dataclass
class Batch(Pipelineable):
    """One rank's share of a step.

    Attributes:
        features: keys FEATURE_KEYS. `rq`: C ids `l * V + code_l`. `artist_quotient`, `artist_remainder`: one id each
            per artist of the item, `id // R` and `id % R`; an item without artists has the one id ceil(A / R) in
            `artist_quotient` and an empty bag in `artist_remainder`. Of these three, one bag a distinct item, in order
            of first appearance; behind them, of the two of artists, one an artist that a row has without an item.
            `event_type`: bags of one id, one a distinct event type. The last bag of each key is
            padding's, and empty. `inverse_indices`, int64 [F, P], says which bag of each key a row is made of, so that
            a collection of tables gives P rows; the last row is padding's. Made by the plain way: stride P, one bag a
            row, no `inverse_indices`; P = L, one row a token, or 2 L + 1 with `candidate_rows_L`. Of a model that
            predicts actions `event_type` holds these (`data.ranking`), behind them values of slow series, and a row may
            have no item or no action, which are empty bags.
        rows_L: int64, each token's row among the P.
        item_ids: key ITEM_KEY, stride 1: the distinct items, in the order of their bags; their keys, where they have.
            Behind them, where there are negatives, the targets and negatives that are not among them.
        item_rows_P: int64, place of a row's item in `item_ids`; padding's is one past the end.
        offsets: int64 [B + 1], the users' ranges in the flat buffer; from `offsets[-1]` to L all is padding.
        timestamps_L: int64, seconds; 0 in padding.
        request_times_L: int64, seconds: when the next event, which is to be predicted, happened; 0 in padding.
        durations_L: int64, seconds; -1 missing, and in padding.
        organic_L: int64, 0, 1 or 2 = missing, also in padding.
        target_items_L: int64, dense index of the next item; -1 = nothing to learn here: padding, an input of a
            request other than its last, or, without negatives, a target whose code is all zero (evaluation still counts
            it, as a miss).
        target_codes_LC: int64, its codes; -1 where there is no target, or it has none.
        loss_weight: float32, 0-d: world size / predictions asked for in the global batch, 0 where there are none. The
            sum of a rank's losses times this, averaged over ranks, is the mean over the global batch, in which a target
            without codes counts as nothing to learn.
        window_index_B: int64, which of the loader's windows each user row is.
        target_rows_L: int64, place of each target in `item_ids`; one past the end where there is none. This and what
            follows is None where the output are codes.
        negative_rows_GM: int64, places of negatives in `item_ids`.
        negative_group_L: int64, which row of negatives is a token's; G where it has no target.
        negative_offsets_d: float32, what is added to the score of each of `item_ids` where it is a negative
            (`data.negatives`); None where nothing is.
        labels_LT: float32, the value that each of T tasks asks for at a token (`data.ranking`); NaN where it asks
            nothing. This and what follows is None where the output are no actions.
        alone_L: bool, candidates, which no other token sees; None where there are none among the tokens.
        candidate_rows_L: int64, which of the P rows is the item whose action is asked for at a token, where the
            token itself is not that item; P - 1, padding's, where nothing is asked.
    """

    features: KeyedJaggedTensor
    rows_L: torch.Tensor
    item_ids: KeyedJaggedTensor
    item_rows_P: torch.Tensor
    offsets: torch.Tensor
    timestamps_L: torch.Tensor
    request_times_L: torch.Tensor
    durations_L: torch.Tensor
    organic_L: torch.Tensor
    target_items_L: torch.Tensor
    target_codes_LC: torch.Tensor
    loss_weight: torch.Tensor
    window_index_B: torch.Tensor
    target_rows_L: torch.Tensor | None = None
    negative_rows_GM: torch.Tensor | None = None
    negative_group_L: torch.Tensor | None = None
    negative_offsets_d: torch.Tensor | None = None
    labels_LT: torch.Tensor | None = None
    alone_L: torch.Tensor | None = None
    candidate_rows_L: torch.Tensor | None = None

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
        for _, part in self._parts():
            part.record_stream(stream)
        inverse = self.features.inverse_indices_or_none()
        if inverse is not None:  # which the record_stream of a KeyedJaggedTensor leaves out
            inverse[1].record_stream(stream)

    def _map(self, change: Callable[[torch.Tensor | KeyedJaggedTensor], torch.Tensor | KeyedJaggedTensor]) -> Batch:
        return Batch(**{name: change(part) for name, part in self._parts()})

    def _parts(self) -> Iterator[tuple[str, torch.Tensor | KeyedJaggedTensor]]:
        """What there is of it, by name."""
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if part is not None:
                yield field.name, part


class BatchMaker:
    """Cuts batches out of a store's columns.

    Args:
        columns: the store's.
        features: codes and artists of its items.
        distinct: bags of distinct items; False: a bag a token, the plain way, to compare with.
        negatives: what targets are held against, for a model whose output are items.
    """

    def __init__(
        self,
        columns: EventColumns,
        features: ItemFeatures,
        *,
        distinct: bool = True,
        negatives: NegativeSampler | None = None,
    ) -> None:
        """Prepare what every batch needs: the records of every item."""
        assert negatives is None or features.keys_N is None, "items known by keys have no rows of their own"
        self.columns, self.distinct, self.negatives = columns, distinct, negatives
        self._bags = BagMaker(features, distinct=distinct)

    def token_lengths(self, of: Examples | Windows) -> np.ndarray:
        """Tokens of each window, int64 [W]: one an input, of those that are left where `of` says which."""
        return of.lengths if isinstance(of, Windows) else of.kept_W

    def make(
        self,
        tokens: Tokens,
        window_index_B: np.ndarray,
        budget: int,
        loss_weight: float,
        bins: BinSeeds | None = None,
    ) -> Batch:
        """The batch of some tokens in a buffer of `budget` tokens; `window_index_B` says which windows they are of.

        Args:
            bins: which tokens are of which bin, by whose seed its negatives are drawn.
        """
        assert len(tokens.at_n) <= budget, f"{len(tokens.at_n)} tokens do not fit a budget of {budget}"
        columns, at = self.columns, tokens.at_n
        found = (take_distinct if self.distinct else keep_all)(columns.items[at], columns.event_types[at])
        records_d = self._bags.records(found.items_d)
        codes_dC = codes_of(records_d)
        target_items_L, target_codes_LC = self._targets(tokens, codes_dC, records_d[KNOWN], found.item_of_n, budget)
        request_times_n = columns.timestamps[tokens.next_at_n].astype(np.int64)
        if tokens.request_times_B is not None:
            request_times_n[tokens.offsets_B[1:] - 1] = tokens.request_times_B
        # What padding is made of: a bag and a row of its own, or as many as it has tokens.
        empty = 1 if self.distinct else budget - len(at)
        rows = Rows(
            found.items_d,
            found.event_types_k,
            padded(found.item_of_p, len(found.item_of_p) + empty, len(found.items_d)),
            found.event_type_of_p,
        )
        num_rows = len(rows.item_rows_P)
        items_d, item_rows_P, of_output = found.items_d, rows.item_rows_P, {}
        if self.negatives is not None:
            assert bins is not None
            targets_n = target_items_L[: len(at)].numpy()
            own = item_columns(self.negatives, found.items_d, targets_n, bins, distinct=self.distinct)
            items_d, of_output = own.items_d, own.padded(budget)
            item_rows_P = padded(found.item_of_p, num_rows, len(items_d))
        return Batch(
            features=self._bags.features(rows, records_d, codes_dC),
            rows_L=padded(found.pair_of_n, budget, num_rows - 1) if self.distinct else torch.arange(budget),
            item_ids=self._bags.item_ids(items_d),
            item_rows_P=item_rows_P,
            offsets=torch.from_numpy(tokens.offsets_B),
            timestamps_L=padded(columns.timestamps[at], budget, 0),
            request_times_L=padded(request_times_n, budget, 0),
            durations_L=padded(durations_of(columns, at), budget, NO_DURATION),
            organic_L=padded(organic_of(columns, at), budget, MISSING_ORGANIC),
            target_items_L=target_items_L,
            target_codes_LC=target_codes_LC,
            loss_weight=torch.tensor(loss_weight, dtype=torch.float32),
            window_index_B=torch.from_numpy(window_index_B.astype(np.int64)),
            **of_output,
        )

    def _targets(
        self, tokens: Tokens, codes_dC: np.ndarray, known_d: np.ndarray, item_of_n: np.ndarray, budget: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Items [L] and codes [L, C] to predict. Most are the next token's, whose record is at hand."""
        used = len(item_of_n)
        targets_n = self.columns.items[tokens.next_at_n].astype(np.int64)
        codes_LC = np.full((budget, self._bags.levels), NO_TARGET, dtype=np.int64)
        wanted_n = np.zeros(used, dtype=bool)
        elsewhere_n = np.ones(used, dtype=bool)
        if used:
            following = item_of_n[1:]
            np.take(codes_dC, following, axis=0, out=codes_LC[: used - 1], mode="clip")  # other modes write it twice
            wanted_n[:-1] = known_d[following]
            elsewhere_n[:-1] = tokens.next_at_n[:-1] != tokens.at_n[1:]
        elsewhere = np.flatnonzero(elsewhere_n)
        looked_up = self._bags.records(targets_n[elsewhere])
        codes_LC[elsewhere], wanted_n[elsewhere] = looked_up[CODES], looked_up[KNOWN]
        if self.negatives is not None:  # an item that has no codes has a row
            codes_LC[:used][~wanted_n] = NO_TARGET
            wanted_n[:] = True
        if tokens.learn_n is not None:
            wanted_n &= tokens.learn_n
        unwanted = np.flatnonzero(~wanted_n)
        codes_LC[unwanted], targets_n[unwanted] = NO_TARGET, NO_TARGET
        return padded(targets_n, budget, NO_TARGET), torch.from_numpy(codes_LC)


def durations_of(columns: EventColumns, at_n: np.ndarray) -> np.ndarray:
    """Seconds, int64 [n]; NO_DURATION where they are not known."""
    return _or_missing(columns.durations, at_n, MISSING_DURATION, NO_DURATION)


def organic_of(columns: EventColumns, at_n: np.ndarray) -> np.ndarray:
    """0, 1 or MISSING_ORGANIC, int64 [n]."""
    return _or_missing(columns.organic, at_n, MISSING_ORGANIC, MISSING_ORGANIC)


def _or_missing(values: np.ndarray | None, at: np.ndarray, stored: int, missing: int) -> np.ndarray:
    """An optional column, int64, with the store's mark of a missing value turned into the batch's."""
    if values is None:
        return np.full(len(at), missing, dtype=np.int64)
    taken: np.ndarray = values[at].astype(np.int64)
    if stored != missing:
        taken[taken == stored] = missing
    return taken
