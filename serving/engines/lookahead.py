"""What a prefix of codes may still cost: looking ahead, so that a beam search compares prefixes as items will compare.

log p of a prefix says how likely all its items are together, while what is asked for are the likeliest single items. A
prefix that many items share can beat one that leads to a single item for sure, and lose it its beam, although each of
those many is less likely. What the codes that are missing will take off depends on the user, but much of it does not:
it is reckoned once, for a user of whom nothing is known, as translation by phrases reckons what is still untranslated
(Koehn, Och & Marcu 2003, section 4).

M prefixes of a level · D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.faults import is_main_rank
from common.progress import Progress
from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_steps import TrieSteps
from serving.engines.exact import code_log_probabilities, trie_levels

LOOKAHEAD = 0.75
"""Share of the completion that is counted: best of ¼, ½, ¾ and 1 over three models (`docs/log.md`), all far above 0."""

_UNSAID = 1 << 20
"""Prefixes that are gone through without a word: a second or so."""


def steps_looking_ahead(
    heads: CascadedHeads, trie: CodeTrie, device: torch.device, share: float = LOOKAHEAD
) -> TrieSteps:
    """Steps down a trie by which prefixes promise a share of their completions.

    Completions are those of the heads as they are now: make steps anew when the heads have learnt.

    Args:
        share: 0 … 1; with 0 prefixes are compared as they are.
    """
    if not share:
        return TrieSteps(trie, device)
    return TrieSteps(trie, device, [share * best_M for best_M in best_completions(heads, trie, device)])


def best_completions(heads: CascadedHeads, trie: CodeTrie, device: torch.device) -> list[Tensor]:
    """By level, [M]: log p of the likeliest codes that make a prefix an item's, for a user of whom nothing is known.

    Nothing known is x = 0: what the heads have learnt of codes after codes is all that counts. Takes as long as scoring
    the catalogue exactly for one user, and 4 bytes a prefix. Of the last level, whose prefixes are whole, all are 0.
    """
    levels = trie_levels(trie, device)
    nobody_1D = torch.zeros(1, heads.weight_CVD.size(2), dtype=heads.weight_CVD.dtype, device=device)
    prefixes = 1 + sum(len(level.codes_M) for level in levels[:-1])
    quiet = prefixes < _UNSAID or not is_main_rank()
    with Progress("looking ahead", prefixes, "prefixes", quiet=quiet) as progress:
        log_p = [log_p_1M[0] for log_p_1M in code_log_probabilities(heads, levels, nobody_1D, progress)]
    best_M = torch.zeros_like(log_p[-1])
    completions = [best_M]
    for number in reversed(range(1, len(levels))):
        shorter_M = torch.full_like(log_p[number - 1], -torch.inf)
        best_M = shorter_M.scatter_reduce_(0, levels[number].parents_M, log_p[number] + best_M, "amax")
        completions.insert(0, best_M)
    return completions
