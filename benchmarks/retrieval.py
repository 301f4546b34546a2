"""Retrieval engines on large catalogues: how many users a second, and how much of the exact lists they find.

    python -m benchmarks.retrieval [--quick]

Exact lists come from the bounded engine; for a user or two the whole catalogue is scored as well, to show that the two
are the same and what that costs. A full run trains a model on the synthetic Yambda store where there is none yet in
`runs/retrieval-yambda`, asks it for items of that store, and of a catalogue grown to 9.4 million.

B users · D model width · V codes a level · w beams · K list length.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import torch
from torch import Tensor

from benchmarks.harness import Findings, run, table
from benchmarks.retrieval_models import STORE, TABLE, WIDTH, Served, grown, made_up, trained
from common.progress import Progress
from semantic_ids.codes.trie_steps import TrieSteps
from serving.engines.base import Engine
from serving.engines.beam import BeamEngine
from serving.engines.bounded import BoundedEngine
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from serving.engines.hybrid import CodeScorer, HybridEngine
from serving.engines.index_building import IndexConfig

THREADS = 2
DEPTH = 100
BATCH = 64
"""Users asked for at once."""
TURNS = 3
LONG_S = 60
"""Seconds after which no further turn begins."""

Makers = dict[str, Callable[[Served], Engine]]


SMALL: Makers = {
    "beam 50": lambda made: beam(made, 50),
    "beam 200": lambda made: beam(made, 200),
    "beam 200, not looking ahead": lambda made: BeamEngine(
        made.heads, made.trie, made.catalogue, width=200, steps=TrieSteps(made.trie)
    ),
    "FAISS flat": lambda made: near(made, IndexConfig(kind="flat")),
}
FULL: Makers = SMALL | {
    "beam 1000": lambda made: beam(made, 1000),
    "hybrid: beam 200 and FAISS flat": lambda made: HybridEngine(
        [beam(made, 200), near(made, IndexConfig(kind="flat"))], CodeScorer(made.heads, made.trie, made.catalogue)
    ),
    "FAISS IVF-PQ": lambda made: near(made, IndexConfig(kind="ivfpq")),
    "FAISS HNSW, 16 links": lambda made: near(
        made, IndexConfig(kind="hnsw", links=16, ef_construction=40, build_threads=THREADS)
    ),
}


def beam(made: Served, width: int) -> BeamEngine:
    """A beam search that looks ahead."""
    return BeamEngine(made.heads, made.trie, made.catalogue, width=width, steps=made.steps)


def near(made: Served, index: IndexConfig) -> FaissEngine:
    """Items by their vectors."""
    return FaissEngine(made.heads, made.table, made.catalogue, index=index)


def work(quick: bool, folder: Path, findings: Findings) -> None:
    """All of it."""
    del folder
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    if quick:
        findings.figures |= compare(made_up(24_400, 32, steps=60, levels=6, codes=256), SMALL, findings, exact_users=2)
        return
    yambda = trained(BATCH)
    if yambda is None:
        raise SystemExit(f"{STORE} and {TABLE} are needed: see the top of configs/synthetic-yambda.yaml")
    million = compare(yambda, FULL, findings, exact_users=2)
    large = compare(grown(yambda, 9_400_000, WIDTH), FULL, findings, exact_users=1)
    findings.figures |= million | {f"{name}_at_9m": value for name, value in large.items()}
    findings.figures["beam_slower_at_9m"] = large["beam_ms_per_user"] / million["beam_ms_per_user"]


def compare(made: Served, makers: Makers, findings: Findings, *, exact_users: int) -> dict[str, Any]:
    """Every engine on the same users: a section, and the figures of it.

    Args:
        exact_users: whose whole catalogue is scored, beside the bounds that all users' exact lists come from.
    """
    users, start = len(made.hidden_BD), time.perf_counter()
    steps, looking_s = made.steps, time.perf_counter() - start
    bounded = BoundedEngine(made.heads, made.trie, made.catalogue, steps=steps)
    bounded_s, truth = ask(bounded, made, turns=1, label="bounded")
    followed = bounded.prefixes / bounded.users
    exact_s, exact_lists = ask(
        ExactEngine(made.heads, made.trie, made.catalogue), made.first(exact_users), turns=1, label="exact"
    )
    same, apart = agreement(truth, exact_lists)
    rows = [
        ["exact, whole catalogue", f"{exact_users / exact_s:.3g}", "1", f"{exact_users} users"],
        ["bounded", f"{users / bounded_s:.3g}", "1", f"{followed:,.0f} prefixes a user"],
    ]
    rates, recalls = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        engine = make(made)
        built = time.perf_counter() - start
        seconds, found = ask(engine, made, TURNS, label=name)
        rates[name], recalls[name] = users / seconds, recall(found[0], truth[0])
        rows.append([name, f"{rates[name]:.3g}", f"{recalls[name]:.3f}", f"made in {built:.1f} s"])
    limit = users_at_limit(made, 200)
    findings.add(
        f"{made.catalogue.size:,} items",
        table(["engine", "users/s", f"recall@{DEPTH}", ""], rows)
        + f"\n\nOf {made.about}. {users} users, {made.seen_BX.size(1)} items excluded for each, {BATCH} asked for at "
        f"once, {THREADS} threads; the best of {TURNS} turns, or of as many as {LONG_S} s allowed, of the first two "
        f"rows one. Recall is that of bounded lists, which are those of the whole catalogue: {same:.1%} of the places "
        f"of {exact_users} users hold the same item, scores are at most {apart:.1g} apart; {bounded.unproven_users} of "
        f"{bounded.users} users are not proven. Bounded search looks at {followed / bounded.trie_prefixes:.2%} of the "
        f"{bounded.trie_prefixes:,} prefixes. Looking ahead took {looking_s:.0f} s, once for all beams and bounds. "
        f"Products alone would let a beam search of 200 answer {limit:,.0f} users/s.",
    )
    return {
        "items": made.catalogue.size,
        "users_per_s_exact": exact_users / exact_s,
        "users_per_s_bounded": users / bounded_s,
        "users_per_s_beam": rates["beam 200"],
        "beam_ms_per_user": 1000 / rates["beam 200"],
        "beam_speedup_vs_exact": rates["beam 200"] / (exact_users / exact_s),
        "beam_recall_at_100": recalls["beam 200"],
        "faiss_recall_at_100": recalls["FAISS flat"],
        "beam_share_of_limit": rates["beam 200"] / limit,
        "bounded_same_as_exact": same,
        "looking_ahead_s": looking_s,
    }


def ask(engine: Engine, made: Served, turns: int, *, label: str) -> tuple[float, tuple[Tensor, Tensor]]:
    """Seconds of the best turn for all users, and their lists."""
    users, best, begun = len(made.hidden_BD), float("inf"), time.perf_counter()
    lists: list[tuple[Tensor, Tensor]] = []
    with Progress(f"{label}, {made.catalogue.size:,} items", turns * users, "users") as progress:
        for _ in range(turns):
            start, lists = time.perf_counter(), []
            for at in range(0, users, BATCH):
                lists.append(engine.retrieve(made.query(at, min(at + BATCH, users)), DEPTH))
                progress.advance(len(lists[-1][0]))
            best = min(best, time.perf_counter() - start)
            if time.perf_counter() - begun > LONG_S:
                break
    return best, (torch.cat([items for items, _ in lists]), torch.cat([scores for _, scores in lists]))


def recall(found_BK: Tensor, true_BK: Tensor) -> float:
    """Share of the true lists that is in the found ones."""
    wanted_BK = true_BK >= 0
    hits_BK = (true_BK[:, :, None] == found_BK[:, None]).any(2) & wanted_BK
    return float(hits_BK.sum() / wanted_BK.sum())


def agreement(lists: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Share of places with the same item, and how far scores are apart at most, for the users that both have."""
    users = len(exact[0])
    same = (lists[0][:users] == exact[0]).float().mean()
    return float(same), float((lists[1][:users] - exact[1]).nan_to_num(0.0, 0.0, 0.0).abs().max())


def users_at_limit(made: Served, width: int) -> float:
    """Users a second whom the products of a beam search alone would allow: Σ over levels of beams · D · V · 2.

    The rate of `torch.mm` is that of the best of some numbers of rows, on the threads that the engines have.
    """
    levels, codes, D = made.heads.weight_CVD.shape
    rate = 0.0
    for rows in (256, 1024, 4096):
        state_TD, weight_DV, out_TV = (
            torch.randn(rows, D),
            made.heads.weight_CVD[0].detach().T,
            torch.empty(rows, codes),
        )
        for _ in range(30):
            start = time.perf_counter()
            torch.mm(state_TD, weight_DV, out=out_TV)
            rate = max(rate, 2 * rows * D * codes / (time.perf_counter() - start))
    return rate / (2 * D * codes * (1 + (levels - 1) * width))


def main() -> int:
    """Entry point."""
    return run("retrieval", work)


if __name__ == "__main__":
    sys.exit(main())
