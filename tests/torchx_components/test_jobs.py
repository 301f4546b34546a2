from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.specs import finder, macros
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import validate

from tests.yambda_example import write_yambda_example
from torchx_components import jobs

ROOT = Path(__file__).parents[2]
FILE = ROOT / "torchx_components" / "jobs.py"
COMPONENTS = {
    "prepare": jobs.prepare,
    "fit_ids": jobs.fit_ids,
    "encode_ids": jobs.encode_ids,
    "train": jobs.train,
    "evaluate": jobs.evaluate,
}
DISTRIBUTED = ("train", "evaluate")

CONFIG = """
prepare:
  source: yambda
  path: {folder}/yambda
  size: 50m
  kind: multi_event  # five event types: no rank has an empty shard of their table
  out: {folder}/store
fit_ids:
  store: ${{prepare.out}}
  out: {folder}/codes $HOME    # what a shell or TorchX might take for something else
  levels: 2
  codes: 8
encode_ids:
  store: ${{prepare.out}}
  codes: ${{fit_ids.out}}
  out: {folder}/codes-again
train:
  run: {folder}/run
  store: ${{prepare.out}}
  codes: ${{fit_ids.out}}
  epochs: 5
  model: {{width: 8, blocks: 1, heads: 1, head_dim_qk: 8, head_dim_v: 8, max_history: 16}}
  batch: {{tokens: 64}}
evaluate:
  run: ${{train.run}}
  bootstrap: 10
"""


def torchx_run(component: str, *arguments: str, logs: Path) -> subprocess.CompletedProcess[str]:
    """`torchx run` as a user types it in the root of the checkout, with the virtual environment active."""
    binaries = str(Path(sys.executable).parent)
    scheduler = ("-s", "local_cwd", "-cfg", f"log_dir={logs}")
    command = [f"{binaries}/torchx", "run", *scheduler, f"torchx_components/jobs.py:{component}", *arguments]
    # A job must not take itself for a rank of something that runs these tests.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment["PATH"] = f"{binaries}:{environment['PATH']}"
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_whole_run_through_torchx(tmp_path: Path) -> None:
    write_yambda_example(tmp_path / "yambda")
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(folder=tmp_path))
    logs = tmp_path / "logs"

    def run(component: str, *arguments: str) -> None:
        done = torchx_run(component, "--config", str(config), *arguments, logs=logs)
        assert done.returncode == 0, done.stderr

    run("prepare")
    run("fit_ids", f"out={tmp_path}/codes $HOME", "iterations=2")
    assert (tmp_path / "codes $HOME" / "manifest.json").exists()
    run("encode_ids", f"codes={tmp_path}/codes $HOME")
    assert (tmp_path / "codes-again" / "manifest.json").exists()
    run("train", "-j", "1x2", "--env", "OMP_NUM_THREADS=1", "epochs=1", f"codes={tmp_path}/codes $HOME")
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
    (manifest,) = (json.loads(path.read_text()) for path in checkpoints)
    assert (manifest["world_size"], manifest["epoch"]) == (2, 1)  # -j and the override arrived
    run("evaluate", "-j", "1", "--", "bootstrap=11")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["split"], metrics["protocol"]) == ("leave-last-out", "next")
    assert metrics["users"] > 0
    # The output of every replica is kept.
    assert {path.parents[1].name for path in logs.glob("torchx/*/*/0/combined.log")} == set(COMPONENTS)


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
    wanted = {"--config", "--cpu", "--memMB", "--image", "--env"}
    if name in DISTRIBUTED:
        wanted |= {"-j", "--gpu", "--max_restarts", "--rdzv_port"}
    options = [line for line in shown.partition("options:")[2].splitlines() if line.startswith("  -")]
    assert wanted <= {line.split()[0].rstrip(",") for line in options}
    described = jobs.__dict__[name].__doc__
    for option in wanted | {"overrides"}:
        assert f"  {option.strip('-')}: " in described, option


def test_top_level_names_do_not_shadow_those_of_torchx() -> None:
    """TorchX runs the file by exec() in the namespace of torchx.specs.finder, overwriting what stands there."""
    defined = {node.name for node in ast.parse(FILE.read_text()).body if isinstance(node, ast.FunctionDef)}
    shadowed = {name for name in defined if name in ast_names(Path(finder.__file__))}
    assert not shadowed


def ast_names(path: Path) -> set[str]:
    """Names used anywhere in a Python file."""
    tree = ast.parse(path.read_text())
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def test_one_process_runs_the_module() -> None:
    arguments = [
        "--config",
        "a.yaml",
        "--cpu",
        "3",
        "--memMB",
        "512",
        "--image",
        "x:1",
        "--env",
        "A=$B$$",
        "out=s p${app_id}$$",
    ]
    (role,) = materialize_appdef(jobs.prepare, arguments).roles
    applied = macros.Values(img_root="", app_id="id", replica_id="0", rank0_env="R0").apply(role)
    assert applied.entrypoint == "python"
    assert applied.args == ["-m", "data.prepare", "--config", "a.yaml", "out=s p${app_id}$$"]
    assert applied.env == {"A": "$B$$"}
    assert (role.num_replicas, role.resource.cpu, role.resource.memMB, role.image) == (1, 3, 512, "x:1")


@pytest.mark.parametrize(
    ("j", "nodes", "ranks", "endpoint"),
    [("2", 1, 2, "localhost:0"), ("1x2", 1, 2, "localhost:0"), ("3x4", 3, 4, "${R0:=localhost}:1234")],
)
def test_ranks_and_rendezvous(j: str, nodes: int, ranks: int, endpoint: str) -> None:
    arguments = ["-j", j, "--gpu", "4", "--rdzv_port", "1234", "--max_restarts", "2", "run=a b"]
    (role,) = materialize_appdef(jobs.train, arguments).roles
    applied = macros.Values(img_root="", app_id="id", replica_id="0", rank0_env="R0").apply(role)
    command = applied.args[1]
    assert role.num_replicas == nodes
    assert role.resource.gpu == 4
    assert f"--rdzv_backend c10d --rdzv_endpoint {endpoint} --rdzv_id" in command
    assert f"--nnodes {nodes} --nproc_per_node {ranks} " in command
    assert command.endswith("-m trainer.train 'run=a b'")
    assert applied.env["PET_MAX_RESTARTS"] == "2"


def test_a_bad_j_is_refused() -> None:
    with pytest.raises(ValueError, match="-j"):
        materialize_appdef(jobs.train, ["-j", "2×8"])
