"""Variants of one training over several seeds, compared user by user.

    python -m benchmarks.ablate --config configs/ablations/movielens-100k.yaml

Trains every variant with every seed and evaluates it (what is finished is kept), on the validation events, by which
choices are made, and on the test events, which tell what the choices are worth. The difference of a variant to the
first has an interval from a paired bootstrap: users are drawn anew, and seeds within them, the same for both sides.
Writes `benchmarks/results/ablate-NAME.json`, `.md` and a picture, `.svg`. The report of an evaluation shows the JSON
page (`ablations=`).

S seeds · U users asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import yaml

from benchmarks.harness import RESULTS, ROOT, commit, machine, table, write_page
from common.files import write_json_atomically
from common.progress import Progress
from evaluation.metrics.ranking import metrics_of_places
from evaluation.outputs import RANKS, output_path, read_ranks

SAMPLES = 2000
DEPTH = 10
_WARM_UP = 0.15
"""Share of a stream's steps that its mean loss leaves out."""

COLOURS = {"validation": "#2462c8", "test": "#b06a10"}


@dataclass(frozen=True)
class Plan:
    """What to compare, as the YAML file says.

    Args:
        config: file with the section `train`.
        runs: folder of the runs.
        seeds: of training.
        keys: overrides of all variants.
        variants: name → overrides; the first is what the others are compared with.
        ranks: processes of one training.
        at_once: runs side by side, each with one thread a rank.
        metric: ndcg or hr, at 10.
        events: what the runs are evaluated on: validation, test, or both.
        evaluate: overrides of the evaluation.
        codes: variants that have code tables of their own: overrides of `semantic_ids.fit`.
        stream: every event is read once, so that the training loss is that of a prediction before learning from it,
            over far more events than are held out: the page shows it.
    """

    config: str
    runs: str
    seeds: list[int]
    variants: dict[str, list[str]]
    keys: list[str] = field(default_factory=list)
    ranks: int = 1
    at_once: int = 1
    metric: str = "ndcg"
    events: list[str] = field(default_factory=lambda: ["validation", "test"])
    evaluate: list[str] = field(default_factory=list)
    codes: dict[str, list[str]] = field(default_factory=dict)
    stream: bool = False

    def folder(self, variant: str, seed: int) -> Path:
        """The run of one variant and seed."""
        return ROOT / self.runs / f"{_file_name(variant)}-seed{seed}"

    def code_table(self, variant: str) -> Path:
        """The code table of a variant that has its own."""
        return ROOT / self.runs / f"{_file_name(variant)}-codes"

    def commit_file(self, variant: str, seed: int) -> Path:
        """Says which code trained a run; beside its folder, which holds what the trainer and the evaluation write."""
        folder = self.folder(variant, seed)
        return folder.with_name(f"{folder.name}.commit")

    def commits(self) -> list[str]:
        """The commits of all runs."""
        files = (self.commit_file(variant, seed) for variant in self.variants for seed in self.seeds)
        return sorted({file.read_text(encoding="utf-8").strip() for file in files})


def _file_name(variant: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in variant.lower())


@dataclass(frozen=True)
class Difference:
    """One variant beside the first on some events: the metric, its difference, and the 95% interval of that."""

    name: str
    events: str
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
    start = time.monotonic()
    for variant, keys in plan.codes.items():
        if not plan.code_table(variant).exists():
            _call(["-m", "semantic_ids.fit", "--config", plan.config, f"out={plan.code_table(variant)}", *keys])
    # A seed after the other, so that an early stop leaves all variants with equally many.
    runs = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
    with ThreadPoolExecutor(plan.at_once) as pool, Progress("ablate", len(runs), "runs") as progress:
        futures = {pool.submit(run, plan, *one): one for one in runs}
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(1, note=futures[future][0])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    differences = [
        one
        for events in plan.events
        for one in compare({variant: scores_of(plan, variant, events) for variant in plan.variants}, events)
    ]
    write(given.config, plan, differences, time.monotonic() - start)
    return 0


def run(plan: Plan, variant: str, seed: int) -> None:
    """Train and evaluate one variant with one seed, as far as that has not been done."""
    folder = plan.folder(variant, seed)
    missing = [events for events in plan.events if not output_path(folder, RANKS, events).exists()]
    if len(missing) == len(plan.events):
        keys = [f"run={folder}", f"seed={seed}", "overwrite=true", *plan.keys, *plan.variants[variant]]
        keys += [f"codes={plan.code_table(variant)}"] if variant in plan.codes else []
        launch = ["-m"]
        if plan.ranks > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(plan.ranks), "-m"]
        started_at = commit()
        _call([*launch, "trainer.train", "--config", plan.config, *keys])
        plan.commit_file(variant, seed).write_text(started_at + "\n", encoding="utf-8")
    for events in missing:
        _call(["-m", "evaluation.evaluate", f"run={folder}", f"events={events}", "bootstrap=1", *plan.evaluate])


def _call(arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}\n{done.stderr[-3000:]}")


def scores_of(plan: Plan, variant: str, events: str) -> np.ndarray:
    """The metric of exact scoring by seed and request, [S, U]."""
    files = [output_path(plan.folder(variant, seed), RANKS, events) for seed in plan.seeds]
    return np.stack([request_scores(file, f"{plan.metric}@{DEPTH}") for file in files])


def request_scores(file: Path, metric: str, engine: str = "exact") -> np.ndarray:
    """A metric of every request of an evaluation, from its `ranks.parquet`."""
    ranks = read_ranks(file)
    metrics = metrics_of_places(ranks.places[engine], ranks.targets.offsets_R1, ranks.about["depth"])
    values_R: np.ndarray = metrics[metric]
    return values_R


