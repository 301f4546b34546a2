"""Reduce-scatters of parts that differ from rank to rank, on the CPU.

Where tables are split by rows, sums come back by a reduce-scatter, and gradients go by the all-gather that is its
backward. Batches with bags of distinct items have as many bags as they have items, another number on every rank. NCCL
gathers parts of unequal sizes, gloo (torch 2.13) refuses them, so on the CPU each rank broadcasts its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.comm_ops import ReduceScatterV_Wait

_whole_backward = ReduceScatterV_Wait.backward


class _Works:
    """Several pieces of communication under way, waited for as one."""

    def __init__(self, works: list[Any]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


def _backward(ctx: Any, grad_output: Tensor) -> tuple[None, None, Tensor]:
    """As TorchRec's, but for the way in which the parts travel."""
    request, info = ctx.myreq, ctx.myreq.rsi
    if grad_output.device.type != "cpu" or info.equal_splits:
        whole: tuple[None, None, Tensor] = _whole_backward(ctx, grad_output)
        return whole
    if info.codecs is not None:
        grad_output = info.codecs.backward.encode(grad_output)
    gathered = grad_output.new_empty(info.total_input_size)
    parts = torch.split(gathered, info.input_splits)
    parts[dist.get_rank(ctx.pg)].copy_(grad_output)
    works = [dist.broadcast(part, group=ctx.pg, group_src=rank, async_op=True) for rank, part in enumerate(parts)]
    request.req, request.tensor = _Works(works), gathered
    return None, None, request.dummy_tensor


def allow_uneven_parts() -> None:
    """Let ranks of the CPU have different numbers of bags; done once, it holds for the process."""
    ReduceScatterV_Wait.backward = staticmethod(_backward)
