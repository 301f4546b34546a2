"""What a step of a ranking model looks up, from sizes alone: its tokens are items, actions, or both.

What is assumed. Windows are of the mean length, and all of each is learnt from, as windows of training mostly are. A
window's last item, whose action is asked for and which no input is, counts as one more draw of an item. Any action may
be done with any item, so pairs of the two are as many as there can be.

    form            items are shown by                          actions by
    interleaved     every other token, and each window's last   the tokens between
    merged          every token: inputs, candidates             every other token: the inputs
    interactions    every token, and a row beside it            every token

Of slow series each window is taken to have as many tokens as it may have at most; their values are among the actions.

Shapes: P rows · C code levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from data.ranking.config import INTERACTIONS, INTERLEAVED, MERGED
from model.config import ModelConfig


@dataclass(frozen=True)
class ActionLookUps:
    """Numbers of one step of one rank.

    Args:
        items: distinct ones that are shown.
        pairs: distinct sums of an item and an action; 0 where these are tokens apart.
        alone: rows that are an item alone, or an action alone.
        shown, done: how often an item, an action is shown, were each look-up made by itself.
        plain_rows: P, were each look-up made by itself.
    """

    items: int
    pairs: int
    alone: int
    shown: int
    done: int
    plain_rows: int

    @property
    def rows(self) -> int:
        """P, the padding's included."""
        return self.pairs + self.alone + 1


def action_look_ups(
    cfg: ModelConfig, tokens: int, mean_history: float, actions: int, distinct_items: Callable[[int], int]
) -> ActionLookUps:
    """Of L tokens.

    Args:
        mean_history: events of a window that are read.
        actions: how many there are, values of series included.
        distinct_items: how many items so many draws find.
    """
    form, windows = cfg.form, math.ceil(tokens / cfg.window_tokens(mean_history))
    series = min(windows * cfg.series, tokens)
    of_events = tokens - series
    if form == INTERLEAVED:
        shown = min(math.ceil((of_events + windows) / 2), of_events)
        done, items = tokens - shown, distinct_items(shown)
        return ActionLookUps(items, 0, items + min(actions, done), shown, done, tokens)
    inputs = math.ceil(of_events / 2) if form == MERGED else of_events
    items = distinct_items(inputs + windows)
    pairs, alone = min(inputs, items * actions), items + min(actions, series)
    if form == MERGED:
        return ActionLookUps(items, pairs, alone, of_events, inputs + series, tokens)
    assert form == INTERACTIONS, form
    return ActionLookUps(items, pairs, alone, 2 * of_events, tokens, 2 * tokens + 1)
