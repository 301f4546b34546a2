"""M-FALCON: many candidates for one user, beside scoring them one by one and beside the mask without a cache.

    python -m benchmarks.mfalcon [--quick]

A ranking model of width 256, 4 blocks of 4 heads × 64, codes 8 × 1024, three tasks, items and actions interleaved, all
biases but that by position, on two threads in float32; its weights are random, which changes no time. Four ways:

    one by one      a forward over the history and one candidate, for each candidate; a sample is measured
    masked          a forward over the history and a microbatch, candidates seeing the history and themselves; no cache
    M-FALCON        the history once, then candidates alone behind its keys and values, a microbatch at a time
    repeated        the same with the history still in the cache
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.attention import product_rate
from benchmarks.harness import Findings, run, table
from common.noise import quiet_known_warnings
from data.batches import EventColumns, ItemFeatures
from data.examples import Tokens as TokenPlaces
from data.ranking.actions import num_actions
from data.ranking.batches import RankingBatchMaker
from data.ranking.config import ActionsConfig
from data.ranking.tasks import Labels
from model.attention.jagged_layout import make_layout
from model.biases import Tokens
from model.config import AttentionConfig, HeadsConfig, ModelConfig, Vocabulary
from model.embeddings import build_embeddings
from model.layers import normalised
from model.recommender import Recommender
from serving.kv_cache import UserCache
from serving.mfalcon import MFalcon
from serving.ranking_tokens import RankingTokens
from serving.user_events import UserEvents

ITEMS, ARTISTS, KINDS, LEVELS, CODES = 100_000, 10_000, 3, 8, 1024
PLAYED_BUCKETS = 10
NOW = 1_700_000_000
HISTORIES, QUICK_HISTORIES = (512, 2_048, 8_192), (512,)
"""Tokens; half as many events."""
CANDIDATES = (1_024, 4_096, 16_384)
MICROBATCHES = (64, 256, 1_024)
JUDGED_HISTORY, JUDGED_CANDIDATES = 2_048, 1_024
CACHING = (4_096, 16_384)
"""Candidates of the comparison with a single microbatch: quick, and in full."""
THREADS = 2


def main(quick: bool, folder: Path, findings: Findings) -> None:
    """Measure everything."""
    del folder
    quiet_known_warnings()
    torch.set_num_threads(THREADS)
    histories = QUICK_HISTORIES if quick else HISTORIES
    judged = min(JUDGED_HISTORY, histories[-1])
    benches = {tokens: Bench.make(tokens) for tokens in histories}
    report_agreement(benches[histories[0]], findings)
    report_speed(benches, judged, quick, findings)
    report_microbatches(benches[judged], quick, findings)
    report_repeats(benches[judged], quick, findings)
    report_caching(benches[judged], quick, findings)
    if not quick:
        report_softmax(judged, findings)


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bench:
    """A model, a user and what is scored for him.

    Attributes:
        tokens: of the history.
    """

    model: Recommender
    features: ItemFeatures
    falcon: MFalcon
    history: UserEvents
    tokens: int

    @classmethod
    def make(cls, tokens: int, kind: str = "silu") -> Bench:
        """A history of so many tokens."""
        torch.manual_seed(0)
        actions = ActionsConfig(
            tasks=["listened: played_ratio >= 50", "like: event_type is 1", "played: played_ratio / 100"],
            played_buckets=PLAYED_BUCKETS,
        )
        cfg = ModelConfig(
            width=256,
            blocks=4,
            heads=4,
            head_dim_qk=64,
            head_dim_v=64,
            max_history=tokens // 2,
            attention=AttentionConfig(kind=kind),
            output=HeadsConfig(kind="actions", actions=actions),
        )
        kinds = num_actions(KINDS, PLAYED_BUCKETS, has_played=True)
        vocabulary = Vocabulary(LEVELS, CODES, ARTISTS, kinds, ITEMS)
        model = Recommender(cfg, build_embeddings(cfg, vocabulary, 0, torch.device("cpu")), vocabulary).eval()
        with torch.no_grad():
            for name, parameter in model.tower.named_parameters():
                if "biases" in name:  # they begin at zero, and would be told from nothing
                    parameter.normal_(std=0.3)
        features = made_up_items()
        falcon = MFalcon(model, features, KINDS, tokens=RankingTokens(model, features, has_played=True))
        return cls(model, features, falcon, made_up_events(tokens // 2), tokens)

    def candidates(self, count: int) -> UserEvents:
        """Different items, never played before."""
        items = np.random.default_rng(1).choice(ITEMS, count, replace=False)
        return UserEvents.of(items, NOW, 0, 200)

    @torch.no_grad()
    def one_by_one(self, candidates: UserEvents) -> Tensor:
        """What a forward of each candidate's own says, [m, K]."""
        return torch.cat([self._lone(candidates[row : row + 1]) for row in range(len(candidates))])

    def _lone(self, candidate: UserEvents) -> Tensor:
        events = self.history + candidate
        columns = EventColumns(
            np.array([0, len(events)]),
            events.items,
            events.timestamps,
            events.event_types,
            events.durations,
            events.organic,
            events.played,
        )
        maker = RankingBatchMaker(columns, self.features, self.model.tower.cfg.output.actions, Labels((), (), True))
        at_n = np.arange(len(self.history))
        asked_n = at_n == len(at_n) - 1
        places = TokenPlaces(at_n, at_n + 1, asked_n, np.array([0, len(at_n)]), None)
        predicted_1K: Tensor = self.model.predict(maker.make(places, np.zeros(1, np.int64), self.tokens + 1, 1.0))[0]
        return predicted_1K

    @torch.no_grad()
    def masked(self, candidates: UserEvents) -> Tensor:
        """A forward over history and candidates together, [m, K]: one microbatch, nothing kept."""
        x_nD, of_history = self.falcon.tokens.history([self.history], np.array([NOW]))
        x_mD, of_candidates = self.falcon.tokens.candidates([candidates])
        tower, both = self.model.tower, _side_by_side(of_history, of_candidates)
        states_mD = tower.encoder(torch.cat((x_nD, x_mD)), both)[len(x_nD) :]
        return self.falcon.tokens.scores(normalised(states_mD), [candidates])

    def prepare(self) -> list[UserCache]:
        """Read the history."""
        return self.falcon.prepare([self.history])

    def score(self, caches: list[UserCache], candidates: UserEvents, microbatch: int) -> Tensor:
        """By M-FALCON, [m, K]."""
        return self.falcon.score(caches, [candidates], NOW, microbatch)[0]

    def operations(self, candidates: int) -> float:
        """Multiplications and additions in products, of candidates behind the kept history."""
        cfg = self.model.tower.cfg
        inner_qk, inner_v = cfg.heads * cfg.head_dim_qk, cfg.heads * cfg.head_dim_v
        projections = cfg.width * (2 * inner_qk + 2 * inner_v) + inner_v * cfg.width
        attention = (self.tokens + 1) * (inner_qk + inner_v)
        return 2.0 * candidates * cfg.blocks * (projections + attention)


