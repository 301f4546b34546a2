"""Measure a trained run on held-out events: `python -m evaluation.evaluate --config FILE run=runs/NAME`

Under torchrun the users are spread over the ranks. Writes `metrics.json`, a self-contained `report.html`, and
`ranks.parquet`, which says for every user where each engine put the item asked for, into the run folder: two runs are
compared user by user. With `events=validation`, on which choices may be made, the files are `metrics-validation.json`
and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from common.config import REQUIRED, option, run_entry
from common.errors import InputError
from common.files import write_json_atomically, write_text_atomically
from common.noise import quiet_known_warnings
from data.event_store import EventStore
from data.loader import Loader, item_features
from data.sequences import request_windows
from evaluation import old_metrics as metrics
from evaluation.evaluator import Evaluation, evaluate_windows
from evaluation.outputs import EVENTS, FIGURES, RANKS, REPORT, output_path
from evaluation.report import render_report
from model.config import BACKENDS, ModelConfig
from semantic_ids.codes.code_table import CodeTable
from semantic_ids.codes.trie import CodeTrie
from serving.checkpoints.manifest import Manifest, step_folder
from serving.checkpoints.model import check_belongs, code_table_path, find_chain, load_model, run_storage
from serving.engines.base import Engine, ranked_catalogue
from serving.engines.beam import BeamEngine
from serving.engines.decoded import FaissEngine
from serving.engines.exact import ExactEngine
from serving.engines.popular import MostPopularEngine
from sharding.world import World, open_world


@dataclass
class EvaluateConfig:
    """What to evaluate, and how."""

    run: str = option(REQUIRED, "folder of the trained run; metrics.json and report.html go there")
    checkpoint: str = option("best", "best (by validation), latest, or the name of one, e.g. step-00000120")
    checkpoints: str = option("", "folder or URL of the checkpoints, if not where the run's config.yaml says")
    events: str = option("test", "the held-out events to ask for", choices=EVENTS)
    store: str = option("", "event store, if it has moved since training")
    codes: str = option("", "code table, if it has moved since training")
    tokens: int = option(4096, "token budget of a batch, a rank", minimum=1)
    attention_backend: str = option(
        "",
        "attention backend, if not the one of the training: jagged where a model from GPUs is evaluated on a CPU",
        choices=("", *BACKENDS),
    )
    filter_history: bool = option(
        True, "return no item of the user's history; false where people return to what they know, as with music"
    )
    beams: int = option(200, "beams kept by the beam search, and the length of its lists", minimum=1)
    depth: int = option(0, "length of the ranked lists; 0 is the whole catalogue", minimum=0)
    bootstrap: int = option(1000, "resamples of users for the intervals", minimum=1)
    seed: int = option(0, "of the resampling", minimum=0)

    def __post_init__(self) -> None:
        """Refuse lists too short for the metrics."""
        deepest = max(metrics.HR_DEPTHS)
        if 0 < self.depth < deepest:
            raise InputError(
                f"depth={self.depth}: hr@{deepest} needs lists of {deepest} items; give that many, or 0 for all"
            )


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a checkpoint on the test events of its store's split; returns what `metrics.json` holds."""
    quiet_known_warnings()
    with open_world() as world:
        run = Path(config.run)
        storage = run_storage(run, config.checkpoints)
        chain = find_chain(storage, config.checkpoint)
        manifest = chain[-1].manifest
        store = EventStore.open(Path(config.store or manifest.store), verify=world.is_first_on_node)
        codes = CodeTable.open(code_table_path(run, manifest, config.codes), store)
        check_belongs(manifest, storage.where(chain[-1].name), store, codes)
        model = load_model(storage, chain, world, config.attention_backend)
        tower = model.module.tower
        loader = _request_loader(config, store, codes, tower.cfg, world)
        catalogue, trie = ranked_catalogue(codes, world.device), CodeTrie.of(codes)
        engines: list[Engine] = [
            ExactEngine(tower.heads, trie, catalogue),
            BeamEngine(tower.heads, trie, catalogue, width=config.beams, deepest=config.beams),
            FaissEngine(tower.heads, codes, catalogue),
            MostPopularEngine(torch.tensor(codes.training_plays_N, device=world.device)),
        ]
        depth = config.depth or store.num_items
        result = evaluate_windows(
            model, engines, loader, store, world, depth=depth, label="evaluate", filter_history=config.filter_history
        )
        summary = summarise(result, config, manifest, store)
        if world.is_main:
            strata = strata_by_engine(result, codes.training_plays_N)
            # All files or none: the page is made before any is written.
            text = render_report(run, summary, strata, codes.manifest.diagnostics)
            ranks, figures, report = (output_path(run, name, config.events) for name in (RANKS, FIGURES, REPORT))
            write_ranks(ranks, result)
            write_json_atomically(figures, summary)
            write_text_atomically(report, text)
            print(format_table(summary))
            print(f"\nwritten: {figures}, {report}")
        return summary


