"""A ranking model asked about the events of a plan, as it is, as often as somebody wants to know."""

from __future__ import annotations

from torchrec.distributed import DistributedModelParallel

from data.batches import ItemFeatures
from data.event_store import EventStore
from data.loader import Loader
from data.ranking.config import ActionsConfig
from data.ranking.tasks import parse_tasks
from data.sequences import Plan, Windows
from evaluation.ranking.metrics import asked_of, gain_of, sums_of, values_of
from evaluation.ranking.predictions import Predictions, predict_events
from evaluation.together import evaluating, told_by_main
from sharding.world import World


class Predictor:
    """Predicts the target events of a plan's windows. Collective: on every rank, each time.

    Attributes:
        actions: what is predicted.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        features: ItemFeatures,
        store: EventStore,
        world: World,
        plan: Plan | Windows,
        *,
        tokens: int,
        distinct: bool = True,
    ) -> None:
        """Pack the windows: batches are the same on any number of ranks.

        Args:
            model: left in the mode it has.
            features: of the items.
            tokens: budget of a batch.
            distinct: as in training.
        """
        self.model, self.store, self.world = model, store, world
        self.actions: ActionsConfig = model.module.tower.cfg.output.actions
        self.loader = Loader(
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
            ranking=self.actions,
        )

    def has_events(self, epoch: int = 0) -> bool:
        """Whether there is anything to predict."""
        return self.loader.steps_per_epoch(epoch) > 0

    def predict(self, epoch: int = 0, label: str = "") -> Predictions | None:
        """Predictions by the model as it is now, on rank 0; None elsewhere. `label` names a progress line.

        Raises:
            InputError: a prediction is no number, on all ranks alike.
        """
        with evaluating(self.model):
            return predict_events(
                self.model.module.predict, self.loader, self.store, self.world, epoch=epoch, label=label
            )

    def figures(self, found: Predictions | None) -> dict[str, float]:
        """What rank 0 finds of its predictions, on every rank: see `figures_of`."""
        return told_by_main(None if found is None else figures_of(found, self.actions))


class RankingValidation:
    """Figures of the validation events; the test events are not touched. Collective.

    Args:
        predictor: of the windows of `held_out_windows(store, "validation", …)`.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __call__(self) -> dict[str, float]:
        """Validate the model as it is now; empty where the split holds out nothing for validation."""
        if not self.predictor.has_events():
            return {}
        return self.predictor.figures(self.predictor.predict(label="validate"))


def figures_of(found: Predictions, actions: ActionsConfig) -> dict[str, float]:
    """The gain, and every figure by task, `like/ne`, without intervals."""
    tasks = parse_tasks(actions.tasks)
    values = {
        asked.task.name: values_of(sums_of(asked), asked.num_users)
        for asked in asked_of(tasks, found.predicted_nT, found.labels_nT, found.users_n)
    }
    figures = {"gain": gain_of(list(values.values()), actions.loss_weights)}
    return figures | {f"{task}/{name}": value for task, own in values.items() for name, value in own.items()}
