from __future__ import annotations

import numpy as np
import torch
from hypothesis import given

from semantic_ids.codes.trie import CodeTrie
from serving.engines.lookahead import best_completions
from tests.serving.engines.helpers import Case, cases, log_probability

CPU = torch.device("cpu")


@given(cases())
def test_completions_are_those_of_the_best_item_below(case: Case) -> None:
    trie = CodeTrie.of(case.table)
    completions = best_completions(case.heads, trie, CPU)
    nobody_D = torch.zeros(case.hidden_BD.size(1))
    codes_nC = case.table.codes_NC[case.known]
    log_p_n = np.array([log_probability(case.heads, nobody_D, codes) for codes in codes_nC])
    assert len(completions) == trie.num_levels
    for level, found_M in enumerate(completions):
        prefixes_Ml = np.unique(codes_nC[:, : level + 1], axis=0)
        assert len(found_M) == len(prefixes_Ml)
        for node, prefix in zip(trie.find(prefixes_Ml), prefixes_Ml, strict=True):
            below_n = (codes_nC[:, : level + 1] == prefix).all(1)
            expected = log_p_n[below_n].max() - log_probability(case.heads, nobody_D, prefix)
            np.testing.assert_allclose(found_M[node], expected, rtol=1e-4, atol=1e-5)
    assert not len(codes_nC) or not completions[-1].any()
