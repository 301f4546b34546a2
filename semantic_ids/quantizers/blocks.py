"""Blocks of vectors worked on side by side, a thread each.

The operations on a block are many and small. Split between threads each by itself, they spend a quarter of their time
waiting for one another; so a thread takes a whole block, and torch does not divide its operations further.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_one_at_a_time = threading.Lock()
"""How many threads torch uses is a setting of the process."""


def map_blocks(function: Callable[[Tensor], Result], blocks: Sequence[Tensor]) -> list[Result]:
    """The function's result for each block, in order; on as many threads as torch has been given."""
    threads = torch.get_num_threads()
    if threads == 1 or len(blocks) < 2:
        return [function(block) for block in blocks]
    with _one_at_a_time:
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(function, blocks))
        finally:
            torch.set_num_threads(threads)
