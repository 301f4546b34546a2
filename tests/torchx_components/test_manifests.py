"""What TorchX would send to Slurm, Kubernetes (Volcano) and AWS Batch for our components: its own dry runs.

The commands of a manifest are then run as its scheduler would run them, by a `python` that only says what it sees.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx import specs
from torchx.runner import get_runner
from torchx.schedulers.kubernetes_scheduler import sanitize_for_serialization
from torchx.specs.builders import materialize_appdef

from torchx_components import jobs

ROOT = Path(__file__).parents[2]
SCHEDULERS = ("slurm", "kubernetes", "aws_batch")
OPTIONS: dict[str, dict[str, Any]] = {
    "slurm": {"partition": "main"},
    "kubernetes": {"queue": "q"},
    "aws_batch": {"queue": "q"},
}
FIRST_NODE = {  # scheduler: (what it sets on nodes but the first, what it sets on the first)
    "slurm": ({"SLURM_JOB_NODELIST_HET_GROUP_0": "n1"}, {"SLURM_JOB_NODELIST_HET_GROUP_0": "n1"}),
    "kubernetes": ({"VC_TRAIN_0_HOSTS": "n1", "VC_PIPELINE_0_HOSTS": "n1"}, {}),
    "aws_batch": ({"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "n1"}, {}),
}
ODD = ("run=s p'q", "a=${app_id}$$", "b=$HOME $(HOME) `pwd`;x|y", "c=*")

pytestmark = pytest.mark.filterwarnings(
    "ignore:\\s*Role .* configured with restarts", "ignore:Cannot determine resource"
)


def requested(scheduler: str, component: str, *arguments: str) -> Any:
    """The request that TorchX would send."""
    app = materialize_appdef(getattr(jobs, component), ["--config", "a.yaml", *arguments])
    with get_runner("tests") as runner:
        return runner.dryrun(app, scheduler, OPTIONS[scheduler]).request


def volcano_job(*arguments: str) -> dict[str, Any]:
    job = sanitize_for_serialization(requested("kubernetes", *arguments).resource)
    assert isinstance(job, dict)
    return job


def containers(*arguments: str) -> list[dict[str, Any]]:
    """Of Kubernetes' pods, in the order of the nodes."""
    return [task["template"]["spec"]["containers"][0] for task in volcano_job(*arguments)["spec"]["tasks"]]


def batch_job(*arguments: str) -> dict[str, Any]:
    job = requested("aws_batch", *arguments).job_def
    assert isinstance(job, dict)
    return job


def batch_container(*arguments: str) -> dict[str, Any]:
    (nodes,) = batch_job(*arguments)["nodeProperties"]["nodeRangeProperties"]
    assert isinstance(nodes["container"], dict)
    return nodes["container"]


def sbatch_script(*arguments: str) -> str:
    return str(requested("slurm", *arguments).materialize())


# ── what a node runs ─────────────────────────────────────────────────────────────────────────────────────────────────

SAYS_WHAT_IT_SEES = """import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "variables": dict(os.environ)}), flush=True)
"""
RUNS_EVERY_GROUP = """import os, subprocess, sys
given = sys.argv[1:] + [":"]
while given:
    group, given = given[:given.index(":")], given[given.index(":") + 1:]
    options = [word for word in group if word.startswith("--")]
    variables = dict(os.environ)
    for option in options:
        if option.startswith("--export=ALL,"):  # the caller's win, as srun's manual has it
            pairs = (pair.partition("=") for pair in option.removeprefix("--export=ALL,").split(","))
            variables = {name: value for name, _, value in pairs} | variables
    subprocess.run(group[len(options):], env=variables, check=True)
"""


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)


def seen_on_nodes(tmp_path: Path, scheduler: str, *arguments: str) -> list[dict[str, Any]]:
    """What `python` is given on each of two nodes, the command run as the scheduler runs it."""
    write_program(tmp_path / "python", SAYS_WHAT_IT_SEES)
    write_program(tmp_path / "srun", RUNS_EVERY_GROUP)
    base = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/somebody", "OMP_NUM_THREADS": "1"}
    later, first = FIRST_NODE[scheduler]

    def run(command: list[str], **variables: str) -> list[dict[str, Any]]:
        done = subprocess.run(command, env=base | variables, capture_output=True, text=True, timeout=30, check=True)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    if scheduler == "slurm":
        return run(["bash", "-c", sbatch_script(*arguments)], SLURM_JOB_ID="77", **first)
    if scheduler == "aws_batch":
        command = batch_container(*arguments)["command"]
        nodes = ({"AWS_BATCH_JOB_NODE_INDEX": "0"} | first, {"AWS_BATCH_JOB_NODE_INDEX": "1"} | later)
        return [seen for variables in nodes for seen in run(command, **variables)]
    seen = []
    for container, given in zip(containers(*arguments), (first, later), strict=True):
        variables = given | {entry["name"]: entry["value"] for entry in container["env"]}
        seen += run([expanded(word, base | variables) for word in container["command"]], **variables)
    return seen


