"""The cluster that a configuration asks for: a preset, or one of one's own, a YAML file.

    like: h100                  # rates of a preset, any of which may be given anew below
    nodes:
      - {count: 14, ranks: 8}                               # memory as in the preset
      - {count: 2, ranks: 4, hbm_gib: 40, ddr_gib: 120}     # a smaller kind
    gb_per_s: {inter: 25}

All keys stand in docs/sharding.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError
from sharding.planning.topology import GIB, MAX_RANKS, PRESETS, Cluster, Node, Preset

_MAX_FILE_BYTES = 2**20
_MAX_NUMBER = 1e9
_LEAST_GIB = 2**-10
"""Of what ranks compute in."""

_MAX_SHOWN = 80


def find_cluster(topology: str, nodes: int, ranks_per_node: int) -> Cluster:
    """The cluster that a configuration asks for.

    Args:
        topology: name of a preset, or path of a YAML file.
        nodes, ranks_per_node: of a preset, 0 where its own are meant; a file says them itself.

    Raises:
        InputError: no such preset or file; a file that is wrong, with all its faults; nodes given for a file.
    """
    if topology in PRESETS:
        preset = PRESETS[topology]
        count, ranks = nodes or 1, ranks_per_node or preset.ranks
        _check_ranks(topology, count * ranks)
        node = dataclasses.replace(preset.node, ranks=ranks)
        return Cluster(topology, preset.device, (node,) * count, preset.rates)
    path = Path(topology)
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(topology, PRESETS, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        raise InputError(
            f"`topology` is {topology!r}{hint}; give one of {', '.join(PRESETS)}, or a YAML file of a cluster"
        )
    if nodes or ranks_per_node:
        given = f"`nodes` is {nodes} and `ranks_per_node` is {ranks_per_node}"
        raise InputError(f"{given}, but {path} says how many there are: set nodes=0 ranks_per_node=0")
    return read_cluster(path)


def read_cluster(path: Path) -> Cluster:
    """A cluster from a YAML file, whose form is that at the top of this module.

    Raises:
        InputError: with every fault of the file.
    """
    content, faults = _load(path), list[str]()
    like, name = content.get("like", "h100"), content.get("name", path.stem)
    if not isinstance(like, str) or like not in PRESETS:
        faults.append(f"{path}: `like` is {_shown(like)}; presets are {', '.join(PRESETS)}")
        like = "h100"
    if not isinstance(name, str):
        faults.append(f"{path}: `name` is {_shown(name)}, expected text")
    preset, known = PRESETS[like], ("name", "like", "nodes", "gb_per_s", "tflops", "latency_us")
    faults += [f"{path}: unknown key `{key}`; keys are {', '.join(known)}" for key in content if key not in known]
    kinds = content.get("nodes")
    if not isinstance(kinds, list) or not kinds:
        faults.append(
            f"{path}: `nodes` is {_shown(kinds)}, expected a list of {{count, ranks, hbm_gib, ddr_gib, ssd_gib}}"
        )
        kinds = []
    nodes: list[Node] = []
    for index, kind in enumerate(kinds):
        nodes += _nodes(path, index, kind, preset, faults)
    given: dict[str, float] = {}
    for group, unit, names in (
        ("gb_per_s", 1e9, ("hbm", "ddr", "ssd", "host_link", "intra", "inter")),
        ("tflops", 1e12, ("float32", "bf16")),
    ):
        for key, value in _mapping(path, group, content.get(group), faults).items():
            if key not in names:
                faults.append(f"{path}: unknown key `{group}.{key}`; keys are {', '.join(names)}")
            else:
                given[key] = _number(path, f"{group}.{key}", value, faults, least=1e-6) * unit
    if "latency_us" in content:
        given["latency"] = _number(path, "latency_us", content["latency_us"], faults) * 1e-6
    if faults:
        raise InputError(*faults)
    _check_ranks(str(path), sum(node.ranks for node in nodes))
    return Cluster(str(name), preset.device, tuple(nodes), dataclasses.replace(preset.rates, **given))


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes, which no description of a cluster is")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; presets are {', '.join(PRESETS)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: not readable as YAML: too many levels, one within another") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: {f'holds {_shown(content)}' if content else 'is empty'}, expected keys and values")
    return content


def _mapping(path: Path, key: str, value: Any, faults: list[str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        faults.append(f"{path}: `{key}` is {_shown(value)}, expected keys and values")
        return {}
    return value


def _shown(value: Any) -> str:
    """A value as a fault names it: the beginning of a long one."""
    text = reprlib.repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _number(path: Path, key: str, value: Any, faults: list[str], *, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= _MAX_NUMBER:
        faults.append(f"{path}: `{key}` is {_shown(value)}, expected a number of {least:g} to {_MAX_NUMBER:g}")
        return 1.0
    return float(value)


def _nodes(path: Path, index: int, kind: Any, preset: Preset, faults: list[str]) -> list[Node]:
    where, known = f"nodes[{index}]", ("count", "ranks", "hbm_gib", "ddr_gib", "ssd_gib")
    given = _mapping(path, where, kind, faults)
    faults += [f"{path}: unknown key `{where}.{key}`; keys are {', '.join(known)}" for key in given if key not in known]
    counts = {}
    for key, default in (("count", 1), ("ranks", preset.ranks)):
        value = given.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANKS:
            faults.append(f"{path}: `{where}.{key}` is {_shown(value)}, expected a whole number of 1 to {MAX_RANKS}")
            value = 1
        counts[key] = value
    main = "hbm_gib" if preset.device == "cuda" else "ddr_gib"
    if preset.device != "cuda" and given.get("hbm_gib"):
        faults.append(f"{path}: `{where}.hbm_gib` is {_shown(given['hbm_gib'])}, but a CPU has ddr_gib alone")
        given = given | {"hbm_gib": 0}
    memory = {
        key: round(
            _number(
                path, f"{where}.{key}", given.get(key, default / GIB), faults, least=_LEAST_GIB if key == main else 0.0
            )
            * GIB
        )
        for key, default in (
            ("hbm_gib", preset.node.hbm),
            ("ddr_gib", preset.node.ddr),
            ("ssd_gib", preset.node.ssd),
        )
    }
    node = Node(counts["ranks"], memory["hbm_gib"], memory["ddr_gib"], memory["ssd_gib"])
    return [node] * counts["count"]


def _check_ranks(where: str, ranks: int) -> None:
    if ranks > MAX_RANKS:
        raise InputError(f"{where}: {ranks} ranks; at most {MAX_RANKS} are planned for")
