"""What comes out of a model, as options of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields

from common.config import group, option
from common.errors import InputError
from data.ranking.config import ActionsConfig


@dataclass
class HeadsConfig:
    """What comes out: a cascade of heads, one per code level, a score of each item's own row, or predicted actions."""

    kind: str = option(
        "codes",
        "codes: a distribution over each level's codes, given those before; items: the cosine of the user's vector and "
        "the item's row, which is the input's too (needs items.kind=vocabulary); actions: what a user will do with a "
        "candidate item, by the tasks of `actions.tasks`: a model for ranking",
        choices=("codes", "items", "actions"),
    )
    gated: bool = option(True, "kind=codes: earlier codes also scale the hidden vector, not only shift it")
    logit_scale: float = option(20.0, "kind=codes: what the logits are multiplied by: 1 / temperature")
    temperature: float = option(0.05, "kind=items: what the cosines are divided by", minimum=0)
    chunk_tokens: int = option(
        256,
        "kind=codes and kind=items: tokens whose logits (of one level) are held at once; of codes, the states of all "
        "levels of eight times as many",
        minimum=1,
    )
    actions: ActionsConfig = group(ActionsConfig, "kind=actions")

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults = []
        if self.temperature == 0:
            faults.append("temperature=0.0 makes scores infinite: must be above 0")
        faults += [
            f"{key}={plain(getattr(self, key))} means nothing with kind={self.kind}: leave it out"
            for key, kinds in _OF_KINDS.items()
            if self.kind not in kinds and getattr(self, key) != getattr(HeadsConfig, key)
        ]
        if self.kind == "actions":
            if not self.actions.tasks:
                faults.append(
                    "actions.tasks is empty, and kind=actions predicts nothing else: name at least one, as in "
                    "actions.tasks=['listened: played_ratio >= 50', 'like: event_type is like']; "
                    "'played: played_ratio / 100' and 'rating: event_type number' are numbers to be met"
                )
        else:
            faults += [
                f"actions.{one.name}={plain(getattr(self.actions, one.name))} means nothing with kind={self.kind}: "
                f"leave it out, or set kind=actions"
                for one in fields(self.actions)
                if getattr(self.actions, one.name) != getattr(ActionsConfig(), one.name)
            ]
        if faults:
            raise InputError(*faults)

    @property
    def ranking(self) -> ActionsConfig | None:
        """How actions are predicted; None where they are not."""
        return self.actions if self.kind == "actions" else None


_OF_KINDS = {
    "gated": ("codes",),
    "logit_scale": ("codes",),
    "temperature": ("items",),
    "chunk_tokens": ("codes", "items"),
}
"""Options of `HeadsConfig` that are of some kinds only."""


def plain(value: object) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
