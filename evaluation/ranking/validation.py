"""What the training of a ranking model looks at to choose a checkpoint."""

from __future__ import annotations

import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel

from data.batches import ItemFeatures
from data.event_store import EventStore
from data.loader import Loader
from data.ranking.tasks import parse_tasks
from data.sequences import Plan, Windows
from evaluation.ranking.metrics import asked_of, gain, sums_of, values_of
from evaluation.ranking.predictions import Predictions, held_out_windows, predict_events
from model.config import ModelConfig
from sharding.world import World


class RankingValidation:
    """Figures of the predictions of the validation events; the test events are not touched.

    Collective: on every rank, each time.

    Args:
        model: as it is trained, tables over the ranks; left in the mode it has.
        features: of the items.
        tokens: budget of a batch.
        distinct: as in training.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        features: ItemFeatures,
        store: EventStore,
        world: World,
        *,
        tokens: int,
        distinct: bool,
    ) -> None:
        self.model, self.store, self.world = model, store, world
        cfg = model.module.tower.cfg
        self.actions = cfg.output.actions
        windows = held_out_windows(store, "validation", cfg.max_history)
        self.loader = one_bin_loader(store, features, windows, cfg, tokens=tokens, distinct=distinct)

    def __call__(self) -> dict[str, float]:
        """Validate the model as it is now; empty where the split holds out nothing for validation."""
        if not self.loader.steps_per_epoch(0):
            return {}
        was_training = self.model.training
        self.model.eval()
        found = predict_events(self.model.module.predict, self.loader, self.store, self.world, label="validate")
        self.model.train(was_training)
        told: list[dict[str, float] | None] = [None]
        if found is not None:
            told = [figures_of(found, self.actions.tasks, self.actions.loss_weights)]
        dist.broadcast_object_list(told, src=0)
        assert told[0] is not None
        return told[0]


def one_bin_loader(
    store: EventStore,
    features: ItemFeatures,
    plan: Plan | Windows,
    cfg: ModelConfig,
    *,
    tokens: int,
    distinct: bool = True,
) -> Loader:
    """A plan's windows in batches of one bin, which are the same whoever asks for them."""
    return Loader(
        store,
        features,
        plan,
        tokens=tokens,
        bins=1,
        rank=0,
        world_size=1,
        seed=0,
        shuffle=False,
        distinct=distinct,
        ranking=cfg.output.actions,
    )


def figures_of(found: Predictions, tasks: list[str], weights: tuple[float, ...]) -> dict[str, float]:
    """The gain, and every figure by task, `like/ne`, without intervals."""
    parsed = parse_tasks(tasks)
    figures = {"gain": gain(parsed, found.predicted_nT, found.labels_nT, found.users_n, weights)}
    for asked in asked_of(parsed, found.predicted_nT, found.labels_nT, found.users_n):
        of_task = values_of(sums_of(asked), asked.num_users)
        figures |= {f"{asked.task.name}/{name}": value for name, value in of_task.items()}
    return figures
