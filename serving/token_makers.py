"""Between what callers speak of, events and items, and what the encoder reads, token vectors: a seam for each kind of
model, and the one for retrieval.

Shapes: B users · L tokens of all users · M candidates of all users · D width · C code levels · V codes a level · N
items of the catalogue · y items of a block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from common.errors import InputError
from data.batches import ITEM_KEY, Batch, BatchMaker, EventColumns, ItemFeatures
from data.examples import Tokens as TokenPlaces
from data.ranking.series_tokens import SeriesRows
from model.biases import Tokens
from model.heads import CascadedHeads
from model.incremental import embed
from model.item_head import ItemHead, unit_rows
from model.recommender import Recommender
from model.task_heads import TaskHeads
from serving.engines.base import CACHED_LOGITS
from serving.user_events import Ints, UserEvents, joined
from serving.user_series import PlacedSeries

Embedded = tuple[Tensor, Tokens]
"""Vectors [L, D] and what biases ask of them, as `model.incremental.Incremental` takes them."""

_ITEM_BLOCK = 1 << 16
"""Rows of the table of items that are looked up at once."""


class TokenMaker(Protocol):
    """How a kind of model reads events and candidates, and what its outputs say of candidates.

    Attributes:
        model: which it reads for.
        features: of the items.
        appends: whether a candidate is scored by its own state behind the history (ranking), or all of a user's by the
            newest state of the history (retrieval).
        series: rows of the values of slow series, where the model reads any.
    """

    model: Recommender
    features: ItemFeatures
    appends: bool
    series: SeriesRows | None

    def event_types_faults(self, event_types: int) -> list[str]:
        """Where events of so many types are not what the model was trained on."""
        ...

    def history(
        self, users: Sequence[UserEvents], next_times_B: Ints, placed: Sequence[PlacedSeries] | None = None
    ) -> Embedded:
        """The tokens of runs of events.

        Args:
            users: of each user a run, in which an event's follower is the next; any may be empty.
            next_times_B: seconds, when what follows each run happens.
            placed: of each user what enters the run of slow series, nothing where it is empty; None: nothing at all.
        """
        ...

    def candidates(self, users: Sequence[UserEvents]) -> Embedded:
        """One token a candidate, as it would stand behind the history at its timestamp."""
        ...

    def scores(self, states_XD: Tensor, candidates: Sequence[UserEvents]) -> Tensor:
        """What comes out, [M] or [M, tasks], user after user.

        Args:
            states_XD: L2-normalised: of each candidate where the maker `appends`, else of each user's newest token.
            candidates: of each user.
        """
        ...


class RetrievalTokens:
    """For models whose output are codes or items; a token is an event, and a score the log-probability of an item.

    Codes: log p of the item's codes by the chain rule, as `serving.engines.exact`; an item without codes is in no
    catalogue there, since it could not be told from others, and has -inf here. Items: log softmax over all items of the
    catalogue, as `serving.engines.item_vectors` where nothing is denied.

    Args:
        model: in evaluation mode; its tables may be sharded over one rank.
        features: of the items.

    Raises:
        InputError: the model predicts actions.
    """

    appends = False
    series: SeriesRows | None = None

    def __init__(self, model: Recommender, features: ItemFeatures) -> None:
        """Prepares the items' records; the vectors of all items wait until they are asked for."""
        if isinstance(model.tower.heads, TaskHeads):
            raise InputError(
                "the model has output.kind=actions, and `RetrievalTokens` read for models of codes or items: give "
                "tokens=RankingTokens(model, features, …)"
            )
        nothing = np.zeros(0, dtype=np.int64)
        empty = EventColumns(np.zeros(1, dtype=np.int64), nothing, nothing, nothing, None, None)
        self.model, self.features = model, features
        self._maker = BatchMaker(empty, features)
        self._device = next(model.tower.parameters()).device
        self._unit_ND: Tensor | None = None

    def event_types_faults(self, event_types: int) -> list[str]:
        """See `TokenMaker.event_types_faults`."""
        trained = self.model.vocabulary.event_types
        if event_types == trained:
            return []
        return [f"event_types={event_types}, and the model was trained with {trained}: give those of its store"]

    def history(
        self, users: Sequence[UserEvents], next_times_B: Ints, placed: Sequence[PlacedSeries] | None = None
    ) -> Embedded:
        """See `TokenMaker.history`."""
        assert placed is None, "a retrieval model reads no series"
        return embed(self.model, self._batch(users, next_times_B))

    def candidates(self, users: Sequence[UserEvents]) -> Embedded:
        """See `TokenMaker.candidates`; as an event that has just happened and is followed at once."""
        batch = self._batch(users, np.zeros(len(users), dtype=np.int64))
        batch.request_times_L = batch.timestamps_L
        return embed(self.model, batch)

    def _batch(self, users: Sequence[UserEvents], next_times_B: Ints) -> Batch:
        events = joined(users)
        offsets_B1 = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
        maker = copy.copy(self._maker)  # the records of all items are made once
        maker.columns = EventColumns(
            offsets_B1,
            events.items.astype(np.uint32),
            events.timestamps,
            events.event_types,
            events.durations,
            events.organic,
        )
        at_n = np.arange(len(events))
        asked = np.flatnonzero(np.diff(offsets_B1))
        following_n = np.minimum(at_n + 1, max(len(events) - 1, 0))
        places = TokenPlaces(at_n, following_n, np.zeros(len(events), dtype=bool), offsets_B1, None)
        batch = maker.make(places, asked, len(events), 0.0)
        batch.request_times_L[torch.from_numpy(offsets_B1[asked + 1] - 1)] = torch.from_numpy(next_times_B[asked])
        return batch.to(self._device)

    @torch.no_grad()
    def scores(self, states_XD: Tensor, candidates: Sequence[UserEvents]) -> Tensor:
        """Log-probabilities float32 [M]; see `TokenMaker.scores`."""
        heads, device = self.model.tower.heads, states_XD.device
        counts_B = torch.tensor([len(own) for own in candidates], dtype=torch.int64, device=device)
        user_M = torch.arange(len(candidates), device=device).repeat_interleave(counts_B)
        items_M = torch.from_numpy(joined(candidates).items).to(device)
        if isinstance(heads, CascadedHeads):
            codes_MC = self.features.codes_NC[items_M.cpu()].long().to(device)
            return code_scores(heads, states_XD, user_M, codes_MC)
        assert isinstance(heads, ItemHead)
        return self._item_scores(states_XD, user_M, items_M, heads.temperature)

    def _item_scores(self, states_BD: Tensor, user_M: Tensor, items_M: Tensor, temperature: float) -> Tensor:
        unit_ND = self._unit_ND if self._unit_ND is not None else self._all_items()
        self._unit_ND = unit_ND
        block = max(1, CACHED_LOGITS[states_BD.device.type] // max(1, len(states_BD)))
        normaliser_B = states_BD.new_full((len(states_BD),), -torch.inf, dtype=torch.float64)
        for unit_yD in unit_ND.split(block):
            logits_By = (states_BD @ unit_yD.T) / temperature
            normaliser_B = torch.logaddexp(normaliser_B, torch.logsumexp(logits_By, dim=1).double())
        parts = [states_BD.new_zeros(0)]
        for rows_m, own_m in zip(user_M.split(_ITEM_BLOCK), items_M.split(_ITEM_BLOCK), strict=True):
            logits_m = (states_BD[rows_m] * unit_ND[own_m]).sum(dim=1) / temperature
            parts.append((logits_m.double() - normaliser_B[rows_m]).float())
        return torch.cat(parts)

    def _all_items(self) -> Tensor:
        """What items are scored by, float32 [N, D]: kept, since every request is held against all of them."""
        table = self.model.item_table
        assert table is not None
        parts = []
        for ids_y in torch.arange(len(self.features.codes_NC), device=self._device).split(_ITEM_BLOCK):
            lengths = torch.tensor([len(ids_y)], device=self._device)
            found = table(KeyedJaggedTensor(keys=[ITEM_KEY], values=ids_y, lengths=lengths, stride=1))
            parts.append(unit_rows(found[ITEM_KEY].values()))
        return torch.cat(parts)


def code_scores(heads: CascadedHeads, states_BD: Tensor, user_M: Tensor, codes_MC: Tensor) -> Tensor:
    """log p [M] of tuples of codes under the cascade, -inf for the tuple of zeros, which is no item's.

    Args:
        states_BD: L2-normalised.
        user_M: int64, whose state each tuple is held against.
        codes_MC: int64.
    """
    block = max(1, CACHED_LOGITS[states_BD.device.type] // (heads.levels * heads.codes))
    parts = [states_BD.new_zeros(0)]
    for rows_m, codes_mC in zip(user_M.split(block), codes_MC.split(block), strict=True):
        log_p_mCV = torch.log_softmax(heads(states_BD[rows_m], codes_mC).float(), dim=2)
        log_p_m = log_p_mCV.gather(2, codes_mC[:, :, None])[:, :, 0].sum(dim=1)
        parts.append(log_p_m.masked_fill((codes_mC == 0).all(dim=1), -torch.inf))
    return torch.cat(parts)
