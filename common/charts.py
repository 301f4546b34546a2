"""Charts as inline SVG: axes that start and end at round numbers, colours from the page's style (common/html_page.py).

The legend is HTML above the SVG, so that it wraps where the page is narrow. An axis is linear or logarithmic; where
there are more labels than room, every second, third … is written, and the others are told when a bar is pointed at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from common.progress import format_count

_WIDTH, _HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 30, 48
_DIGIT = 7
"""Room for one character of a label."""
_WIDE, _ROW_NAMES, _ROW, _ROW_TOP = 1040, 320, 24, 10
"""An interval chart: its width, the room for names at most, the height of a row and what is above the first."""
COLOURS = 8
"""The style has `--c0` … `--c7`; a ninth series has the colour of the first."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: a label and its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """A value on a row of an interval chart, and how far it may be off, where that is known."""

    row: str
    label: str
    value: float
    low: float | None = None
    high: float | None = None


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Lines over a common axis. One point is drawn as a dot.

    Points that are not finite numbers are left out, and so are those that a logarithmic axis has no place for.

    Args:
        x_ticks: values and what to write there, round numbers where not given; those outside the points are left out.
    """
    points = [
        [(x, y) for x, y in zip(line.x, line.y, strict=True) if _has_place(x, log_x) and _has_place(y, log_y)]
        for line in series
    ]
    everything = [point for line in points for point in line]
    if not everything:
        kind = "positive finite" if log_x or log_y else "finite"
        return f'<p class="note">{escape(y_label)} by {escape(x_label)}: no {kind} values to draw.</p>'
    xs = [x for x, _ in everything]
    if min(xs) == max(xs):
        x_ticks = None  # an axis that ends where one point does has no length
    to_x, x_axis = _x_axis(xs, x_label, log_x, x_ticks)
    to_y, y_axis = _y_axis([y for _, y in everything], y_label, log_y)
    parts = [y_axis, x_axis]
    for index, line in enumerate(points):
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" stroke-width="2"/>')
        if len(line) == 1:
            (x, y) = line[0]
            parts.append(f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3.5" fill="{_colour(index)}"/>')
    return _legend([line.label for line in series]) + _svg(parts, f"{y_label} by {x_label}")


def bar_chart(labels: Sequence[str], bars: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> str:
    """Groups of bars: one group a label, one colour a key of `bars`."""
    to_y, y_axis = _y_axis([max(max(values) for values in bars.values())], y_label)
    room = (_WIDTH - _RIGHT - _LEFT) / len(labels)
    thickness = min(0.8 * room / len(bars), 60)
    label_every = math.ceil(_DIGIT * max(len(label) for label in labels) / room) or 1
    parts = [y_axis]
    for group, label in enumerate(labels):
        middle = _LEFT + room * (group + 0.5)
        start = middle - thickness * len(bars) / 2
        for index, (name, values) in enumerate(bars.items()):
            said = f"{name}, {label}: {values[group]:.4f}"
            parts.append(_bar(start + index * thickness, thickness * 0.92, to_y(values[group]), _colour(index), said))
        if group % label_every == 0:
            parts.append(_text(middle, _HEIGHT - _BOTTOM + 18, label))
    parts.append(_x_title(x_label))
    return _legend(list(bars)) + _svg(parts, f"{y_label} by {x_label}")


def histogram(
    edges: Sequence[float],
    heights: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    titles: Sequence[str] | None = None,
) -> str:
    """Bars that stand on ranges: the i-th from `edges[i]` to `edges[i + 1]`, which ascend.

    Args:
        log_x: a logarithmic axis, where the first edge must be above 0.
        x_ticks: values and what to write there, round numbers where not given; those outside the edges are left out.
        titles: what is told of each bar when it is pointed at, its range and height where not given.
    """
    assert len(edges) == len(heights) + 1
    to_x, x_axis = _x_axis(edges, x_label, log_x, x_ticks)
    to_y, y_axis = _y_axis(heights, y_label)
    if titles is None:
        ranges = itertools.pairwise(edges)
        titles = [
            f"{_tick(low)}–{_tick(high)}: {_tick(height)}" for (low, high), height in zip(ranges, heights, strict=True)
        ]
    parts = [y_axis]
    for index, height in enumerate(heights):
        left, right = to_x(edges[index]), to_x(edges[index + 1])
        gap = 1.0 if right - left > 3 else 0.0  # hundreds of bars read as one shape
        parts.append(_bar(left + gap / 2, right - left - gap, to_y(height), _colour(0), titles[index]))
    return _svg([*parts, x_axis], f"{y_label} by {x_label}")


def interval_chart(intervals: Sequence[Interval], x_label: str, origin: float = 0.0) -> str:
    """A row a name, in order of appearance: a dot at each value, a line over its interval, a colour for each label.

    The axis has `origin` on it, drawn darker: what values are to be compared with. Values that are not finite numbers
    are left out.
    """
    drawn = [one for one in intervals if math.isfinite(one.value)]
    if not drawn:
        return f'<p class="note">{escape(x_label)}: no finite values to draw.</p>'
    rows = list(dict.fromkeys(one.row for one in drawn))
    labels = list(dict.fromkeys(one.label for one in drawn))
    left = min(20 + _DIGIT * max(len(row) for row in rows), _ROW_NAMES)
    height = _ROW_TOP + _ROW * len(rows)
    bounds = [bound for one in drawn for bound in (one.value, one.low, one.high) if bound is not None]
    ticks = _round_ticks(min(origin, *bounds), max(origin, *bounds), about=8)
    to_x = _scale(ticks[0], ticks[-1], left, _WIDE - _RIGHT, log=False)
    parts = []
    for tick, text in zip(ticks, _tick_labels(ticks, log=False), strict=True):
        x, colour = to_x(tick), "var(--quiet)" if math.isclose(tick, origin, abs_tol=1e-12) else "var(--line)"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_ROW_TOP - 6}" y2="{height}" stroke="{colour}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{text}</text>')
    for place, row in enumerate(rows):
        shown = row if _DIGIT * len(row) <= left - 20 else f"{row[: (left - 20) // _DIGIT - 1]}…"
        y = _ROW_TOP + _ROW * (place + 0.5)
        name = f"<title>{escape(row)}</title>{escape(shown)}"
        parts.append(f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for one in drawn:
        beside = [label for label in labels if any((other.row, other.label) == (one.row, label) for other in drawn)]
        y = _ROW_TOP + _ROW * (rows.index(one.row) + 0.5) + 7 * (beside.index(one.label) - (len(beside) - 1) / 2)
        parts.append(_interval(one, y, _colour(labels.index(one.label)), to_x))
    parts.append(
        f'<text x="{(left + _WIDE - _RIGHT) / 2:.1f}" y="{height + 38}" text-anchor="middle">{escape(x_label)}</text>'
    )
    svg = f'<svg viewBox="0 0 {_WIDE} {height + 46}" role="img" aria-label="{escape(x_label)}">{"".join(parts)}</svg>'
    return (_legend(labels) if len(labels) > 1 else "") + svg


def _interval(one: Interval, y: float, colour: str, to_x: Callable[[float], float]) -> str:
    said, line = f"{one.row}, {one.label}: {one.value:.4f}", ""
    if one.low is not None and one.high is not None:
        said += f" ({one.low:.4f} … {one.high:.4f})"
        line = (
            f'<line x1="{to_x(one.low):.1f}" x2="{to_x(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
    dot = f'<circle cx="{to_x(one.value):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    return f"<g><title>{escape(said)}</title>{line}{dot}</g>"


# ── axes ─────────────────────────────────────────────────────────────────────────────────────────────────


def _x_axis(
    values: Sequence[float], label: str, log: bool, given: Sequence[tuple[float, str]] | None = None
) -> tuple[Callable[[float], float], str]:
    """From values to positions, and the drawn axis. With given ticks the axis ends where the values do."""
    low, high = min(values), max(values)
    if given is None:
        ticks = _log_ticks(low, high) if log else _round_ticks(min(0.0, low), high)
        low, high = ticks[0], ticks[-1]
        given = list(zip(ticks, _tick_labels(ticks, log), strict=True))
    to_x = _scale(low, high, _LEFT, _WIDTH - _RIGHT, log)
    parts, free = [], 0.0
    for tick, text in given:
        half = _DIGIT * len(text) / 2
        if low <= tick <= high and to_x(tick) - half >= free:
            parts.append(_text(to_x(tick), _HEIGHT - _BOTTOM + 18, text))
            free = to_x(tick) + half
    return to_x, "".join([*parts, _x_title(label)])


def _y_axis(values: Sequence[float], label: str, log: bool = False) -> tuple[Callable[[float], float], str]:
    """From values to positions, and the drawn axis: a line across the chart at each tick."""
    low, high = min(values), max(values)
    ticks = _log_ticks(low, high) if log else _round_ticks(min(0.0, low), high)
    to_y = _scale(ticks[0], ticks[-1], _HEIGHT - _BOTTOM, _TOP, log)
    parts = [f'<text x="8" y="14">{escape(label)}</text>']
    for tick, text in zip(ticks, _tick_labels(ticks, log), strict=True):
        y = to_y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    return to_y, "".join(parts)


def _has_place(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    span = (high - low) or 1.0
    raw = span / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Powers of ten from at or below `low` to at or above `high`; over less than 2.5 decades 1, 2, 5, 10, 20, …."""
    assert 0 < low <= high, "a logarithmic axis has no place for such values"
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if math.log10(high / low) < 2.5:
        steps = [factor * 10.0**power for power in range(first, max(last, first) + 1) for factor in (1, 2, 5)]
        begin = max(index for index, step in enumerate(steps) if step <= low * (1 + 1e-9))
        end = min(index for index, step in enumerate(steps) if step >= high * (1 - 1e-9))
        return steps[begin : max(end, begin + 1) + 1]
    every = math.ceil((last - first) / most)
    return [10.0**power for power in range(first, last + every, every)]


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Callable[[float], float]:
    """A function from values to positions."""
    if log:
        return lambda value: start + math.log(value / low) / math.log(high / low) * (end - start)
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _tick_labels(ticks: Sequence[float], log: bool) -> list[str]:
    """Digits as long as they find room; from 100,000 on, and over decades, `1k` and `1M`."""
    if log or max(abs(tick) for tick in ticks) >= 1e5:
        return [("-" if tick < 0 else "") + format_count(abs(tick)) for tick in ticks]
    return [_tick(tick) for tick in ticks]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.3g}"


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────


def _svg(parts: list[str], title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _bar(x: float, width: float, top: float, colour: str, said: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{max(_HEIGHT - _BOTTOM - top, 0):.1f}" fill="{colour}">'
        f"<title>{escape(said)}</title></rect>"
    )


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _x_title(label: str) -> str:
    return _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, label)


def _legend(labels: Sequence[str]) -> str:
    keys = "".join(
        f'<span><i style="background:{_colour(index)}"></i>{escape(label)}</span>' for index, label in enumerate(labels)
    )
    return f'<div class="legend">{keys}</div>'
