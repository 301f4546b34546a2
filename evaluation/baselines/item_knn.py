"""Items like those a user played last: neighbours in training histories, weighed by how lately each was played.

B users in the batch · N items · K list length.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.sparse as sp
from torch import Tensor

from common.config import option
from common.errors import InputError
from evaluation.baselines.lists import best_of_scored, newest_items
from evaluation.baselines.neighbours import NeighboursConfig
from serving.engines.base import Query, RankedCatalogue


@dataclass
class ItemKnnConfig(NeighboursConfig):
    """Neighbours, and how a history asks for them.

    The defaults are the cheapest of those settings of `evaluation.baselines.tuning.GRIDS` that the validation events of
    MovieLens-100K cannot tell from the best: NDCG@10 of .132 against .133 with twice the window.
    """

    history: int = option(10, "events of a history that ask for their neighbours, the newest; 0 = all", minimum=0)
    recency: float = option(0.7, "an event weighs so much of the one after it, above 0 and at most 1")

    def __post_init__(self) -> None:
        """Refuse events that weigh nothing, or more the older they are."""
        if not 0 < self.recency <= 1:
            raise InputError(f"`recency` is {self.recency}, must be above 0 and at most 1")


class ItemKnnEngine:
    """Scores an item by Σ recency^age · similarity(event's item, item) over the newest events of a history.

    Items that are no neighbour of any of them come after those that are, by popularity, with a score of 0.

    Args:
        table_NN: similarities, of each item (row) those of its neighbours, above 0 (`neighbours.neighbour_table`).
        config: `history` and `recency` are read.
        catalogue: the items that may be returned.
    """

    name = "item_knn"
    log_probabilities = False

    def __init__(self, table_NN: sp.csr_matrix, config: ItemKnnConfig, catalogue: RankedCatalogue) -> None:
        self.table_NN, self.config, self.catalogue = table_NN, config, catalogue

    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`."""
        assert query.history is not None, "item_knn reads histories"
        asking_BN = newest_items(query.history, self.catalogue.num_items, self.config.history, self.config.recency)
        return best_of_scored(self.catalogue, (asking_BN @ self.table_NN).tocsr(), query, k)
