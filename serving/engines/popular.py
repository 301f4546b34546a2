"""The same list for everybody: the most played items, minus those a user has seen."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.engines.base import Query, RankedCatalogue, plays_order


class MostPopularEngine:
    """Ranks items by training plays. A baseline, and what a service falls back to for a user without history.

    It returns every item, those without codes too: a baseline must not be weakened by what it has no need of.
    """

    name = "mostpop"
    log_probabilities = False

    def __init__(self, training_plays_N: Tensor) -> None:
        everything = torch.ones_like(training_plays_N, dtype=torch.bool)
        self.catalogue = RankedCatalogue(plays_order(training_plays_N, everything), len(training_plays_N))
        self.plays_N = training_plays_N[self.catalogue.item_order].float()

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`; scores are numbers of plays."""
        return self.catalogue.top(self.plays_N.repeat(query.num_users, 1), query, k)
