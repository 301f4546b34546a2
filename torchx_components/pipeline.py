"""All stages of a run, from raw log to report, over the nodes of a job.

    python -m torchx_components.pipeline --config FILE --ranks 2 train.epochs=5
    python -m torchx_components.pipeline --config FILE --nodes 2 --ranks 8 --node-rank 0 --endpoint n1:29500

Of synthesize, prepare, fit_ids, train and evaluate, those that the file has a section for run in this order: the last
two as ranks on all nodes, under torchx_components.launch, the others as one process on node 0, while the other nodes
wait. Start the same line on every node, each with its own --node-rank; all must see the same folders. Keys are given as
SECTION.key=value, and values of the file that refer to a key given so follow it.

A stage whose output is there, whole and made from the same configuration and inputs, is skipped, and training goes on
from its newest checkpoint unless `train.resume` or `train.overwrite` says otherwise: the same line, started again, goes
on where it was ended.

Exit status: 0 done; that of the stage that failed; 2 a fault of the command line or of any stage's keys, told before
any work; 4 a node did not come, or fell silent; 130 and 143 a signal ended the running stage, on all nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

from torchx_components.stages.catalogue import STAGES
from torchx_components.stages.following import Follow
from torchx_components.stages.job import Job
from torchx_components.stages.leading import Lead
from torchx_components.stages.processes import INTERRUPTED, MENDABLE, TERMINATED, Ended, Stops
from torchx_components.stages.talk import Endpoint, host, join, parse_endpoint


def run_pipeline(job: Job, stops: Stops) -> int:
    """Run this node's part; returns the exit status of the whole.

    Raises:
        Ended: it cannot be done.
    """
    return _lead(job, stops) if job.node == 0 else _follow(job, stops)


def _lead(job: Job, stops: Stops) -> int:
    talk = None if job.endpoint is None else host(job.endpoint, job.run_id, job.nodes)
    lead, status = Lead(job, talk, stops), 1
    try:
        status = lead.run(job.steps())
    except Ended as ended:
        status = ended.status
        raise
    finally:
        lead.end(status)
    return status


def _follow(job: Job, stops: Stops) -> int:
    assert job.endpoint is not None
    print(f"pipeline (node {job.node}): looks for node 0 at {job.endpoint.above}", flush=True)
    talk = join(job.endpoint, job.run_id, job.node, job.join_timeout_s, stops)
    try:
        return Follow(job, talk, stops).run(job.steps())
    except Ended as ended:
        talk.say(stop=ended.status)
        raise
    finally:
        talk.close()


def parse(argv: Sequence[str]) -> Job:
    """The command line.

    Raises:
        Ended: with everything that is wrong with it.
        SystemExit: after `--help`.
    """
    parser = _Parser(
        prog="python -m torchx_components.pipeline",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the job")
    parser.add_argument("--ranks", type=int, default=1, help="ranks on each node")
    parser.add_argument(
        "--min-nodes", type=int, help="with how many training and evaluation may go on; all where not given"
    )
    parser.add_argument("--node-rank", type=int, default=0, help="this node's number, from 0")
    parser.add_argument(
        "--endpoint",
        default="",
        metavar="HOST:PORT",
        help="where node 0 is, needed for more than one node; PORT and the one above it must be free and reachable",
    )
    parser.add_argument("--run-id", default="pipeline", help="by which nodes know that they belong together")
    parser.add_argument("--interface", default="", help="network interface of the ranks, found where not given")
    parser.add_argument("--join-timeout", type=int, default=600, metavar="S", help="how long nodes wait for others")
    parser.add_argument("--max-restarts", type=int, default=0, help="how often ranks are started again after a failure")
    parser.add_argument("--stages", default="", help="comma-separated; all that the file has where not given")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.key=value", help="over the file's sections")
    given = parser.parse_intermixed_args(list(argv))
    least = given.nodes if given.min_nodes is None else given.min_nodes
    chosen = tuple(name for name in given.stages.split(",") if name)
    endpoint, faults = _endpoint(given.nodes, given.endpoint)
    for flag, value, lowest, highest in (
        ("nodes", given.nodes, 1, None),
        ("ranks", given.ranks, 1, None),
        ("min-nodes", least, 1, max(given.nodes, 1)),
        ("node-rank", given.node_rank, 0, max(given.nodes, 1) - 1),
        ("join-timeout", given.join_timeout, 1, None),
        ("max-restarts", given.max_restarts, 0, None),
    ):
        if value < lowest or (highest is not None and value > highest):
            rule = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
            faults.append(f"`--{flag}` is {value}, must be {rule}")
    known = [stage.name for stage in STAGES]
    faults += [f"`--stages` names {name!r}; stages are {', '.join(known)}" for name in chosen if name not in known]
    if faults:
        raise Ended(MENDABLE, *(f"command line: {fault}" for fault in faults))
    return Job(
        config=given.config,
        overrides=tuple(given.overrides),
        chosen=chosen,
        nodes=given.nodes,
        least=least,
        ranks=given.ranks,
        node=given.node_rank,
        endpoint=endpoint,
        run_id=given.run_id,
        interface=given.interface,
        join_timeout_s=given.join_timeout,
        max_restarts=given.max_restarts,
    )


def _endpoint(nodes: int, text: str) -> tuple[Endpoint | None, list[str]]:
    """Where the nodes meet, and what is wrong with that; one node meets nobody."""
    if nodes <= 1:
        return None, []
    if not text:
        return None, [f"`--endpoint` HOST:PORT is required with {nodes} nodes: where node 0 is"]
    try:
        return parse_endpoint(text), []
    except ValueError as error:
        return None, [str(error)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise Ended(MENDABLE, f"command line: {message}; --help lists the flags")


def report(messages: Sequence[str]) -> None:
    """Say why the pipeline cannot go on, on standard error and in the reply that TorchX shows as the cause."""
    text = f"pipeline: {messages[0]}"
    if len(messages) > 1:
        text = "\n".join([f"pipeline: {len(messages)} faults", *(f"  - {message}" for message in messages)])
    print(text, file=sys.stderr, flush=True)
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply:
        content = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        try:
            Path(reply).write_text(json.dumps(content), encoding="utf-8")
        except OSError:
            return  # the text is printed all the same


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        with Stops() as stops:
            return run_pipeline(parse(sys.argv[1:] if argv is None else argv), stops)
    except Ended as ended:
        if ended.messages:
            report(ended.messages)
        elif ended.status in (INTERRUPTED, TERMINATED):
            print("pipeline: stopped by a signal; the same line goes on from here", file=sys.stderr)
        else:
            print(f"pipeline: ended with status {ended.status}, as another node asked", file=sys.stderr)
        return ended.status
    except OSError as error:
        report([f"{error.filename or 'the operating system'}: {error.strerror or error}"])
        return MENDABLE


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # a thread that the network holds would abort the interpreter on its way out
