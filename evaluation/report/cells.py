"""Cells of tables in reports."""

from __future__ import annotations

from collections.abc import Sequence


def figure_cell(value: float | None, bounds: Sequence[float] | None, best: bool = False) -> str:
    """A figure as html, its interval beneath; a dash where there is none."""
    if value is None:
        return "<td>–</td>"
    small = (
        f'<small style="display:block;margin:0;white-space:nowrap">{bounds[0]:.4f}–{bounds[1]:.4f}</small>'
        if bounds
        else ""
    )
    return f"{'<td class=best>' if best else '<td>'}{value:.4f}{small}</td>"
