"""What else could have come next: negatives for a model that scores items by their own rows.

A softmax over the catalogue has a sum over all items below the line. Sampled softmax puts a few draws in its place:
loss = −s₊ + log(e^{s₊} + Σ_j e^{s_j + o_j}), over the draws j that are not the positive itself, which are masked out.

    uniform    every item alike, as in the published HSTU code
    in-batch   the targets of the same bin: what is played often is drawn often, and its rows are in the batch already
    mixed      some of both: popular items, and every now and then one that nobody plays
    all        no draw: the whole catalogue, the strong choice where it is small

In-batch means the same *bin*, not the same batch of a rank: a bin is the same on any number of ranks, and so the step
is. It holds the histories of some users, so that many of its targets are what one user played before or after: harder
negatives than those of other users, a few of them wrong ones.

**The correction.** Draws that favour popular items push these down beyond what the softmax would. With o_j =
−log(expected draws of j) each draw stands for all items that it was drawn instead of, and the sum's expectation is that
of the whole softmax without the positive (importance sampling). Yi et al. (2019), "Sampling-bias-corrected neural
modeling for large corpus item recommendations", subtract log q from the positive's logit as well, since among their
candidates it is one draw of many; here it is in the sample for certain, once, as its draws are masked out, so that
log 1 = 0 is what belongs to it (Khrylchenko et al. 2025, "Correcting the LogQ correction"). Their formula with masked
draws would not tend to the softmax, however many there are. Where all items are drawn alike o_j is one number,
log(N / M), a weight of the negatives against the positive: the published code leaves it out, and so does
`correct=auto`.

T targets of a batch · G groups of targets that share their negatives · M negatives of a group · N items · d items of a
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import option
from common.errors import InputError

UNIFORM, IN_BATCH, MIXED, ALL = "uniform", "in-batch", "mixed", "all"
KINDS = (UNIFORM, IN_BATCH, MIXED, ALL)
TARGET, BIN = "target", "bin"


@dataclass
class NegativesConfig:
    """What a target is held against, where the model's output are items."""

    kind: str = option(
        UNIFORM,
        "uniform: any item; in-batch: targets of the same bin; mixed: some of both; all: no draw, the whole catalogue",
        choices=KINDS,
    )
    count: int = option(128, "negatives of a target; means nothing to kind=all", minimum=1)
    share_in_batch: float = option(0.5, "kind=mixed: share of the negatives that are targets of the bin", minimum=0)
    per: str = option(
        TARGET,
        "target: drawn anew for each, as published; bin: once for all targets of a bin, whose scores are then one "
        "product of matrices",
        choices=(TARGET, BIN),
    )
    correct: str = option(
        "auto",
        "weigh each negative by 1 / its expected draws, so that the sum's expectation is that of the whole softmax; "
        "auto: wherever some items are drawn more than others",
        choices=("auto", "true", "false"),
    )

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        faults = []
        if self.kind == ALL:
            default = {"count": 128, "per": TARGET, "correct": "auto"}
            faults += [
                f"{key}={getattr(self, key)} means nothing with kind=all, which draws nothing: leave it out"
                for key, value in default.items()
                if getattr(self, key) not in ((value, "false") if key == "correct" else (value,))
            ]
        if self.kind != MIXED and self.share_in_batch != 0.5:
            faults.append(f"share_in_batch={self.share_in_batch} means nothing with kind={self.kind}: set kind=mixed")
        if self.kind == MIXED and not 0 < self.num_in_batch < self.count:
            faults.append(
                f"share_in_batch={self.share_in_batch} of count={self.count} makes {self.num_in_batch} of the "
                f"negatives targets of the bin: must be at least 1 and fewer than all; or set kind=uniform or "
                f"kind=in-batch"
            )
        if faults:
            raise InputError(*faults)

    @property
    def num_in_batch(self) -> int:
        """How many of a group's draws are targets of the bin."""
        return {UNIFORM: 0, IN_BATCH: self.count, MIXED: round(self.share_in_batch * self.count), ALL: 0}[self.kind]

    @property
    def is_corrected(self) -> bool:
        """Whether negatives are weighed by how often they are expected."""
        return self.kind != ALL and (self.correct == "true" or (self.correct == "auto" and self.kind != UNIFORM))

    def groups(self, targets: int, bins: int) -> int:
        """G, for so many targets in so many bins that have any."""
        return min(targets, {TARGET: targets, BIN: bins}[self.per] if self.kind != ALL else 1)

    def size(self, num_items: int) -> int:
        """M."""
        return num_items if self.kind == ALL else self.count


