from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.baselines.item_knn import ItemKnnConfig, ItemKnnEngine
from evaluation.baselines.neighbours import neighbour_table
from tests.evaluation.baselines.helpers import Drawn, drawn, same


@settings(deadline=None, max_examples=200)
@given(drawn(), st.integers(1, 12), st.sampled_from([0, 2]), st.sampled_from([0, 3]), st.sampled_from([1.0, 0.5]))
def test_a_list_is_that_of_summed_similarities(case: Drawn, k: int, window: int, history: int, recency: float) -> None:
    config = ItemKnnConfig(window=window, shrinkage=1.0, neighbours=4, history=history, recency=recency)
    table = neighbour_table(case.log, config, 1.0, quiet=True)
    table_NN = table.toarray().astype(np.float64)
    scores_BN = np.zeros((len(case.asking), case.num_items))
    for row, own in enumerate(case.asking):
        newest_first = own[::-1][: history or None]
        for age, item in enumerate(newest_first):
            scores_BN[row] += recency**age * table_NN[item]
    engine = ItemKnnEngine(table, config, case.catalogue)
    # Sums in another order round otherwise; in float32 those that are equal are equal.
    same(engine.retrieve(case.query, k), case.lists(scores_BN.astype(np.float32), k))


@pytest.mark.parametrize("recency", [0.0, 1.5])
def test_events_weigh_something_and_older_ones_no_more(recency: float) -> None:
    with pytest.raises(InputError, match=r"`recency` is .*, must be above 0 and at most 1"):
        ItemKnnConfig(recency=recency)
