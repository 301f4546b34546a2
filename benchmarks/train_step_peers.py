"""Other people's trainers beside ours, in the same run: RecTools' models and the public HSTU code.

Peers train in environments of their own, which `benchmarks.peers` makes, on the same store and as many threads; events
are counted alike and lists scored by our code. Without `benchmarks.peers`, or without a peer's environment in a quick
run, there is nothing to compare with, and the page says so.

S seeds (one) · R requests.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablate import compare
from benchmarks.harness import ROOT, Findings, table
from benchmarks.train_step_child import Look, Plan
from benchmarks.train_step_runs import Measured, Setting, looks_of, on_two_cores
from benchmarks.train_step_shapes import SMALL

PEERS = "benchmarks.peers"
THREADS, SEED = 2, 0
TEMPERATURE = 0.15
"""RecTools divides no logits unless it is told to, as its examples of HSTU do; ours are divided by the same."""
OURS = ("optimizer.learning_rate=3e-3", "optimizer.sparse_learning_rate=0.05")
"""Of the four settings of rates and temperature that were tried, that with the best validation events."""
EPOCHS, LOOK_EVERY = 60, 5
SPEED_EPOCHS = 3
"""Of runs that nobody looks at: the first warms up, and the rate is a median of the others."""
PUBLIC_BATCHES = 12


def report_peers(runs: Sequence[Measured], quick: bool, scratch: Path, findings: Findings) -> None:
    """Speed, and in a full run quality and the public code."""
    why = unavailable(quick)
    if why:
        findings.add("Peers", why)
        return
    small = on_two_cores(runs, "small")
    rectools: Any = importlib.import_module(f"{PEERS}.rectools")

    def trained(model: str, *, pooled: bool, epochs: int, look_at: Sequence[int] = ()) -> Any:
        folder = scratch / f"{model}-{epochs}-{'pooled' if pooled else 'as-shipped'}"
        folder.mkdir()
        return rectools.measure(
            model,
            store=SMALL.log.store,
            epochs=epochs,
            threads=THREADS,
            pooled=pooled,
            seed=SEED,
            look_at=look_at,
            scratch=folder,
            temperature=TEMPERATURE,
        )

    looks = [] if quick else list(range(LOOK_EVERY, EPOCHS + 1, LOOK_EVERY))
    hstu = trained("hstu", pooled=True, epochs=2 if quick else EPOCHS, look_at=looks)
    peers = {"RecTools HSTU": hstu}
    if not quick:
        peers["RecTools HSTU, as shipped"] = trained("hstu", pooled=False, epochs=SPEED_EPOCHS)
        peers["RecTools SASRec"] = trained("sasrec", pooled=True, epochs=SPEED_EPOCHS)
        peers["RecTools SASRec, as shipped"] = trained("sasrec", pooled=False, epochs=SPEED_EPOCHS)
    report_speeds(small, peers, findings)
    if not quick:
        report_quality(hstu, ours_looked_at(small.setting.ranks, scratch), findings)
        report_public(runs, scratch, findings)


def unavailable(quick: bool) -> str:
    """Why there are no peers; empty where there are."""
    if importlib.util.find_spec(PEERS) is None:
        return "`benchmarks.peers` is not here: nothing to compare with."
    environment: Any = importlib.import_module(f"{PEERS}.environment")
    requirements = (ROOT / "requirements" / "peers-rectools.txt").read_bytes()
    if quick and not (environment.folder_of("rectools", requirements) / environment.WHOLE).exists():
        return "RecTools' environment has not been made yet, which a quick run leaves to a full one."
    return ""


def report_speeds(small: Measured, peers: dict[str, Any], findings: Findings) -> None:
    """Events a second of the small shape."""
    rows = [["Segue", f"{small.events_per_s:,.0f}", ""]]
    figures = {}
    names = {
        "RecTools HSTU": "small_speedup_vs_rectools",
        "RecTools HSTU, as shipped": "small_speedup_vs_rectools_as_shipped",
        "RecTools SASRec": "small_speedup_vs_sasrec",
        "RecTools SASRec, as shipped": "small_speedup_vs_sasrec_as_shipped",
    }
    for name, found in peers.items():
        speedup = small.events_per_s / found.events_per_s
        figures[names[name]] = speedup
        rows.append([name, f"{found.events_per_s:,.0f}", f"{speedup:.2f} ×"])
    settings = ", ".join(f"{name}={value}" for name, value in next(iter(peers.values())).settings.items())
    text = (
        f"{table(['', 'events/s', 'Segue over it'], rows)}\n\n{SMALL.about}; ours: {small.setting}; peers: {THREADS} "
        "threads, the median epoch after the first, glibc told to keep freed memory unless it says as shipped. "
        f"RecTools' settings: {settings}."
    )
    findings.add("Peers: events a second", text, **figures)


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Curve:
    """NDCG@10 on the validation events as training goes on.

    Attributes:
        epochs, seconds: of each look, training alone.
        scores: of each request, by look.
    """

    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    scores: tuple[np.ndarray, ...]

    @property
    def means(self) -> list[float]:
        """By look."""
        return [float(scores_R.mean()) for scores_R in self.scores]

    @property
    def best(self) -> int:
        """The look with the highest mean, of equal ones the first."""
        return int(np.argmax(self.means))

    def until(self, seconds: float) -> int | None:
        """The best look by then; None before the first."""
        by_then = [look for look, at in enumerate(self.seconds) if at <= seconds]
        return max(by_then, key=self.means.__getitem__) if by_then else None

    def reaches(self, score: float) -> float | None:
        """Seconds until a look is as good; None where none is."""
        return next((at for at, mean in zip(self.seconds, self.means, strict=True) if mean >= score), None)


def ours_looked_at(ranks: int, scratch: Path) -> Curve:
    """Our training of the small shape on so many ranks, looked at after every epoch."""
    plan = Plan(looks=list(range(1, EPOCHS + 1)))
    keys = (f"model.output.temperature={TEMPERATURE}", f"seed={SEED}", *OURS)
    looks: list[Look] = looks_of(Setting(SMALL, ranks, THREADS // ranks, keys=keys), plan, scratch)
    return Curve(
        tuple(look.epoch for look in looks),
        tuple(look.seconds for look in looks),
        tuple(np.array(look.scores) for look in looks),
    )


def curve_of(peer: Any) -> Curve:
    """Of a peer's run."""
    epochs = tuple(sorted(peer.scores))
    return Curve(
        epochs,
        tuple(peer.seconds_until(epoch) for epoch in epochs),
        tuple(np.asarray(peer.scores[epoch]["validation"]) for epoch in epochs),
    )


