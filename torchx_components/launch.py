"""Start the ranks of a job on this node, and join them with those of the others.

`python -m torchx_components.launch [FLAGS] -m MODULE key=value …` is torchrun, with its flags, its rendezvous and its
agent, and besides

- says in one message which node is missing, or which rank on which node failed and how;
- ends on every node with one status, the ranks' own: 0 done, 2 a fault that the user can mend, 3 worse than what it was
  held against, 130 and 143 stopped by Ctrl-C and SIGTERM, 4 the job did not come together or fell apart, 1 all else;
- starts ranks again (--max-restarts) after 1 and 4 alone, since any other would come again;
- chooses the network interface, and tells it to gloo and NCCL;
- gives ranks 300 s to save after a signal (--shutdown-timeout), where torchrun gives 30.
"""

from __future__ import annotations

import os

_CPP_LEVEL = "TORCH_CPP_LOG_LEVEL"
_IS_CPP_LEVEL_GIVEN = _CPP_LEVEL in os.environ
os.environ.setdefault(_CPP_LEVEL, "ERROR")  # read as torch is imported: its warnings of a lost store are stack traces

import argparse
import contextlib
import importlib.util
import json
import logging
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.argparse_util import env
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import get_error_handler, record
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, registry
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher.api import LaunchConfig

from torchx_components import interfaces
from torchx_components.agent import Agent
from torchx_components.endings import (
    DONE,
    FAULT,
    FINAL,
    INTERRUPTED,
    LOST,
    STORE_ERRORS,
    TERMINATED,
    Endings,
    Fault,
    Lost,
    NodeEnd,
    describe,
    describe_early_stop,
    overall,
)
from torchx_components.node_names import expected_names, missing, own_name
from torchx_components.rendezvous import Endpoint, Gathering, Meeting, say

JOIN_TIMEOUT_S = 600
SHUTDOWN_TIMEOUT_S = 300
"""Torch's own 30 s are not enough to save large tables."""

WAIT_AFTER_SUCCESS_S = 300
WAIT_AFTER_FAILURE_S = 60
WAIT_AFTER_SIGNAL_S = 10
"""How long a node waits for the others' ends: after a signal, something waits for this process."""


