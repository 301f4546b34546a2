"""How an RQ-VAE is fitted: encoder and decoder by gradients, codebooks by moving averages.

The loss is the mean squared error of what the decoder makes of the sum of rows, and β times the commitment: the mean
square of what each level leaves over, summed over levels (TIGER, arXiv 2305.05065, section 3.1; partial sums as in Lee
et al., arXiv 2203.01941). Codebooks take no gradient: a row is the exponential moving average of the residuals that
fell to it (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1). The gradient passes through the choice of codes
as if there were none.

First encoder and decoder learn alone, without codes, for `warm_up` steps; k-means on the latents that come of it, level
after level, then places the rows. Codebooks placed on the latents of an untrained encoder would be left behind by it.

C code levels · V codes per level · n vectors · B vectors of a step · m vectors of the k-means · D vector width ·
d latent width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from common.progress import Progress
from common.seeding import derive_seed
from semantic_ids.quantizers.base import MAX_CODES, Vectors, check_fittable
from semantic_ids.quantizers.rq_vae import Layer, RqVae, RqVaeConfig

START_VECTORS_PER_CODE = 32
"""What the k-means reads at most that places the rows; moving averages go on from there."""

_START_ITERATIONS = 10
_BLOCK = 65536
_SCORES = 2**22
_SMOOTHING = 1e-5
"""ε of the Laplace smoothing of counts, as published."""

_DEAD_SHARE = 0.03
"""A code is dead whose moving count is below this share of what it would be if all codes were used alike."""


def fit_rq_vae(vectors_nD: Vectors, *, levels: int, codes: int, config: RqVaeConfig, seed: int) -> RqVae:
    """Fit an RQ-VAE; a function of its arguments alone, on one machine and number of threads.

    Args:
        vectors_nD: float32, all finite.
        levels: C.
        codes: V, from 2 to 65,536.
        config: how.
        seed: of first weights, of the order of vectors, of k-means, of where dead codes go.

    Raises:
        InputError: fewer vectors than codes.
    """
    assert levels >= 1, levels
    assert 2 <= codes <= MAX_CODES, codes
    check_fittable(len(vectors_nD), codes)
    return _Training(vectors_nD, levels, codes, config, seed).run()


class AutoEncoder(nn.Module):
    """Encoder from D to d and decoder back, ReLU between layers."""

    def __init__(self, vector_width: int, hidden: list[int], latent: int, seed: int) -> None:
        """Draw the first weights from `seed`."""
        super().__init__()
        self.latent = latent
        widths = [vector_width, *hidden, latent]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = _perceptron(widths)
            self.decoder = _perceptron(widths[::-1])

    def start_linear(self, axes_kD: torch.Tensor) -> None:
        """Become the projection onto k ≤ d orthonormal axes and back; every hidden layer is at least 2 k wide.

        Hidden units come in pairs, relu(u) and relu(-u), whose difference is u. Units beyond the pairs keep the weights
        drawn for what they read, and count for nothing at first.
        """
        into_dk = torch.eye(self.latent, len(axes_kD))
        _pass_through(self.encoder, axes_kD, into_dk)
        _pass_through(self.decoder, into_dk.T, axes_kD.T)


@torch.no_grad()
def _pass_through(perceptron: nn.Sequential, first: torch.Tensor, last: torch.Tensor) -> None:
    """Make a perceptron the product of two matrices, [k, a] and then [b, k], by its first 2 k hidden units."""
    linear = [layer for layer in perceptron if isinstance(layer, nn.Linear)]
    pairs = 2 * len(first)
    for layer in linear[:-1]:
        layer.weight[:pairs], layer.bias[:pairs] = 0, 0
    linear[0].weight[:pairs] = torch.cat([first, -first])
    for layer in linear[1:-1]:
        layer.weight[:pairs, :pairs] = torch.eye(pairs)
    linear[-1].weight.zero_()
    linear[-1].bias.zero_()
    linear[-1].weight[:, :pairs] = torch.cat([last, -last], dim=1)


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class EmaCodebook:
    """The rows of one level, each the moving average of the residuals that fell to it."""

    def __init__(self, rows_Vd: torch.Tensor, counts_V: torch.Tensor, decay: float) -> None:
        """Start from rows, and from how many residuals fall to each in a step."""
        self.rows_Vd, self.counts_V, self.decay = rows_Vd.clone(), counts_V.clone(), decay
        self.sums_Vd = self.rows_Vd * self.counts_V[:, None]

    def nearest(self, residuals_Bd: torch.Tensor) -> torch.Tensor:
        """Codes [B] of the nearest rows, in float32."""
        norms_V = self.rows_Vd.square().sum(dim=1)
        codes = [
            torch.addmm(norms_V, block, self.rows_Vd.T, alpha=-2).numpy().argmin(axis=1)  # many times torch's speed
            for block in residuals_Bd.split(max(_SCORES // len(self.rows_Vd), 1))
        ]
        return torch.from_numpy(np.concatenate(codes))

    def update(self, residuals_Bd: torch.Tensor, codes_B: torch.Tensor) -> None:
        """Move counts and sums towards those of a step, and the rows with them.

        The row of a code that finds no use any more shrinks to nothing with its count: a level can leave a residual as
        it is, and take the code up again.
        """
        fallen_V = torch.bincount(codes_B, minlength=len(self.rows_Vd)).to(torch.float32)
        fallen_Vd = torch.zeros_like(self.sums_Vd).index_add_(0, codes_B, residuals_Bd)
        self.counts_V = self.decay * self.counts_V + (1 - self.decay) * fallen_V
        self.sums_Vd = self.decay * self.sums_Vd + (1 - self.decay) * fallen_Vd
        total = self.counts_V.sum()
        smoothed_V = (self.counts_V + _SMOOTHING) / (total + len(self.rows_Vd) * _SMOOTHING) * total
        self.rows_Vd = self.sums_Vd / smoothed_V[:, None]

    def restart_dead(self, residuals_Bd: torch.Tensor, seed: int) -> None:
        """Put dead codes onto residuals drawn from a step, as if they were used like the others."""
        even = float(self.counts_V.mean())
        dead = torch.nonzero(self.counts_V < _DEAD_SHARE * even)[:, 0]
        drawn = np.random.default_rng(seed).integers(len(residuals_Bd), size=len(dead))
        self.rows_Vd[dead] = residuals_Bd[torch.from_numpy(drawn)]
        self.counts_V[dead] = even
        self.sums_Vd[dead] = self.rows_Vd[dead] * even


@dataclass
class Quantised:
    """What the codebooks make of a step's latents."""

    rows_Bd: torch.Tensor
    """Sums of the chosen rows."""
    codes: list[torch.Tensor]
    """[B] a level."""
    residuals: list[torch.Tensor]
    """[B, d] a level, as the level found them; without gradient."""
    commitment: torch.Tensor
    """Mean square of what each level leaves over, summed over levels."""


