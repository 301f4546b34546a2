from __future__ import annotations

import socket

import pytest

from torchx_components.node_names import expand, expected_names, missing, own_name


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,gpu-b", ["n1", "gpu-b"]),
        ("n[1-2,5]", ["n1", "n2", "n5"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("a[1-2]-x,b,c[3]", ["a1-x", "a2-x", "b", "c3"]),
        ("rack[1-2]n[7,9]", ["rack1n7", "rack1n9", "rack2n7", "rack2n9"]),
    ],
)
def test_slurms_lists(nodes: str, names: list[str]) -> None:
    assert expand(nodes) == names


def test_the_scheduler_knows_who_is_expected() -> None:
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]"}
    assert expected_names(slurm) == ["n1", "n2"]
    components = {"SLURM_HET_SIZE": "2", "SLURM_JOB_NODELIST_HET_GROUP_0": "n3", "SLURM_JOB_NODELIST_HET_GROUP_1": "n1"}
    assert expected_names({**slurm, **components}) == ["n3", "n1"]
    volcano = {"VC_TRAIN_0_HOSTS": "x-train-0-0.x", "VC_TRAIN_1_HOSTS": "x-train-1-0.x", "VC_TRAIN_1_NUM": "1"}
    assert expected_names(volcano) == ["x-train-0-0.x", "x-train-1-0.x"]
    assert expected_names({"AWS_BATCH_JOB_NUM_NODES": "2"}) == []


def test_who_is_missing() -> None:
    assert missing(["n1", "n2.cluster", "n3"], ["N2", "n1.cluster.example"]) == ["n3"]
    assert missing(["10.0.0.1", "10.0.0.2"], ["10.0.0.1"]) == ["10.0.0.2"]


def test_the_own_name() -> None:
    assert own_name({"SLURMD_NODENAME": "n7"}) == "n7"
    assert own_name({}) == socket.gethostname()
