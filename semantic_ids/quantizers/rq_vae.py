"""RQ-VAE: a learnt space is quantised in place of the vectors' own, as in TIGER (arXiv 2305.05065, section 3.1).

An encoder turns a vector into a latent one, C codebooks approximate that one residual after another, and a decoder
turns the sum of their rows back (Lee et al. 2022, arXiv 2203.01941). rq_vae_training.py fits all three; here is what
they do once they are frozen.

A row's codes depend on its own vector alone, to the bit, which a matrix product does not give by itself: its
rounding changes with the number of rows. Two measures give it. The encoder multiplies whole numbers in float64, small
enough for every sum to be exact, so that no order of summation matters; and where float32 cannot tell the nearest code
from the next, both are measured again, one row at a time.

C code levels · V codes per level · n vectors · l leading codes of a tuple · D vector width · d latent width ·
a, b widths before and after a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from common.config import option
from common.errors import InputError
from semantic_ids.quantizers.base import MAX_CODES, Codebooks, Codes, Quantizer, Vectors, sum_of_rows

Layer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Weights [b, a] and biases [b]."""

STARTS = ("principal", "random")

_SCORES = 2**22
"""Distances held at a time while coding: a block is so many rows that they fit."""

_EXACT_BITS = 53
"""Whole numbers up to 2^53 are exact in float64, and so are their sums as long as they stay below."""

_ROUNDING = 2.0**-24
"""Half a unit in the last place of float32, relative."""


@dataclass
class RqVaeConfig:
    """What an RQ-VAE is made of and how it learns.

    The defaults were chosen on 100,000 vectors of 128 numbers around 2,000 centres, at 8 × 1024. Of 10,000 held-out
    vectors they leave .070 of the variance, where residual k-means leaves .061; with γ .95 it is .072, with dead codes
    restarted .071, with β .25 and hardly a warm-up .077. The latent width decides most: 64 in place of 96 raised the
    last to .112, since what the encoder drops no code brings back.
    """

    hidden: list[int] = option(
        [256], "widths of the encoder's hidden layers; the decoder has them in reverse", minimum=1
    )
    latent: int = option(96, "width of the space that is quantised", minimum=1)
    start: str = option(
        "principal",
        "first weights; principal: encoder and decoder begin as the projection onto the vectors' principal axes and "
        "back; random: drawn",
        choices=STARTS,
    )
    decay: float = option(0.99, "γ of the moving averages: what a step leaves of the former average", minimum=0)
    commitment: float = option(
        0.05, "β, the weight of the commitment loss, which pulls latents to their codes", minimum=0
    )
    learning_rate: float = option(1e-3, "of Adam at its highest, after the warm-up; then a cosine down to 0")
    batch: int = option(2048, "vectors a step; all of them where there are fewer", minimum=1)
    steps: int = option(1000, "steps in all, whatever the number of vectors", minimum=1)
    warm_up: int = option(
        100, "first steps, without codes, in which the learning rate rises; 0: codes from the start", minimum=0
    )
    restart_dead: bool = option(
        False,
        "move codes that no vector falls to any more onto residuals of the current step; more codes are used, and the "
        "error of held-out vectors hardly changed: a little up at γ .99, a little down at γ .95",
    )

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        whole = {"hidden": self.hidden, "latent": [self.latent], "batch": [self.batch], "steps": [self.steps]}
        faults = [
            f"`{name}` is {width}, must be at least 1"
            for name, widths in whole.items()
            for width in widths
            if width < 1
        ]
        if not self.hidden:
            faults.append("`hidden` is empty, must hold at least one width: without a hidden layer nothing is learnt")
        if self.start not in STARTS:
            faults.append(f"`start` is {self.start!r}, expected one of {', '.join(STARTS)}")
        if not 0 <= self.decay < 1:
            faults.append(f"`decay` is {self.decay}, must be from 0 to below 1: at 1 codebooks would never move")
        if not 0 <= self.commitment < math.inf:
            faults.append(f"`commitment` is {self.commitment}, must be a finite number from 0: it weighs a loss")
        if not 0 < self.learning_rate < math.inf:
            faults.append(f"`learning_rate` is {self.learning_rate}, must be a finite number above 0")
        if self.warm_up < 0:
            faults.append(f"`warm_up` is {self.warm_up}, must be at least 0")
        elif self.warm_up >= self.steps > 0:
            faults.append(
                f"`warm_up` is {self.warm_up}, must be less than steps={self.steps}: no step would see a code"
            )
        if faults:
            raise InputError(*faults)


