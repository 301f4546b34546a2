"""Options of a dry run."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import group, option
from common.errors import InputError
from data.negatives import NegativesConfig
from model.config import ModelConfig
from sharding.planning.policy import ShardingConfig
from sharding.planning.topology import PRESETS
from sharding.planning.workload import DataSizes

GOALS = ("fit", "min_ranks", "max_tokens")


@dataclass
class PlanConfig:
    """One dry run."""

    model: ModelConfig = group(ModelConfig, "the model")
    data: DataSizes = group(DataSizes, "sizes of the data, where there is no store")
    store: str = option("", "event store whose sizes and repetition are taken instead of `data`; `codes` too")
    codes: str = option("", "code table that belongs to the store")
    tokens: int = option(8192, "token budget of a rank and step", minimum=1)
    distinct: bool = option(True, "whether each item is asked for once a batch, or once a token")
    negatives: NegativesConfig = group(NegativesConfig, "of training, with model.output.kind=items")
    optimizer: str = option("adamw", "of the dense part", choices=("adamw", "muon"))
    topology: str = option(
        "h100", f"{', '.join(PRESETS)}, or a YAML file that describes a cluster (its form: docs/sharding.md)"
    )
    nodes: int = option(0, "nodes of a preset; 0: one", minimum=0)
    ranks_per_node: int = option(0, "ranks of each; 0: as the preset has", minimum=0)
    goal: str = option(
        "fit",
        "fit: plan for this cluster; min_ranks: for the fewest ranks of its kind that hold it; max_tokens: for the "
        "largest token budget that fits",
        choices=GOALS,
    )
    sharding: ShardingConfig = group(ShardingConfig, "where tables lie")
    out: str = option("", "folder for plan.json and plan.html; none is written where it is empty")

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        faults = []
        if self.sharding.plan:
            faults.append("`sharding.plan` names a plan to follow, and this command makes one: leave it out")
        if bool(self.store) != bool(self.codes):
            faults.append("`store` and `codes` belong together: give both or neither")
        if self.model.output.kind != "items" and self.negatives != NegativesConfig():
            faults.append(f"`negatives` means nothing with `model.output.kind` {self.model.output.kind}: leave it out")
        if self.tokens < self.model.max_tokens:
            faults.append(
                f"`tokens` is {self.tokens}, less than the {self.model.max_tokens} tokens of a window of "
                f"`model.max_history` {self.model.max_history}: a user's whole window must fit into one batch"
            )
        if faults:
            raise InputError(*faults)
