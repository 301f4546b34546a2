from __future__ import annotations

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torchx import specs
from torchx.specs import finder, macros
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import validate

from sharding.planning.topology import PRESETS
from tests.torchx_components.whole_run import write_whole_run
from torchx_components import jobs

ROOT = Path(__file__).parents[2]
FILE = ROOT / "torchx_components" / "jobs.py"
COMPONENTS = {
    "prepare": jobs.prepare,
    "fit_ids": jobs.fit_ids,
    "encode_ids": jobs.encode_ids,
    "plan": jobs.plan,
    "train": jobs.train,
    "evaluate": jobs.evaluate,
    "pipeline": jobs.pipeline,
}
DISTRIBUTED = ("train", "evaluate", "pipeline")
CONFIG_GIVEN = ["--config", "a.yaml"]  # `pipeline` does not go without


def torchx_run(component: str, *arguments: str, logs: Path) -> subprocess.CompletedProcess[str]:
    """`torchx run` as a user types it in the root of the checkout, with the virtual environment active."""
    binaries = str(Path(sys.executable).parent)
    scheduler = ("-s", "local_cwd", "-cfg", f"log_dir={logs}")
    command = [f"{binaries}/torchx", "run", *scheduler, f"torchx_components/jobs.py:{component}", *arguments]
    # A job must not take itself for a rank of something that runs these tests.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment["PATH"] = f"{binaries}:{environment['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:
        try:
            told = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its job with it
            raise
    return subprocess.CompletedProcess(command, process.returncode, *told)


def test_every_component_through_torchx(tmp_path: Path) -> None:
    """As users go from one to the next, some over two nodes, which are one machine here, as `local_cwd` makes them."""
    config = write_whole_run(tmp_path)
    logs = tmp_path / "logs"

    def run(component: str, *arguments: str) -> None:
        done = torchx_run(component, "--config", str(config), *arguments, logs=logs)
        assert done.returncode == 0, done.stderr

    def of_two_nodes() -> tuple[str, ...]:
        return "-j", "2x1", "--rdzv_port", str(free_ports(2)), "--env", "OMP_NUM_THREADS=1"

    run("pipeline", *of_two_nodes(), "--", "--stages", "prepare,fit_ids")
    run("encode_ids", f"out={tmp_path}/codes again $HOME")  # what a shell or TorchX might take for something else
    assert (tmp_path / "codes again $HOME" / "manifest.json").exists()
    run("plan", "ranks_per_node=2", f"out={tmp_path}/plan")
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["num_ranks"] == 2
    run("train", *of_two_nodes(), "epochs=2")
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
    trained = json.loads(newest.read_text())
    assert (trained["world_size"], trained["epoch"]) == (2, 2)  # -j and the override arrived
    run("evaluate", "-j", "1x2", "--", "bootstrap=11")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["split"], metrics["protocol"]) == ("leave-last-out", "next")
    assert metrics["users"] > 0
    # The output of every replica is kept.
    kept = sorted(path.parts[-3] for path in logs.glob("torchx/*/*/*/combined.log"))
    assert kept == ["encode_ids", "evaluate", "pipeline", "pipeline", "plan", "train", "train"]


