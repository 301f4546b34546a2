"""A profiled step by part: whose time each operator is, forward and backward, so that the parts add up to the whole.

Self times on the thread that trains are summed: an operator's time without that of the operators inside it. A forward
operator is of the span around it (`common.spans`, and the ranges of TorchRec's pipeline). A node of the backward is of
the span in which its forward ran, by autograd's sequence numbers. What is Python between operators is of the span that
it is in; what is in no span at all is the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common.spans import ATTENTION, DATA_WAIT, HEADS, LOOKUP, PROJECTIONS

STEPS = "segue: measured steps"
"""Name of the span around all that is looked at."""

BACKWARD = ", backward"
_WAIT, _IDS = "data wait", "ids to their owners"
_LOOKUP, _PROJECTIONS, _ATTENTION, _HEADS = "lookup", "projections", "attention", "heads and loss"
_DENSE, _OPTIMIZERS, _REST = "dense all-reduce", "optimizers", "rest"
PARTS = (
    *(_WAIT, _IDS, _LOOKUP, _PROJECTIONS, _ATTENTION, _HEADS),
    *(part + BACKWARD for part in (_HEADS, _ATTENTION, _PROJECTIONS, _LOOKUP)),
    *(_DENSE, _OPTIMIZERS, _REST),
)
"""In the order of a step."""

_OF_SPANS = {
    DATA_WAIT: _WAIT,
    LOOKUP: _LOOKUP,
    PROJECTIONS: _PROJECTIONS,
    ATTENTION: _ATTENTION,
    HEADS: _HEADS,
}
_OF_RANGES = {
    "## start_sparse_data_dist": _IDS,
    "## wait_sparse_data_dist": _IDS,
    "## all2all_data": _IDS,
    "## runtime_forward_assemble_KJT": _IDS,
    "## KJT": _IDS,
    "## optimizer": _OPTIMIZERS,
    "## zero_grad": _OPTIMIZERS,
}
"""Beginnings of the names of TorchRec's ranges; some have a step's number at the end."""
_NODE, _GRADIENT, _WHOLE_BACKWARD = "autograd::engine::evaluate_function", "AccumulateGrad", "## backward"
_FOLDED = {_REST + BACKWARD: _REST, _WAIT + BACKWARD: _REST, _IDS + BACKWARD: _LOOKUP + BACKWARD}

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::mkldnn_linear"}
PRODUCTS |= {f"{name}_" for name in ("aten::addmm", "aten::baddbmm", "aten::addbmm")}
PRODUCTS |= {"mkldnn::_linear_pointwise", "aten::_addmm_activation", "mkl::_mkl_linear", "aten::dot", "aten::mv"}


class Span(Protocol):
    """Of torch's `time_range`: microseconds."""

    start: float
    end: float


class Event(Protocol):
    """What is asked of torch's profiler events."""

    name: str
    thread: int
    sequence_nr: int
    time_range: Span


@dataclass
class Parts:
    """Seconds by part, and which of them passed in operators that are matrix products.

    Attributes:
        seconds: of the main thread, by names of `PARTS`; they add up to `whole`.
        products: the same, of operators in `PRODUCTS` alone.
        operators: seconds by operator's name.
        whole: between the first and the last operator's ends.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    products: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    operators: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0

    def add(self, part: str, name: str, seconds: float) -> None:
        """An operator's own time."""
        part = _FOLDED.get(part, part)
        self.seconds[part] += seconds
        self.operators[name] = self.operators.get(name, 0.0) + seconds
        if name in PRODUCTS:
            self.products[part] += seconds


@dataclass
class _Open:
    """An event that has begun: whose its time is, what of it is its children's, when the last of them ended."""

    event: Event
    part: str
    inside: float = 0.0
    last_end: float = 0.0


def parts_of(events: Sequence[Event]) -> Parts:
    """Whose time it was, of what happened inside the one span `STEPS`."""
    whole = next(event for event in events if event.name == STEPS)
    first, last = whole.time_range.start, whole.time_range.end
    own = [
        event
        for event in events
        if event.thread == whole.thread and event.time_range.start >= first and event.time_range.end <= last
    ]
    own.sort(key=lambda event: (event.time_range.start, -event.time_range.end))
    found, forward = Parts(whole=(last - first) / 1e6), _parts_of_forwards(own)
    _walk(own, forward, found)
    return found


def _parts_of_forwards(own: Sequence[Event]) -> dict[int, str]:
    """Part by sequence number. Operators that make no node have the number of the next that does, which comes last."""
    forward: dict[int, str] = {}
    stack: list[_Open] = []
    for event in own:
        part = _enter(stack, event, {})
        if event.sequence_nr >= 0 and not part.endswith(BACKWARD):  # inside of a node the numbers are the node's
            forward[event.sequence_nr] = part
    return forward


def _walk(own: Sequence[Event], forward: dict[int, str], found: Parts) -> None:
    stack: list[_Open] = []
    for event in own:
        _enter(stack, event, forward, found)
    while stack:
        _leave(stack, found)


def _enter(stack: list[_Open], event: Event, forward: dict[int, str], found: Parts | None = None) -> str:
    """Close what has ended before this event, open it, and say whose it is."""
    while stack and event.time_range.start >= stack[-1].event.time_range.end:
        _leave(stack, found)
    part = _part(event, stack[-1].part if stack else _REST, forward)
    stack.append(_Open(event, part, last_end=event.time_range.start))
    return part


def _leave(stack: list[_Open], found: Parts | None) -> None:
    ended = stack.pop()
    span = ended.event.time_range
    end = min(span.end, stack[-1].event.time_range.end) if stack else span.end
    if stack:
        stack[-1].inside += end - span.start
        stack[-1].last_end = end
    if found is None:
        return
    seconds = (end - span.start - ended.inside) / 1e6
    if ended.event.name.startswith(_WHOLE_BACKWARD):
        # Behind the last node there is nothing but the wait for gradients of other ranks.
        tail = (end - ended.last_end) / 1e6
        found.add(_DENSE, ended.event.name, tail)
        seconds -= tail
    found.add(ended.part, ended.event.name, seconds)


def _part(event: Event, around: str, forward: dict[int, str]) -> str:
    name = event.name
    if name.startswith(_NODE):
        return _DENSE if _GRADIENT in name else forward.get(event.sequence_nr, _REST) + BACKWARD
    if name in _OF_SPANS:  # in the backward, of a function that is several parts
        return _OF_SPANS[name] + (BACKWARD if around.endswith(BACKWARD) else "")
    if name.startswith("## "):
        return next((part for begin, part in _OF_RANGES.items() if name.startswith(begin)), around)
    return around