def expanded(word: str, variables: dict[str, str]) -> str:
    """`$(NAME)` of a known variable, which Kubernetes replaces in commands."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), word)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_both_nodes_meet_at_the_first(scheduler: str, tmp_path: Path) -> None:
    nodes = seen_on_nodes(tmp_path, scheduler, "train", "-j", "2x8", "--rdzv_port", "1234", *ODD)
    assert len(nodes) == 2
    endpoints = [value_of(node, "--rdzv-endpoint") for node in nodes]
    assert endpoints == ["n1:1234" if FIRST_NODE[scheduler][1] else "localhost:1234", "n1:1234"]
    assert len({value_of(node, "--rdzv-id") for node in nodes} - {""}) == 1
    for node in nodes:
        assert node["arguments"][:2] == ["-m", "torchx_components.launch"]
        assert (value_of(node, "--nnodes"), value_of(node, "--nproc-per-node")) == ("2", "8")
        assert node["arguments"][-8:] == ["-m", "trainer.train", "--config", "a.yaml", *ODD]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_nodes_of_a_pipeline_know_which_they_are(scheduler: str, tmp_path: Path) -> None:
    nodes = seen_on_nodes(tmp_path, scheduler, "pipeline", "-j", "2x1", "train.run=x")
    assert [value_of(node, "--node-rank") for node in nodes] == ["0", "1"]
    assert value_of(nodes[1], "--endpoint") == "n1:29500"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_variables_arrive_whole(scheduler: str, tmp_path: Path) -> None:
    """Commas, blanks, and a variable that the shell which submits has as well."""
    given = "NCCL_IB_HCA=mlx5_0,mlx5_1,NOTE=a b;c,OMP_NUM_THREADS=3"
    for node in seen_on_nodes(tmp_path, scheduler, "train", "-j", "2x1", "--env", given):
        expected = {"NCCL_IB_HCA": "mlx5_0,mlx5_1", "NOTE": "a b;c", "OMP_NUM_THREADS": "3"}
        assert expected.items() <= node["variables"].items()


def value_of(node: dict[str, Any], flag: str) -> str:
    arguments: list[str] = node["arguments"]
    return arguments[arguments.index(flag) + 1]


# ── what a scheduler is asked for ────────────────────────────────────────────────────────────────────────────────────

ASKED = (
    "train",
    "-j",
    "3x4",
    "--cpu",
    "16",
    "--gpu",
    "4",
    "--memMB",
    "64000",
    "--image",
    "r/segue:1",
    "--retries",
    "2",
)
MOUNTS = "type=bind,src=/data,dst=/segue/stores,readonly,type=volume,src=claim,dst=/segue/runs"


def test_slurm() -> None:
    script = sbatch_script(*ASKED)
    asked = [line.removeprefix("#SBATCH ").split() for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert [options[0] for options in asked] == [f"--job-name=train-{node}" for node in range(3)]
    for options in asked:
        wanted = {"--requeue", "--partition=main", "--ntasks-per-node=1", "--cpus-per-task=16", "--mem=64000"}
        assert wanted | {"--gpus-per-task=4"} <= set(options)
    assert script.count("#SBATCH hetjob") == 2
    assert "export TORCHX_MAX_RETRIES=2\n" in script  # scontrol requeue, while it has been done less often than that
    assert "--gpus-per-task" not in sbatch_script("train", "-j", "2x1")


def test_kubernetes() -> None:
    job = volcano_job(*ASKED, "--mounts", MOUNTS)
    assert (job["kind"], job["spec"]["queue"], len(job["spec"]["tasks"])) == ("Job", "q", 3)
    for number, task in enumerate(job["spec"]["tasks"]):
        assert (task["name"], task["replicas"]) == (f"train-{number}", 1)
        pod = task["template"]["spec"]
        (container,) = pod["containers"]
        assert (container["image"], pod["restartPolicy"]) == ("r/segue:1", "Never")
        assert container["resources"]["limits"] == {"cpu": "16000m", "memory": "64000M", "nvidia.com/gpu": "4"}
        assert container["resources"]["requests"]["nvidia.com/gpu"] == "4"
        assert container["ports"] == [{"name": "c10d", "containerPort": 29500}]
        assert pod["terminationGracePeriodSeconds"] > 300  # as long as the launcher lets its ranks save
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["mount-0"]["hostPath"] == {"path": "/data"}
        assert volumes["mount-1"]["persistentVolumeClaim"] == {"claimName": "claim"}
        mounted = {mount["name"]: (mount["mountPath"], mount.get("readOnly")) for mount in container["volumeMounts"]}
        assert (mounted["mount-0"], mounted["mount-1"]) == (("/segue/stores", True), ("/segue/runs", False))
        assert mounted["dshm"] == ("/dev/shm", None)  # loader workers hand batches over in shared memory


def test_kubernetes_starts_all_nodes_again_but_not_after_a_fault_of_the_users() -> None:
    spec = volcano_job(*ASKED)["spec"]
    assert spec["maxRetry"] == 3  # Volcano fails a job whose restarts have come up to it: two restarts
    for task in spec["tasks"]:
        assert [(policy.get("exitCode"), policy.get("event"), policy["action"]) for policy in task["policies"]] == [
            (2, None, "TerminateJob"),
            (3, None, "TerminateJob"),
            (130, None, "TerminateJob"),
            (None, "PodEvicted", "RestartJob"),
            (None, "PodFailed", "RestartJob"),
        ]
    assert not any("policies" in task for task in volcano_job("train", "-j", "2x1")["spec"]["tasks"])


def test_an_elastic_job_begins_with_fewer_nodes() -> None:
    tasks = volcano_job("train", "-j", "2:3x1")["spec"]["tasks"]
    assert [task["minAvailable"] for task in tasks] == [1, 1, 0]
    assert " --nnodes 2:3 " in tasks[0]["template"]["spec"]["containers"][0]["command"][2]


def test_aws_batch() -> None:
    job = batch_job(*ASKED, "--mounts", MOUNTS)
    assert (job["type"], job["nodeProperties"]["numNodes"], job["nodeProperties"]["mainNode"]) == ("multinode", 3, 0)
    container = batch_container(*ASKED, "--mounts", MOUNTS)
    assert container["image"] == "r/segue:1"
    resources = {entry["type"]: entry["value"] for entry in container["resourceRequirements"]}
    assert resources == {"VCPU": "16", "MEMORY": "64000", "GPU": "4"}
    assert container["volumes"] == [
        {"name": "mount_0", "host": {"sourcePath": "/data"}},
        {"name": "mount_1", "efsVolumeConfiguration": {"fileSystemId": "claim"}},
    ]
    assert [(mount["containerPath"], mount["readOnly"]) for mount in container["mountPoints"]] == [
        ("/segue/stores", True),
        ("/segue/runs", False),
    ]
    retry = job["retryStrategy"]
    assert retry["attempts"] == 3  # the first among them
    assert [(rule["onExitCode"], rule["action"]) for rule in retry["evaluateOnExit"]] == [
        (status, "EXIT") for status in ("0", "2", "3", "130")
    ]
    assert batch_job("train", "-j", "2x1")["retryStrategy"]["attempts"] == 1


@pytest.mark.parametrize("component", ["prepare", "fit_ids", "encode_ids", "plan"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_components_of_one_process(scheduler: str, component: str) -> None:
    told = str(requested(scheduler, component, "out=x"))
    assert "--config a.yaml out=x" in " ".join(told.split())
    assert "torchx_components.launch" not in told


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "HF_TOKEN": "planted-hf-token",
    "SOMETHING_ELSE": "planted-anything",
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_nothing_of_the_callers_environment_is_in_a_manifest(scheduler: str) -> None:
    options = ",".join(f"{key}={value}" for key, value in OPTIONS[scheduler].items())
    command = [f"{Path(sys.executable).parent}/torchx", "run", "-s", scheduler, "-cfg", options, "--dryrun"]
    command += ["torchx_components/jobs.py:train", "--config", "a.yaml", "-j", "2x2", "--env", "A=1", "run=x"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | SECRETS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    request = done.stdout.partition("=== SCHEDULER REQUEST ===")[2]
    assert "trainer.train" in request
    assert "A=1" in request
    for name, value in SECRETS.items():
        assert value not in done.stdout, name
    if scheduler != "slurm":  # only what TorchX and the launcher need is set by name
        told = json.dumps(yaml.safe_load(request))
        assert set(re.findall(r'"name": "([A-Z_]+)"', told)) <= {
            "TORCHX_JOB_ID",
            "TORCHX_RANK0_HOST",
            "TORCHX_ROLE_IDX",
            "TORCHX_ROLE_NAME",
        }


def test_roles_bring_no_variables_but_torchx_own() -> None:
    app = materialize_appdef(jobs.train, ["--env", "A=1"])
    with get_runner("tests") as runner:
        runner.dryrun(app, "kubernetes", OPTIONS["kubernetes"])
    assert app.roles[0].env == {"TORCHX_JOB_ID": f"kubernetes://tests/{specs.macros.app_id}"}