def report_quality(peer: Any, ours: Curve, findings: Findings) -> None:
    """After equal epochs, after equal seconds, and how soon ours is as good as the peer's best."""
    theirs = curve_of(peer)
    rows = []
    for look, epoch in enumerate(theirs.epochs):
        own = ours.epochs.index(epoch)
        rows.append(
            [
                epoch,
                f"{theirs.means[look]:.4f}",
                f"{ours.means[own]:.4f}",
                f"{theirs.seconds[look]:,.1f}",
                f"{ours.seconds[own]:,.1f}",
            ]
        )
    last = ours.epochs.index(theirs.epochs[-1])
    epochs = _difference(theirs.scores[-1], ours.scores[last])
    figures: dict[str, Any] = {
        "ndcg_ours_after_equal_epochs": ours.means[last],
        "ndcg_rectools_after_equal_epochs": theirs.means[-1],
        "ndcg_difference_low": epochs[1],
        "ndcg_difference_high": epochs[2],
    }
    told = [f"After {theirs.epochs[-1]} epochs ours is ahead by {_shown(epochs)} (95%, over users)."]
    limit = min(theirs.seconds[-1], ours.seconds[-1])
    early, own_early = theirs.until(limit), ours.until(limit)
    if early is not None and own_early is not None:
        seconds = _difference(theirs.scores[early], ours.scores[own_early])
        told.append(f"After {limit:,.0f} s, each at the best look so far, by {_shown(seconds)}.")
        figures["ndcg_difference_after_equal_seconds"] = seconds[0]
    reached = ours.reaches(theirs.means[theirs.best])
    if reached is None:
        told.append(f"RecTools' best, {theirs.means[theirs.best]:.4f}, is not reached in {ours.epochs[-1]} epochs.")
    else:
        figures["time_to_best_vs_rectools"] = reached / theirs.seconds[theirs.best]
        told.append(
            f"RecTools' best, {theirs.means[theirs.best]:.4f} after {theirs.seconds[theirs.best]:,.0f} s, is reached "
            f"after {reached:,.1f} s."
        )
    head = ["epochs", "RecTools HSTU", "Segue", "its seconds", "ours"]
    told.append(
        f"Softmaxes of both at a temperature of {TEMPERATURE}; ours with {' '.join(OURS)}, RecTools' rate its own."
    )
    findings.add("Peers: NDCG@10 on the validation events", f"{table(head, rows)}\n\n{' '.join(told)}", **figures)


def _difference(theirs_R: np.ndarray, ours_R: np.ndarray) -> tuple[float, float, float]:
    found = compare({"theirs": theirs_R[None], "ours": ours_R[None]}, "validation")[1]
    return found.difference, found.low, found.high


def _shown(difference: tuple[float, float, float]) -> str:
    return "{:+.4f} ({:+.4f} … {:+.4f})".format(*difference)


# ── the public code ──────────────────────────────────────────────────────────────────────────────────────


def report_public(runs: Sequence[Measured], scratch: Path, findings: Findings) -> None:
    """Events a second of the public recipe."""
    public: Any = importlib.import_module(f"{PEERS}.public_hstu")
    checkout = public.checkout_at(None)
    small = on_two_cores(runs, "small-negatives")
    if checkout is None:
        findings.add("Peers: the public HSTU code", f"No checkout: name one with `{public.CHECKOUT}`.")
        return
    rows, figures = [["Segue", f"{small.events_per_s:,.0f}", ""]], {}
    for name, pooled in (("pooled", True), ("as_shipped", False)):
        folder = scratch / f"public-{name}"
        folder.mkdir()
        found = public.measure(
            checkout,
            store=small.setting.shape.log.store,
            threads=THREADS,
            pooled=pooled,
            seed=SEED,
            batches=PUBLIC_BATCHES,
            scratch=folder,
        )
        figures[f"small_negatives_speedup_vs_public_{name}"] = small.events_per_s / found.events_per_s
        gain = f"{small.events_per_s / found.events_per_s:.2f} ×"
        rows.append([f"public HSTU code, {name.replace('_', ' ')}", f"{found.events_per_s:,.0f}", gain])
    settings = f"Ours: {small.setting}; the public code: {THREADS} threads."
    text = f"{table(['', 'events/s', 'Segue over it'], rows)}\n\n{settings}"
    findings.add("Peers: the public HSTU code", text, **figures)
