"""Freed memory that stays: page faults counted in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.allocator import SWITCH

FAULTS = """
import resource
import torch
from common.allocator import keep_freed_memory

print(keep_freed_memory())

def step():
    return [torch.ones(2**23) for _ in range(4)]

for _ in range(4):
    step()  # alignment splits blocks: it takes some steps until there is room for all
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES_OF_A_STEP = 4 * 2**25 // 4096


def _run(**environment: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True, env=os.environ | environment
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_later_step_faults_no_page_in_again() -> None:
    kept, faults = _run()
    assert kept
    assert faults < PAGES_OF_A_STEP / 4
    kept, faults = _run(**{SWITCH: "off"})
    assert not kept
    assert faults > PAGES_OF_A_STEP


def test_who_has_told_glibc_something_is_left_alone() -> None:
    assert not _run(MALLOC_TOP_PAD_="131072")[0]