def stream_losses(plan: Plan, variant: str) -> list[float]:
    """Mean training loss of each seed's run, nats, from the end of the warm-up on."""
    losses = []
    for seed in plan.seeds:
        lines = (plan.folder(variant, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
        risen = [row["loss"] for row in rows if row["step"] > rows[-1]["step"] * _WARM_UP]
        losses.append(sum(risen) / len(risen))
    return losses


def compare(scores: dict[str, np.ndarray], events: str, seed: int = 0) -> list[Difference]:
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
        result.append(Difference(name, events, float(own.mean()), float(gain_SU.mean()), float(low), float(high)))
    return result


def write(config: Path, plan: Plan, differences: list[Difference], seconds: float) -> None:
    """Table, figures and picture."""
    name, metric = f"ablate-{config.stem}", f"{plan.metric.upper()}@{DEPTH}"
    of = {(one.name, one.events): one for one in differences}
    rows, figures = [], {f"{one.name}, {one.events}": round(one.value, 4) for one in differences}
    for variant, keys in plan.variants.items():
        cells = []
        for events in plan.events:
            one = of[variant, events]
            cells += [f"{one.value:.4f}", f"{one.difference:+.4f}", f"{one.low:+.4f} … {one.high:+.4f}"]
        if plan.stream:
            losses = stream_losses(plan, variant)
            figures[f"{variant}, loss in the stream"] = round(sum(losses) / len(losses), 4)
            cells += [f"{sum(losses) / len(losses):.4f}", f"{min(losses):.4f} … {max(losses):.4f}"]
        rows.append([variant, *cells, " ".join(f"`{key}`" for key in [*keys, *plan.codes.get(variant, [])])])
    head = [part for events in plan.events for part in (f"{metric}, {events}", "difference", "95% interval")]
    head += ["loss in the stream", "least and largest of the seeds"] if plan.stream else []
    text = table(["variant", *head, "keys"], rows)
    about = (
        f"{plan.config}, seeds {', '.join(map(str, plan.seeds))}, "
        f"{len(scores_of(plan, next(iter(plan.variants)), plan.events[0])[0])} users, exact scoring. An interval is "
        "that of the difference to the first row, over users and seeds. Keys of all variants: "
        f"{' '.join(f'`{key}`' for key in plan.keys) or 'none'}. Runs that were there already were not made again: "
        f"they were trained at {', '.join(f'`{one}`' for one in plan.commits())}, and the seconds above are those of "
        "the last call."
    )
    if plan.stream:
        about += (
            " The loss in the stream is the mean training loss of a single pass, so of predictions made before "
            f"anything was learnt from what they predict, in nats, without the first {_WARM_UP:.0%} of the steps."
        )
    print(text)
    about_run = machine() | {"commit": commit(), "seconds": round(seconds)}
    sections = [("Variants", f"{about}\n\n{text}\n\n![differences]({name}.svg)")]
    write_page(name, about_run, figures, sections, f"python -m benchmarks.ablate --config {config}")
    (RESULTS / f"{name}.svg").write_text(picture(differences, metric), encoding="utf-8")
    page = RESULTS / f"{name}.json"
    content = json.loads(page.read_text(encoding="utf-8"))
    write_json_atomically(page, content | {"differences": [dataclasses.asdict(one) for one in differences]})


def picture(differences: Sequence[Difference], metric: str) -> str:
    """The differences and their intervals as an SVG: a row a variant, a colour for each kind of events."""
    width, left, row_height, top = 820, 270, 30, 46
    reach = max([abs(bound) for one in differences for bound in (one.low, one.high)] + [1e-6]) * 1.1
    variants = list(dict.fromkeys(one.name for one in differences))
    shown = list(dict.fromkeys(one.events for one in differences))

    def x(value: float) -> float:
        return left + (width - left - 20) * (value + reach) / (2 * reach)

    bottom = top + row_height * len(variants)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 46}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{bottom + 46}" fill="white"/>',
    ]
    for place, events in enumerate(shown):
        at = left + 130 * place
        parts += [
            f'<circle cx="{at}" cy="16" r="4" fill="{COLOURS[events]}"/>',
            f'<text x="{at + 10}" y="20">{events} events</text>',
        ]
    for tick in _ticks(reach):
        parts += [
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 12}" y2="{bottom}" '
            f'stroke="{"#777" if tick == 0 else "#ddd"}"/>',
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">'
            f"{f'{tick:+g}' if tick else '0'}</text>",
        ]
    parts += [
        f'<text x="{left - 10}" y="{top + row_height * row + 8}" text-anchor="end">{escape(name)}</text>'
        for row, name in enumerate(variants)
    ]
    for one in differences:
        y = top + row_height * variants.index(one.name) + 4 + 9 * (shown.index(one.events) - (len(shown) - 1) / 2)
        colour = COLOURS[one.events]
        parts += [
            f'<line x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<circle cx="{x(one.difference):.1f}" cy="{y}" r="4" fill="{colour}">'
            f"<title>{escape(one.name)}, {one.events}: {one.difference:+.4f}</title></circle>",
        ]
    parts.append(
        f'<text x="{x(0):.1f}" y="{bottom + 36}" text-anchor="middle">difference of {metric}, 95% interval</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _ticks(reach: float) -> list[float]:
    """Round places from -reach to reach, zero among them."""
    step = 10.0 ** np.floor(np.log10(reach))
    step = next(size for size in (0.2 * step, 0.5 * step, step, 2 * step) if reach / size <= 6)
    count = int(reach / step)
    return [round(step * place, 10) for place in range(-count, count + 1)]


if __name__ == "__main__":
    sys.exit(main())