def free_ports(number: int) -> int:
    """The first of `number` ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as taken:
            first = taken.enter_context(socket.create_server(("", 0))).getsockname()[1]
            with contextlib.suppress(OSError):
                for port in range(first + 1, first + number):
                    taken.enter_context(socket.create_server(("", port)))
                return int(first)


def test_a_fault_fails_the_job_and_is_named(tmp_path: Path) -> None:
    done = torchx_run("prepare", "source=yambda", "ouT=x", logs=tmp_path)
    assert done.returncode == 1  # TorchX's own
    assert "unknown key `ouT`; did you mean `out`?" in done.stderr
    (reply,) = tmp_path.rglob("error.json")
    assert "unknown key `ouT`" in json.loads(reply.read_text())["message"]["message"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_torchx_accepts_the_component(name: str) -> None:
    assert validate(str(FILE), name) == []


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_argument_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        materialize_appdef(COMPONENTS[name], ["--help"])
    shown = capsys.readouterr().out
    wanted = {"--config", "--node", "--cpu", "--memMB", "--image", "--env", "--mounts", "--retries"}
    if name in DISTRIBUTED:
        wanted |= {"-j", "--gpu", "--max_restarts", "--rdzv_port", "--interface", "--join_timeout"}
    options = [line for line in shown.partition("options:")[2].splitlines() if line.startswith("  -")]
    assert {line.split()[0].rstrip(",") for line in options} - {"--help"} == wanted
    described = jobs.__dict__[name].__doc__
    for option in wanted | {"overrides"}:
        assert f"  {option.strip('-')}: " in described, option


def test_top_level_names_do_not_shadow_those_of_torchx() -> None:
    """TorchX runs the file by exec() in the namespace of torchx.specs.finder, overwriting what stands there."""
    tree = ast.parse(FILE.read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    assert {"train", "_Job", "_NODES"} <= defined
    shadowed = {name for name in defined if name in ast_names(Path(finder.__file__))}
    assert not shadowed


def ast_names(path: Path) -> set[str]:
    """Names used anywhere in a Python file."""
    tree = ast.parse(path.read_text())
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def role_of(name: str, *arguments: str) -> specs.Role:
    (role,) = materialize_appdef(COMPONENTS[name], [*CONFIG_GIVEN, *arguments]).roles
    return role


def command_of(name: str, *arguments: str) -> str:
    """What bash is given, the macros replaced as a scheduler does."""
    role = role_of(name, *arguments)
    applied = macros.Values(img_root="", app_id="id", replica_id="7", rank0_env="R0").apply(role)
    assert (applied.entrypoint, applied.args[0], len(applied.args)) == ("bash", "-c", 2)
    return str(applied.args[1])


def executed(folder: Path, name: str, *arguments: str, **environment: str) -> dict[str, list[str] | dict[str, str]]:
    """What the program that bash turns into sees: its arguments, its environment and its process id."""
    python = folder / "python"
    body = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getpid()]))"
    python.write_text(f"#!{sys.executable}\n{body}\n")
    python.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **environment}
    command = ["bash", "-c", command_of(name, *arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    seen, variables, pid = json.loads(process.communicate(timeout=30)[0])
    assert pid == process.pid  # a scheduler's signals reach the program, not a shell in front of it
    return {"arguments": seen, "environment": variables}


ODD = ("out=s p", "run=a'b\"c", "a=${app_id}$$", "b=$HOME $(pwd) `pwd`;x|y", "c=*", "d=", "e=é")


@pytest.mark.parametrize("name", COMPONENTS)
def test_whatever_stands_in_a_key_reaches_the_program(name: str, tmp_path: Path) -> None:
    arguments = executed(tmp_path, name, *ODD)["arguments"]
    assert [argument for argument in arguments if argument in ODD] == list(ODD)
    assert arguments[arguments.index("--config") + 1] == "a.yaml"


@pytest.mark.parametrize("name", COMPONENTS)
def test_variables_reach_the_program_and_win_over_the_callers(name: str, tmp_path: Path) -> None:
    """Slurm lets the caller's win over what TorchX hands it, and cuts values at commas."""
    given = "A=$B${app_id},mlx5_0,mlx5_1,OMP_NUM_THREADS=3,C=x y;z,D=''"
    variables = executed(tmp_path, name, "--env", given, OMP_NUM_THREADS="1", KEPT="k")["environment"]
    expected = {"A": "$B${app_id},mlx5_0,mlx5_1", "OMP_NUM_THREADS": "3", "C": "x y;z", "D": "", "KEPT": "k"}
    assert expected.items() <= variables.items()
    assert not role_of(name, "--env", given).env


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("prepare", "data.prepare"),
        ("fit_ids", "semantic_ids.fit"),
        ("encode_ids", "semantic_ids.encode"),
        ("plan", "sharding.plan"),
    ],
)
def test_one_process_runs_the_module(name: str, module: str) -> None:
    arguments = ("--cpu", "3", "--memMB", "512", "--image", "x:1", "--retries", "2", "out=b")
    assert command_of(name, *arguments) == f"exec python -m {module} --config a.yaml out=b"
    role = role_of(name, *arguments)
    resource = role.resource
    assert (role.num_replicas, resource.cpu, resource.gpu, resource.memMB, role.image) == (1, 3, 0, 512, "x:1")
    assert (role.max_retries, role.retry_policy) == (2, specs.RetryPolicy.APPLICATION)


@pytest.mark.parametrize(
    ("j", "least", "nodes", "ranks", "endpoint"),
    [
        ("2", None, 1, 2, "localhost:0"),
        ("1x2", None, 1, 2, "localhost:0"),
        ("", None, 1, 4, "localhost:0"),  # a rank a GPU
        ("3x4", None, 3, 4, "${R0:-localhost}:1234"),
        ("3x", None, 3, 4, "${R0:-localhost}:1234"),
        ("2:5x3", 2, 5, 3, "${R0:-localhost}:1234"),
        ("1:2x", 1, 2, 4, "${R0:-localhost}:1234"),
    ],
)
def test_ranks_and_rendezvous(j: str, least: int | None, nodes: int, ranks: int, endpoint: str) -> None:
    arguments = ("-j", j, "--gpu", "4", "--rdzv_port", "1234", "--max_restarts", "2", "--join_timeout", "33", "run=a b")
    role = role_of("train", *arguments)
    assert (role.num_replicas, role.min_replicas, role.resource.gpu) == (nodes, least, 4)
    assert role.port_map == {"c10d": 1234}
    expected = (
        f"exec python -m torchx_components.launch --rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id id "
        f"--nnodes {nodes if least is None else f'{least}:{nodes}'} --nproc-per-node {ranks} --max-restarts 2 "
        "--join-timeout 33 -m trainer.train --config a.yaml 'run=a b'"
    )
    assert command_of("train", *arguments) == expected


def test_an_interface_is_passed_on() -> None:
    assert " --interface ib0 -m evaluation.evaluate" in command_of("evaluate", "--interface", "ib0")
    assert "--interface" not in command_of("evaluate")


