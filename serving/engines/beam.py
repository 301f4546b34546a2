"""Retrieval by beam search down the prefix trie: only items of the catalogue, and only those a user may be given.

B users in the batch · D model width · b beams of a user · w beams kept · T beams of all users · V codes per level · M
candidates a user · K list length · N items · S pairs of a user and an item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.heads import CascadedHeads
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_arrays import in_rows
from semantic_ids.codes.trie_steps import Barred, Beams, LogProbabilities, TrieSteps
from serving.engines.base import CACHED_LOGITS, Query, RankedCatalogue
from serving.engines.lookahead import steps_looking_ahead
from serving.engines.used_up import UsedUp

WIDTH = 50
"""Beams kept a user, or as many as items are asked for, if that is more."""

DEEPEST = 1000
"""Longest list: a beam search for the whole catalogue would be an expensive exact search."""

_BLOCK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Scores of continuations held at once, by kind of device: these users are searched for together."""


class BeamEngine:
    """Keeps, level by level, the most promising prefixes that lead to an item the user may be given.

    Promising is what is likely itself and, by what is reckoned beforehand, will be so when it is complete
    (`serving.engines.lookahead`).

    A prefix below which there is nothing for a user, because every item was seen or is denied, is left out where it
    comes up, at whatever level, so beams are not spent on what must not be returned: w beams end at w tuples, each with
    at least one item for the user, and lists are full. An item's score is that of exact scoring,
    Σ_l log p(code_l | user, codes before l); what a search of w beams can miss is an item one of whose prefixes is not
    among the w most promising of its level.

    Args:
        heads: the model's.
        trie: of the code table.
        catalogue: which items may be returned; orders those of equal scores.
        width: beams kept a user, w.
        deepest: longest list; longer ones are filled up with −1.
        steps: down the trie, and what its prefixes promise; made if not given. They may serve several engines.
    """

    name = "beam"
    log_probabilities = True

    def __init__(
        self,
        heads: CascadedHeads,
        trie: CodeTrie,
        catalogue: RankedCatalogue,
        *,
        width: int = WIDTH,
        deepest: int = DEEPEST,
        steps: TrieSteps | None = None,
    ) -> None:
        self.heads, self.catalogue = heads, catalogue
        self.width, self.deepest = width, deepest
        self.steps = steps or steps_looking_ahead(heads, trie, catalogue.item_order.device)
        self.used_up = UsedUp(self.steps, trie, catalogue)

    @torch.no_grad()
    def retrieve(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """See `serving.engines.base.Engine`; of the places after `deepest`, none is filled."""
        asked = min(k, self.deepest)
        items_BK, scores_BK = self.catalogue.top_of(
            *self.candidates(query, asked, self.used_up.of(query)), unfiltered(query), asked
        )
        missing = (0, k - asked)
        return (
            torch.nn.functional.pad(items_BK, missing, value=-1),
            torch.nn.functional.pad(scores_BK, missing, value=-torch.inf),
        )

    @torch.no_grad()
    def candidates(self, query: Query, k: int, barred: list[Barred]) -> tuple[Tensor, Tensor]:
        """Columns of the catalogue and scores [B, M] of all items at the ends of at least k beams a user.

        `barred` is what `used_up` says of the query. Places left over score −inf.
        """
        width = max(self.width, k)
        size = max(1, _BLOCK_LOGITS[query.hidden_BD.device.type] // (width * self.heads.codes))
        ends: list[Beams] = []
        for first in range(0, query.num_users, size):
            hidden_BD = query.hidden_BD[first : first + size]
            own = [level.of_users(first, first + len(hidden_BD)) for level in barred[:-1]]
            ends.append(self._search(hidden_BD, own, width))
        if not ends:
            return query.hidden_BD.new_zeros(0, 0, dtype=torch.int64), query.hidden_BD.new_zeros(0, 0)
        leaves_Bw, scores_Bw = torch.cat([end.nodes_Bw for end in ends]), torch.cat([end.scores_Bw for end in ends])
        return self.items_of(leaves_Bw, scores_Bw, barred[-1])

    def _search(self, hidden_BD: Tensor, barred: list[Barred], width: int) -> Beams:
        """The best w leaves of some users."""
        num_users = len(hidden_BD)
        rows_B1 = torch.arange(num_users, device=hidden_BD.device)[:, None]
        beams, prefixes = self.steps.start(num_users), self.heads.empty_prefixes(hidden_BD)
        block = max(1, CACHED_LOGITS[hidden_BD.device.type] // self.heads.codes)
        for level in range(self.steps.num_levels):
            num_beams = beams.nodes_Bw.size(1)
            state_TD = prefixes.state(hidden_BD)
            beams = self.steps.best(
                level,
                beams.nodes_Bw,
                beams.scores_Bw,
                log_probabilities(self.heads, state_TD, level, block),
                width,
                barred=barred[level],
                block=block,
            )
            longer_T = (rows_B1 * num_beams + beams.came_from_Bw.clamp(min=0)).flatten()
            prefixes = self.heads.extend(prefixes, longer_T, beams.codes_Bw.clamp(min=0).flatten(), level)
        return beams

    def items_of(self, leaves_Bw: Tensor, scores_Bw: Tensor, barred: Barred) -> tuple[Tensor, Tensor]:
        """Columns of the catalogue and scores [B, M] of all items of the leaves; places left over score −inf.

        Args:
            leaves_Bw: each user's ascend, with −1 at the end.
            barred: items by place, which score −inf.
        """
        num_users, width = leaves_Bw.shape
        beams_S, places_S = self.steps.item_places(leaves_Bw.flatten())
        scores_S = scores_Bw.flatten()[beams_S]
        beam_X, place_X = self.steps.barred_children(self.steps.num_levels, leaves_Bw, barred)
        first_X, _ = self.steps.ranges(self.steps.num_levels, leaves_Bw.flatten()[beam_X])
        scores_S[torch.searchsorted(beams_S, beam_X) + place_X - first_X] = -torch.inf
        # An item that nobody may be given has no column; it is barred, so that any will do.
        columns_S = self.catalogue.column_of_item[self.steps.items_at(places_S)].clamp_(min=0)
        bounds_B1 = torch.searchsorted(beams_S, torch.arange(num_users + 1, device=beams_S.device) * width)
        return in_rows(columns_S, bounds_B1, 0), in_rows(scores_S, bounds_B1, -torch.inf)


def log_probabilities(heads: CascadedHeads, state_TD: Tensor, level: int, block: int) -> LogProbabilities:
    """What says log p of the codes of a level after some of the states, at most `block` of them at once.

    On the CPU one buffer serves all, and logits become log-probabilities in it.
    """
    in_place = state_TD.device.type == "cpu"
    buffer_xV = state_TD.new_empty(min(block, len(state_TD)), heads.codes) if in_place else None

    def of(first: int, stop: int) -> Tensor:
        out_xV = None if buffer_xV is None else buffer_xV[: stop - first]
        logits_xV = heads.state_logits(state_TD[first:stop], level, out=out_xV)
        return torch.log_softmax(logits_xV, dim=-1, out=out_xV)

    return of


def unfiltered(query: Query) -> Query:
    """The same users, nothing excluded: what is left of the candidates may all be returned."""
    return Query(query.hidden_BD, query.excluded_rows[:0], query.excluded_items[:0])