def parser() -> argparse.ArgumentParser:
    """Torchrun's flags and ours; each may be given as an environment variable PET_NAME too."""
    made = torchrun.get_args_parser()
    made.prog = "python -m torchx_components.launch"
    made.description = __doc__
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument(
        "--interface",
        action=env,
        type=str,
        default=None,
        help="Network interface for gloo, NCCL and this node's address; without it, that of the route to the first "
        "node.",
    )
    made.add_argument(
        "--join-timeout",
        "--join_timeout",
        action=env,
        type=int,
        default=None,
        help=f"Seconds that nodes wait for one another (default {JOIN_TIMEOUT_S}); beyond, status {LOST}.",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ranks of this node; returns the exit status."""
    _quieten_torch()
    arguments = parser().parse_args(argv)
    try:
        for number in arguments.signals_to_handle.split(","):
            signal.signal(signal.Signals[number.strip()], _raise_signal)
        config, entrypoint, rest = configure(arguments)
        return run(config, entrypoint, rest)
    except Fault as fault:
        return _give_up(str(fault), FAULT)
    except Lost as lost:
        return _give_up(str(lost), LOST)
    except SignalException as stop:  # before there were ranks, or after they had ended
        status = INTERRUPTED if stop.sigval == signal.SIGINT else TERMINATED
        return _give_up(describe_early_stop(stop.sigval), status)


def configure(arguments: argparse.Namespace) -> tuple[LaunchConfig, Callable[..., Any] | str, list[str]]:
    """What torch makes of the flags, with our defaults, and the command of a rank.

    Raises:
        Fault: a flag's value cannot be.
    """
    _check_there_is_something_to_run(arguments)
    is_plain = arguments.rdzv_backend == "static" and not arguments.rdzv_endpoint and arguments.master_port is None
    if arguments.standalone or (is_plain and arguments.nnodes in ("1", "1:1")):
        arguments.rdzv_backend, arguments.rdzv_endpoint, arguments.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
    if arguments.master_port is None:
        arguments.master_port = 29500
    if arguments.shutdown_timeout is None and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ:
        arguments.shutdown_timeout = SHUTDOWN_TIMEOUT_S
    try:
        config, entrypoint, rest = torchrun.config_from_args(arguments)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise Fault(f"command line: {error}") from None
    if arguments.join_timeout is not None and arguments.join_timeout < 1:
        raise Fault(f"--join-timeout {arguments.join_timeout}: must be at least 1 second")
    if arguments.join_timeout is not None or "join_timeout" not in config.rdzv_configs:
        config.rdzv_configs["join_timeout"] = arguments.join_timeout or JOIN_TIMEOUT_S
    _choose_interface(arguments.interface, config)
    return config, entrypoint, rest


def run(config: LaunchConfig, entrypoint: Callable[..., Any] | str, arguments: Sequence[str]) -> int:
    """Meet the other nodes, run the ranks, and part.

    Raises:
        Fault: a setting of the rendezvous cannot be.
        Lost: the first node did not answer.
    """
    node = own_name(os.environ)
    handler, endings = _open_rendezvous(config, node)
    master = parse_rendezvous_endpoint(config.rdzv_endpoint, 29500) if config.rdzv_backend == "static" else (None, None)
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        args=tuple(arguments),
        rdzv_handler=handler,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        master_addr=master[0],
        master_port=master[1],
        local_addr=config.local_addr,
        event_log_handler=config.event_log_handler,
        numa_options=config.numa_options,
        duplicate_stdout_filters=config.duplicate_stdout_filters,
        duplicate_stderr_filters=config.duplicate_stderr_filters,
        virtual_local_rank=config.virtual_local_rank,
    )
    agent = Agent(
        spec,
        node,
        endings,
        logs_specs=config.logs_specs,
        start_method=config.start_method,
        log_line_prefix_template=config.log_line_prefix_template,
        shutdown_timeout=config.shutdown_timeout,
    )
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = config.signals_to_handle
    end, is_stopped = agent.attend()
    if end.status != DONE:
        _ignore_signals(config.signals_to_handle)
    # The rest of an elastic job goes on without a node that is taken away.
    ends = (
        [end] if is_stopped and config.min_nodes < config.max_nodes else _part(handler, endings, agent, end, is_stopped)
    )
    status = overall(each.status for each in ends)
    text = summary(end, ends, status)
    if text:
        say(text)
    if status != DONE:
        _leave_reply(agent, text)
    return status


def summary(own: NodeEnd, ends: Sequence[NodeEnd], status: int) -> str:
    """What the launcher of one node has to say at the end, if anything: what a rank of it said is not said again."""
    said = "; ".join(dict.fromkeys(end.said for end in ends if end.said))
    ranks = [rank for end in ends for rank in end.ranks]
    if status not in FINAL:
        return "; ".join(text for text in (describe(ranks), said) if text) if status != DONE else said
    guilty = [rank for rank in ranks if rank.status == status]
    if not guilty or any(rank in own.ranks and (rank.said or status != FAULT) for rank in guilty):
        return said
    words = next((rank.said for rank in guilty if rank.said), "")
    return describe(guilty) + (f": {words}" if words else "")


def _part(
    handler: RendezvousHandler, endings: Endings | None, agent: Agent, end: NodeEnd, is_stopped: bool
) -> list[NodeEnd]:
    """Tell the others, hear them, and close the rendezvous; returns how the nodes ended."""
    ends = [end]
    if isinstance(handler, Meeting) and endings is not None:
        endings.tell(end)
        with contextlib.suppress(*STORE_ERRORS):
            handler.set_closed()  # whoever waits there for another start hears of it
        seconds = WAIT_AFTER_SUCCESS_S if end.status == DONE else WAIT_AFTER_FAILURE_S
        nodes = agent.get_worker_group().group_world_size or handler.settings.min_nodes
        known = endings.wait(nodes, handler.living, WAIT_AFTER_SIGNAL_S if is_stopped else seconds)
        ends = known if end in known else [*known, end]
    if not is_stopped:
        with contextlib.suppress(*STORE_ERRORS):
            handler.shutdown()
    return ends


def _open_rendezvous(config: LaunchConfig, node: str) -> tuple[RendezvousHandler, Endings | None]:
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **config.rdzv_configs,
    )
    try:
        if not _is_ours(config):
            return registry.get_rendezvous_handler(parameters), None
        meeting = Meeting.open(Gathering(parameters, Endpoint.parse(config.rdzv_endpoint), node, os.environ))
    except ValueError as error:
        raise Fault(f"--rdzv-conf: {error}") from None
    return meeting, meeting.endings


def _is_ours(config: LaunchConfig) -> bool:
    return config.rdzv_backend == "c10d" and config.rdzv_configs.get("store_type", "tcp") == "tcp"


def _choose_interface(wanted: str | None, config: LaunchConfig) -> None:
    """Fix by which interface the nodes speak, where there are several nodes."""
    if config.max_nodes == 1:
        config.local_addr = config.local_addr or "localhost"  # the host's own name may lead nowhere
        return
    if not config.rdzv_endpoint:
        raise Fault("--rdzv-endpoint is missing: HOST:PORT of the first node, the same on all nodes")
    here = own_name(os.environ)
    others = missing(expected_names(os.environ), [here])
    kept = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    host = config.local_addr or Endpoint.parse(config.rdzv_endpoint).host
    path: interfaces.Path | None
    if wanted or kept:
        path = interfaces.named(wanted or kept, "--interface" if wanted else "GLOO_SOCKET_IFNAME")
    else:
        path = interfaces.found(host, others)
    if path is None:
        config.local_addr = config.local_addr or "localhost"
        return
    interfaces.announce(path, os.environ, is_wanted=wanted is not None)
    config.local_addr = config.local_addr or path.address
    by = f"interface {path.interface}" if path.interface else "an interface that the system does not list"
    say(f"{here} speaks to the other nodes as {config.local_addr}, by {by}")


def _check_there_is_something_to_run(arguments: argparse.Namespace) -> None:
    """A misspelt name would fail on every rank, again and again."""
    name = arguments.training_script
    if arguments.module:
        try:
            is_there = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            is_there = False
        if not is_there:
            raise Fault(f"-m {name}: no such module in {Path.cwd()} or the environment of {sys.executable}")
    elif not arguments.no_python and not Path(name).is_file():
        raise Fault(f"{name}: no such file; a module is given as -m {name}")


def _raise_signal(number: int, _frame: FrameType | None) -> None:
    """As torch does once ranks run: what waits for them ends them."""
    raise SignalException(f"got {signal.Signals(number).name}", signal.Signals(number))


def _ignore_signals(names: str) -> None:
    """How it ended stands: Slurm's srun ends a node's launcher as soon as another one has ended, and would hide it."""
    for name in names.split(","):
        signal.signal(signal.Signals[name.strip()], signal.SIG_IGN)


def _quieten_torch() -> None:
    """What torch's agent logs is said here in a line, unless the user asks for its words by LOGLEVEL."""
    if not _IS_CPP_LEVEL_GIVEN:
        os.environ.pop(_CPP_LEVEL, None)  # this process has read it; the ranks speak as they do
    if "LOGLEVEL" in os.environ:
        return
    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _give_up(text: str, status: int) -> int:
    say(text)
    _write_reply(text)
    return status


def _leave_reply(agent: Agent, text: str) -> None:
    """Tell TorchX the cause: in the words of the rank that failed, if it left any."""
    if agent.failure is not None and Path(agent.failure.error_file).is_file():
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            get_error_handler().dump_error_file(agent.failure.error_file, agent.failure.exitcode)
    else:
        _write_reply(text)


def _write_reply(text: str) -> None:
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and text:
        content = {"message": {"message": f"launch: {text}", "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(content))


if __name__ == "__main__":
    sys.exit(record(main)())
