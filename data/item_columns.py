"""What a batch holds for a model whose output are items: where the rows of targets and of their negatives come.

All rows that a step needs, inputs', targets' and negatives', are looked up at once: a list of distinct items, in which
everything else is a place.

n tokens · L token budget · T tokens with a target · d items of the batch · G groups of targets · M negatives of a
group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.distinct import followed_by
from data.negatives import BinSeeds, NegativeSampler


@dataclass(frozen=True)
class ItemColumns:
    """Places in `items_d`; see `data.batches.Batch`.

    Attributes:
        items_d: what is looked up: the inputs first, as they were.
        learnt_T: tokens that have a target.
        target_rows_T, negative_group_T: of those tokens.
        negative_rows_GM: int64.
        offsets_d: float32 or None.
    """

    items_d: np.ndarray
    learnt_T: np.ndarray
    target_rows_T: np.ndarray
    negative_group_T: np.ndarray
    negative_rows_GM: np.ndarray
    offsets_d: np.ndarray | None

    def padded(self, tokens: int) -> dict[str, torch.Tensor | None]:
        """The columns of a batch of so many tokens, by name."""

        def column(values_T: np.ndarray, nothing: int) -> torch.Tensor:
            values_L = np.full(tokens, nothing, dtype=np.int64)
            values_L[self.learnt_T] = values_T
            return torch.from_numpy(values_L)

        return {
            "target_rows_L": column(self.target_rows_T, len(self.items_d)),
            "negative_rows_GM": torch.from_numpy(self.negative_rows_GM),
            "negative_group_L": column(self.negative_group_T, len(self.negative_rows_GM)),
            "negative_offsets_d": None if self.offsets_d is None else torch.from_numpy(self.offsets_d),
        }


def item_columns(
    sampler: NegativeSampler, inputs_d: np.ndarray, targets_n: np.ndarray, bins: BinSeeds, *, distinct: bool
) -> ItemColumns:
    """The columns of some tokens.

    Args:
        sampler: draws the negatives.
        inputs_d: items of the inputs, which are looked up first.
        targets_n: int64, the item that each token is to predict; -1 where none.
        bins: ranges of the tokens.
        distinct: whether an input that is a target or negative too is looked up once for both. Targets and negatives
            are looked up once each whatever this says: the same place is what tells that a negative is the target.
    """
    learnt_T = np.flatnonzero(targets_n >= 0)
    targets_T = targets_n[learnt_T].astype(inputs_d.dtype)
    drawn = sampler.draw(np.split(targets_T, np.searchsorted(learnt_T, bins.offsets[1:-1])), bins.seeds)
    further_m = np.concatenate([targets_T, drawn.items_GM.reshape(-1).astype(inputs_d.dtype, copy=False)])
    items_d, places_m = followed_by(inputs_d if distinct else inputs_d[:0], further_m, sampler.num_items)
    if not distinct:
        items_d, places_m = np.concatenate([inputs_d, items_d]), places_m + len(inputs_d)
    return ItemColumns(
        items_d,
        learnt_T,
        places_m[: len(targets_T)],
        drawn.group_T,
        places_m[len(targets_T) :].reshape(drawn.items_GM.shape),
        None if sampler.offsets_N is None else sampler.offsets_N[items_d],
    )