@dataclass(frozen=True)
class Drawn:
    """Negatives of a batch.

    Attributes:
        items_GM: uint32, dense item indices.
        group_T: int64, the group of each target, ascending; every group has one.
    """

    items_GM: np.ndarray
    group_T: np.ndarray


@dataclass(frozen=True)
class BinSeeds:
    """The bins of a batch.

    Attributes:
        offsets: int64 [bins + 1], ranges of tokens.
        seeds: of what is drawn for each.
    """

    offsets: np.ndarray
    seeds: Sequence[int]


class NegativeSampler:
    """Draws negatives for batches; what it draws is a function of the seeds it is given and of the bins' targets.

    Args:
        cfg: what to draw.
        plays_N: events of each item in training: how often it is a target, but for events that nothing comes before.

    Attributes:
        offsets_N: float32, o_j of the formula above; None where nothing is corrected.
    """

    def __init__(self, cfg: NegativesConfig, plays_N: np.ndarray) -> None:
        self.cfg, self.num_items = cfg, len(plays_N)
        self.offsets_N = _offsets(cfg, plays_N) if cfg.is_corrected else None
        self._everything_1N = np.arange(self.num_items, dtype=np.uint32)[None] if cfg.kind == ALL else None

    def describe(self) -> list[Any]:
        """What decides the draws, for the name of a loader's plan."""
        cfg = self.cfg
        return [cfg.kind, cfg.size(self.num_items), cfg.num_in_batch, cfg.per, cfg.is_corrected]

    def draw(self, targets: Sequence[np.ndarray], seeds: Sequence[int]) -> Drawn:
        """Negatives for the targets of some bins, each bin's by its own seed alone.

        Args:
            targets: uint32, target items of each bin.
            seeds: one a bin.
        """
        counts = np.array([len(items) for items in targets], dtype=np.int64)
        if self._everything_1N is not None:
            own_1N = self._everything_1N if counts.any() else self._everything_1N[:0]
            return Drawn(own_1N, np.zeros(counts.sum(), dtype=np.int64))
        groups = counts if self.cfg.per == TARGET else np.minimum(counts, 1)
        drawn = [
            self._draw(items, int(rows), seed) for items, rows, seed in zip(targets, groups, seeds, strict=True) if rows
        ]
        of_target = np.ones(counts.sum(), dtype=np.int64)
        if self.cfg.per == BIN:
            of_target[:] = 0
            of_target[(np.cumsum(counts) - counts)[counts > 0]] = 1
        items_GM = np.concatenate(drawn) if drawn else np.empty((0, self.cfg.count), dtype=np.uint32)
        return Drawn(items_GM, np.cumsum(of_target) - 1)

    def _draw(self, items_t: np.ndarray, groups: int, seed: int) -> np.ndarray:
        """Negatives [groups, M] of one bin, those of the bin first."""
        random = np.random.Generator(np.random.PCG64(seed))
        of_bin = self.cfg.num_in_batch
        drawn_gM = np.empty((groups, self.cfg.count), dtype=np.uint32)
        if of_bin:
            drawn_gM[:, :of_bin] = items_t[random.integers(0, len(items_t), (groups, of_bin), dtype=np.uint32)]
        if of_bin < self.cfg.count:
            shape = groups, self.cfg.count - of_bin
            drawn_gM[:, of_bin:] = random.integers(0, self.num_items, shape, dtype=np.uint32)
        return drawn_gM


def _offsets(cfg: NegativesConfig, plays_N: np.ndarray) -> np.ndarray:
    """−log of how often each item is expected among the M draws of a target: float32 [N].

    An item without plays counts as played once, so that the number is finite, which nothing reads where draws are
    targets alone.
    """
    share_N = np.maximum(plays_N, 1) / max(plays_N.sum(), 1)
    expected_N = cfg.num_in_batch * share_N + (cfg.count - cfg.num_in_batch) / len(plays_N)
    offsets_N: np.ndarray = -np.log(expected_N).astype(np.float32)
    return offsets_N
