"""The engines that an evaluation compares, made from a trained model.

D model width · N items of the store · n items that may be returned.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.faults import is_main_rank
from data.event_store import EventStore
from evaluation.config import VECTOR_ENGINES, EvaluateConfig
from evaluation.results import Ints
from model.heads import CascadedHeads
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.trie import CodeTrie
from semantic_ids.codes.trie_steps import TrieSteps
from serving.checkpoints.model import item_matrix
from serving.engines.base import Engine, RankedCatalogue, ranked_catalogue, whole_catalogue
from serving.engines.beam import BeamEngine
from serving.engines.bounded import BoundedEngine
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from serving.engines.faiss_indexes import IndexConfig
from serving.engines.hybrid import CodeScorer, HybridEngine, ItemScorer
from serving.engines.item_vectors import ItemExactEngine, ItemFaissEngine
from serving.engines.lookahead import steps_looking_ahead
from sharding.world import World

EXACT_ITEMS = 100_000
"""Items up to which every one of them is scored, where nothing else is asked for."""

LONG_LIST = 1000
"""Places of a list, where nothing else is asked for."""


def list_length(num_items: int, asked: int = 0) -> int:
    """K, as asked for or as it goes with the catalogue."""
    return min(asked or LONG_LIST, num_items)


def exact_engine(model: Any, store: EventStore, codes: CodeTable, world: World) -> Callable[[], Engine]:
    """What gives the lists of exact scoring, by whatever the model's output is; made anew as training goes on.

    The engine is of the model as it is when it is made, which is collective where tables are sharded.
    """
    head = model.module.tower.heads
    if not isinstance(head, CascadedHeads):
        return lambda: _Items(model, codes, world, None).exact()
    catalogue, trie = ranked_catalogue(codes, world.device), CodeTrie.of(codes)
    kind = ExactEngine if store.num_items <= EXACT_ITEMS else BoundedEngine
    return lambda: kind(head, trie, catalogue)


def build_engines(
    config: EvaluateConfig, model: Any, store: EventStore, codes: CodeTable, world: World, denied: Ints | None
) -> list[Engine]:
    """The engines asked for, or those that go with the model and the catalogue. Collective where tables are sharded.

    Raises:
        InputError: the model does not have one of them.
    """
    head = model.module.tower.heads
    if isinstance(head, CascadedHeads):
        of_codes = _Codes(config, head, codes, world, denied)
        makers: dict[str, Callable[[], Engine]] = {
            "exact": of_codes.exact,
            "bounded": of_codes.bounded,
            "beam": of_codes.beam,
            **{kind: partial(of_codes.near, kind) for kind in VECTOR_ENGINES},
            "hybrid": of_codes.hybrid,
        }
        usual = ["exact" if store.num_items <= EXACT_ITEMS else "bounded", "beam", "faiss", "hybrid"]
    else:
        of_items = _Items(model, codes, world, denied, config)
        makers = {
            "exact": of_items.exact,
            **{kind: partial(of_items.near, kind) for kind in VECTOR_ENGINES},
            "hybrid": of_items.hybrid,
        }
        usual = ["exact", "faiss"]
    missing = [name for name in config.engines if name not in makers]
    if missing:
        raise InputError(
            f"`engines` asks for {', '.join(missing)}, but the model's output are plain items, which only have "
            f"{', '.join(makers)}"
        )
    return [makers[name]() for name in config.engines or usual]


@dataclass(frozen=True)
class _Codes:
    """Engines of a model whose output are codes."""

    config: EvaluateConfig
    heads: CascadedHeads
    codes: CodeTable
    world: World
    denied: Ints | None

    @cached_property
    def trie(self) -> CodeTrie:
        return CodeTrie.of(self.codes)

    @cached_property
    def catalogue(self) -> RankedCatalogue:
        return ranked_catalogue(self.codes, self.world.device, self.denied)

    @cached_property
    def steps(self) -> TrieSteps:
        return steps_looking_ahead(self.heads, self.trie, self.world.device)

    def exact(self) -> Engine:
        return ExactEngine(self.heads, self.trie, self.catalogue)

    def bounded(self) -> Engine:
        beams = self.config.beams
        return BoundedEngine(self.heads, self.trie, self.catalogue, width=beams, steps=self.steps)

    def beam(self) -> Engine:
        beams = self.config.beams
        return BeamEngine(self.heads, self.trie, self.catalogue, width=beams, deepest=beams, steps=self.steps)

    def near(self, kind: str) -> Engine:
        return _told(FaissEngine(self.heads, self.codes, self.catalogue, index=_index(self.config, kind)))

    def hybrid(self) -> Engine:
        scorer = CodeScorer(self.heads, self.trie, self.catalogue)
        return HybridEngine([self.beam(), self.near("faiss")], scorer, candidates=self.config.candidates)


class _Items:
    """Engines of a model whose output are plain items."""

    def __init__(
        self,
        model: Any,
        codes: CodeTable,
        world: World,
        denied: Ints | None,
        config: EvaluateConfig | None = None,
    ) -> None:
        self.config, self.temperature = config, model.module.tower.cfg.output.temperature
        self.catalogue = whole_catalogue(codes.training_plays_N, world.device, denied)
        self.vectors_nD: Tensor = item_matrix(model, world)[self.catalogue.item_order]

    def exact(self) -> Engine:
        return ItemExactEngine(self.vectors_nD, self.catalogue, self.temperature)

    def near(self, kind: str) -> Engine:
        assert self.config is not None
        index = _index(self.config, kind)
        return _told(ItemFaissEngine(self.vectors_nD, self.catalogue, self.temperature, index))

    def hybrid(self) -> Engine:
        assert self.config is not None
        scorer = ItemScorer(self.vectors_nD, self.catalogue, self.temperature)
        return HybridEngine([self.near("hnsw")], scorer, candidates=self.config.candidates)


def _told(engine: FaissEngine | ItemFaissEngine) -> Engine:
    """The engine, after what its index is otherwise than was asked for has been said."""
    if is_main_rank():
        for note in engine.index.notes:
            print(f"{engine.name}: {note}", file=sys.stderr)
    return engine


def _index(config: EvaluateConfig, name: str) -> IndexConfig:
    return dataclasses.replace(config.index, kind="flat" if name == "faiss" else name)
