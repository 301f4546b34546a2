"""The next block is made while the last one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(blocks: Iterator[T]) -> Iterator[T]:
    """Yield what `blocks` yields, while one thread makes the next: Arrow and NumPy let go of the interpreter.

    What `blocks` raises is raised here, in its turn. On an error, on Ctrl-C, or when the caller stops early, the thread
    ends with the block that it is at.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        pending = thread.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = thread.submit(next, blocks, None)
            yield block
