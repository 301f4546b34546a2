"""Content and collaborative vectors side by side, in one space for items that have both and items that have one.

Each part is centred on the mean of the items that have it and scaled to unit mean square norm, then weighted
(`blend.content`, `blend.collaborative`). Distances are the same centred or not, but a common mean, which embeddings
often have, tells items not apart and would use up the part's share of the scale.

An item counts as having a collaborative part where it was played in training and its history tells something (its
history part is not all zero); one without content keeps the collaborative vector that it has, artist alone or not.
What a part that is missing is replaced by:

fill=predict    what ridge regression predicts from the other part, fitted to the items that have both. Of an item's
                collaborative part, columns of its artist are known even so and kept. Predictions lie nearer to the mean
                than true vectors do: they say what can be said.
fill=zero       the mean of the items that have it. All items that lack a part then huddle in one place of half the
                space, whatever they are, and far from their like: the first codes tell which part an item lacks instead
                of what it is, and an item's code is another before its first plays than after them.

N items in the catalogue · n items that have a vector · m items asked for · P, Q widths of the content and of the
collaborative part · D = P + Q.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import option
from common.errors import InputError
from common.progress import Progress
from semantic_ids.vectors.base import ItemVectors
from semantic_ids.vectors.collaborative import CollaborativeVectors
from semantic_ids.vectors.content import ContentVectors
from semantic_ids.vectors.moments import Moments, Spread, Vectors

BLOCK_ITEMS = 2**15

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass
class BlendConfig:
    """How content and collaborative vectors are put together."""

    content: float = option(1.0, "root mean square norm of the content part", minimum=0)
    collaborative: float = option(1.0, "root mean square norm of the collaborative part", minimum=0)
    fill: str = option(
        "predict",
        "a part that an item lacks: predict = by ridge regression on the part that it has; zero = the mean of all",
        choices=("predict", "zero"),
    )
    ridge: float = option(
        0.01, "fill=predict: penalty, as a share of the mean variance of the columns predicted from", minimum=0
    )
    collaborative_for_missing: bool = option(
        True, "items without content that were played get a vector from their plays; false leaves them unknown"
    )

    def __post_init__(self) -> None:
        """Refuse a blend of one part."""
        faults = [
            f"`{part}` is 0, so nothing is blended; use embeddings={other}, or set it above 0"
            for part, other in (("content", "collaborative"), ("collaborative", "content"))
            if getattr(self, part) == 0
        ]
        if faults:
            raise InputError(*faults)


class BlendedVectors(ItemVectors):
    """Both parts of every item, made as they are asked for; memory holds the collaborative vectors.

    An item without content that was never played in training stays unknown, also where it has an artist.
    """

    kind = "blended"

    def __init__(self, content: ContentVectors, collaborative: CollaborativeVectors, config: BlendConfig) -> None:
        """Find which items have which part, and fit scales and regressions in one pass over both.

        Raises:
            InputError: the embeddings are at fault, or no two items have both parts.
        """
        content.check()
        self.config, self._content, self._collaborative = config, content, collaborative
        tells_n = collaborative.has_history_n | (collaborative.has_artist_n & collaborative.played_n)
        self.items_n = content.items_n
        if config.collaborative_for_missing:
            self.items_n = np.union1d(content.items_n, collaborative.items_n[tells_n])
        self._content_place_n = _places(self.items_n, content.items_n)
        self._collaborative_place_n = _places(self.items_n, collaborative.items_n)
        self._fit()

    @property
    def width(self) -> int:
        """D: both widths."""
        return self._content.width + self._collaborative.width

    def rows(self, places_m: Places) -> Vectors:
        """See `ItemVectors.rows`; up to rounding, a row does not depend on the others asked for."""
        content_mP, has_content_m = _present(self._content, self._content_place_n[places_m])
        collaborative_mQ, has_history_m = self._histories(places_m)
        lacks_m = has_content_m & ~has_history_m
        collaborative_mQ[lacks_m] = self._filled(content_mP[lacks_m], collaborative_mQ[lacks_m], places_m[lacks_m])
        if self.config.fill == "predict":
            content_mP[~has_content_m] = self._content_of.predict(collaborative_mQ[~has_content_m])
        else:
            content_mP[~has_content_m] = self._content_spread.mean_P
        content = (content_mP - self._content_spread.mean_P) * self._content_scale
        collaborative = (collaborative_mQ - self._collaborative_spread.mean_P) * self._collaborative_scale
        return np.concatenate([content, collaborative], axis=1, dtype=np.float32, casting="same_kind")

    def settings(self) -> dict[str, Any]:
        """Of the collaborative part, and of the blend."""
        return {**self._collaborative.settings(), "blend": dataclasses.asdict(self.config)}

    def notes(self) -> tuple[str, ...]:
        """Those of both parts, and how many items lack one of them."""
        ways = {"predict": "predicted from the other part", "zero": "the mean of the items that have it"}
        return (
            *self._content.notes(),
            *self._collaborative.notes(),
            f"{self.counts['both']:,} items have content and plays, {self.counts['content alone']:,} content alone,"
            f" {self.counts['plays alone']:,} plays alone; the part that they lack is {ways[self.config.fill]}",
        )

    def _histories(self, places_m: Places) -> tuple[Vectors, Mask]:
        """Collaborative vectors [m, Q], zeros where there is none, and which items have a history part."""
        vectors_mQ, _ = _present(self._collaborative, self._collaborative_place_n[places_m])
        return vectors_mQ, np.asarray(vectors_mQ[:, : self._collaborative.history_width].any(axis=1))

    def _filled(self, content_mP: Vectors, collaborative_mQ: Vectors, places_m: Places) -> Vectors:
        """Collaborative parts of items that have none: what their content predicts, but their artist as it is."""
        if self.config.fill == "predict":
            filled_mQ = self._collaborative_of.predict(content_mP)
        else:
            filled_mQ = np.tile(self._collaborative_spread.mean_P.astype(np.float32), (len(content_mP), 1))
        place_m = self._collaborative_place_n[places_m]
        known_m = (place_m >= 0) & self._collaborative.has_artist_n[place_m]
        width = self._collaborative.history_width
        filled_mQ[known_m, width:] = collaborative_mQ[known_m, width:]
        return filled_mQ

    def _fit(self) -> None:
        widths = self._content.width, self._collaborative.width
        moments = Moments(*widths)
        self._content_spread, self._collaborative_spread = map(Spread, widths)
        alone = [0, 0]
        with Progress("blend", len(self.items_n), "items") as progress:
            for begin in range(0, len(self.items_n), BLOCK_ITEMS):
                places_m = np.arange(begin, min(begin + BLOCK_ITEMS, len(self.items_n)))
                content_mP, has_content_m = _present(self._content, self._content_place_n[places_m])
                collaborative_mQ, has_history_m = self._histories(places_m)
                both_m = has_content_m & has_history_m
                self._content_spread.add(content_mP[has_content_m])
                self._collaborative_spread.add(collaborative_mQ[has_history_m])
                moments.add(content_mP[both_m], collaborative_mQ[both_m])
                alone[0] += int((has_content_m & ~has_history_m).sum())
                alone[1] += int((~has_content_m).sum())
                progress.advance(len(places_m))
        self.counts = {"both": moments.count, "content alone": alone[0], "plays alone": alone[1]}
        if moments.count < 2:
            raise InputError(
                f"`embeddings` is blended, but {moments.count} items have both a content embedding and neighbours in"
                f" training histories ({alone[0]:,} have content alone), so nothing says how the two go together; use"
                " embeddings=content or embeddings=collaborative"
            )
        self._content_scale = self.config.content * self._content_spread.unit
        self._collaborative_scale = self.config.collaborative * self._collaborative_spread.unit
        self._collaborative_of = moments.right_from_left(self.config.ridge)
        self._content_of = moments.left_from_right(self.config.ridge)


def _places(items_n: Places, held_h: Places) -> Places:
    """Where each item stands in the ascending `held_h`, -1 where it does not."""
    place_n = np.minimum(np.searchsorted(held_h, items_n), len(held_h) - 1)
    return np.where(held_h[place_n] == items_n, place_n, -1)


def _present(vectors: ItemVectors, place_m: Places) -> tuple[Vectors, Mask]:
    """Vectors [m, width] at places, zeros where the place is -1; and where it is not."""
    has_m = place_m >= 0
    vectors_m = np.zeros((len(place_m), vectors.width), np.float32)
    vectors_m[has_m] = vectors.rows(place_m[has_m])
    return vectors_m, has_m
