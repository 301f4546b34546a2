"""The public research code of HSTU, by the paper's authors, as a peer: what its own classes train in a second.

The code is on no package index and nothing of it is here: given the folder of a checkout
(meta-recsys/generative-recommenders on GitHub), a process of its own (`public_hstu_child`) puts its classes together as
its configuration for MovieLens-1M does, and steps through batches as its trainer does. Our packages serve it: it asks
for torch and FBGEMM's jagged operators alone.

Left out, to its advantage: its reader, which parses lines of text anew for each example, and its trainer's search for
anomalies in every backward. It computes attention over 211 positions, padding and room for outputs among them; events/s
count what is predicted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.data import write_events
from benchmarks.peers.environment import child_environment
from benchmarks.peers.rectools import answers
from common.errors import InputError
from data.event_store import EventStore

CHECKOUT = "SEGUE_PUBLIC_HSTU"
"""The environment variable that names a checkout."""
SETTINGS: Mapping[str, Any] = {
    "width": 50,
    "blocks": 2,
    "heads": 1,
    "dropout": 0.2,
    "history": 200,
    "outputs": 11,
    "negatives": 128,
    "temperature": 0.05,
    "learning_rate": 1e-3,
    "batch_size": 128,
}
"""Its `configs/ml-1m/hstu-sampled-softmax-n128-final.gin`, with its trainer's defaults for what that leaves open."""
_MODEL = Path("generative_recommenders") / "research" / "modeling" / "sequential" / "hstu.py"


@dataclass(frozen=True)
class PublicRun:
    """A stretch of training.

    Attributes:
        threads, pooled: as asked for; `pooled` is whether glibc keeps freed memory.
        seconds, targets: of each batch; padding is no target.
        losses: of each batch.
    """

    threads: int
    pooled: bool
    seconds: tuple[float, ...]
    targets: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def events_per_s(self) -> float:
        """Median over the batches after the first two, which warm up."""
        rates = [targets / seconds for targets, seconds in zip(self.targets, self.seconds, strict=True)]
        return float(np.median(rates[2:]))


def checkout_at(given: Path | None) -> Path | None:
    """The checkout, by what was given or else by the environment; None where neither names one.

    Raises:
        InputError: there is no such code in the folder.
    """
    named = given or (Path(os.environ[CHECKOUT]) if os.environ.get(CHECKOUT) else None)
    if named is not None and not (named / _MODEL).exists():
        raise InputError(f"{named} has no {_MODEL}: it must be a checkout of the public HSTU code")
    return named


def measure(
    checkout: Path, *, store: Path, threads: int, pooled: bool, seed: int, batches: int, scratch: Path
) -> PublicRun:
    """Train some batches on a store's training events.

    Args:
        checkout: folder of the public code.
        pooled: whether glibc is told to keep what is freed (`environment.POOLED`), or left as it is.
        batches: how many, of SETTINGS' users each; at least 3.
        scratch: a folder for what passes between the processes.

    Raises:
        RuntimeError: it failed.
    """
    assert batches >= 3, "the first two warm up"
    write_events(EventStore.open(store), scratch / "events.npz")
    options = {**SETTINGS, "checkout": str(checkout.absolute()), "events": str(scratch / "events.npz")}
    options |= {"threads": threads, "seed": seed, "batches": batches}
    child = [sys.executable, "-I", str(Path(__file__).with_name("public_hstu_child.py"))]
    told = list(answers(child, options, scratch, child_environment(threads, pooled=pooled)))
    return PublicRun(
        threads,
        pooled,
        tuple(line["seconds"] for line in told),
        tuple(line["targets"] for line in told),
        tuple(line["loss"] for line in told),
    )
