"""Time that a rank waits for the others, and errors by which it hears that one of them is gone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_GONE = re.compile(
    # Gloo 's: a connection closed or reset, a time-out, and whatever follows it on the same pair of ranks.
    r"gloo/transport/|Application timeout caused pair closure|Gloo connectFullMesh failed"
    # NCCL's, by the text of DistBackendError; its other errors (wrong use, no memory) are bugs.
    r"|NCCL communicator was aborted|remote process exited|ncclRemoteError|[Tt]imed out|[Tt]imeout"
)
_OWN_FAULT = re.compile(r"enforce fail|invalid usage|invalid argument")
"""Gloo's complaint of messages of another length than expected: ranks that do different things, a bug."""


def is_loss(error: BaseException) -> bool:
    """Whether an error says that a peer, or the store of the job, is gone or did not answer in time.

    Gloo raises bare RuntimeErrors, so the text decides; those that passed through another error count too.
    """
    if isinstance(error, dist.DistStoreError | dist.DistNetworkError):
        return True
    text = str(error)
    if isinstance(error, RuntimeError) and _GONE.search(text) and not _OWN_FAULT.search(text):
        return True
    return error.__cause__ is not None and is_loss(error.__cause__)


class Blocked:
    """Adds up the time that this rank's main thread is blocked in collectives, waiting for the others.

    Every collective that Python calls ends in `Work.wait`, TorchRec's and ours; that of DistributedDataParallel ends in
    C++, at the end of the backward (`backward`). The time includes that of the transfer itself.

    On CUDA the host does not wait, the stream does: there events before and after the same places measure it, on the
    device's current stream alone, as the pipeline's other streams overlap with it. No GPU has run this yet.
    """

    def __init__(self, device: torch.device) -> None:
        self.waiting = False
        self._cuda = device.type == "cuda"
        self._thread = threading.get_ident()
        self._seconds = 0.0
        self._spans: list[tuple[Any, Any]] = []
        self._stream: Any = torch.cuda.current_stream(device) if self._cuda else None
        self._wait: Callable[..., Any] = dist.Work.wait

    def install(self) -> None:
        """Measure every `Work.wait` of the process from here on, of the thread that made this object."""
        wait = self._wait

        def measured(work: dist.Work, *arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread:  # a checkpoint's, which nobody waits for
                return wait(work, *arguments, **named)
            start = self._begin()
            try:
                return wait(work, *arguments, **named)
            finally:
                self._end(start)

        dist.Work.wait = measured  # type: ignore[method-assign,assignment]

    def remove(self) -> None:
        """Leave `Work.wait` as it was."""
        dist.Work.wait = self._wait  # type: ignore[method-assign]

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`; what passes between the end of its own work and its return counts as blocked.

        The engine calls back, in the order in which it was asked to, when all gradients are there: first this, asked
        for as the backward begins, then DistributedDataParallel's wait, asked for when its last bucket is full.
        """
        done: list[Any] = []

        def ask(_gradient: Tensor) -> None:
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: done.append(self._begin()))

        hook = loss.register_hook(ask)
        try:
            loss.backward()
        finally:
            hook.remove()
            if done:
                self._end(done[0])

    def take(self) -> float:
        """Seconds so far."""
        if self._spans:
            self._spans[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._spans) / 1e3
            self._spans.clear()
        return self._seconds

    def put_back(self, seconds: float) -> None:
        """Forget what was added since `take` said `seconds`."""
        self._spans.clear()
        self._seconds = seconds

    def _begin(self) -> Any:
        self.waiting = True
        return self._event() if self._cuda else time.perf_counter()

    def _end(self, start: Any) -> None:
        self.waiting = False
        if not self._cuda:
            self._seconds += time.perf_counter() - start
        elif start is not None and (end := self._event()) is not None:
            self._spans.append((start, end))

    def _event(self) -> Any:
        if torch.cuda.current_stream(self._stream.device) != self._stream:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event
