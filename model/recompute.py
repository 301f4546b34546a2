"""Activations that the backward makes again instead of keeping them.

Autograd keeps what each operation needs for its gradient. Within a `Recomputation`, whatever of that lies in the memory
of a tensor that a *stage* has made is not kept: the first operation of the backward that asks for it has the stage made
again from its inputs, the others find it there, and it goes when the last of them is done. Unlike a checkpointed
function, a stage may hand its tensors to operations outside of it (attention keeps its queries, keys and values), and
those operations are not done again.

The same operations on the same inputs give the same bits, so the gradients are exactly those of keeping everything. A
stage must not draw random numbers; give it what was drawn as an input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

Make = Callable[..., tuple[Tensor, ...]]


class Stage:
    """A function of inputs that outlive the forward; what it makes is at hand or is made again.

    Args:
        make: returns all that it makes, what only its own operations need included.
        inputs: tensors; stages, of which `make` is given the tensors; None.
    """

    def __init__(self, make: Make, inputs: tuple[Tensor | Stage | None, ...]) -> None:
        self._make = make
        # Without their history, which making them again does not need and should not keep alive.
        self._inputs = tuple(given.detach() if isinstance(given, Tensor) else given for given in inputs)
        device = next(given.device.type for given in inputs if isinstance(given, Tensor))
        self._precision: dict[str, Any] = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        self._tensors: tuple[Tensor, ...] | None = make(*_tensors_of(inputs))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it makes; in the forward with its history."""
        if self._tensors is None:
            with torch.no_grad(), torch.autocast(**self._precision):
                self._tensors = self._make(*_tensors_of(self._inputs))
        return self._tensors

    def forget(self) -> None:
        """Let go of the tensors, to be made again when they are asked for."""
        self._tensors = None


def _tensors_of(inputs: tuple[Tensor | Stage | None, ...]) -> list[Any]:
    return [given.tensors if isinstance(given, Stage) else given for given in inputs]


class _Saved:
    """What stands in the graph for a tensor: the tensor, or which part of which stage it is."""

    def __init__(self, tensor: Tensor) -> None:
        # Detached, since an operation that saves its own result would otherwise keep itself alive.
        self.tensor: Tensor | None = tensor.detach()
        self.stage: Stage | None = None
        self.index = 0
        self.place: tuple[Any, ...] = ()

    def replace(self, stage: Stage, index: int) -> None:
        assert self.tensor is not None
        self.place = (self.tensor.size(), self.tensor.stride(), self.tensor.storage_offset())
        self.stage, self.index, self.tensor = stage, index, None

    def get(self) -> Tensor:
        if self.tensor is not None:
            return self.tensor
        assert self.stage is not None
        return self.stage.tensors[self.index].as_strided(*self.place)


class Recomputation:
    """Context in which stages are made; off, it does nothing but call them.

    Args:
        on: whether to keep less. Where autograd keeps nothing it makes no difference.
    """

    def __init__(self, on: bool) -> None:
        self._stages: list[Stage] = []
        self._saved: list[_Saved] = []
        self._hooks: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if on:
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.get)

    def stage(self, make: Make, *inputs: Tensor | Stage | None) -> Stage:
        """Call `make` on the inputs, one of them a tensor at least; its tensors are those to be made again."""
        stage = Stage(make, inputs)
        self._stages.append(stage)
        return stage

    def __enter__(self) -> Recomputation:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        made = {
            tensor.untyped_storage().data_ptr(): (stage, index, tensor.dtype)
            for stage in self._stages
            for index, tensor in enumerate(stage.tensors)
            if tensor.numel()
        }
        for saved in self._saved:
            assert saved.tensor is not None
            found = made.get(saved.tensor.untyped_storage().data_ptr()) if saved.tensor.numel() else None
            if found is not None and found[2] == saved.tensor.dtype:
                saved.replace(found[0], found[1])
        for stage in self._stages:
            stage.forget()
        self._stages, self._saved = [], []

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        self._saved.append(saved)
        return saved
