from __future__ import annotations

import re

from benchmarks import mask_picture
from benchmarks.mask_picture import HIDDEN, OWN, SEEN, TARGET, draw, panels


def test_the_picture_in_the_documents_is_what_the_mask_says() -> None:
    assert TARGET.read_text(encoding="utf-8") == draw(), "python -m benchmarks.mask_picture draws it anew"


def test_every_pair_is_drawn() -> None:
    colours = re.findall(r'rx="2" fill="(#\w+)"', draw())
    assert len(colours) == sum(len(panel.tokens) ** 2 for panel in panels())
    candidates = sum(sum(panel.alone) for panel in panels())
    assert colours.count(OWN) == candidates, "each candidate sees one candidate, itself"
    assert {SEEN, HIDDEN} < set(colours)


def test_it_is_written(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(mask_picture, "TARGET", tmp_path / "masks.svg")
    assert mask_picture.main() == 0
    assert (tmp_path / "masks.svg").read_text(encoding="utf-8").startswith("<svg")
