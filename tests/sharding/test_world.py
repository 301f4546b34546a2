from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from sharding.world import open_world
from tests.ranks import become, spawn

LEAVES = """
import atexit, sys
from pathlib import Path

def threads():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

atexit.register(lambda: print("at the end:", *threads()))  # runs after whatever is registered later

import torch.distributed as dist
from common.errors import InputError
from sharding.world import open_world

def work():
    with open_world():
        model = [dist.group.WORLD]
        model.append(model)
        dist.broadcast_object_list([{"told": "all"}], src=0)
        print("at work:", *threads())
        if "fault" in sys.argv:
            raise InputError("a fault")

try:
    work()
except InputError:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("arguments", [[], ["fault"]])
def test_no_thread_of_gloo_outlives_the_interpreter(arguments: list[str]) -> None:
    command = [sys.executable, "-c", LEAVES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    at_work, at_the_end = (line for line in done.stdout.splitlines() if line.startswith("at "))
    assert "pt_gloo_runloop" in at_work
    assert "gloo" not in at_the_end


def enter_late(rank: int, environment: dict[str, str], port: int, folder: Path) -> None:
    """Rank 0 is slow between its connections and the end of its start; each leaves word when it is through."""
    become(rank, 2, environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    connect = dist.distributed_c10d._new_process_group_helper

    def slow(*arguments: Any, **named: Any) -> Any:
        made = connect(*arguments, **named)
        time.sleep(2)
        (folder / "connected").touch()
        return made

    if rank == 0:
        dist.distributed_c10d._new_process_group_helper = slow
    with open_world():
        assert rank == 0 or (folder / "connected").exists(), "left before the other was through"
        assert "TORCH_DIST_INIT_BARRIER" not in os.environ


def test_no_rank_begins_before_all_are_through(tmp_path: Path) -> None:
    """Or one that ends at once, by a fault, would be taken for lost by one that still connects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(enter_late, (dict(os.environ), port, tmp_path), 2)