def _request_loader(
    config: EvaluateConfig, store: EventStore, codes: CodeTable, cfg: ModelConfig, world: World
) -> Loader:
    held_out = getattr(store.split(), config.events)
    if not held_out.asked_U.any():
        raise InputError(
            f"{store.path}: its split, {store.split_config.kind}, holds out no {config.events} event of any of its "
            f"{store.num_users} users; there is nothing to evaluate"
        )
    hashed = cfg.items.kind == "hashed"
    return Loader(
        store,
        item_features(store, codes.codes_NC, codes.codes_per_level, cfg.qr_remainders, keys=hashed),
        request_windows(held_out, cfg.max_history),
        tokens=config.tokens,
        bins=world.size,
        rank=world.rank,
        world_size=world.size,
        seed=0,
        shuffle=False,
    )


def summarise(result: Evaluation, config: EvaluateConfig, manifest: Manifest, store: EventStore) -> dict[str, Any]:
    """The content of `metrics.json`: the exact engine's figures at the top, the other engines' beneath their names."""

    def figures(engine: str) -> dict[str, Any]:
        per_user = metrics.per_user_metrics(result.engines[engine].rank_U)
        intervals = metrics.bootstrap_intervals(per_user, config.bootstrap, config.seed)
        return {**result.summary(engine, store.num_items), "intervals_95": intervals}

    exact, mostpop = figures("exact"), figures("mostpop")
    return {
        "protocol": store.split_config.kind,
        "events": config.events,
        "filter_history": config.filter_history,
        "users": len(result.target_items_U),
        "items": store.num_items,
        "depth": result.depth,
        **exact,
        "ndcg@10_over_mostpop": exact["ndcg@10"] / mostpop["ndcg@10"] if mostpop["ndcg@10"] else None,
        "level_accuracy": result.level_accuracy_C,
        "beam": figures("beam"),
        "faiss": figures("faiss"),
        "mostpop": mostpop,
        "checkpoint": step_folder(manifest.step),
        "epoch": manifest.epoch,
        "store_fingerprint": manifest.store_fingerprint,
        "codes_fingerprint": manifest.codes_fingerprint,
    }


def write_ranks(path: Path, result: Evaluation) -> None:
    """One row a user asked: the item, and its 1-based place with each engine, 0 where the list does not hold it."""
    columns = {"item": result.target_items_U} | {name: engine.rank_U for name, engine in result.engines.items()}
    aside = path.with_name(f".{path.name}.writing")
    try:
        pq.write_table(pa.table(columns), aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def strata_by_engine(result: Evaluation, training_plays_N: np.ndarray) -> dict[str, list[metrics.Stratum]]:
    """HR@10 by how popular the held-out item is, for each engine."""
    plays_U = training_plays_N[result.target_items_U]
    return {name: metrics.recall_by_popularity(engine.rank_U, plays_U, 10) for name, engine in result.engines.items()}


def format_table(summary: dict[str, Any]) -> str:
    """The figures as a table for a terminal: a row an engine, 95% intervals under the metrics that carry them."""
    rows = {"exact": summary} | {name: summary[name] for name in ("beam", "faiss", "mostpop")}
    about = f"{summary['protocol']}, {summary['events']} events, {summary['users']} users, {summary['items']} items"
    filtered = "history filtered" if summary["filter_history"] else "history not filtered"
    lines = [f"{about}, {filtered}, 95% intervals over users"]
    lines.append(" " * 9 + "".join(f"{name:>14}" for name in metrics.NAMES))
    for name, figures in rows.items():
        lines.append(f"{name:<9}" + "".join(f"{figures[column]:>14.4f}" for column in metrics.NAMES))
        bounds = (figures["intervals_95"].get(column) for column in metrics.NAMES)
        lines.append(" " * 9 + "".join(f"{f'{b[0]:.4f}–{b[1]:.4f}' if b else '':>14}" for b in bounds))
    accuracy = ", ".join(f"{share:.3f}" for share in summary["level_accuracy"])
    lines.append(f"accuracy of each code level, given the levels before it: {accuracy}")
    if summary["ndcg@10_over_mostpop"] is not None:
        lines.append(f"NDCG@10 of exact scoring is {summary['ndcg@10_over_mostpop']:.2f} × that of MostPop")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_entry("evaluation.evaluate", "evaluate", EvaluateConfig, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