def made_up_items() -> ItemFeatures:
    """Items of one artist each, with codes drawn evenly."""
    random = np.random.default_rng(0)
    return ItemFeatures(
        codes_NC=torch.from_numpy(random.integers(0, CODES, (ITEMS, LEVELS), dtype=np.int16)),
        codes_per_level=CODES,
        artist_offsets=torch.arange(ITEMS + 1),
        artist_values=torch.from_numpy(random.integers(0, ARTISTS, ITEMS, dtype=np.int32)),
        num_artists=ARTISTS,
    )


def made_up_events(count: int) -> UserEvents:
    """Listens in sittings, minutes apart within one and hours between."""
    random = np.random.default_rng(2)
    steps = np.where(random.random(count) < 0.07, random.integers(0, 80_000, count), random.integers(60, 300, count))
    return UserEvents.of(
        random.integers(0, ITEMS, count),
        NOW - 60 - np.cumsum(steps)[::-1],
        random.integers(0, KINDS, count),
        random.integers(60, 400, count),
        random.integers(0, 2, count),
        random.integers(0, 120, count),
    )


def _side_by_side(history: Tokens, candidates: Tokens) -> Tokens:
    """As one user's tokens, of whom the last are candidates."""
    before, count = len(history.positions_L), len(candidates.positions_L)
    alone_L = torch.arange(before + count) >= before

    def both(name: str) -> Tensor:
        return torch.cat((getattr(history, name), getattr(candidates, name)))

    return Tokens(
        offsets=torch.tensor([0, before + count]),
        positions_L=torch.arange(before + count).clamp(max=before),
        query_times_L=both("query_times_L"),
        key_times_L=both("key_times_L"),
        duration_buckets_L=both("duration_buckets_L"),
        organic_L=both("organic_L"),
        alone_L=alone_L,
    )


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The median of several runs, after one to warm up."""
    make_layout.cache_clear()
    work()
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────


def report_agreement(bench: Bench, findings: Findings) -> None:
    """The three ways give the same predictions."""
    candidates = bench.candidates(64)
    caches, rows, worst = bench.prepare(), [], 0.0
    oracle = bench.one_by_one(candidates[:8])
    ways: dict[str, Tensor] = {"masked": bench.masked(candidates)}
    ways |= {f"M-FALCON, {size} at once": bench.score(caches, candidates, size) for size in (1, 7, 64)}
    for name, found in ways.items():
        difference = float((found[:8] - oracle).abs().max())
        worst = max(worst, difference)
        rows.append([name, f"{difference:.1e}"])
    text = table(["beside one by one", "largest difference of a prediction"], rows)
    findings.add(f"Agreement, {bench.tokens:,} tokens", text, max_abs_difference=worst)


def report_speed(benches: dict[int, Bench], judged: int, quick: bool, findings: Findings) -> None:
    """Candidates a second by all four ways."""
    rows, rate = [], product_rate()
    counts = CANDIDATES[:1] if quick else CANDIDATES
    for tokens, bench in benches.items():
        lone = seconds(partial(bench.one_by_one, bench.candidates(2)), 2) / 2
        masked = seconds(partial(bench.masked, bench.candidates(1_024)), 2)
        first = seconds(bench.prepare)
        caches = bench.prepare()
        for count in counts:
            candidates = bench.candidates(count)
            again = seconds(partial(bench.score, caches, candidates, 512), 2)
            share = bench.operations(count) / again / rate
            rows.append(
                [
                    f"{tokens:,}",
                    f"{count:,}",
                    f"{1 / lone:,.1f}",
                    f"{1_024 / masked:,.0f}",
                    f"{count / (first + again):,.0f}",
                    f"{count / again:,.0f}",
                    f"{lone * count / (first + again):,.0f} ×",
                    f"{share:.0%}",
                ]
            )
            if (tokens, count) == (judged, JUDGED_CANDIDATES):
                findings.figures |= {
                    "speedup_vs_naive": lone * count / (first + again),
                    "candidates_per_s": count / (first + again),
                    "share_of_product_rate": share,
                    "judged_at_history": judged,
                    "cache_mb": caches[0].nbytes / 1e6,
                }
    head = [
        *("history, tokens", "candidates", "one by one", "masked, 1,024 at once", "M-FALCON", "repeated"),
        *("M-FALCON over one by one", "share of the product rate, repeated"),
    ]
    text = table(head, rows) + (
        "\n\nCandidates a second; one by one is what a sample of two takes. M-FALCON and repeated: 512 candidates at "
        f"once. Operations are those of the candidates' products; the rate, {rate / 1e9:,.0f} billion a second, is "
        "that of a 2048³ float32 product in the same process."
    )
    findings.add("Speed", text)


def report_microbatches(bench: Bench, quick: bool, findings: Findings) -> None:
    """How much the microbatch matters."""
    count = 1_024 if quick else 4_096
    caches, candidates = bench.prepare(), bench.candidates(count)
    rows = [
        [f"{size:,}", f"{count / seconds(partial(bench.score, caches, candidates, size), 2):,.0f}"]
        for size in MICROBATCHES
    ]
    findings.add(
        f"Microbatches, {bench.tokens:,} tokens, {count:,} candidates, history in the cache",
        table(["candidates at once", "candidates/s"], rows),
    )


def report_repeats(bench: Bench, quick: bool, findings: Findings) -> None:
    """A request whose history is in the cache already, beside the first one."""
    first, rows, speedups = seconds(bench.prepare), [], {}
    caches = bench.prepare()
    for count in (64, 256, 1_024) if quick else (16, 64, 128, 256, 512, 1_024):
        again = seconds(partial(bench.score, caches, bench.candidates(count), 512))
        speedups[count] = (first + again) / again
        rows.append([f"{count:,}", f"{(first + again) * 1e3:,.0f}", f"{again * 1e3:,.0f}", f"{speedups[count]:.1f} ×"])
    shorter = bench.falcon.prepare([bench.history[:-5]])
    extend = seconds(lambda: bench.falcon.extend(shorter, [bench.history[-5:]]))
    text = table(["candidates", "first request, ms", "repeated, ms", "first over repeated"], rows) + (
        f"\n\nFive new events take {extend * 1e3:,.1f} ms (`extend`), the whole history {first * 1e3:,.0f} ms "
        "(`prepare`). A repeated request pays for its candidates, which is all that is left of it: with as many "
        "candidates as the history has tokens these cost more than the history did."
    )
    findings.add(
        f"The same user again, {bench.tokens:,} tokens",
        text,
        repeat_request_speedup=speedups[256],
        repeat_request_speedup_at_1024=speedups[1_024],
        extend_ms=extend * 1e3,
    )


def report_caching(bench: Bench, quick: bool, findings: Findings) -> None:
    """Many microbatches behind one history, beside a single one without a cache (the paper's Figure 13)."""
    count = CACHING[0] if quick else CACHING[1]
    candidates = bench.candidates(count)
    single = seconds(partial(bench.masked, candidates[:1_024]), 2)
    recomputed = _uncached(bench, candidates, single)
    cached = seconds(lambda: bench.score(bench.prepare(), candidates, 1_024), 1)
    rows = [
        ["a single microbatch of 1,024, masked, nothing kept", "1,024", f"{1_024 / single:,.0f}", "1.00 ×"],
        [
            "microbatches of 1,024, masked, the history read in each",
            f"{count:,}",
            f"{count / recomputed:,.0f}",
            f"{count / recomputed / (1_024 / single):.2f} ×",
        ],
        [
            "microbatches of 1,024 behind one history (M-FALCON)",
            f"{count:,}",
            f"{count / cached:,.0f}",
            f"{count / cached / (1_024 / single):.2f} ×",
        ],
    ]
    findings.add(
        f"Caching, {bench.tokens:,} tokens",
        table(["", "candidates", "candidates/s", "over the single microbatch"], rows)
        + "\n\nThe paper has 1.99 × for 16,384 candidates on its hardware. Reading the history is in all three.",
        cache_speedup_vs_single_microbatch=count / cached / (1_024 / single),
    )


def _uncached(bench: Bench, candidates: UserEvents, single: float) -> float:
    """Seconds of all microbatches with the history read in each; two are measured beside the single one."""
    parts: Sequence[UserEvents] = [candidates[start : start + 1_024] for start in range(0, len(candidates), 1_024)]
    begun = time.perf_counter()
    for part in parts[:2]:
        bench.masked(part)
    both = time.perf_counter() - begun
    return statistics.mean([both / 2, single]) * len(parts)


def report_softmax(judged: int, findings: Findings) -> None:
    """The same with softmax attention."""
    bench = Bench.make(judged, "softmax")
    candidates = bench.candidates(1_024)
    lone = seconds(partial(bench.one_by_one, candidates[:2]), 2) / 2
    first = seconds(bench.prepare)
    caches = bench.prepare()
    again = seconds(partial(bench.score, caches, candidates, 512))
    rows = [[f"{1 / lone:,.1f}", f"{1_024 / (first + again):,.0f}", f"{1_024 / again:,.0f}"]]
    text = table(["one by one", "M-FALCON", "repeated"], rows) + "\n\nCandidates a second, 1,024 of them."
    findings.add(f"Softmax attention, {judged:,} tokens", text, speedup_vs_naive_softmax=lone * 1_024 / (first + again))


if __name__ == "__main__":
    sys.exit(run("mfalcon", main))
