"""What all residual quantisers of the vectors themselves share: codebooks whose rows add up, and their storage.

C code levels · V codes per level · n vectors · D vector width, which is also that of the codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.seeding import derive_seed
from semantic_ids.quantizers.base import Codebooks, Codes, Quantizer, Vectors, sum_of_rows

TRAINING_VECTORS_PER_CODE = 256
"""Vectors of the sample for each code; more change a centroid by less than its cluster is wide (FAISS's bound, too)."""


class ResidualQuantizer(Quantizer):
    """Codebooks that code and decode; they never change, so items that come later can be coded too."""

    def __init__(self, codebooks_CVd: Codebooks, *, beam: int) -> None:
        """Take fitted codebooks.

        Args:
            codebooks_CVd: float32.
            beam: partial tuples kept while encoding; 1 is greedy, more costs time in proportion.
        """
        assert beam >= 1, beam
        self.codebooks_CVd = np.ascontiguousarray(codebooks_CVd, np.float32)
        self.beam = beam

    @property
    def vector_width(self) -> int:
        """D."""
        return int(self.codebooks_CVd.shape[2])

    def project(self, vectors_nD: Vectors) -> Vectors:
        """The vectors themselves."""
        return vectors_nD

    def reconstruct(self, codes_nl: Codes) -> Vectors:
        """See `Quantizer.reconstruct`."""
        return sum_of_rows(self.codebooks_CVd, codes_nl)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """See `Quantizer.arrays`."""
        return {"codebooks": self.codebooks_CVd}

    def settings(self) -> dict[str, Any]:
        """See `Quantizer.settings`."""
        return {"beam": self.beam}

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[np.float32]], settings: Mapping[str, Any]) -> Self:
        """See `Quantizer.load`."""
        return cls(_codebooks_of(arrays), beam=_beam_of(settings))


def training_vectors(vectors_nD: Vectors, codes: int, seed: int) -> Vectors:
    """As many vectors as codebooks of so many codes are fitted to, drawn at random; all where there are fewer."""
    most = codes * TRAINING_VECTORS_PER_CODE
    if len(vectors_nD) > most:
        generator = np.random.default_rng(derive_seed(seed, "training vectors"))
        vectors_nD = vectors_nD[np.sort(generator.choice(len(vectors_nD), most, replace=False))]
    return np.ascontiguousarray(vectors_nD, np.float32)


def _codebooks_of(arrays: Mapping[str, npt.NDArray[np.float32]]) -> Codebooks:
    codebooks = arrays.get("codebooks")
    if codebooks is None or set(arrays) != {"codebooks"} or codebooks.ndim != 3 or codebooks.dtype != np.float32:
        found = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in sorted(arrays.items()))
        raise InputError(
            f"the quantiser's arrays are [{found}], expected one, codebooks: float32 (levels, codes, width)"
        )
    return codebooks


def _beam_of(settings: Mapping[str, Any]) -> int:
    beam = settings.get("beam")
    if not isinstance(beam, int) or beam < 1:
        raise InputError(f"the quantiser's settings say beam = {beam!r}, expected a whole number of at least 1")
    return beam
