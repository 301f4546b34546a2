"""Charts as inline SVG: axes that start and end at round numbers, colours from the page's style.

The legend is HTML above the SVG, so that it wraps where the page is narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 30, 48
COLOURS = 8
"""The style has `--c0` … `--c7`; a ninth series has the colour of the first."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: a label and its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over a common axis. One point is drawn as a dot; points that are not finite numbers are left out."""
    points = [
        [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for line in series
    ]
    everything = [point for line in points for point in line]
    if not everything:
        return f'<p class="note">{escape(y_label)} by {escape(x_label)}: no finite values to draw.</p>'
    x_ticks = _round_ticks(0, max(x for x, _ in everything))
    y_ticks = _round_ticks(min(0.0, min(y for _, y in everything)), max(y for _, y in everything))
    to_x, to_y = _scale(x_ticks, _LEFT, _WIDTH - _RIGHT), _scale(y_ticks, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(y_ticks, to_y, y_label)]
    parts += [_text(to_x(tick), _HEIGHT - _BOTTOM + 18, _tick(tick)) for tick in x_ticks]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label))
    for index, line in enumerate(points):
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" stroke-width="2"/>')
        if len(line) == 1:
            (x, y) = line[0]
            parts.append(f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3.5" fill="{_colour(index)}"/>')
    return _legend([line.label for line in series]) + _svg(parts, f"{y_label} by {x_label}")


def bar_chart(labels: Sequence[str], bars: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> str:
    """Groups of bars: one group a label, one colour a key of `bars`."""
    y_ticks = _round_ticks(0, max(max(values) for values in bars.values()))
    to_y = _scale(y_ticks, _HEIGHT - _BOTTOM, _TOP)
    room = (_WIDTH - _RIGHT - _LEFT) / len(labels)
    thickness = min(0.8 * room / len(bars), 60)
    parts = [_grid(y_ticks, to_y, y_label)]
    for group, label in enumerate(labels):
        middle = _LEFT + room * (group + 0.5)
        start = middle - thickness * len(bars) / 2
        for index, (name, values) in enumerate(bars.items()):
            top = to_y(values[group])
            parts.append(
                f'<rect x="{start + index * thickness:.1f}" y="{top:.1f}" width="{thickness * 0.92:.1f}" '
                f'height="{max(_HEIGHT - _BOTTOM - top, 0):.1f}" fill="{_colour(index)}">'
                f"<title>{escape(f'{name}, {label}: {values[group]:.4f}')}</title></rect>"
            )
        parts.append(_text(middle, _HEIGHT - _BOTTOM + 18, label))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label))
    return _legend(list(bars)) + _svg(parts, f"{y_label} by {x_label}")


def _svg(parts: list[str], title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    span = (high - low) or 1.0
    raw = span / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _scale(ticks: list[float], start: float, end: float) -> Callable[[float], float]:
    """A function from values to positions."""
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _grid(ticks: list[float], to_y: Callable[[float], float], label: str) -> str:
    parts = [f'<text x="8" y="14">{escape(label)}</text>']
    for tick in ticks:
        y = to_y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.3g}"


def _legend(labels: Sequence[str]) -> str:
    keys = "".join(
        f'<span><i style="background:{_colour(index)}"></i>{escape(label)}</span>' for index, label in enumerate(labels)
    )
    return f'<div class="legend">{keys}</div>'
