"""Every stage of Segue as a TorchX job: `torchx run torchx_components/jobs.py:train --config FILE -j 2x8 key=value …`

Run it from the root of the checkout with the virtual environment active: a job finds `python` on its PATH and the rooms
in its working folder. `--help` after the component lists its arguments; keys come last. `prepare`, `fit_ids`,
`encode_ids` and `plan` are one process; `train` and `evaluate` run `torchx_components.launch` on every node, and
`pipeline` all stages of a file over the same nodes.

What a job runs is a line of bash that replaces itself (`exec`) by the program, so that a scheduler's SIGTERM reaches
the program; bash is there because only it knows, on the node, what the scheduler calls the first node. The variables of
`--env` are set in that line too: Slurm lets a variable of the submitting shell win over one that the job was given, and
tears values at commas and blanks.

TorchX reads this file by exec() inside a module of its own: names at the top level must not be names of
`torchx.specs.finder`, nothing of this folder can be imported, annotations must be evaluated, and of types it knows only
`str`, `int`, `float`, `bool`, `Optional`, `List` and `Dict` (an `Optional[int]` would arrive as text, hence 0 for "not
given"). Docstrings in Google's style become the help text.
"""

# ruff: noqa: UP006, UP035, UP045

import re
import shlex
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

from torchx import specs
from torchx.specs.finder import ComponentValidationException


@dataclass(frozen=True)
class _Machine:
    """What a job asks for on each of its nodes.

    Attributes:
        cpu: cores
        gpu: GPUs
        memMB: memory in MiB
    """

    cpu: int
    gpu: int
    memMB: int


_GPU_NODE_CORES = 88  # eleven a GPU; the smallest common machine of eight GPUs has 96, and the system needs some
_NODES = {  # by the names of `sharding.plan topology=…`, with the memory that it counts on
    "a100-40": _Machine(_GPU_NODE_CORES, 8, 8 * 120 * 1024),
    "a100-80": _Machine(_GPU_NODE_CORES, 8, 8 * 240 * 1024),
    "h100": _Machine(_GPU_NODE_CORES, 8, 8 * 240 * 1024),
    "h200": _Machine(_GPU_NODE_CORES, 8, 8 * 240 * 1024),
    "b200": _Machine(_GPU_NODE_CORES, 8, 8 * 480 * 1024),
    "cpu": _Machine(2, 0, 2 * 16 * 1024),
}
_RANKS_ON_CPUS = 2

_FINAL_STATUSES = (2, 3, 130)
"""Ends that starting again would only repeat: a fault of the user's, a result worse than it may be, Ctrl-C."""
_GRACE_SECONDS = 330
"""From SIGTERM to SIGKILL on Kubernetes, whose 30 are too few to save large tables; the launcher waits 300."""

_SECRET = re.compile(
    r"((^|_|API|ACCESS|PRIVATE)KEY(_ID)?|TOKEN|PASSWORD|PASSWD|PASSPHRASE)$|SECRET(?!.*_(FILE|DIR|PATH)$)",
    re.IGNORECASE,
)


class JobRefused(ComponentValidationException, ValueError):
    """An argument that cannot work; `torchx run` prints its message without a traceback and ends with status 1."""


