"""Measure a trained run on held-out events: `python -m evaluation.evaluate --config FILE run=runs/NAME`

Under torchrun the requests are spread over the ranks, and the figures stay the same. An evaluation of lists that is
ended goes on where it was when it is called again. Writes into the run folder `metrics.json`, a self-contained
`report.html`, and `ranks.parquet`, which says for every request where each engine put the items asked for, or, of a
model that predicts actions, `predictions.parquet`: two runs are compared user by user (`against=`). With
`events=validation`, on which choices may be made, the files are `metrics-validation.json` and so on.
"""

from __future__ import annotations

import common.startup  # noqa: F401  # isort: skip

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from common.config import run_entry, to_plain
from common.errors import Regression
from common.files import fingerprint_of, write_json_atomically, write_text_atomically
from common.noise import quiet_known_warnings
from data.event_store import EventStore
from evaluation.baselines.build import build_baselines
from evaluation.config import EvaluateConfig
from evaluation.deny_list import read_deny_list
from evaluation.engines import build_engines, list_length
from evaluation.evaluator import Reader, evaluate_requests
from evaluation.guardrails.base import Guardrail
from evaluation.guardrails.differences import Drawing
from evaluation.guardrails.leak_probe import leak_probe
from evaluation.guardrails.run import GuardrailContext, run_guardrails
from evaluation.metrics.comparison import compare_evaluations, regressions
from evaluation.outputs import FIGURES, PARTS, RANKS, REPORT, Ranks, output_path, write_ranks
from evaluation.parts import Parts
from evaluation.ranking.evaluate import evaluate_ranking
from evaluation.report import render_report
from evaluation.requests import NEXT, Requests, make_requests, without_time
from evaluation.results import Evaluation, Ints
from evaluation.subject import Subject, open_subject
from evaluation.summary import format_table, summarise
from evaluation.together import told_by_main
from model.heads import CascadedHeads
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.manifest import step_folder
from serving.checkpoints.model import features_of
from serving.engines.base import Engine
from sharding.ranks.config import WatchConfig
from sharding.ranks.heartbeat import EVALUATION
from sharding.ranks.watch import Watch
from sharding.world import World, open_world


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a checkpoint on the held-out events of its store's split; returns what `metrics.json` holds.

    Raises:
        InputError: checkpoint, codes and store do not belong together, or something else that the user can mend.
        Regression: the run is worse than the one it was to be compared with; everything is written.
        Lost: a process of the job is gone.
    """
    quiet_known_warnings()
    watched = WatchConfig(heartbeat_s=min(WatchConfig.heartbeat_s, config.timeout_s / 8), timeout_s=config.timeout_s)
    with (
        open_world(timedelta(seconds=config.timeout_s)) as world,
        Watch(world, watched, "evaluation.evaluate", "evaluate again: lists go on where they were") as watch,
    ):
        watch.pulse.enter(EVALUATION)
        if (Path(config.run) / "config.yaml").is_file():  # no log in a folder that is no run's
            watch.attach(Path(config.run), role="evaluate-")
        summary = evaluate_in(config, world)
    fallen = summary.get("against", {}).get("fallen", [])
    if fallen:
        raise Regression(f"worse than {config.against}: {'; '.join(fallen)}", summary)
    return summary


def evaluate_in(config: EvaluateConfig, world: World) -> dict[str, Any]:
    """`evaluate`, among processes that have found one another; every rank returns the same."""
    subject = open_subject(config, world)
    evaluated = evaluate_ranking if subject.predicts_actions else evaluate_lists
    return told_by_main(evaluated(subject, world))


def evaluate_lists(subject: Subject, world: World) -> dict[str, Any] | None:
    """A model that retrieves; what `metrics.json` holds, on rank 0."""
    config = subject.config
    denied = read_deny_list(Path(config.deny), subject.store) if config.deny else None
    findings = find(subject, denied, world)
    return None if findings is None else write_results(subject, findings, denied)


@dataclass(frozen=True)
class Findings:
    """What was found, on rank 0.

    Args:
        requests: what was asked.
        result: where engines put it.
        untold: the same by the first engine, when the model is not told when the next event happens; None where it is
            not told anyway.
        leak: whether what is asked for reaches the model.
    """

    requests: Requests
    result: Evaluation
    untold: Evaluation | None
    leak: Guardrail


def find(subject: Subject, denied: Ints | None, world: World) -> Findings | None:
    """Put every request to every engine. Collective; None but on rank 0."""
    config, store = subject.config, subject.store
    model, own = subject.load_model(world)
    reader = reader_of(model, store, subject.codes, config.tokens)
    cfg = model.module.tower.cfg
    requests = make_requests(store, config.events, cfg.max_history, subject.protocol)
    engines = build_engines(config, model, store, subject.codes, own, denied)
    baselines = build_baselines(config.baselines, config.baseline, store, denied, world.device, quiet=not world.is_main)
    depth = list_length(store.num_items, config.depth)

    def asked(asked_of: list[Engine], of: Requests, label: str) -> Evaluation | None:
        parts = Parts(subject.run / PARTS / label, key_of(subject, denied, depth), world.rank)
        return evaluate_requests(
            reader,
            asked_of,
            of,
            store,
            world,
            depth=depth,
            label=label,
            filter_history=subject.filter_history,
            parts=parts,
        )

    if config.restart:
        if world.is_main:
            shutil.rmtree(subject.run / PARTS, ignore_errors=True)
        dist.barrier()
    leak = leak_probe(reader, requests, store, world.device, sample=config.guardrails.probed, seed=config.seed)
    result = asked([*engines, *baselines], requests, "evaluate")
    told = subject.protocol == NEXT and cfg.biases.time and cfg.biases.time_reference == "next"
    untold = asked(engines[:1], without_time(requests, store), "without the time") if told else None
    return None if result is None else Findings(requests, result, untold, leak)


def reader_of(model: Any, store: EventStore, codes: CodeTable, tokens: int) -> Reader:
    """How a trained model reads requests."""
    tower = model.module.tower
    features = features_of(store, codes, tower.cfg)
    heads = tower.heads if isinstance(tower.heads, CascadedHeads) else None
    return Reader(model.module.encode, features, tokens, heads=heads)


def key_of(subject: Subject, denied: Ints | None, depth: int) -> str:
    """Of all that decides what is found of a request."""
    config = to_plain(subject.config)
    for name in (
        "run",
        "against",
        "id_baseline",
        "ablations",
        "guardrails",
        "bootstrap",
        "seed",
        "restart",
        "timeout_s",
        "checkpoints",
        "store",
        "codes",
    ):
        del config[name]
    return fingerprint_of(
        config
        | subject.about()
        | {"checkpoint": dataclasses.asdict(subject.manifest), "depth": depth}
        | {"codes": subject.codes.fingerprint, "denied": [] if denied is None else denied.tolist()}
    )


def write_results(subject: Subject, findings: Findings, denied: Ints | None) -> dict[str, Any]:
    """All files or none: the page is made before any is written."""
    config, manifest, result = subject.config, subject.manifest, findings.result
    summary = {
        **subject.about(),
        "checkpoint": step_folder(manifest.step),
        "epoch": manifest.epoch,
        "codes_fingerprint": manifest.codes_fingerprint,
        "denied": 0 if denied is None else len(denied),
        **summarise(config, result, findings.requests, subject.store, subject.codes, subject.protocol),
    }
    if subject.ablated is not None:
        summary["ablations"] = subject.ablated
    if "against" in subject.references:
        summary["against"] = compare_with(config, result, subject.references["against"])
    summary["guardrails"] = judge(subject, findings, summary)
    text = render_report(subject.run, summary, subject.codes.manifest.diagnostics)
    ranks, figures, report = (output_path(subject.run, name, config.events) for name in (RANKS, FIGURES, REPORT))
    output = "items" if result.levels is None else "codes"
    write_ranks(ranks, result, subject.about() | {"depth": result.depth, "output": output})
    write_json_atomically(figures, summary)
    write_text_atomically(report, text)
    shutil.rmtree(subject.run / PARTS, ignore_errors=True)
    print(format_table(summary))
    print(f"\nwritten: {figures}, {report}")
    return summary


def judge(subject: Subject, findings: Findings, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """What every guardrail says, what to look at first before the rest."""
    config, untold = subject.config, findings.untold
    of_codes = findings.result.levels is not None
    context = GuardrailContext(
        findings.result,
        summary,
        findings.requests,
        subject.store,
        config.guardrails,
        subject.filter_history,
        diagnostics=subject.codes.manifest.diagnostics if of_codes else None,
        leak=findings.leak,
        at_newest=None if untold is None else untold.engines[summary["engine"]],
        no_at_newest="the model is not told when the event asked for happens",
        items=subject.references.get("id_baseline"),
        items_run=config.id_baseline,
        against=summary.get("against"),
        ablated=summary.get("ablations"),
        drawing=Drawing(samples=config.bootstrap, seed=config.seed),
    )
    return [one.to_plain() for one in run_guardrails(context)]


def compare_with(config: EvaluateConfig, result: Evaluation, reference: Ranks) -> dict[str, Any]:
    """The first engine, beside the same of the reference run, request by request."""
    engine = next(iter(result.engines))
    before = reference.evaluation(result.num_items)
    comparison = compare_evaluations(
        before, result, reference.engine_like(engine), engine, samples=config.bootstrap, seed=config.seed
    )
    fallen = [
        f"{one.name} fell from {one.before:.4f} to {one.after:.4f} ({one.low:+.4f} … {one.high:+.4f}, "
        f"p {one.p_holm:.4f})"
        for one in regressions(comparison)
    ]
    return {"run": config.against, **dataclasses.asdict(comparison), "fallen": fallen}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_entry("evaluation.evaluate", "evaluate", EvaluateConfig, evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
