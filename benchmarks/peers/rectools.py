"""RecTools (MTS), a well-known library of recommenders, as a peer: its HSTU and SASRec, trained in the same setting.

The model runs in a process and an environment of its own (`rectools_child`); its lists are scored here. Width, blocks,
heads, length of history, batch and loss are ours to choose and the same on both sides; all else is as RecTools has it,
and the run says what that is.

RecTools pads every history to the longest it allows; events/s count what is predicted, padding not.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.data import HELD_OUT, read_lists, requests_of, scores_of_lists, targets_of_epoch, write_events
from benchmarks.peers.environment import child_environment, python_of
from data.event_store import EventStore
from evaluation.results import KEPT, Floats

MODELS = ("hstu", "sasrec")
HISTORY = 200
SETTINGS: Mapping[str, Any] = {
    "n_factors": 64,
    "n_blocks": 2,
    "n_heads": 1,
    "session_max_len": HISTORY,
    "batch_size": 128,
    "loss": "softmax",
}
TEMPERATURE = 0.05


@dataclass(frozen=True, eq=False)
class PeerRun:
    """A training of a peer.

    Attributes:
        model, threads, pooled, seed: what was asked for; `pooled` is whether glibc keeps freed memory.
        settings: of the model, defaults among them.
        versions: of what trained it.
        seconds: of each epoch's training, looks apart.
        targets: of each epoch: predictions, padding not.
        scores: epoch looked at → validation or test → NDCG@10 of each request.
    """

    model: str
    threads: int
    pooled: bool
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: tuple[float, ...]
    targets: tuple[int, ...]
    scores: Mapping[int, Mapping[str, Floats]]

    @property
    def events_per_s(self) -> float:
        """Median over the epochs after the first, which warms up; of the first where there is no other."""
        rates = [targets / seconds for targets, seconds in zip(self.targets, self.seconds, strict=True)]
        return float(np.median(rates[1:] or rates))

    @property
    def validation(self) -> dict[int, float]:
        """NDCG@10 on the validation events at each look."""
        return {epoch: float(found["validation"].mean()) for epoch, found in self.scores.items()}

    @property
    def test(self) -> dict[int, float]:
        """NDCG@10 on the test events at each look."""
        return {epoch: float(found["test"].mean()) for epoch, found in self.scores.items()}

    @property
    def best_epoch(self) -> int:
        """That with the highest NDCG@10 on the validation events, of equal ones the first."""
        return max(self.validation, key=lambda epoch: (self.validation[epoch], -epoch))

    def seconds_until(self, epoch: int) -> float:
        """Training up to the end of an epoch, the first one's warming up included."""
        return sum(self.seconds[:epoch])


def measure(
    model: str,
    *,
    store: Path,
    epochs: int,
    threads: int,
    pooled: bool,
    seed: int,
    look_at: Sequence[int],
    scratch: Path,
    temperature: float | None = None,
) -> PeerRun:
    """Train a model of RecTools on a store's training events.

    Args:
        model: one of MODELS.
        pooled: whether glibc is told to keep what is freed (`environment.POOLED`), or left as it is.
        look_at: epochs after which lists for validation and test requests are made and scored.
        scratch: a folder for what passes between the processes.
        temperature: what logits are divided by; None leaves RecTools' default, 1, under which the logits of its HSTU,
            cosines, lie between -1 and 1. RecTools' own tutorial of HSTU sets TEMPERATURE.

    Raises:
        InputError: RecTools' environment could not be made.
        RuntimeError: the training failed, or its epochs are not what our loader would have made of these events.
    """
    assert model in MODELS, model
    assert all(1 <= epoch <= epochs for epoch in look_at), look_at
    opened, python = EventStore.open(store), python_of("rectools")
    write_events(opened, scratch / "events.npz")
    settings = dict(SETTINGS) | ({"relative_time_attention": True} if model == "hstu" else {})
    if temperature is not None:
        settings["lightning_module_kwargs"] = {"logits_t": temperature}
    options = {"model": model, "settings": settings, "epochs": epochs, "threads": threads, "seed": seed}
    options |= {"look_at": list(look_at), "places": KEPT, "events": str(scratch / "events.npz"), "out": str(scratch)}
    child = [str(python), "-I", str(Path(__file__).with_name("rectools_child.py"))]
    told = list(answers(child, options, scratch, child_environment(threads, pooled=pooled)))
    trained = [line for line in told if "seconds" in line]
    run = PeerRun(
        model,
        threads,
        pooled,
        seed,
        told[0]["settings"],
        told[0]["versions"],
        tuple(line["seconds"] for line in trained),
        tuple(line["targets"] for line in trained),
        {line["epoch"]: scores_of(opened, line["lists"]) for line in told if "lists" in line},
    )
    check_targets(run, targets_of_epoch(opened, HISTORY))
    return run


def answers(
    command: Sequence[str], options: Mapping[str, Any], scratch: Path, environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The JSON objects that a child prints, as they come.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    asked, said = scratch / "options.json", scratch / "errors.txt"
    asked.write_text(json.dumps(options), encoding="utf-8")
    with (
        said.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [*command, str(asked)], stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment), cwd=scratch
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield json.loads(line)
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {child.returncode}\n{said.read_text(encoding='utf-8')[-3000:]}"
        )


def scores_of(store: EventStore, lists: Mapping[str, str]) -> dict[str, Floats]:
    """NDCG@10 of each request, by what it is asked about."""
    return {
        events: scores_of_lists(requests_of(store, events), *read_lists(Path(lists[events]))) for events in HELD_OUT
    }


def check_targets(run: PeerRun, ours: int) -> None:
    """Hold a peer's epochs to ours: events/s would mean something else otherwise.

    Raises:
        RuntimeError: an epoch had another number of predictions.
    """
    other = {targets for targets in run.targets if targets != ours}
    if other:
        raise RuntimeError(f"an epoch of RecTools' {run.model} had {other} predictions, ours have {ours}")
