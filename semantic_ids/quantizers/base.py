"""The interface of every quantiser: frozen, so that items of later days are coded by the same rules.

The all-zero tuple means *unknown item*, so `encode` never gives it: a vector whose nearest codes are all zero takes the
nearest other code of the last level. The rule holds for the items of the fit and for those that come later.

C code levels · V codes per level · n vectors · D vector width · d width of the space that is quantised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from common.errors import InputError

Codes = npt.NDArray[np.uint16]
Codebooks = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]

MAX_CODES = 65536
"""Codes are stored in 16 bits."""


class Quantizer(ABC):
    """Fitted codebooks: codes vectors, and tells what codes stand for."""

    name: ClassVar[str]
    """As in the configuration's `quantizer`."""
    codebooks_CVd: Codebooks
    """A tuple decodes to the sum of one row a level. Vectors themselves where d = D, latent ones elsewhere."""

    @property
    def num_levels(self) -> int:
        """C."""
        return int(self.codebooks_CVd.shape[0])

    @property
    def codes_per_level(self) -> int:
        """V."""
        return int(self.codebooks_CVd.shape[1])

    @property
    @abstractmethod
    def vector_width(self) -> int:
        """D of the vectors that `encode` takes."""

    @abstractmethod
    def encode(self, vectors_nD: Vectors) -> Codes:
        """Codes [n, C] of a block of vectors, none of them all zero; a row depends on its own vector alone."""

    @abstractmethod
    def project(self, vectors_nD: Vectors) -> Vectors:
        """Vectors [n, d] in the space that is quantised: what the sum of an item's codebook rows approximates."""

    @abstractmethod
    def reconstruct(self, codes_nl: Codes) -> Vectors:
        """Approximate vectors [n, D] from the first l codes of items, 1 ≤ l ≤ C."""

    @abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """All numbers that `load` needs, by name; `codebooks` among them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else `load` needs, JSON-like."""

    @classmethod
    @abstractmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[np.float32]], settings: Mapping[str, Any]) -> Quantizer:
        """The quantiser that gave `arrays` and `settings`.

        Raises:
            InputError: they do not belong together.
        """


def check_fittable(num_vectors: int, codes: int) -> None:
    """A codebook cannot hold more codes than there are vectors to fit it to.

    Raises:
        InputError: fewer vectors than codes.
    """
    if num_vectors < codes:
        raise InputError(
            f"`codes` is {codes}, but only {num_vectors} items have a vector, and a codebook cannot hold more codes"
            f" than there are items to fit it to; set codes={max(num_vectors, 2)} or less"
        )


def sum_of_rows(codebooks_CVd: Codebooks, codes_nl: npt.NDArray[np.integer]) -> Vectors:
    """Sum of the codebook rows that the first l codes of tuples [..., l] name: [..., d]."""
    levels = codes_nl.shape[-1]
    assert levels <= len(codebooks_CVd), (codes_nl.shape, codebooks_CVd.shape)
    summed = np.zeros((*codes_nl.shape[:-1], codebooks_CVd.shape[2]), np.float32)
    for level in range(levels):
        summed += codebooks_CVd[level][codes_nl[..., level]]
    return summed
