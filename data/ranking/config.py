"""Options of ranking: how items and actions become tokens, and what is predicted of an action."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from common.errors import InputError
from data.ranking.tasks import parse_tasks

INTERLEAVED, MERGED, INTERACTIONS = "interleaved", "merged", "interactions"
FORMS = (INTERLEAVED, MERGED, INTERACTIONS)


@dataclass
class ActionsConfig:
    """What a ranking model reads and predicts (HSTU paper, §2.2 and Table 1)."""

    form: str = option(
        INTERLEAVED,
        "interleaved: Φ0, a0, Φ1, a1, …, two tokens an event; merged: one token an event, item and action summed, and "
        "candidates, whose action is hidden, beside them in training; interactions: one token an event, and the "
        "candidate meets what the model made of the history only afterwards",
        choices=FORMS,
    )
    tasks: list[str] = option(
        [],
        "what is predicted of an action, e.g. `listened: played_ratio >= 50`, `like: event_type is like`, "
        "`played: played_ratio / 100`, `rating: event_type number`; required with kind=actions",
    )
    weights: list[float] = option([], "of the tasks' losses, in their order; none: 1 each", minimum=0)
    hidden: int = option(64, "width of each task's hidden layer", minimum=1)
    played_buckets: int = option(
        10,
        "buckets of the played ratio that an action tells apart, of equal width up to 100%; 0 leaves it out",
        minimum=0,
    )
    series: int = option(
        0,
        "the most tokens of slow series (demographics, preferred artist) that a window has beside those of its events; "
        "0 leaves series out",
        minimum=0,
    )

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults: list[str] = []
        try:
            parse_tasks(self.tasks)
        except InputError as error:
            faults += error.faults
        if self.weights and len(self.weights) != len(self.tasks):
            faults.append(
                f"`weights` has {len(self.weights)} numbers for {len(self.tasks)} tasks: give one each, or none"
            )
        if self.weights and not any(self.weights):
            faults.append("`weights` are all 0, so that nothing would be learnt: give at least one above 0")
        if faults:
            raise InputError(*faults)

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """One a task."""
        return tuple(self.weights) if self.weights else (1.0,) * len(self.tasks)
