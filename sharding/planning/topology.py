"""What a plan is made for: nodes, ranks, their memories, and how fast bytes and products go through each part.

Figures of presets are those of the makers' data sheets, one direction, for one rank: a plan's times are arithmetic on
them, not measurements. A cluster of one's own is a YAML file:

    like: h100                  # rates of a preset, any of which may be given anew below
    nodes:
      - {count: 14, ranks: 8}                               # memory as in the preset
      - {count: 2, ranks: 4, hbm_gib: 40, ddr_gib: 120}     # a smaller kind
    gb_per_s: {inter: 25}

Memory is in GiB for one rank (2³⁰ bytes), rates in GB/s (10⁹ bytes).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError

GIB = 2**30
MAX_RANKS = 4096
"""More than that is a slip of the pen: a plan lists each rank."""

_MAX_FILE_BYTES = 2**20
_MAX_NUMBER = 1e9
_LEAST_GIB = 2**-10
"""Of what ranks compute in."""

_MAX_SHOWN = 80


@dataclass(frozen=True)
class Node:
    """One machine: its ranks, and the memory that each of them may use, in bytes.

    On the CPU `hbm` is 0 and `ddr` is what there is.
    """

    ranks: int
    hbm: int
    ddr: int
    ssd: int


@dataclass(frozen=True)
class Rates:
    """Of one rank: bytes per second in one direction, operations per second.

    Attributes:
        hbm, ddr, ssd: memories.
        host_link: between a GPU and its host's memory.
        intra: to other ranks of the node.
        inter: to other nodes.
        float32, bf16: matrix products, as the model runs them (TF32 stays off).
        latency: seconds that one collective takes however small it is.
    """

    hbm: float
    ddr: float
    ssd: float
    host_link: float
    intra: float
    inter: float
    float32: float
    bf16: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Nodes and rates. Rank r lies on the first node that has room, as torchrun counts."""

    name: str
    device: str
    nodes: tuple[Node, ...]
    rates: Rates

    @property
    def num_ranks(self) -> int:
        """Of all nodes."""
        return sum(node.ranks for node in self.nodes)

    @property
    def node_of_rank(self) -> list[int]:
        """Index of each rank's node."""
        return [index for index, node in enumerate(self.nodes) for _ in range(node.ranks)]

    @property
    def ranks_per_node(self) -> int:
        """Of the smallest node: what TorchRec takes for every node's."""
        return min(node.ranks for node in self.nodes)

    @property
    def share_inside(self) -> float:
        """Of all pairs of different ranks, those on one node: the share of an even AlltoAll that stays inside."""
        pairs = self.num_ranks * (self.num_ranks - 1)
        return sum(node.ranks * (node.ranks - 1) for node in self.nodes) / pairs if pairs else 1.0

    def memory(self, rank: int) -> Node:
        """The node of a rank, which says what the rank may use."""
        return self.nodes[self.node_of_rank[rank]]

    def describe(self) -> str:
        """`16 nodes × 8 ranks of h100 (80 GiB HBM, 256 GiB DDR each)`, uneven ones kind by kind."""
        kinds: dict[Node, int] = {}
        for node in self.nodes:
            kinds[node] = kinds.get(node, 0) + 1
        parts = [
            f"{count} {'node' if count == 1 else 'nodes'} × {node.ranks} {'rank' if node.ranks == 1 else 'ranks'} "
            f"({f'{node.hbm / GIB:.0f} GiB HBM, ' if node.hbm else ''}{node.ddr / GIB:.0f} GiB DDR each)"
            for node, count in kinds.items()
        ]
        return f"{' + '.join(parts)} of {self.name}"


@dataclass(frozen=True)
class Preset:
    """A common kind of machine."""

    device: str
    ranks: int
    node: Node
    rates: Rates
    source: str


def _gpu(
    hbm_gib: int,
    ddr_gib: int,
    *,
    hbm: float,
    link: float,
    intra: float,
    inter: float,
    float32: float,
    bf16: float,
    source: str,
) -> Preset:
    return Preset(
        "cuda",
        8,
        Node(8, hbm_gib * GIB, ddr_gib * GIB, 3500 * GIB),
        Rates(
            hbm=hbm * 1e9,
            ddr=25e9,  # an eighth of a two-socket host's
            ssd=3e9,
            host_link=link * 1e9,
            intra=intra * 1e9,
            inter=inter * 1e9,
            float32=float32 * 1e12,
            bf16=bf16 * 1e12,
            latency=15e-6,
        ),
        source,
    )


PRESETS = {
    "a100-40": _gpu(
        40,
        120,
        hbm=1555,
        link=25,
        intra=300,
        inter=25,
        float32=19.5,
        bf16=312,
        source="DGX A100 320 GB: NVLink 3, a 200 Gbit/s adapter a GPU",
    ),
    "a100-80": _gpu(
        80,
        240,
        hbm=2039,
        link=25,
        intra=300,
        inter=25,
        float32=19.5,
        bf16=312,
        source="DGX A100 640 GB: NVLink 3, a 200 Gbit/s adapter a GPU",
    ),
    "h100": _gpu(
        80,
        240,
        hbm=3350,
        link=55,
        intra=450,
        inter=50,
        float32=67,
        bf16=989,
        source="DGX H100: NVLink 4, a 400 Gbit/s adapter a GPU",
    ),
    "h200": _gpu(
        141,
        240,
        hbm=4800,
        link=55,
        intra=450,
        inter=50,
        float32=67,
        bf16=989,
        source="DGX H200: NVLink 4, a 400 Gbit/s adapter a GPU",
    ),
    "b200": _gpu(
        180,
        480,
        hbm=8000,
        link=55,
        intra=900,
        inter=50,
        float32=75,
        bf16=2250,
        source="DGX B200: NVLink 5, a 400 Gbit/s adapter a GPU",
    ),
    "cpu": Preset(
        "cpu",
        1,
        Node(1, 0, 16 * GIB, 100 * GIB),
        Rates(
            hbm=20e9,
            ddr=20e9,
            ssd=1e9,
            host_link=20e9,
            intra=2e9,
            inter=1e9,
            float32=80e9,
            bf16=200e9,
            latency=200e-6,
        ),
        "one core of a server with AVX-512 and 16 GiB, gloo over loopback or 10 Gbit/s",
    ),
}


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


def this_machine(device: str, ranks_per_node: list[int], memory: list[int]) -> Cluster:
    """The cluster that a job runs on, its memory as asked from the system; the rates are a preset's.

    Args:
        ranks_per_node: of each node.
        memory: bytes each rank may use, HBM on CUDA and DDR elsewhere.
    """
    preset = PRESETS["h100" if device == "cuda" else "cpu"]
    ends = [sum(ranks_per_node[: index + 1]) for index in range(len(ranks_per_node))]
    nodes = []
    for ranks, end in zip(ranks_per_node, ends, strict=True):
        least = min(memory[end - ranks : end])
        hbm, ddr = (least, preset.node.ddr) if device == "cuda" else (0, least)
        nodes.append(Node(ranks, hbm, ddr, preset.node.ssd))
    return Cluster("this machine", device, tuple(nodes), preset.rates)


def host_memory() -> int:
    """Bytes of memory that may still be used on this machine, cgroup's limit included."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(int(text) - int(used.read_text()), 0))
    return free


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


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
