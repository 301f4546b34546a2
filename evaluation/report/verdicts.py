"""The guardrails, worst first: what to look at before shipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from common.html_page import heading, note
from evaluation.guardrails.base import FAIL, INFO, ORDER, PASS, WARN

_SHOWN = {
    FAIL: ("fails", "fail", "var(--c3)"),
    WARN: ("to be weighed", "to be weighed", "var(--c1)"),
    INFO: ("told", "only told", "var(--c7)"),
    PASS: ("holds", "hold", "var(--c2)"),
}
"""Of one, of several, and its colour."""


_SMALL = "display:block;margin:.15rem 0 0"


def verdict_sections(guardrails: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what was looked at: verdict, what was found, by which rule, what to do."""
    title = heading("What to look at before shipping")
    if not guardrails:
        return [title, note("No guardrail was run.")]
    counts = {verdict: sum(one["verdict"] == verdict for one in guardrails) for verdict in ORDER}
    told = ", ".join(f"{count} {_SHOWN[verdict][count > 1]}" for verdict, count in counts.items() if count)
    rows = sorted(guardrails, key=lambda one: ORDER.index(one["verdict"]))
    return [title, note(f"Of {len(guardrails)} guardrails: {told}."), _table([_row(one) for one in rows])]


def _row(one: Mapping[str, Any]) -> str:
    word, _, colour = _SHOWN[one["verdict"]]
    advice = f"<div><b>To do:</b> {escape(one['advice'])}</div>" if one["advice"] else ""
    cells = [
        f'<span style="color:{colour};font-weight:600;white-space:nowrap">{word}</span>',
        f"<b>{escape(one['name'])}</b>",
        f'{escape(one["found"])}{advice}<small style="{_SMALL}">{escape(one["rule"])}</small>',
    ]
    return "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)


def _table(rows: Sequence[str]) -> str:
    head = "".join(
        f'<th style="text-align:left">{name}</th>' for name in ("", "guardrail", "what was found, by what rule")
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
