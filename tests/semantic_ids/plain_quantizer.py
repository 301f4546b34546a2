"""The obvious residual quantiser: level by level, every distance looked at, and the rule of the all-zero tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from semantic_ids.quantizers.base import Quantizer, sum_of_rows


class PlainQuantizer(Quantizer):
    name = "plain"

    def __init__(self, codebooks_CVd: np.ndarray) -> None:
        self.codebooks_CVd = codebooks_CVd

    @property
    def vector_width(self) -> int:
        return int(self.codebooks_CVd.shape[2])

    def encode(self, vectors_nD: np.ndarray) -> np.ndarray:
        codes = np.zeros((len(vectors_nD), self.num_levels), np.uint16)
        rest = vectors_nD.astype(np.float64)
        for level, rows in enumerate(self.codebooks_CVd):
            order = np.argsort(((rest[:, None] - rows) ** 2).sum(axis=2), axis=1, kind="stable")
            codes[:, level] = order[:, 0]
            if level == self.num_levels - 1:
                codes[:, level] = np.where(codes.any(axis=1), order[:, 0], order[:, 1])
            rest = rest - rows[codes[:, level]]
        return codes

    def project(self, vectors_nD: np.ndarray) -> np.ndarray:
        return vectors_nD

    def reconstruct(self, codes_nl: np.ndarray) -> np.ndarray:
        return sum_of_rows(self.codebooks_CVd, codes_nl)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"codebooks": self.codebooks_CVd}

    def settings(self) -> dict[str, Any]:
        return {"kept": True}

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> PlainQuantizer:
        assert settings == {"kept": True}
        return cls(arrays["codebooks"])


def plain_quantizer(vectors_nD: np.ndarray, levels: int, codes: int, seed: int = 0) -> PlainQuantizer:
    """Codebooks of vectors drawn at random, of what the levels before leave."""
    generator = np.random.default_rng(seed)
    rest, books = vectors_nD.astype(np.float32), []
    for _ in range(levels):
        books.append(rest[generator.choice(len(rest), codes, replace=False)])
        rest = rest - books[-1][((rest[:, None] - books[-1]) ** 2).sum(axis=2).argmin(axis=1)]
    return PlainQuantizer(np.stack(books))
