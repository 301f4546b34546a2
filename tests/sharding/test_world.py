from __future__ import annotations

import subprocess
import sys

import pytest

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
