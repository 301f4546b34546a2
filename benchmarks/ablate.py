"""Variants of one training over several seeds, compared user by user.

    python -m benchmarks.ablate --config configs/ablations/movielens-100k.yaml

Trains and evaluates every variant with every seed (what is finished is kept), and gives the difference of NDCG@10 to
the first variant with an interval from a paired bootstrap: users are drawn anew, and seeds within them, the same for
both sides. Writes `benchmarks/results/ablate-NAME.json`, `.md` and a picture, `.svg`.

S seeds · U users asked.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from benchmarks.harness import RESULTS, ROOT, commit, machine, table, write_page
from common.progress import Progress
from evaluation.metrics import ndcg

SAMPLES = 2000
DEPTH = 10


@dataclass(frozen=True)
class Plan:
    """What to compare, as the YAML file says."""

    config: str
    runs: str
    ranks: int
    seeds: list[int]
    keys: list[str]
    variants: dict[str, list[str]]

    def folder(self, variant: str, seed: int) -> Path:
        """The run of one variant and seed."""
        name = "".join(letter if letter.isalnum() else "-" for letter in variant.lower())
        return ROOT / self.runs / f"{name}-seed{seed}"


@dataclass(frozen=True)
class Difference:
    """One variant beside the first: NDCG@10, its difference, and the 95% interval of that."""

    name: str
    value: float
    difference: float
    low: float
    high: float


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablate", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="which variants, see configs/ablations")
    given = parser.parse_args(argv)
    plan = Plan(**yaml.safe_load(given.config.read_text(encoding="utf-8")))
    with Progress("ablate", len(plan.variants) * len(plan.seeds), "runs") as progress:
        for variant in plan.variants:
            for seed in plan.seeds:
                run(plan, variant, seed)
                progress.advance(1, note=variant)
    scores = {variant: scores_of(plan, variant) for variant in plan.variants}
    differences = compare(scores)
    write(f"ablate-{given.config.stem}", plan, differences)
    return 0


def run(plan: Plan, variant: str, seed: int) -> None:
    """Train and evaluate one variant with one seed, unless that has been done."""
    folder = plan.folder(variant, seed)
    if (folder / "ranks.parquet").exists():
        return
    keys = [f"run={folder}", f"seed={seed}", "overwrite=true", *plan.keys, *plan.variants[variant]]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(plan.ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        [*launch, "-m", "trainer.train", "--config", plan.config, *keys],
        ["-m", "evaluation.evaluate", f"run={folder}", "bootstrap=1"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}\n{done.stderr[-3000:]}")


def scores_of(plan: Plan, variant: str) -> np.ndarray:
    """NDCG@10 of exact scoring, [S, U]."""
    ranks = [pq.read_table(plan.folder(variant, seed) / "ranks.parquet")["exact"].to_numpy() for seed in plan.seeds]
    return np.stack([ndcg(rank_U, DEPTH) for rank_U in ranks])


def compare(scores: dict[str, np.ndarray], seed: int = 0) -> list[Difference]:
    """Each variant beside the first, with percentile intervals under resampling of users and of seeds."""
    first = next(iter(scores.values()))
    random = np.random.default_rng(seed)
    seeds, users = first.shape
    draws = [(random.integers(seeds, size=seeds), random.integers(users, size=users)) for _ in range(SAMPLES)]
    result = []
    for name, own in scores.items():
        gain_SU = own - first
        means = [gain_SU[rows].mean(axis=0)[columns].mean() for rows, columns in draws]
        low, high = np.quantile(means, [0.025, 0.975])
        result.append(Difference(name, float(own.mean()), float(gain_SU.mean()), float(low), float(high)))
    return result


def write(name: str, plan: Plan, differences: list[Difference]) -> None:
    """Table, figures and picture."""
    rows: list[list[Any]] = [
        [one.name, f"{one.value:.4f}", f"{one.difference:+.4f}", f"{one.low:+.4f} … {one.high:+.4f}"]
        for one in differences
    ]
    text = table(["variant", "NDCG@10", "difference", "95% interval"], rows)
    about = (
        f"`python -m benchmarks.ablate --config configs/ablations/{name.removeprefix('ablate-')}.yaml`: {plan.config}, "
        f"seeds {', '.join(map(str, plan.seeds))}, {plan.ranks} ranks; test events, exact scoring; the interval is "
        "that of the difference to the first row, over users and seeds."
    )
    print(text)
    figures = {one.name: round(one.value, 4) for one in differences}
    seconds = {"commit": commit(), "seconds": 0}
    write_page(name, machine() | seconds, figures, [("Variants", f"{about}\n\n{text}\n\n![differences]({name}.svg)")])
    (RESULTS / f"{name}.svg").write_text(picture(differences), encoding="utf-8")


def picture(differences: Sequence[Difference]) -> str:
    """The differences and their intervals as an SVG: a row a variant, zero in the middle."""
    width, left, row_height, top = 760, 260, 26, 30
    reach = max([abs(bound) for one in differences for bound in (one.low, one.high)] + [1e-6]) * 1.1

    def x(value: float) -> float:
        return left + (width - left - 20) * (value + reach) / (2 * reach)

    height = top + row_height * len(differences) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top - 10}" y2="{height - 28}" stroke="#999"/>',
        f'<text x="{x(0):.1f}" y="{height - 10}" text-anchor="middle">difference of NDCG@{DEPTH}, 95% interval</text>',
    ]
    for place, one in enumerate(differences):
        y = top + row_height * place + 8
        colour = "#2462c8" if one.low > 0 else "#c8242e" if one.high < 0 else "#666"
        parts += [
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(one.name)}</text>',
            f'<line x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<circle cx="{x(one.difference):.1f}" cy="{y}" r="4" fill="{colour}"/>',
            f"<title>{escape(one.name)}: {one.difference:+.4f}</title>",
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())
