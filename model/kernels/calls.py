"""How tensors are handed to the kernels."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from model.kernels.build import library


def kernels_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The kernels, where they compute with such tensors: float32 in a CPU's memory, and nobody traces the program."""
    for x in tensors:
        if type(x) not in _REAL or x.device.type != "cpu" or x.dtype != torch.float32:
            return None
    return None if torch.compiler.is_compiling() else library()


_REAL = (Tensor, torch.nn.Parameter)


def place(x: Tensor | None) -> ctypes.c_void_p | None:
    """Where a contiguous tensor's numbers begin; a null pointer for None."""
    assert x is None or x.is_contiguous()
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def whole(number: int) -> ctypes.c_int64:
    """An int64."""
    return ctypes.c_int64(number)


def real(number: float) -> ctypes.c_float:
    """A float."""
    return ctypes.c_float(number)
