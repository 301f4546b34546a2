"""Item vectors as everything downstream sees them: a block at a time, so that memory does not grow with the catalogue.

n items that have a vector · D vector width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from common.seeding import derive_seed


class ItemVectors(ABC):
    """Vectors of the items that have one; the other items are unknown."""

    kind: ClassVar[str]
    """`content`, `collaborative` or `blended`."""
    items_n: npt.NDArray[np.int64]
    """Dense item indices, ascending, none twice."""

    def __len__(self) -> int:
        """n."""
        return len(self.items_n)

    @property
    @abstractmethod
    def width(self) -> int:
        """D."""

    @abstractmethod
    def rows(self, places_m: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors [m, D] of the items at these places of `items_n`, which ascend; a copy, all finite.

        Raises:
            InputError: a value is not finite.
        """

    def check(self) -> None:
        """Read everything that `rows` will read, before long work begins.

        Raises:
            InputError: with all faults found.
        """
        assert len(self), "vectors of no item at all are a fault of the store, told when they are made"

    def settings(self) -> dict[str, Any]:
        """What the vectors depend on beside the store, JSON-like, for a manifest; automatic values filled in."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """What the user should be told of these vectors, a sentence each; after `check`."""
        return ()

    def block(self, begin: int, end: int) -> npt.NDArray[np.float32]:
        """Vectors [end - begin, D] of items_n[begin:end]; see `rows`."""
        return self.rows(np.arange(begin, end))

    def sample(self, most: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """At most so many places of `items_n`, drawn without replacement and ascending, and their vectors."""
        places = np.arange(len(self))
        if len(self) > most:
            generator = np.random.default_rng(derive_seed(seed, "sample of item vectors"))
            places = np.sort(generator.choice(len(self), most, replace=False))
        return places, self.rows(places)
