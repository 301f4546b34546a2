"""What an evaluation found: what was asked of each request, and where each engine put it.

Everything that is said of an evaluation (metrics, segments, calibration, comparisons) is computed from this.

R requests · T targets, of all requests together · K places of a list that are kept · C code levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

KEPT = 100
"""Places of every list that are kept as items and scores; of the places after them, only where targets stand."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What was held out, by request: each item once, in order of its first event.

    Args:
        users_R: user index of the store. A user may make several requests, at different times.
        times_R: when the request is made, seconds.
        offsets_R1: [R + 1], where each request's targets begin and end; each request has at least one.
        items_T: item indices.
        counts_T: held-out events of the item, at least 1.
    """

    users_R: Ints
    times_R: Ints
    offsets_R1: Ints
    items_T: Ints
    counts_T: Ints

    def __len__(self) -> int:
        """R."""
        return len(self.users_R)

    @property
    def sizes_R(self) -> Ints:
        """Targets of each request."""
        sizes_R: Ints = np.diff(self.offsets_R1)
        return sizes_R

    @property
    def requests_T(self) -> Ints:
        """The request of each target."""
        return np.repeat(np.arange(len(self)), self.sizes_R)

    @property
    def first_T(self) -> Ints:
        """[R] where each request's first target stands: the item of the first held-out event."""
        return self.offsets_R1[:-1]


@dataclass(frozen=True, eq=False)
class EngineResult:
    """What one engine returned.

    Args:
        places_T: 1-based place of each target in its request's list, 0 where the list does not hold it.
        items_RK: int32, the first items of each list, −1 in empty places; K is at most `KEPT`.
        scores_RK: float32, their scores, −inf in empty places.
        log_probabilities: whether scores are the model's log-probabilities of being the next item.
    """

    places_T: Ints
    items_RK: npt.NDArray[np.int32]
    scores_RK: npt.NDArray[np.float32]
    log_probabilities: bool = False


@dataclass(frozen=True, eq=False)
class LevelResult:
    """How the heads did on each code of a request's first target, given the target's codes before it.

    Args:
        confidence_RC: float32, probability of the likeliest code; NaN where the item's codes are unknown.
        correct_RC: whether that code is the target's.
    """

    confidence_RC: npt.NDArray[np.float32]
    correct_RC: npt.NDArray[np.bool_]

    @property
    def accuracy_C(self) -> list[float]:
        """Share of requests whose code was the likeliest, among those whose item has codes; 0 where none has."""
        known_R = ~np.isnan(self.confidence_RC[:, 0])
        if not known_R.any():
            return [0.0] * self.confidence_RC.shape[1]
        return [float(share) for share in self.correct_RC[known_R].mean(axis=0)]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome of evaluating some requests.

    Args:
        targets: what was asked.
        engines: what each engine returned, by its name.
        depth: length of the lists.
        num_items: N, items of the store, those included that no engine may return.
        levels: for a model whose output are codes.
        seconds: time each engine took over all its requests, summed over the ranks.
        overlaps: by engine and depth k, the share of the first engine's first k that stand in its own first k, on
            average over requests.
    """

    targets: Targets
    engines: dict[str, EngineResult]
    depth: int
    num_items: int
    levels: LevelResult | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    overlaps: dict[str, dict[int, float]] = field(default_factory=dict)
