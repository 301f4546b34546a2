"""What `benchmarks.train_step` trains: models, their steps, and the logs that they read.

Stores and codes stay in `stores/` and `codes/`, where git does not look, so that a second run begins at once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT

FLOAT32, BF16 = "float32", "bf16"
MOVIELENS = "configs/movielens-100k.yaml"
PUBLIC = "configs/recipes/hstu-ml-1m.yaml"


@dataclass(frozen=True)
class Log:
    """A store and its codes.

    Attributes:
        name: of both folders.
        about: what it is, for the page.
        commands: what makes the store, then the codes; `{name}` stands for the name.
    """

    name: str
    about: str
    commands: Sequence[str]

    @property
    def store(self) -> Path:
        """Where the store is."""
        return ROOT / "stores" / self.name

    @property
    def codes(self) -> Path:
        """Where the codes are."""
        return ROOT / "codes" / self.name

    def make(self) -> None:
        """Make what is not there.

        Raises:
            RuntimeError: a command failed.
        """
        if (self.codes / "manifest.json").is_file():
            return
        for command in self.commands:
            words = [sys.executable, "-m", *command.format(name=self.name).split()]
            print(f"$ {' '.join(words[1:])}", file=sys.stderr, flush=True)
            done = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
            if done.returncode:
                raise RuntimeError(f"{command} ended with status {done.returncode}")


def yambda_log(name: str, users: int, items: int) -> Log:
    """A log in Yambda's layout with histories of the published lengths, and 8 × 1024 codes."""
    return Log(
        name,
        f"{users:,} made-up users with histories of Yambda's published lengths, {items:,} items, 8 × 1024 codes",
        (
            f"data.synthesize kind=yambda out=logs/{{name}} users={users} items={items} embedding_width=32",
            "data.prepare source=yambda path=logs/{name} size=50m kind=listens out=stores/{name}",
            # Speed does not depend on how good the codes are.
            "semantic_ids.fit store=stores/{name} out=codes/{name} sample=16384 iterations=2",
        ),
    )


MOVIELENS_100K = Log(
    "movielens-100k",
    "MovieLens-100K",
    (f"data.prepare --config {MOVIELENS}", f"semantic_ids.fit --config {MOVIELENS}"),
)
LIKE_MOVIELENS_1M = Log(
    "train-step-million",
    "a made-up log of MovieLens-1M's shape: 6,040 users, 3,700 items, a million events",
    (
        "data.synthesize kind=yambda out=logs/{name} users=6040 items=3700 median_history=112 embedding_width=16",
        "data.prepare source=yambda path=logs/{name} size=50m kind=listens out=stores/{name}",
        "semantic_ids.fit store=stores/{name} out=codes/{name} levels=4 codes=256 iterations=2",
    ),
)
YAMBDA = yambda_log("train-step-yambda", 400, 50_000)


def movielens_1m(path: Path) -> Log:
    """MovieLens-1M where somebody has it: GroupLens gives it to people, not to scripts."""
    return Log(
        "movielens-1m",
        "MovieLens-1M",
        (f"data.prepare --config {PUBLIC} path={path.resolve()}", f"semantic_ids.fit --config {PUBLIC}"),
    )


@dataclass(frozen=True)
class Shape:
    """A model and its steps.

    Attributes:
        log: what it reads.
        config: file that its keys are put on top of; empty for none.
        keys: of `trainer.train`, without those of batches.
        tokens: budget of one bin.
        bins: of a step of one rank; a step of two has as many, or twice as many where `grows`.
        grows: whether each rank has a step of its own size, or all share one, which decides what is learnt.
        steps: measured in a block.
    """

    name: str
    about: str
    log: Log
    config: str
    keys: Mapping[str, object]
    tokens: int
    bins: int
    grows: bool
    steps: int

    @property
    def history(self) -> int:
        """The longest window."""
        return int(str(self.keys.get("model.max_history", 200)))

    @property
    def batches(self) -> str:
        """What a step is."""
        each = "a step of each rank" if self.grows else "a step of all ranks together"
        return f"{each} has {self.bins} × {self.tokens:,} tokens"

    def overrides(self, run: Path, ranks: int, precision: str) -> list[str]:
        """Keys of a training in a folder."""
        keys = {
            "run": run,
            "store": self.log.store,
            "codes": self.log.codes,
            "overwrite": "true",
            "epochs": 1000,
            **self.keys,
            "batch.tokens": self.tokens,
            "batch.bins": self.bins * (ranks if self.grows else 1),
            "model.precision": precision,
        }
        return [f"{name}={value}" for name, value in keys.items()]


_OF_ITEMS = {
    "model.items.kind": "vocabulary",
    "model.items.only": "true",
    "model.output.kind": "items",
    "batch.negatives.kind": "all",
}

SMALL = Shape(
    "small",
    "RecTools' HSTU on MovieLens-100K: width 64, 2 blocks of 1 head, the newest 200 events, softmax over all items",
    MOVIELENS_100K,
    "",
    {
        **_OF_ITEMS,
        "model.width": 64,
        "model.blocks": 2,
        "model.heads": 1,
        "model.head_dim_qk": 64,
        "model.head_dim_v": 64,
        "model.max_history": 200,
        "model.dropout": 0.2,
        "model.input_dropout": 0.2,
        "model.biases.alibi": "false",
        "model.biases.duration": "false",
        "model.biases.organic": "false",
        "model.biases.position": "true",
        "model.biases.position_buckets": 200,
        "batch.windows": "newest",
        "batch.shuffle_ties": "true",
        "optimizer.dense": "adamw",
        "optimizer.schedule": "constant",
    },
    tokens=5_248,  # an epoch in 8 steps, as many as 943 users in batches of 128 have
    bins=2,
    grows=False,
    steps=14,
)


def small_negatives(log: Log) -> Shape:
    """The recipe of the public HSTU code, with 128 negatives a target."""
    return Shape(
        "small-negatives",
        f"the public HSTU code's recipe for MovieLens-1M (`{PUBLIC}`): width 52, 2 blocks of 1 head, 128 negatives",
        log,
        PUBLIC,
        {},
        tokens=2_304,
        bins=6,
        grows=False,
        steps=10,
    )


def yambda(history: int, log: Log, steps: int) -> Shape:
    """Width 256, 4 blocks × 4 heads, cascaded heads over 8 × 1024 codes, all biases but that by position."""
    return Shape(
        f"yambda-{history}",
        f"width 256, 4 blocks of 4 heads × 64, 8 × 1024 codes, whole histories cut into windows of {history:,} "
        "(`windows=tiled`), ALiBi, time, duration and organic biases",
        log,
        "",
        {
            "model.width": 256,
            "model.blocks": 4,
            "model.heads": 4,
            "model.head_dim_qk": 64,
            "model.head_dim_v": 64,
            "model.max_history": history,
            "batch.windows": "tiled",
        },
        tokens=4_096,
        bins=2,
        grows=True,
        steps=steps,
    )


SHAPES = {
    shape.name: shape
    for shape in (
        SMALL,
        small_negatives(LIKE_MOVIELENS_1M),
        yambda(512, YAMBDA, 4),
        yambda(2048, YAMBDA, 3),
    )
}