def prepare(
    *overrides: str,
    config: Optional[str] = None,
    node: str = "",
    cpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
) -> specs.AppDef:
    """Make an event store from an event log (data.prepare, one process).

    Args:
        overrides: key=value …, over the file's section `prepare`
        config: YAML file of the run
        node: machine to ask for, without its GPUs: a100-40, a100-80, h100, h200, b200 or cpu
        cpu: cores to ask the scheduler for; 0: the machine's, or 2
        memMB: memory to ask the scheduler for, in MB; 0: the machine's, or 4096
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
    """
    job = _Job("prepare", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    return _one_process(job, "data.prepare")


def fit_ids(
    *overrides: str,
    config: Optional[str] = None,
    node: str = "",
    cpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
) -> specs.AppDef:
    """Give the items of an event store their semantic ids (semantic_ids.fit, one process).

    Args:
        overrides: key=value …, over the file's section `fit_ids`
        config: YAML file of the run
        node: machine to ask for, without its GPUs: a100-40, a100-80, h100, h200, b200 or cpu
        cpu: cores to ask the scheduler for; 0: the machine's, or 2
        memMB: memory to ask the scheduler for, in MB; 0: the machine's, or 4096
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
    """
    job = _Job("fit_ids", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    return _one_process(job, "semantic_ids.fit")


def encode_ids(
    *overrides: str,
    config: Optional[str] = None,
    node: str = "",
    cpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
) -> specs.AppDef:
    """Code new items by a fitted table: of a newer store, or of vector files (semantic_ids.encode, one process).

    Args:
        overrides: key=value …, over the file's section `encode_ids`
        config: YAML file of the run
        node: machine to ask for, without its GPUs: a100-40, a100-80, h100, h200, b200 or cpu
        cpu: cores to ask the scheduler for; 0: the machine's, or 2
        memMB: memory to ask the scheduler for, in MB; 0: the machine's, or 4096
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
    """
    job = _Job("encode_ids", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    return _one_process(job, "semantic_ids.encode")


def plan(
    *overrides: str,
    config: Optional[str] = None,
    node: str = "",
    cpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
) -> specs.AppDef:
    """Say what every rank of a cluster would hold and send, before paying for it (sharding.plan, one process).

    Args:
        overrides: key=value …, over the file's section `plan`
        config: YAML file of the run
        node: machine to ask for, without its GPUs: a100-40, a100-80, h100, h200, b200 or cpu
        cpu: cores to ask the scheduler for; 0: the machine's, or 2
        memMB: memory to ask the scheduler for, in MB; 0: the machine's, or 4096
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
    """
    job = _Job("plan", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    return _one_process(job, "sharding.plan")


def train(
    *overrides: str,
    config: Optional[str] = None,
    j: str = "",
    node: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
    interface: str = "",
    join_timeout: int = 600,
) -> specs.AppDef:
    """Train a recommender over all ranks (trainer.train under torchx_components.launch).

    Args:
        overrides: key=value …, over the file's section `train`
        config: YAML file of the run
        j: [MIN:]NODESxRANKS; `2x` means a rank a GPU, or two where there is none, and so does nothing at all, on
            one node; `2:4x8` starts with two of four nodes and takes in the others as they come
        node: machine to ask for whole, a100-40, a100-80, h100, h200, b200 (eight GPUs) or cpu (two cores)
        cpu: cores of a node to ask the scheduler for; 0: the machine's, or 2
        gpu: GPUs of a node to ask the scheduler for; 0: the machine's, or none
        memMB: memory of a node to ask the scheduler for, in MB; 0: the machine's, or 8192
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
        max_restarts: how often the launcher starts all ranks again after one has failed, within the job
        rdzv_port: port of the first node where the nodes find one another; one node takes any free port
        interface: network interface between the nodes, such as eth0; nothing: found
        join_timeout: seconds that nodes wait for one another
    """
    job = _Job("train", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    ranks = _Ranks(j, gpu, max_restarts, rdzv_port, interface, join_timeout)
    return _all_ranks(job, ranks, "trainer.train")


def evaluate(
    *overrides: str,
    config: Optional[str] = None,
    j: str = "",
    node: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
    interface: str = "",
    join_timeout: int = 600,
) -> specs.AppDef:
    """Measure a trained run on the held-out test events (evaluation.evaluate under torchx_components.launch).

    Args:
        overrides: key=value …, over the file's section `evaluate`
        config: YAML file of the run
        j: [MIN:]NODESxRANKS; `2x` means a rank a GPU, or two where there is none, and so does nothing at all, on
            one node; `2:4x8` starts with two of four nodes and takes in the others as they come
        node: machine to ask for whole, a100-40, a100-80, h100, h200, b200 (eight GPUs) or cpu (two cores)
        cpu: cores of a node to ask the scheduler for; 0: the machine's, or 2
        gpu: GPUs of a node to ask the scheduler for; 0: the machine's, or none
        memMB: memory of a node to ask the scheduler for, in MB; 0: the machine's, or 8192
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
        max_restarts: how often the launcher starts all ranks again after one has failed, within the job
        rdzv_port: port of the first node where the nodes find one another; one node takes any free port
        interface: network interface between the nodes, such as eth0; nothing: found
        join_timeout: seconds that nodes wait for one another
    """
    job = _Job("evaluate", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    ranks = _Ranks(j, gpu, max_restarts, rdzv_port, interface, join_timeout)
    return _all_ranks(job, ranks, "evaluation.evaluate")


def pipeline(
    *overrides: str,
    config: str,
    j: str = "",
    node: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
    interface: str = "",
    join_timeout: int = 600,
) -> specs.AppDef:
    """Run all stages of a file, raw log to report, over the same nodes (torchx_components.pipeline).

    Stages of one process run on the first node while the others wait; a stage that is done already is skipped.

    Args:
        overrides: SECTION.key=value …, over the file's sections
        config: YAML file of the run
        j: [MIN:]NODESxRANKS; `2x` means a rank a GPU, or two where there is none, and so does nothing at all, on
            one node; `2:4x8` starts with two of four nodes and takes in the others as they come
        node: machine to ask for whole, a100-40, a100-80, h100, h200, b200 (eight GPUs) or cpu (two cores)
        cpu: cores of a node to ask the scheduler for; 0: the machine's, or 2
        gpu: GPUs of a node to ask the scheduler for; 0: the machine's, or none
        memMB: memory of a node to ask the scheduler for, in MB; 0: the machine's, or 8192
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value; never secrets
        mounts: folders for containers, type=bind,src=HOST,dst=PATH[,readonly] or type=volume,src=NAME,dst=PATH
        retries: how often the scheduler starts the job again, all nodes together, after it has failed
        max_restarts: how often the launcher starts all ranks again after one has failed, within the job
        rdzv_port: port of the first node where the nodes find one another, and the next one
        interface: network interface between the nodes, such as eth0; nothing: found
        join_timeout: seconds that nodes wait for one another
    """
    job = _Job("pipeline", config, overrides, node, cpu, memMB, image, env, mounts, retries)
    ranks = _Ranks(j, gpu, max_restarts, rdzv_port, interface, join_timeout)
    return _all_stages(job, ranks)


@dataclass
class _Job:
    """What every component takes, under the names of its arguments; `name` is the component's."""

    name: str
    config: Optional[str]
    overrides: Sequence[str]
    node: str
    cpu: int
    memMB: int
    image: str
    env: Optional[Dict[str, str]]
    mounts: Optional[List[str]]
    retries: int


@dataclass
class _Ranks:
    """What a component of many ranks takes besides, under the names of its arguments."""

    j: str
    gpu: int
    max_restarts: int
    rdzv_port: int
    interface: str
    join_timeout: int


@dataclass
class _Grid:
    """Nodes, and ranks on each; `least` is the number of nodes to begin with, where that may be fewer."""

    least: Optional[int]
    nodes: int
    ranks: int


class _SegueRole(specs.Role):
    """A role whose `max_retries` are further starts, and none of them after a final status, wherever that can be said.

    TorchX hands the number to AWS Batch as that of all attempts; Volcano fails a job whose count of restarts has come
    up to it. Both would start a job once less often than they were asked to. Slurm requeues after any status but 0.
    """

    def pre_proc(self, scheduler: str, dryrun_info: Any) -> Any:
        """Change what TorchX is about to send to a scheduler."""
        if scheduler == "kubernetes":
            _finish_volcano_job(dryrun_info.request.resource["spec"], self.max_retries)
        elif scheduler == "aws_batch":
            exits = [{"onExitCode": str(status), "action": "EXIT"} for status in (0, *_FINAL_STATUSES)]
            retry = {"attempts": self.max_retries + 1, "evaluateOnExit": exits}
            dryrun_info.request.job_def["retryStrategy"] = retry
        return dryrun_info


def _finish_volcano_job(spec: Dict[str, Any], retries: int) -> None:
    for task in spec["tasks"]:
        task["template"].spec.termination_grace_period_seconds = _GRACE_SECONDS
        if retries:  # the first policy that fits is taken; TorchX's, which restart the job, come last
            final = [{"exitCode": status, "action": "TerminateJob"} for status in _FINAL_STATUSES]
            task["policies"] = [*final, *task["policies"]]
    if retries:
        spec["maxRetry"] = retries + 1


def _one_process(job: _Job, module: str) -> specs.AppDef:
    machine = _machine(job, gpu=0, memMB=4096)
    command = ["python", "-m", module, *_entry_arguments(job)]
    return _app(job, _Machine(machine.cpu, 0, machine.memMB), _Grid(None, 1, 1), command, {})


def _all_ranks(job: _Job, ranks: _Ranks, module: str) -> specs.AppDef:
    machine = _machine(job, ranks.gpu, memMB=8192)
    grid = _grid(ranks.j, machine)
    nodes = str(grid.nodes) if grid.least is None else f"{grid.least}:{grid.nodes}"
    flags = [
        *("--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "localhost:0" if grid.nodes == 1 else _first_node(ranks.rdzv_port)),
        *("--rdzv-id", specs.macros.app_id),
        *("--nnodes", nodes),
        *("--nproc-per-node", str(grid.ranks)),
        *_launcher_flags(ranks),
    ]
    command = ["python", "-m", "torchx_components.launch", *flags, "-m", module, *_entry_arguments(job)]
    return _app(job, machine, grid, command, {"c10d": ranks.rdzv_port})


def _all_stages(job: _Job, ranks: _Ranks) -> specs.AppDef:
    machine = _machine(job, ranks.gpu, memMB=8192)
    grid = _grid(ranks.j, machine)
    flags = ["--nodes", str(grid.nodes), "--ranks", str(grid.ranks)]
    if grid.least is not None:
        flags += ["--min-nodes", str(grid.least)]
    if grid.nodes > 1:
        flags += ["--node-rank", specs.macros.replica_id, "--endpoint", _first_node(ranks.rdzv_port)]
    flags += ["--run-id", specs.macros.app_id, *_launcher_flags(ranks)]
    arguments = _entry_arguments(job)
    command = ["python", "-m", "torchx_components.pipeline", *arguments[:2], *flags, *arguments[2:]]
    return _app(job, machine, grid, command, {"c10d": ranks.rdzv_port, "stages": ranks.rdzv_port + 1})


def _app(job: _Job, machine: _Machine, grid: _Grid, command: Sequence[str], ports: Dict[str, int]) -> specs.AppDef:
    _at_least(0, retries=job.retries)
    role = _SegueRole(
        name=job.name,
        image=job.image,
        entrypoint="bash",
        args=["-c", " ".join(["exec", *_environment(job.env), *command])],
        num_replicas=grid.nodes,
        min_replicas=grid.least,
        max_retries=job.retries,
        retry_policy=specs.RetryPolicy.APPLICATION,
        resource=specs.Resource(cpu=machine.cpu, gpu=machine.gpu, memMB=machine.memMB),
        port_map=ports,
        mounts=_mounts(job.mounts),
    )
    return specs.AppDef(name=job.name, roles=[role])


def _machine(job: _Job, gpu: int, memMB: int) -> _Machine:
    """What is given on the command line, or the preset's, or `memMB` and two cores."""
    _at_least(0, cpu=job.cpu, gpu=gpu, memMB=job.memMB)
    if job.node and job.node not in _NODES:
        raise JobRefused(f"--node {job.node}: no such preset; there are {', '.join(_NODES)}")
    preset = _NODES[job.node] if job.node else _Machine(cpu=2, gpu=0, memMB=memMB)
    return _Machine(job.cpu or preset.cpu, gpu or preset.gpu, job.memMB or preset.memMB)


def _grid(j: str, machine: _Machine) -> _Grid:
    found = re.fullmatch(r"(?:(?:([0-9]+):)?([0-9]+)x)?([0-9]*)", j)
    if found is None:
        raise JobRefused(f"`-j {j}`: expected [MIN:]NODESxRANKS, such as 1x2, 16x8, 16x (a rank a GPU) or 2:16x8")
    least, nodes, ranks = (int(number) if number else None for number in found.groups())
    nodes = 1 if nodes is None else nodes
    ranks = (machine.gpu or _RANKS_ON_CPUS) if ranks is None else ranks
    if 0 in (least, nodes, ranks):
        raise JobRefused(f"`-j {j}`: every number of [MIN:]NODESxRANKS is at least 1")
    if least is not None and least > nodes:
        raise JobRefused(
            f"`-j {j}`: begins with {least} nodes but has {nodes}; expected MIN ≤ NODES in MIN:NODESxRANKS"
        )
    if 0 < machine.gpu < ranks:
        raise JobRefused(f"`-j {j}`: {ranks} ranks on a node of {machine.gpu} GPUs; a rank needs a GPU of its own")
    return _Grid(least, nodes, ranks)


def _first_node(port: int) -> str:
    """Shell text that gives HOST:PORT of the first node; its own name is not always known to that node itself."""
    return f"$${{{specs.macros.rank0_env}:-localhost}}:{port}"


def _launcher_flags(ranks: _Ranks) -> List[str]:
    _at_least(0, max_restarts=ranks.max_restarts)
    _at_least(1, join_timeout=ranks.join_timeout)
    if not 1 <= ranks.rdzv_port <= 65534:
        raise JobRefused(f"--rdzv_port {ranks.rdzv_port}: expected a port, 1 to 65534")
    flags = ["--max-restarts", str(ranks.max_restarts), "--join-timeout", str(ranks.join_timeout)]
    return flags + (["--interface", _quoted(ranks.interface)] if ranks.interface else [])


def _entry_arguments(job: _Job) -> List[str]:
    arguments = [] if job.config is None else ["--config", job.config]
    return [_quoted(argument) for argument in [*arguments, *job.overrides]]


def _environment(env: Optional[Dict[str, str]]) -> List[str]:
    for name, value in (env or {}).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobRefused(f"--env {name}=…: no name of a variable; expected letters, digits and `_`")
        if value and _SECRET.search(name):
            raise JobRefused(
                f"--env {name}=…: by its name a secret, which all could read who may look at the job. Slurm: export it "
                "in the shell that submits, jobs inherit it; Kubernetes: mount a secret, or give the service account "
                "or the nodes a role (-cfg service_account=…); AWS Batch: give the job a role (-cfg job_role_arn=…)"
            )
    return ["env", *(f"{name}={_quoted(value)}" for name, value in env.items())] if env else []


def _mounts(mounts: Optional[List[str]]) -> List[Any]:
    try:
        return list(specs.parse_mounts(mounts or []))
    except (KeyError, ValueError) as error:
        raise JobRefused(
            f"--mounts {','.join(mounts or [])}: {error}; expected type=bind,src=HOST,dst=PATH[,readonly] or "
            "type=volume,src=NAME,dst=PATH[,readonly]"
        ) from error


def _at_least(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise JobRefused(f"--{name} {value}: expected at least {least}")


def _quoted(text: str) -> str:
    """A word of bash that means `text`, whatever stands in it.

    TorchX replaces `$name` and `${name}` in arguments, `$$` standing for the sign itself. Its Slurm script replaces
    `${app_id}` once more, and Kubernetes `$(NAME)`: the quotes after the sign end and begin the word's own again, which
    keeps the two characters apart for them.
    """
    return shlex.quote(text).replace("$", "$$''")