class RqVae(Quantizer):
    """A frozen RQ-VAE.

    Vectors are shifted by a mean of their own and divided by one number for all dimensions: squared errors keep their
    meaning, which a scale for each dimension would take from them.
    """

    name: ClassVar[str] = "rq-vae"

    def __init__(
        self,
        codebooks_CVd: Codebooks,
        *,
        mean_D: Vectors,
        scale: npt.NDArray[np.float32],
        encoder: Sequence[Layer],
        decoder: Sequence[Layer],
    ) -> None:
        """Take what a fit found.

        Args:
            codebooks_CVd: float32 rows of the latent space.
            mean_D: what is subtracted from a vector.
            scale: [1], what the difference is divided by, above 0.
            encoder: layers from D to d, ReLU between them.
            decoder: layers from d to D, ReLU between them.
        """
        self.codebooks_CVd = np.ascontiguousarray(codebooks_CVd, np.float32)
        self._mean_D, self._scale = mean_D, scale
        self._layers = {"encoder": list(encoder), "decoder": list(decoder)}
        self._encoder, self._decoder = _ExactLayers(encoder), _ExactLayers(decoder)
        self._nearest = [_NearestRow(codebook_Vd) for codebook_Vd in self.codebooks_CVd]
        self._nearest_but_zero = _NearestRow(self.codebooks_CVd[-1, 1:])

    @property
    def vector_width(self) -> int:
        """D."""
        return len(self._mean_D)

    def encode(self, vectors_nD: Vectors) -> Codes:
        """Codes [n, C], greedily level after level, none of them all zero; the lowest of codes equally near."""
        codes_nC = np.empty((len(vectors_nD), self.num_levels), np.uint16)
        for rows in self._blocks(len(vectors_nD)):
            codes_nC[rows] = self._encode_block(vectors_nD[rows])
        return codes_nC

    def project(self, vectors_nD: Vectors) -> Vectors:
        """Latent vectors [n, d]: the encoder's output."""
        latent_nd = np.empty((len(vectors_nD), self.codebooks_CVd.shape[2]), np.float32)
        for rows in self._blocks(len(vectors_nD)):
            latent_nd[rows] = self._project_block(vectors_nD[rows])
        return latent_nd

    def reconstruct(self, codes_nl: Codes) -> Vectors:
        """Vectors [n, D] that the decoder makes of the sum of the first l rows, 1 ≤ l ≤ C."""
        vectors_nD = np.empty((len(codes_nl), self.vector_width), np.float32)
        for rows in self._blocks(len(codes_nl)):
            decoded = self._decoder(sum_of_rows(self.codebooks_CVd, codes_nl[rows]).astype(np.float64))
            vectors_nD[rows] = decoded * self._scale + self._mean_D
        return vectors_nD

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Codebooks, mean and scale, and `encoder_0_weight` … `decoder_k_bias`."""
        arrays = {"codebooks": self.codebooks_CVd, "mean": self._mean_D, "scale": self._scale}
        for part, layers in self._layers.items():
            for index, (weight_ba, bias_b) in enumerate(layers):
                arrays[f"{part}_{index}_weight"], arrays[f"{part}_{index}_bias"] = weight_ba, bias_b
        return arrays

    def settings(self) -> dict[str, Any]:
        """The widths of the encoder's hidden layers, which say how many layers there are."""
        return {"hidden": [len(bias_b) for _, bias_b in self._layers["encoder"][:-1]]}

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[np.float32]], settings: Mapping[str, Any]) -> RqVae:
        """The quantiser that gave `arrays` and `settings`, to the bit.

        Raises:
            InputError: an array is missing, is one too many, or has another shape or dtype than its neighbours ask
                for; a number is not finite.
        """
        hidden = settings.get("hidden")
        if not hidden or not isinstance(hidden, list) or not all(type(width) is int and width > 0 for width in hidden):
            raise InputError(
                f"rq-vae: the setting `hidden` is {hidden!r}, expected a list of layer widths; fit the codes again"
            )
        _check_arrays(arrays, hidden)
        layers = {
            part: [(arrays[f"{part}_{i}_weight"], arrays[f"{part}_{i}_bias"]) for i in range(len(hidden) + 1)]
            for part in ("encoder", "decoder")
        }
        return cls(arrays["codebooks"], mean_D=arrays["mean"], scale=arrays["scale"], **layers)

    def _blocks(self, rows: int) -> list[slice]:
        block = max(_SCORES // self.codes_per_level, 1)
        return [slice(begin, min(begin + block, rows)) for begin in range(0, rows, block)]

    def _project_block(self, vectors_nD: Vectors) -> Vectors:
        assert vectors_nD.shape[1] == self.vector_width, (vectors_nD.shape, self.vector_width)
        standard_nD = (vectors_nD.astype(np.float64) - self._mean_D) / self._scale.astype(np.float64)
        latent_nd: Vectors = self._encoder(standard_nD).astype(np.float32)
        return latent_nd

    def _encode_block(self, vectors_nD: Vectors) -> Codes:
        residual_nd = self._project_block(vectors_nD)
        codes_nC = np.empty((len(vectors_nD), self.num_levels), np.uint16)
        last = self.num_levels - 1
        for level, nearest in enumerate(self._nearest):
            codes_nC[:, level] = nearest(residual_nd)
            if level < last:
                residual_nd -= self.codebooks_CVd[level][codes_nC[:, level]]
        unknown = np.flatnonzero(~codes_nC.any(axis=1))
        codes_nC[unknown, last] = self._nearest_but_zero(residual_nd[unknown]) + 1
        return codes_nC


class _ExactLayers:
    """Linear layers with ReLU between them, whose rows come out the same among whatever other rows.

    Numbers going into a product are rounded to whole multiples of a power of two, one for the weights and one for
    each row, with as many bits as leave the sum of all products below 2^53. The product is then exact in whatever
    order it is summed. That leaves 22 bits or more of a number for layers up to 512 wide, against 24 of float32.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Round the weights."""
        self._layers: list[tuple[torch.Tensor, float, int, npt.NDArray[np.float64]]] = []
        for weight_ba, bias_b in layers:
            bits = _EXACT_BITS - (weight_ba.shape[1] - 1).bit_length()
            weight_bits = bits // 2
            unit = float(_unit(np.abs(weight_ba).max(), weight_bits))
            whole_ab = torch.from_numpy(np.rint(weight_ba.T.astype(np.float64) / unit))
            self._layers.append((whole_ab, unit, bits - weight_bits, bias_b.astype(np.float64)))

    def __call__(self, values_na: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Values [n, b] of the last layer."""
        for index, (whole_ab, weight_unit, bits, bias_b) in enumerate(self._layers):
            if index:
                values_na = np.maximum(values_na, 0)
            unit_n1 = _unit(np.abs(values_na).max(axis=1, keepdims=True), bits)
            whole_nb = (torch.from_numpy(np.rint(values_na / unit_n1)) @ whole_ab).numpy()
            values_na = whole_nb * (unit_n1 * weight_unit) + bias_b
        return values_na


def _unit(largest: npt.NDArray[np.floating], bits: int) -> npt.NDArray[np.float64]:
    """The power of two of which no number up to `largest` holds more than 2^bits."""
    exponent = np.frexp(np.asarray(largest, np.float64))[1]
    unit: npt.NDArray[np.float64] = np.ldexp(1.0, exponent - bits)
    return unit


class _NearestRow:
    """Finds the exactly nearest row of a codebook, the first of rows equally near.

    Float32 products decide wherever the runner-up is farther by more than their rounding can amount to; for the few
    vectors left, the rows that may be nearest are measured in float64, by sums whose order no other vector changes.
    """

    def __init__(self, rows_Vd: Codebooks) -> None:
        """Take the rows; one that repeats an earlier row can never be the first nearest, so it is out."""
        self._rows_Vd = rows_Vd
        norms_V = np.square(rows_Vd, dtype=np.float64).sum(axis=1)
        self._longest = float(np.sqrt(norms_V.max()))
        repeats = np.ones(len(rows_Vd), np.bool_)
        repeats[np.unique(rows_Vd, axis=0, return_index=True)[1]] = False
        self._norms_V = torch.from_numpy(np.where(repeats, np.inf, norms_V).astype(np.float32))

    def __call__(self, vectors_nd: Vectors) -> npt.NDArray[np.int64]:
        """Places [n] of rows."""
        # ‖x − c‖² without ‖x‖², which is the same for all rows c.
        scores_nV = torch.addmm(
            self._norms_V, torch.from_numpy(vectors_nd), torch.from_numpy(self._rows_Vd).T, alpha=-2
        ).numpy()
        every = np.arange(len(vectors_nd))
        nearest_n: npt.NDArray[np.int64] = scores_nV.argmin(axis=1)
        lowest_n = scores_nV[every, nearest_n].astype(np.float64)
        scores_nV[every, nearest_n] = np.inf
        doubt_n = self._doubt(vectors_nd)
        doubtful = np.flatnonzero(scores_nV.min(axis=1) - lowest_n <= doubt_n)
        scores_nV[every, nearest_n] = lowest_n
        step = max(_SCORES // self._rows_Vd.size, 1)
        for begin in range(0, len(doubtful), step):
            at = doubtful[begin : begin + step]
            nearest_n[at] = self._measured(vectors_nd[at], scores_nV[at] <= (lowest_n + doubt_n)[at, None])
        return nearest_n

    def _measured(self, vectors_md: Vectors, eligible_mV: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Places [m] of the nearest of the eligible rows."""
        vector, row = np.nonzero(eligible_mV)
        distances_mV = np.full(eligible_mV.shape, np.inf)
        apart = vectors_md[vector].astype(np.float64) - self._rows_Vd[row]
        distances_mV[vector, row] = np.square(apart).sum(axis=1)
        nearest_m: npt.NDArray[np.int64] = distances_mV.argmin(axis=1)
        return nearest_m

    def _doubt(self, vectors_nd: Vectors) -> npt.NDArray[np.float64]:
        """By how much two scores [n] may be wrong together: twice what d + 3 roundings of their terms amount to."""
        lengths_n = np.sqrt(np.square(vectors_nd, dtype=np.float64).sum(axis=1))
        terms_n = self._longest * (2 * lengths_n + self._longest)
        doubt_n: npt.NDArray[np.float64] = 4 * (vectors_nd.shape[1] + 3) * _ROUNDING * terms_n
        return doubt_n


def _check_arrays(arrays: Mapping[str, npt.NDArray[np.float32]], hidden: list[int]) -> None:
    """Refuse arrays that are not those of an RQ-VAE with these hidden layers."""
    faults = [f"rq-vae: no array `{name}`" for name in ("codebooks", "mean") if name not in arrays]
    if faults:
        raise InputError(*(f"{fault}; fit the codes again" for fault in faults))
    codebooks, mean = arrays["codebooks"], arrays["mean"]
    if codebooks.ndim != 3 or mean.ndim != 1 or not 2 <= codebooks.shape[1] <= MAX_CODES or 0 in codebooks.shape:
        raise InputError(
            f"rq-vae: `codebooks` has shape {list(codebooks.shape)} and `mean` {list(mean.shape)}, expected [levels,"
            f" codes, latent width], 2 to {MAX_CODES} codes, and [vector width]; fit the codes again"
        )
    shapes = {"codebooks": codebooks.shape, "mean": mean.shape, "scale": (1,)}
    widths = [len(mean), *hidden, codebooks.shape[2]]
    for part, through in (("encoder", widths), ("decoder", widths[::-1])):
        for index, (before, after) in enumerate(pairwise(through)):
            shapes[f"{part}_{index}_weight"], shapes[f"{part}_{index}_bias"] = (after, before), (after,)
    for name in sorted(shapes.keys() | arrays.keys()):
        if name not in arrays or name not in shapes:
            faults.append(f"rq-vae: {'an unknown' if name in arrays else 'no'} array `{name}`")
        elif arrays[name].shape != shapes[name] or arrays[name].dtype != np.float32:
            found = f"{arrays[name].dtype} {list(arrays[name].shape)}"
            faults.append(f"rq-vae: array `{name}` is {found}, expected float32 {list(shapes[name])}")
        elif not np.isfinite(arrays[name]).all():
            faults.append(f"rq-vae: array `{name}` holds a number that is not finite")
    if not faults and not arrays["scale"][0] > 0:
        faults.append(f"rq-vae: `scale` is {arrays['scale'][0]}, must be above 0")
    if faults:
        raise InputError(*(f"{fault}; fit the codes again" for fault in faults))
