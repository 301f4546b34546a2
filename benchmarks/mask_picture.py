"""The picture of who sees whom, drawn from the mask itself: `python -m benchmarks.mask_picture`

Writes `docs/pictures/ranking-masks.svg`: for each form of a ranking model's history, and for candidates at its end, a
square a query and key, filled where `model.mask.Mask.visible` says that the query sees the key.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from common.files import write_text_atomically
from model.mask import Mask

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "ranking-masks.svg"

CELL, MARGIN, GAP, TITLE = 25, 34, 46, 40
SEEN, OWN, HIDDEN, INK = "#3b6fb6", "#c2571a", "#eef1f5", "#222222"


@dataclass(frozen=True)
class Panel:
    """A sequence of one user.

    Attributes:
        tokens: what each is called.
        alone: which are candidates.
    """

    title: str
    tokens: tuple[str, ...]
    alone: tuple[bool, ...]


def panels() -> list[Panel]:
    """Training in both forms that put the candidate into the sequence, then inference with four candidates."""
    interleaved = ("Φ0", "a0", "Φ1", "a1", "Φ2", "a2", "Φ3")
    merged = ("e0", "c1", "e1", "c2", "e2", "c3")
    history = ("Φ0", "a0", "Φ1", "a1", "Φ2", "a2")
    candidates = ("Φ′0", "Φ′1", "Φ′2", "Φ′3")
    return [
        Panel("interleaved, training", interleaved, (False,) * len(interleaved)),
        Panel("merged, training", merged, tuple(name.startswith("c") for name in merged)),
        Panel("M-FALCON, 4 candidates", history + candidates, (False,) * len(history) + (True,) * len(candidates)),
    ]


def draw() -> str:
    """All panels side by side, as SVG."""
    parts, left, height = [], 0.0, 0.0
    for panel in panels():
        size = CELL * len(panel.tokens)
        parts.append(f'<g transform="translate({left:.0f},0)">{"".join(_panel(panel))}</g>')
        left += MARGIN + size + GAP
        height = max(height, TITLE + MARGIN + size + 8)
    width = left - GAP + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12" fill="{INK}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel) -> list[str]:
    mask = Mask(torch.tensor([0, len(panel.tokens)]), torch.tensor(panel.alone))
    token = torch.arange(len(panel.tokens))
    visible = mask.visible(token[:, None], token[None, :]).tolist()
    places = mask.positions(len(panel.tokens)).tolist()
    parts = [f'<text x="{MARGIN}" y="16" font-weight="bold">{panel.title}</text>']
    for row, name in enumerate(panel.tokens):
        y = TITLE + MARGIN + row * CELL
        middle = y + CELL / 2 + 4
        parts.append(f'<text x="{MARGIN - 6}" y="{middle:.0f}" text-anchor="end">{name}</text>')
        x_name = MARGIN + row * CELL + CELL / 2
        parts.append(f'<text x="{x_name:.0f}" y="{TITLE + 14}" text-anchor="middle">{name}</text>')
        place = f'y="{TITLE + 28}" text-anchor="middle" font-size="9" fill="#666">{places[row]}</text>'
        parts.append(f'<text x="{x_name:.0f}" {place}')
        for column, sees in enumerate(visible[row]):
            colour = HIDDEN if not sees else OWN if panel.alone[column] else SEEN
            x = MARGIN + column * CELL
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="2" fill="{colour}"/>'
            )
    return parts


def main() -> int:
    """Entry point."""
    write_text_atomically(TARGET, draw())
    print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
