"""What a plan is made for: nodes, ranks, their memories, and how fast bytes and products go through each part.

Figures of presets are those of the makers' data sheets, one direction, for one rank: a plan's times are arithmetic on
them, not measurements. Memory is in GiB for one rank (2³⁰ bytes), rates in GB/s (10⁹ bytes).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
MAX_RANKS = 4096
"""More than that is a slip of the pen: a plan lists each rank."""


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
        # DGX A100 320 GB: NVLink 3, a 200 Gbit/s adapter a GPU
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
        # DGX A100 640 GB: NVLink 3, a 200 Gbit/s adapter a GPU
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
        # DGX H100: NVLink 4, a 400 Gbit/s adapter a GPU
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
        # DGX H200: NVLink 4, a 400 Gbit/s adapter a GPU
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
        # DGX B200: NVLink 5, a 400 Gbit/s adapter a GPU
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
        # one core of a server with AVX-512 and 16 GiB, gloo over loopback or 10 Gbit/s
    ),
}


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
