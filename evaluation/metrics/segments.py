"""The same metrics for some requests, or some targets: whom, and what, does an engine serve well?

A segment of requests holds some requests with all their targets. A segment of targets ("new to the user") holds the
requests that have such targets, with those alone; what else stands in a list is then no hit. A segment's intervals
are over its own users.

R requests · T targets · r, t those of a segment · N items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.ranges import positions_of
from evaluation.metrics.intervals import RESAMPLES, Figure, Ratio, figures_of
from evaluation.metrics.ranking import metrics_of_places, within
from evaluation.results import EngineResult, Floats, Ints, Targets

SEGMENT_METRICS = ("hr@10", "ndcg@10", "recall@100")
STRATIFIED_DEPTHS = (10, 100)
BETA = 0.5

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Segment:
    """Some requests, or some targets.

    Args:
        name: what they are parted by, e.g. "training plays of the target".
        label: which part this is, e.g. "5–17".
        members: [R] or [T], which requests or targets are in it. Where R = T each request has one target, and both
            are the same.
    """

    name: str
    label: str
    members: Bools


@dataclass(frozen=True)
class SegmentRow:
    """Figures of one segment, of `SEGMENT_METRICS` as far as the lists reach."""

    name: str
    label: str
    requests: int
    targets: int
    figures: dict[str, Figure]


def segment_rows(
    segments: Sequence[Segment],
    result: EngineResult,
    targets: Targets,
    depth: int,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> list[SegmentRow]:
    """A row a segment, in their order; segments without a member are left out."""
    return [_row(segment, result, targets, depth, samples, seed) for segment in segments if segment.members.any()]


def standard_segments(
    targets: Targets,
    *,
    history_R: Ints,
    idle_R: Ints,
    training_plays_N: Ints,
    seen_T: Bools,
    known_N: Bools | None = None,
) -> list[Segment]:
    """The segments of every report.

    Args:
        history_R: events that each request may see.
        idle_R: seconds since the last of them.
        training_plays_N: plays of each item in training.
        seen_T: whether each target is among the events that its request may see.
        known_N: whether each item has codes; None where the model has none.
    """
    first_R = targets.items_T[targets.first_T]
    segments = fifths("length of the history, events", history_R)
    segments += fifths("training plays of the target", training_plays_N[first_R])
    segments += fifths("time since the last event", idle_R, duration)
    segments += parted("the user and the target", seen_T, "has played it before", "new to the user")
    if known_N is not None:
        segments += parted("codes of the target", known_N[targets.items_T], "known", "unknown")
    return segments


def fifths(name: str, values: Ints, show: Callable[[int], str] = "{:,}".format, classes: int = 5) -> list[Segment]:
    """Segments by values [R] or [T], of (nearly) as many members each, lowest values first.

    Args:
        show: a value as text.
    """
    # A class ends with a value that occurs, so that members of equal values are in one class.
    last = (len(values) * np.arange(1, classes) - 1) // classes
    class_of = np.searchsorted(np.unique(np.sort(values)[last]), values)
    segments = []
    for index in np.unique(class_of):
        members = class_of == index
        low, high = show(int(values[members].min())), show(int(values[members].max()))
        segments.append(Segment(name, f"{low}–{high}" if low != high else low, members))
    return segments


def parted(name: str, holds: Bools, yes: str, no: str) -> list[Segment]:
    """Two segments: where something holds, and where it does not."""
    return [Segment(name, yes, holds), Segment(name, no, ~holds)]


def duration(seconds: int) -> str:
    """Seconds in the largest unit that they fill: `45 s`, `12 min`, `5 h`, `9 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds} s"


def stratified_recall(
    result: EngineResult, targets: Targets, training_plays_N: Ints, depth: int, beta: float = BETA
) -> dict[str, Ratio]:
    """`stratified-recall@k` by name: Σ weights of the targets found within k / Σ weights of all (Steck 2011).

    A target weighs plays^−β: with β = 0 all targets weigh the same, whoever asked; with β = 1 all items do, if they are
    held out as often as they are played; between them, what is rare counts for more than it is seen. An item that was
    never played in training weighs as one played once.
    """
    weights_T = np.maximum(training_plays_N[targets.items_T], 1).astype(np.float64) ** -beta
    total_R = np.add.reduceat(weights_T, targets.offsets_R1[:-1])
    return {
        f"stratified-recall@{k}": Ratio(
            np.add.reduceat(weights_T * ((result.places_T >= 1) & (result.places_T <= k)), targets.offsets_R1[:-1]),
            total_R,
        )
        for k in within(STRATIFIED_DEPTHS, depth)
    }


def _row(segment: Segment, result: EngineResult, targets: Targets, depth: int, samples: int, seed: int) -> SegmentRow:
    requests_r, at_t, offsets_r1 = _members(segment, targets)
    metrics = metrics_of_places(result.places_T[at_t], offsets_r1, depth)
    chosen: dict[str, Floats] = {name: metrics[name] for name in SEGMENT_METRICS if name in metrics}
    figures = figures_of(chosen, targets.users_R[requests_r], samples, seed)
    return SegmentRow(segment.name, segment.label, len(requests_r), len(at_t), figures)


def _members(segment: Segment, targets: Targets) -> tuple[Ints, Ints, Ints]:
    """The requests [r] of a segment, its targets [t], and where those of each request begin and end [r + 1]."""
    assert len(segment.members) in (len(targets), len(targets.items_T)), segment.name
    if len(segment.members) == len(targets):
        requests_r = np.flatnonzero(segment.members)
        sizes_r = targets.sizes_R[requests_r]
        at_t = positions_of(targets.offsets_R1[requests_r], sizes_r)
    else:
        at_t = np.flatnonzero(segment.members)
        requests_r, sizes_r = np.unique(targets.requests_T[at_t], return_counts=True)
    return requests_r, at_t, np.concatenate([[0], np.cumsum(sizes_r)])