def test_the_pipeline_runs_on_every_node() -> None:
    arguments = ("-j", "2:3x", "--node", "h100", "--rdzv_port", "1234", "--interface", "ib0", "train.run=a b")
    role = role_of("pipeline", *arguments)
    assert (role.num_replicas, role.min_replicas, role.port_map) == (3, 2, {"c10d": 1234, "stages": 1235})
    assert command_of("pipeline", *arguments) == (
        "exec python -m torchx_components.pipeline --config a.yaml --nodes 3 --ranks 8 --min-nodes 2 --node-rank 7 "
        "--endpoint ${R0:-localhost}:1234 --run-id id --max-restarts 0 --join-timeout 600 --interface ib0 "
        "'train.run=a b'"
    )
    assert command_of("pipeline") == (
        "exec python -m torchx_components.pipeline --config a.yaml --nodes 1 --ranks 2 --run-id id --max-restarts 0 "
        "--join-timeout 600"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_planners(name: str) -> None:
    """A plan for `topology=h100` holds on a job with `--node h100`: GPUs, ranks and the memory of the host."""
    planned = PRESETS[name]
    role = role_of("train", "--node", name)
    gpus = planned.ranks if planned.device == "cuda" else 0
    ranks = gpus or 2
    assert role.resource.gpu == gpus
    assert f" --nproc-per-node {ranks} " in command_of("train", "--node", name)
    assert role.resource.memMB * 2**20 == ranks * planned.node.ddr
    assert role.resource.cpu >= ranks
    alone = role_of("prepare", "--node", name).resource
    assert (alone.cpu, alone.gpu, alone.memMB) == (role.resource.cpu, 0, role.resource.memMB)


def test_there_is_no_preset_that_the_planner_lacks() -> None:
    assert set(jobs._NODES) == set(PRESETS)


def test_what_is_given_wins_over_a_preset() -> None:
    given = role_of("train", "--node", "h100", "--cpu", "5", "--gpu", "4", "--memMB", "100").resource
    assert (given.cpu, given.gpu, given.memMB) == (5, 4, 100)
    assert " --nproc-per-node 4 " in command_of("train", "--node", "h100", "--gpu", "4")
    without = role_of("train").resource
    assert (without.cpu, without.gpu, without.memMB) == (2, 0, 8192)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-j", "2×8"], r"`-j 2×8`: expected \[MIN:\]NODESxRANKS"),
        (["-j", "2:"], r"`-j 2:`: expected"),
        (["-j", "1:2"], r"`-j 1:2`: expected"),
        (["-j", "0x2"], r"at least 1"),
        (["-j", "0:2x2"], r"at least 1"),
        (["-j", "4:2x1"], r"begins with 4 nodes but has 2; .*MIN ≤ NODES"),
        (["-j", "1x8", "--gpu", "4"], r"8 ranks on a node of 4 GPUs"),
        (["-j", "9", "--node", "h100"], r"9 ranks on a node of 8 GPUs"),
        (["--node", "h101"], r"--node h101: no such preset; there are a100-40, .*, cpu"),
        (["--cpu", "-1"], r"--cpu -1: expected at least 0"),
        (["--retries", "-1"], r"--retries -1: expected at least 0"),
        (["--max_restarts", "-1"], r"--max_restarts -1: expected at least 0"),
        (["--join_timeout", "0"], r"--join_timeout 0: expected at least 1"),
        (["--rdzv_port", "65535"], r"--rdzv_port 65535: expected a port"),
        (["--mounts", "type=bind,src=/a"], r"--mounts type=bind,src=/a: 'dst'; expected type=bind,src=HOST,dst=PATH"),
        (["--mounts", "src=/a"], r"type must be specified first.*expected type=bind"),
        (["--env", "a-b=1"], r"--env a-b=…: no name of a variable"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], told: str) -> None:
    for name in ("train", "pipeline"):
        with pytest.raises(ValueError, match=told):
            role_of(name, *arguments)


@pytest.mark.parametrize(
    "variable",
    [
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "WANDB_API_KEY",
        "db_password",
        "SECRET_SAUCE",
        "APIKEY",
    ],
)
def test_a_secret_is_refused_and_never_repeated(variable: str) -> None:
    with pytest.raises(ValueError, match=f"--env {variable}=…: .*Slurm.*Kubernetes.*AWS Batch") as refused:
        role_of("prepare", "--env", f"A=1,{variable}=hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "variable",
    ["TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "MAX_TOKENS", "MONKEY"],
)
def test_what_only_sounds_like_a_secret_is_let_through(variable: str) -> None:
    assert f"env {variable}=1 " in command_of("prepare", "--env", f"{variable}=1")


def test_torchx_tells_a_refusal_without_a_traceback(tmp_path: Path) -> None:
    done = torchx_run("train", "-j", "2×8", logs=tmp_path)
    assert done.returncode == 1
    assert "`-j 2×8`: expected [MIN:]NODESxRANKS" in done.stderr
    assert "Traceback" not in done.stderr
