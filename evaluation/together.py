"""What ranks do together when they look at a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import nn

T = TypeVar("T")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards, whatever happens, in the mode that it had."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def told_by_main(value: T | None) -> T:
    """What rank 0 has, on every rank. Collective; what the others give is not looked at."""
    told = [value]
    dist.broadcast_object_list(told, src=0)
    assert told[0] is not None
    return told[0]