def quantise(latent_Bd: torch.Tensor, codebooks: list[EmaCodebook]) -> Quantised:
    """Choose rows greedily, level after level; rows are constants to the gradient."""
    residual_Bd, rows_Bd, commitment = latent_Bd, torch.zeros_like(latent_Bd), latent_Bd.new_zeros(())
    codes, residuals = [], []
    for codebook in codebooks:
        residuals.append(residual_Bd.detach())
        codes.append(codebook.nearest(residuals[-1]))
        chosen_Bd = codebook.rows_Vd[codes[-1]]
        rows_Bd, residual_Bd = rows_Bd + chosen_Bd, residual_Bd - chosen_Bd
        commitment = commitment + residual_Bd.square().mean()
    return Quantised(rows_Bd.detach(), codes, residuals, commitment)


def straight_through(latent_Bd: torch.Tensor, rows_Bd: torch.Tensor) -> torch.Tensor:
    """The value of the rows, the gradient of the latents."""
    return latent_Bd + (rows_Bd - latent_Bd).detach()


def loss_of(
    network: AutoEncoder, codebooks: list[EmaCodebook], standard_BD: torch.Tensor, commitment: float
) -> tuple[torch.Tensor, Quantised | None]:
    """Loss of a step, and what was quantised in it; without codebooks that of an autoencoder."""
    latent_Bd = network.encoder(standard_BD)
    if not codebooks:
        return functional.mse_loss(network.decoder(latent_Bd), standard_BD), None
    quantised = quantise(latent_Bd, codebooks)
    decoded_BD = network.decoder(straight_through(latent_Bd, quantised.rows_Bd))
    return functional.mse_loss(decoded_BD, standard_BD) + commitment * quantised.commitment, quantised


def learning_rate_factor(step: int, config: RqVaeConfig) -> float:
    """What the learning rate is multiplied by: up in a line through the warm-up, then down in a cosine."""
    if step < config.warm_up:
        return (step + 1) / (config.warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - config.warm_up) / (config.steps - config.warm_up)))


