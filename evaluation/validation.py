"""What training looks at to choose a checkpoint."""

from __future__ import annotations

from torchrec.distributed import DistributedModelParallel

from data.batches import ItemFeatures
from data.event_store import EventStore
from evaluation.evaluator import Reader, evaluate_requests
from evaluation.requests import filters_history, make_requests, protocol_of
from evaluation.summary import validation_figures
from evaluation.together import evaluating, told_by_main
from model.heads import CascadedHeads
from serving.engines.base import Engine
from sharding.world import World


class Validation:
    """Metrics of one engine on the validation events; the test events are not touched.

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
        tower = model.module.tower
        heads = tower.heads if isinstance(tower.heads, CascadedHeads) else None
        self.reader = Reader(model.module.encode, features, tokens, distinct, heads)
        held_out = store.split().validation.asked_U.any()
        self.protocol = protocol_of(store.split_config.kind)
        self.requests = make_requests(store, "validation", tower.cfg.max_history, self.protocol) if held_out else None

    def __call__(self, engine: Engine, depth: int) -> dict[str, float]:
        """Validate the model as it is now; empty where the split holds out nothing for validation."""
        if self.requests is None:
            return {}
        with evaluating(self.model):
            result = evaluate_requests(
                self.reader,
                [engine],
                self.requests,
                self.store,
                self.world,
                depth=depth,
                label="validate",
                filter_history=filters_history(self.protocol),
            )
        return told_by_main(None if result is None else validation_figures(result, engine.name))
