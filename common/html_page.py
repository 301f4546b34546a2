"""The frame that all reports share: one HTML file with its style inside. No scripts, no network, dark and light.

What is given as `html` is markup and stands as it is; all other text is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2230; --quiet: #667085; --line: #d8dde6; --page: #ffffff; --card: #f6f8fb;
        --c0: #2563c9; --c1: #d9822b; --c2: #3f9142; --c3: #b0417d; --c4: #6b5bd2; --c5: #8a6d3b;
        --c6: #1f8a99; --c7: #7a808c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --quiet: #98a2b3; --line: #333c4d; --page: #12161f;
        --card: #1a202c; --c0: #6ea3ff; --c1: #f0a860; --c2: #74c476; --c3: #e07fb3; --c4: #a79bf5; --c5: #c9a869;
        --c6: #5cc3d2; --c7: #a9b0bc; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1060px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
p.note, figcaption { color: var(--quiet); font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--card); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .card span { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } tr:first-child th { border-bottom-width: 2px; }
th:first-child, td:first-child { text-align: left; }
th small, td small { color: var(--quiet); font-weight: 400; font-size: .82rem; }
th small, td:first-child small { display: block; }
td:not(:first-child) small { margin-left: .5rem; display: inline-block; } .best { font-weight: 600; }
table.figures td:not(:first-child) { white-space: nowrap; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1.4rem; }
.pair > * { min-width: 0; } .pair + .pair { margin-top: 1.4rem; }
figure { margin: 0; display: flex; flex-direction: column; }
svg { width: 100%; height: auto; } svg text { fill: var(--quiet); font-size: 12px; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; min-height: 1.3rem; margin-left: .5rem; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .35rem; }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page: its title, and its sections as html, one after the other."""
    body = "\n".join(sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)} – Segue</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading; a page has one of level 1."""
    return f"<h{level}>{escape(text)}</h{level}>"


def note(text: str) -> str:
    """A quiet sentence or two."""
    return f'<p class="note">{escape(text)}</p>'


def cards(figures: Sequence[tuple[str, str]]) -> str:
    """The few figures to see first: labels and values."""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in figures
    )
    return f'<div class="cards">{inner}</div>'


def figure(html: str, caption: str) -> str:
    """A chart as html, and the sentence beneath it that says how to read it."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"


def side_by_side(figures: Iterable[str]) -> str:
    """Figures as html: two in a row, or beneath one another where the page is narrow."""
    return f'<div class="pair">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text: names in the first column, figures in the others. It scrolls where the page is narrow."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)] if any(head) else []
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="figures">{inner}</table></div>'
