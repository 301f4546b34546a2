"""The commands that lead from a raw log to a report, what each reads and what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EVERYTHING = ("**/*",)
MANIFEST = ("manifest.json",)
CHECKPOINTS = ("config.yaml", "metrics.jsonl", "**/step-*/manifest.json")
RANKS = ("ranks*.parquet",)


@dataclass(frozen=True)
class Stage:
    """One of the commands that lead from a raw log to a report.

    Args:
        name: that of its section.
        module: its entry point.
        out: the key that names the folder it writes.
        made: patterns of what it leaves there; `{}` stands for what an evaluation of other than test events appends.
        read: keys that name what it reads, with patterns of what matters there.
        on_all: whether it runs as ranks on all nodes, or as one process on the first.
    """

    name: str
    module: str
    out: str
    made: tuple[str, ...]
    read: Mapping[str, tuple[str, ...]]
    on_all: bool = False


STAGES = (
    Stage("synthesize", "data.synthesize", "out", EVERYTHING, {}),
    Stage(
        "prepare",
        "data.prepare",
        "out",
        EVERYTHING,
        {"path": EVERYTHING, "catalogue.path": EVERYTHING, "embeddings.path": EVERYTHING},
    ),
    Stage("fit_ids", "semantic_ids.fit", "out", EVERYTHING, {"store": MANIFEST, "refit_of": MANIFEST}),
    Stage(
        "train",
        "trainer.train",
        "run",
        CHECKPOINTS,
        {"store": MANIFEST, "codes": MANIFEST, "start_from": CHECKPOINTS},
        on_all=True,
    ),
    Stage(
        "evaluate",
        "evaluation.evaluate",
        "run",
        ("metrics{}.json", "ranks{}.parquet", "report{}.html"),
        {
            "run": CHECKPOINTS,
            "checkpoints": CHECKPOINTS,
            "store": MANIFEST,
            "codes": MANIFEST,
            "against": RANKS,
            "id_baseline": RANKS,
            "deny": EVERYTHING,
            "ablations": EVERYTHING,
        },
        on_all=True,
    ),
)
"""In the order in which they run."""