class _Training:
    """State of one fit."""

    def __init__(self, vectors_nD: Vectors, levels: int, codes: int, config: RqVaeConfig, seed: int) -> None:
        self.vectors_nD, self.levels, self.codes, self.config, self.seed = vectors_nD, levels, codes, config, seed
        self.mean_D, self.scale = _mean_and_scale(vectors_nD)
        first = derive_seed(seed, "rq-vae weights")
        self.network = AutoEncoder(vectors_nD.shape[1], config.hidden, config.latent, first)
        axes = min(config.latent, *(width // 2 for width in config.hidden))
        if config.start == "principal" and axes:
            self.network.start_linear(self._principal_axes()[:axes])
        self.codebooks: list[EmaCodebook] = []
        self.losses: list[float] = []

    def run(self) -> RqVae:
        """All steps, one after another."""
        config = self.config
        optimizer = torch.optim.Adam(self.network.parameters())
        with Progress("train rq-vae", config.steps, "steps") as progress:
            for step, places_B in enumerate(_batches(len(self.vectors_nD), config, self.seed)):
                if step == config.warm_up:
                    self._start_codebooks()
                optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(step, config)
                self.losses.append(self._step(places_B, step, optimizer))
                progress.advance(note=f"loss {self.losses[-1]:.4f}")
        return self._frozen()

    def _step(self, places_B: npt.NDArray[np.int64], step: int, optimizer: torch.optim.Optimizer) -> float:
        loss, quantised = loss_of(self.network, self.codebooks, self._standard(places_B), self.config.commitment)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if quantised is not None:
            self._move_codebooks(quantised, step)
        return float(loss.detach())

    def _move_codebooks(self, quantised: Quantised, step: int) -> None:
        found = zip(self.codebooks, quantised.residuals, quantised.codes, strict=True)
        for level, (codebook, residuals_Bd, codes_B) in enumerate(found):
            codebook.update(residuals_Bd, codes_B)
            if self.config.restart_dead:
                codebook.restart_dead(residuals_Bd, derive_seed(self.seed, "rq-vae restart", step, level))

    def _start_codebooks(self) -> None:
        """Place the rows by k-means on a sample's latents; counts are what a step would find there."""
        residual_md = self._sample_latents()
        share = min(self.config.batch, len(self.vectors_nD)) / len(residual_md)
        for level in range(self.levels):
            seed = derive_seed(self.seed, "rq-vae k-means", level) % 2**31
            clustering = faiss.Kmeans(
                residual_md.shape[1], self.codes, niter=_START_ITERATIONS, seed=seed, min_points_per_centroid=1
            )
            clustering.train(residual_md)
            assert clustering.centroids is not None  # faiss's own annotation says that it may be
            rows_Vd = torch.from_numpy(clustering.centroids)
            codebook = EmaCodebook(rows_Vd, torch.zeros(self.codes), self.config.decay)
            codes_m = codebook.nearest(torch.from_numpy(residual_md))
            counts_V = torch.bincount(codes_m, minlength=self.codes) * share
            self.codebooks.append(EmaCodebook(rows_Vd, counts_V, self.config.decay))
            residual_md = residual_md - clustering.centroids[codes_m.numpy()]

    def _principal_axes(self) -> torch.Tensor:
        """Orthonormal [D, D], those first along which the vectors vary most."""
        sample_mD = self._standard(self._sample_places()).to(torch.float64)
        axes_DD: torch.Tensor = torch.linalg.eigh(sample_mD.T @ sample_mD).eigenvectors  # ascending by eigenvalue
        return axes_DD.T.flip(0).to(torch.float32)

    def _sample_places(self) -> npt.NDArray[np.int64]:
        generator = np.random.default_rng(derive_seed(self.seed, "rq-vae sample"))
        most = min(START_VECTORS_PER_CODE * self.codes, len(self.vectors_nD))
        return np.sort(generator.choice(len(self.vectors_nD), most, replace=False))

    def _sample_latents(self) -> npt.NDArray[np.float32]:
        places_m = self._sample_places()
        with torch.no_grad():
            blocks = [
                self.network.encoder(self._standard(places_m[begin : begin + _BLOCK]))
                for begin in range(0, len(places_m), _BLOCK)
            ]
        return np.ascontiguousarray(torch.cat(blocks).numpy())

    def _standard(self, places_B: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy((self.vectors_nD[places_B] - self.mean_D) / self.scale)

    def _frozen(self) -> RqVae:
        codebooks_CVd = torch.stack([codebook.rows_Vd for codebook in self.codebooks]).numpy()
        encoder, decoder = _layers(self.network.encoder), _layers(self.network.decoder)
        return RqVae(codebooks_CVd, mean_D=self.mean_D, scale=self.scale, encoder=encoder, decoder=decoder)


def _layers(perceptron: nn.Sequential) -> list[Layer]:
    linear = [layer for layer in perceptron if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]


def _mean_and_scale(vectors_nD: Vectors) -> tuple[Vectors, npt.NDArray[np.float32]]:
    """Mean [D], and the root mean square [1] of all that deviates from it; 1 where nothing does."""
    mean_D = vectors_nD.mean(axis=0, dtype=np.float64).astype(np.float32)
    squares = sum(
        float(np.square(vectors_nD[begin : begin + _BLOCK] - mean_D, dtype=np.float64).sum())
        for begin in range(0, len(vectors_nD), _BLOCK)
    )
    scale = np.array([math.sqrt(squares / vectors_nD.size)], np.float32)
    return mean_D, scale if scale[0] > 0 else np.ones(1, np.float32)


def _batches(num_vectors: int, config: RqVaeConfig, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Places of each step's vectors: every vector once an epoch, in an order of its own, less the last part batch."""
    batch = min(config.batch, num_vectors)
    steps_an_epoch = num_vectors // batch
    order = np.arange(num_vectors)
    for step in range(config.steps):
        epoch, at = divmod(step, steps_an_epoch)
        if at == 0:
            order = np.random.default_rng(derive_seed(seed, "rq-vae order", epoch)).permutation(num_vectors)
        yield order[at * batch : (at + 1) * batch]
