"""What a process is told of its memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from common.memory import peak_bytes, resident_bytes


def test_the_peak_stays_and_what_is_held_goes() -> None:
    before = resident_bytes()
    large = np.ones(2**28, np.uint8)
    assert resident_bytes() > before + 2**27
    del large
    assert resident_bytes() < before + 2**27
    assert peak_bytes() > before + 2**27


def test_the_peak_is_that_of_the_process_and_not_of_whoever_started_it() -> None:
    large = np.ones(2**29, np.uint8)
    code = "from common.memory import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < large.nbytes / 4
