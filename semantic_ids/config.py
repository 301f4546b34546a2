"""What `semantic_ids.fit` is asked: section `fit_ids`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from common.config import REQUIRED, group, option
from common.errors import InputError
from semantic_ids.codes.collisions import COLLISIONS
from semantic_ids.quantizers.base import MAX_CODES
from semantic_ids.quantizers.faiss_reference import check_codes_per_level
from semantic_ids.quantizers.rq_vae import RqVaeConfig
from semantic_ids.vectors.blended import BlendConfig
from semantic_ids.vectors.choose import EMBEDDINGS, VectorsConfig
from semantic_ids.vectors.collaborative import CollaborativeConfig

PLAIN = "item"
QUANTIZERS = ("residual-kmeans", "rq-vae", "faiss", PLAIN)


@dataclass
class FitIdsConfig:
    """Section `fit_ids`."""

    store: str = option(REQUIRED, "folder of the event store")
    out: str = option(REQUIRED, "folder of the code table to write; a code table that stands there is replaced")
    quantizer: str = option(
        "residual-kmeans",
        "residual-kmeans; rq-vae: an auto-encoder around it; faiss: FAISS's residual quantiser, the reference; item: "
        "each item has a code of its own, one level, for small catalogues and comparisons (of the keys below, only "
        "seed then has a meaning)",
        choices=QUANTIZERS,
    )
    levels: int = option(8, "code levels C", minimum=1)
    codes: int = option(1024, "codes per level V, at most the number of items that have a vector", minimum=2)
    embeddings: str = option(
        "auto",
        "item vectors; content: the store's; collaborative: from what is played together in training histories; "
        "blended: both; auto = content where the store has them, else collaborative",
        choices=EMBEDDINGS,
    )
    collisions: str = option(
        "none",
        "items that share a tuple; none: they are retrieved together; extra-level: one code more tells them apart; "
        "random-level: the last of the levels does, drawn at random; reassign: they move to the nearest free tuples",
        choices=COLLISIONS,
    )
    sample: int = option(2**18, "vectors that codebooks are fitted to, drawn at random; all where fewer", minimum=2)
    beam: int = option(1, "partial tuples kept in encoding; 1 is greedy (residual-kmeans and faiss)", minimum=1)
    iterations: int = option(
        10, "k-means passes a level (residual-kmeans and faiss); of ours most read a part of the sample", minimum=1
    )
    rq_vae: RqVaeConfig = group(RqVaeConfig, "quantizer=rq-vae: its network and training")
    collaborative: CollaborativeConfig = group(CollaborativeConfig, "how collaborative vectors are derived")
    blend: BlendConfig = group(BlendConfig, "embeddings=blended: how the two kinds are put together")
    refit_of: str | None = option(None, "an older code table whose labels are kept where they can be")
    seed: int = option(1, "seed of all that is drawn")

    def __post_init__(self) -> None:
        """Refuse what cannot be coded."""
        faults = []
        if self.codes > MAX_CODES:
            faults.append(f"`codes` is {self.codes}, must be from 2 to {MAX_CODES}: codes are stored in 16 bits")
        if self.collisions == "random-level" and self.levels < 2:
            faults.append(
                "collisions=random-level draws the last level at random, so `levels` must be at least 2; it is 1"
            )
        if self.refit_of is not None and self.quantizer == PLAIN:
            faults.append("quantizer=item has no labels to keep; leave out `refit_of`")
        if faults:
            raise InputError(*faults)
        if self.quantizer == "faiss":
            check_codes_per_level(self.codes)

    @property
    def vectors(self) -> VectorsConfig:
        """How item vectors are made."""
        return VectorsConfig(self.collaborative, self.blend)

    @property
    def quantised_levels(self) -> int:
        """Levels that the quantiser is fitted with."""
        return self.levels - (self.collisions == "random-level")

    def settings(self) -> dict[str, Any]:
        """What the codes depend on beside store and vectors; no paths, so that a moved table keeps its fingerprint."""
        if self.quantizer == PLAIN:
            return {"quantizer": PLAIN, "seed": self.seed}
        settings: dict[str, Any] = {
            "quantizer": self.quantizer,
            "levels": self.levels,
            "codes": self.codes,
            "collisions": self.collisions,
            "sample": self.sample,
            "seed": self.seed,
        }
        if self.quantizer == "rq-vae":
            return {**settings, "rq_vae": dataclasses.asdict(self.rq_vae)}
        return {**settings, "beam": self.beam, "iterations": self.iterations}
