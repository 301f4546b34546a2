"""Which item vectors a code table is fitted to."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import group
from common.errors import InputError
from data.event_store import EventStore
from data.training_events import training_events
from semantic_ids.vectors.base import ItemVectors
from semantic_ids.vectors.blended import BlendConfig, BlendedVectors
from semantic_ids.vectors.collaborative import CollaborativeConfig, CollaborativeVectors
from semantic_ids.vectors.content import ContentVectors

EMBEDDINGS = ("auto", "content", "collaborative", "blended")


@dataclass
class VectorsConfig:
    """How item vectors are made where they are not the store's own embeddings as they stand."""

    collaborative: CollaborativeConfig = group(CollaborativeConfig, "how collaborative vectors are derived")
    blend: BlendConfig = group(BlendConfig, "embeddings=blended: how the two kinds are put together")


def item_vectors(store: EventStore, kind: str, config: VectorsConfig) -> ItemVectors:
    """Vectors of the asked kind; `auto` takes content embeddings where the store has them, collaborative elsewhere.

    Embeddings are mapped, and read when `check` or `items_n` asks for them; the other kinds are fitted here.

    Raises:
        InputError: content asked for and absent; nothing to derive vectors from; of blended, all faults of both parts.
    """
    assert kind in EMBEDDINGS, kind
    if kind == "auto":
        kind = "collaborative" if store.embeddings() is None else "content"
    if kind == "content":
        return ContentVectors(store)
    if kind == "collaborative":
        return CollaborativeVectors(store, training_events(store), config.collaborative)
    return _blended(store, config)


def _blended(store: EventStore, config: VectorsConfig) -> BlendedVectors:
    faults: list[str] = []
    content = collaborative = None
    try:
        content = ContentVectors(store, asked="blended")
        content.check()
    except InputError as error:
        faults += error.faults
    try:
        collaborative = CollaborativeVectors(store, training_events(store), config.collaborative)
    except InputError as error:
        faults += error.faults
    if content is None or collaborative is None or faults:
        raise InputError(*faults)
    return BlendedVectors(content, collaborative, config.blend)
