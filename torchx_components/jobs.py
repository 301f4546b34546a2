"""Every stage of Segue as a TorchX job: `torchx run torchx_components/jobs.py:train --config FILE -j 1x2 key=value …`

Run it from the root of the checkout with the virtual environment active: a job finds `python` and `torchrun` on its
PATH and the rooms in its working folder. `--help` after the component lists its arguments; keys come last.

TorchX reads this file by exec() inside a module of its own: names at the top level must not be names of
`torchx.specs.finder`, annotations must be evaluated, and of types it knows only `str`, `int`, `float`, `bool`,
`Optional`, `List` and `Dict`. Docstrings in Google's style become the help text.
"""

# ruff: noqa: UP006, UP035, UP045

from typing import Dict, List, Optional, Sequence

from torchx import specs
from torchx.components import dist


def prepare(
    *overrides: str,
    config: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 4096,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Make an event store from an event log (data.prepare, one process).

    Args:
        overrides: key=value …, over the file's section `prepare`
        config: YAML file of the run
        cpu: cores to ask the scheduler for
        memMB: memory to ask the scheduler for, in MB
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value
    """
    return _one_process("prepare", "data.prepare", config, overrides, cpu, memMB, image, env)


def fit_ids(
    *overrides: str,
    config: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 4096,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Give the items of an event store their semantic ids (semantic_ids.fit, one process).

    Args:
        overrides: key=value …, over the file's section `fit_ids`
        config: YAML file of the run
        cpu: cores to ask the scheduler for
        memMB: memory to ask the scheduler for, in MB
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value
    """
    return _one_process("fit_ids", "semantic_ids.fit", config, overrides, cpu, memMB, image, env)


def encode_ids(
    *overrides: str,
    config: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 4096,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Code new items by a fitted table: of a newer store, or of vector files (semantic_ids.encode, one process).

    Args:
        overrides: key=value …, over the file's section `encode_ids`
        config: YAML file of the run
        cpu: cores to ask the scheduler for
        memMB: memory to ask the scheduler for, in MB
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value
    """
    return _one_process("encode_ids", "semantic_ids.encode", config, overrides, cpu, memMB, image, env)


def train(
    *overrides: str,
    config: Optional[str] = None,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train a recommender over all ranks (trainer.train under torchrun).

    Args:
        overrides: key=value …, over the file's section `train`
        config: YAML file of the run
        j: NODESxRANKS, ranks on each node; a GPU node has a rank a GPU
        cpu: cores of a node to ask the scheduler for
        gpu: GPUs of a node to ask the scheduler for
        memMB: memory of a node to ask the scheduler for, in MB
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value
        max_restarts: how often torchrun starts all ranks again after one has failed
        rdzv_port: port of the first node where the nodes find one another; one node takes any free port
    """
    return _all_ranks("trainer.train", config, overrides, j, cpu, gpu, memMB, image, env, max_restarts, rdzv_port)


def evaluate(
    *overrides: str,
    config: Optional[str] = None,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    image: str = "segue",
    env: Optional[Dict[str, str]] = None,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Measure a trained run on the held-out test events (evaluation.evaluate under torchrun).

    Args:
        overrides: key=value …, over the file's section `evaluate`
        config: YAML file of the run
        j: NODESxRANKS, ranks on each node; a GPU node has a rank a GPU
        cpu: cores of a node to ask the scheduler for
        gpu: GPUs of a node to ask the scheduler for
        memMB: memory of a node to ask the scheduler for, in MB
        image: container image, where the scheduler runs containers
        env: environment variables, NAME=value,NAME=value
        max_restarts: how often torchrun starts all ranks again after one has failed
        rdzv_port: port of the first node where the nodes find one another; one node takes any free port
    """
    return _all_ranks("evaluation.evaluate", config, overrides, j, cpu, gpu, memMB, image, env, max_restarts, rdzv_port)


def _one_process(
    name: str,
    module: str,
    config: Optional[str],
    overrides: Sequence[str],
    cpu: int,
    memMB: int,
    image: str,
    env: Optional[Dict[str, str]],
) -> specs.AppDef:
    role = specs.Role(
        name=name,
        image=image,
        entrypoint="python",
        args=["-m", module, *_entry_arguments(config, overrides)],
        env=_as_typed(env),
        num_replicas=1,
        resource=specs.resource(cpu=cpu, memMB=memMB),
    )
    return specs.AppDef(name=name, roles=[role])


def _all_ranks(
    module: str,
    config: Optional[str],
    overrides: Sequence[str],
    j: str,
    cpu: int,
    gpu: int,
    memMB: int,
    image: str,
    env: Optional[Dict[str, str]],
    max_restarts: int,
    rdzv_port: int,
) -> specs.AppDef:
    return dist.ddp(  # knows how the first node's name is spelt under each scheduler
        *_entry_arguments(config, overrides),
        m=module,
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        image=image,
        # torchrun reads PET_… for each of its flags; ddp has no argument for this one.
        env={"PET_MAX_RESTARTS": str(max_restarts), **_as_typed(env)},
        rdzv_port=rdzv_port,
    )


def _entry_arguments(config: Optional[str], overrides: Sequence[str]) -> List[str]:
    arguments = [] if config is None else ["--config", config]
    return [_escaped(argument) for argument in [*arguments, *overrides]]


def _as_typed(env: Optional[Dict[str, str]]) -> Dict[str, str]:
    return {name: _escaped(value) for name, value in (env or {}).items()}


def _escaped(text: str) -> str:
    """TorchX replaces `$name` in arguments and environments; `$$` stands for the sign itself."""
    return text.replace("$", "$$")
