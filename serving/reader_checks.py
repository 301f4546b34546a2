"""Whether a model and what reads for it fit one another: sizes that do not give wrong numbers, and no error.

Shapes: N items · C code levels.
"""

from __future__ import annotations

from common.errors import InputError
from data.batches import ItemFeatures
from model.recommender import Recommender
from serving.token_makers import TokenMaker


def check_reader(tokens: TokenMaker, model: Recommender, features: ItemFeatures, event_types: int) -> None:
    """See that tokens, items and event types are those of the model.

    Raises:
        InputError: they are not; with every fault found.
    """
    faults = []
    if tokens.model is not model or tokens.features is not features:
        faults.append(
            "tokens: made of another model, or of other items, than those given beside them: give both the same"
        )
    faults += _features_faults(model, features)
    faults += tokens.event_types_faults(event_types)
    if faults:
        raise InputError(*faults)


def _features_faults(model: Recommender, features: ItemFeatures) -> list[str]:
    """Where the items are not described as those that the model was trained on."""
    vocabulary, cfg = model.vocabulary, model.tower.cfg
    items, levels = features.codes_NC.shape
    sizes = [
        ("code levels", levels, vocabulary.levels),
        ("codes per level", features.codes_per_level, vocabulary.codes),
        ("artists", features.num_artists, vocabulary.artists),
        ("remainders of artists (qr_remainders)", features.qr_remainders, cfg.qr_remainders),
    ]
    if cfg.items.kind == "vocabulary":
        sizes.append(("items", items, vocabulary.items))
    faults = [
        f"features: have {given} {what}, and the model was trained with {trained}: give data.store_columns."
        f"item_features of the store, the codes and the qr_remainders that it was trained with"
        for what, given, trained in sizes
        if given != trained
    ]
    if cfg.items.kind != "none" and (features.keys_N is not None) != (cfg.items.kind == "hashed"):
        have, give = ("no keys", "keys=True") if features.keys_N is None else ("keys", "keys=False")
        faults.append(
            f"features: have {have} of items, and the model has items.kind={cfg.items.kind}: give "
            f"data.store_columns.item_features of the store with {give}"
        )
    return faults
