"""A plan's two files: `plan.json`, which a job can follow, and `plan.html`, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_text_atomically
from sharding.planning.picture import plan_page

PLAN, PLAN_PAGE = "plan.json", "plan.html"


def write_plan(folder: Path, content: Mapping[str, Any], mends: Sequence[str] = ()) -> None:
    """Write both, each whole or not at all, from what `Survey.to_plain` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / PLAN, json.dumps(content, indent=1) + "\n")
    write_text_atomically(folder / PLAN_PAGE, plan_page(content, mends))
