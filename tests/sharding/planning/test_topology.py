"""Clusters: presets, files, and every way in which a file may be wrong."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from sharding.planning import topology
from sharding.planning.cluster_file import find_cluster, read_cluster
from sharding.planning.topology import GIB, MAX_RANKS, PRESETS, Cluster, host_memory, this_machine

UNEVEN = """
like: a100-80
name: mixed
nodes:
  - {count: 2, ranks: 3}
  - {ranks: 2, hbm_gib: 40, ddr_gib: 120.5, ssd_gib: 0}
gb_per_s: {inter: 12.5}
tflops: {bf16: 100}
latency_us: 30
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preset_is_one_node_unless_more_are_asked_for() -> None:
    for name, preset in PRESETS.items():
        assert find_cluster(name, 0, 0) == Cluster(name, preset.device, (preset.node,), preset.rates)
    cluster = find_cluster("h100", 3, 4)
    assert cluster.nodes == (dataclasses.replace(PRESETS["h100"].node, ranks=4),) * 3
    assert cluster.node_of_rank == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert cluster.describe() == "3 nodes × 4 ranks (80 GiB HBM, 240 GiB DDR each) of h100"
    assert find_cluster("cpu", 1, 1).describe() == "1 node × 1 rank (16 GiB DDR each) of cpu"


def test_a_file_says_nodes_and_what_differs_from_a_preset(tmp_path: Path) -> None:
    cluster = find_cluster(str(written(tmp_path, UNEVEN)), 0, 0)
    like = PRESETS["a100-80"]
    assert cluster.name == "mixed"
    assert cluster.device == "cuda"
    usual = dataclasses.replace(like.node, ranks=3)
    assert cluster.nodes == (usual, usual, topology.Node(2, 40 * GIB, round(120.5 * GIB), 0))
    assert cluster.rates == dataclasses.replace(like.rates, inter=12.5e9, bf16=100e12, latency=30 * 1e-6)
    assert (cluster.num_ranks, cluster.ranks_per_node) == (8, 2)
    assert [cluster.memory(rank).hbm // GIB for rank in range(8)] == [80] * 6 + [40] * 2
    assert cluster.describe() == (
        "2 nodes × 3 ranks (80 GiB HBM, 240 GiB DDR each) + 1 node × 2 ranks (40 GiB HBM, 120 GiB DDR each) of mixed"
    )
    with pytest.raises(InputError, match="says how many there are: set nodes=0 ranks_per_node=0"):
        find_cluster(str(tmp_path / "cluster.yaml"), 2, 0)


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "like: h10\nname: [a]\nextra: 1\nnodes:\n  - {count: -1, ranks: 2.0, hbm_gib: 0, ddr_gib: lots, foo: 1}\n"
        "  - 7\ngb_per_s: {inter: 0, x: 1}\ntflops: 3\nlatency_us: -1\n",
    )
    with pytest.raises(InputError) as raised:
        read_cluster(path)
    faults = [fault.removeprefix(f"{path}: ") for fault in raised.value.faults]
    assert [fault.split(" is ")[0].split("; ")[0] for fault in faults] == [
        "`like`",
        "`name`",
        "unknown key `extra`",
        "unknown key `nodes[0].foo`",
        "`nodes[0].count`",
        "`nodes[0].ranks`",
        "`nodes[0].hbm_gib`",
        "`nodes[0].ddr_gib`",
        "`nodes[1]`",
        "`gb_per_s.inter`",
        "unknown key `gb_per_s.x`",
        "`tflops`",
        "`latency_us`",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty, expected keys and values"),
        ("- 1\n", r"holds \[1\], expected keys and values"),
        ("nodes: [", "not readable as YAML"),
        ("nodes: []", r"`nodes` is \[\]"),
        ("like: h100", "`nodes` is None"),
        ("like: [h100]\nnodes: [{}]", r"`like` is \['h100'\]"),
        ("like: cpu\nnodes: [{hbm_gib: 5}]", "a CPU has ddr_gib alone"),
        ("like: cpu\nnodes: [{ddr_gib: 0}]", "`nodes.0..ddr_gib` is 0"),
        ("nodes: [{hbm_gib: .nan}]", "`nodes.0..hbm_gib` is nan"),
        ("nodes: [{ssd_gib: .inf}]", "`nodes.0..ssd_gib` is inf"),
        ("nodes: [{ssd_gib: true}]", "`nodes.0..ssd_gib` is True"),
        ("nodes: [{count: 4096, ranks: 4096}]", f"16777216 ranks; at most {MAX_RANKS}"),
        ("nodes: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        (f"nodes: {'[' * 5000}{']' * 5000}", "too many levels"),  # torch's compiler raises Python's limit to 2,000
        ("nodes: [[xxxxxxxxxx, " + "x, " * 5000 + "x]]", r"'x', \.\.\.\], expected keys and values"),
    ],
)
def test_what_is_no_cluster_is_told_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        read_cluster(written(tmp_path, text))
    assert all(len(fault) < 400 + len(str(tmp_path)) and "\n" not in fault for fault in raised.value.faults)


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "long.yaml").write_text("#" * (2**20 + 1))
    for name, said in (("binary", "not readable"), ("long", "is larger than"), ("missing", "no such file")):
        with pytest.raises(InputError, match=said):
            find_cluster(str(tmp_path / f"{name}.yaml"), 0, 0)
    with pytest.raises(InputError, match=r"`topology` is 'h10' \(did you mean `h100`\?\)"):
        find_cluster("h10", 0, 0)
    with pytest.raises(InputError, match="h100: 4104 ranks; at most 4096"):
        find_cluster("h100", 513, 8)
    assert find_cluster("h100", 512, 8).num_ranks == MAX_RANKS


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NODE = st.dictionaries(
    st.sampled_from(["count", "ranks", "hbm_gib", "ddr_gib", "ssd_gib", "?"]), ODD | st.integers(0, 4)
)
FILE = st.dictionaries(st.sampled_from(["like", "name", "tflops", "gb_per_s", "latency_us", "?"]), ODD, max_size=3)


@settings(max_examples=150, deadline=None)
@given(content=FILE, nodes=ODD | st.lists(NODE, min_size=1, max_size=3))
def test_any_file_is_a_cluster_or_a_fault(content: dict[str, Any], nodes: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            cluster = read_cluster(written(Path(folder), yaml.safe_dump(content | {"nodes": nodes})))
        except InputError:
            return
    assert 1 <= cluster.num_ranks <= MAX_RANKS
    assert all(min(node.ranks, node.hbm or node.ddr) > 0 for node in cluster.nodes)
    assert min(dataclasses.astuple(dataclasses.replace(cluster.rates, latency=1.0))) > 0


def test_this_machine_counts_the_least_of_a_nodes_ranks() -> None:
    gpus = this_machine("cuda", [2, 1], [5, 4, 9])
    assert [(node.ranks, node.hbm) for node in gpus.nodes] == [(2, 4), (1, 9)]
    cpus = this_machine("cpu", [3], [7, 6, 8])
    assert [(node.ranks, node.hbm, node.ddr) for node in cpus.nodes] == [(3, 0, 6)]


def test_memory_of_this_machine_is_more_than_this_process_and_less_than_there_is() -> None:
    assert 2**24 < host_memory() < 2**50
