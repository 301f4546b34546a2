"""How rows of a table lie in a checkpoint: as they are, or quantised row by row by FBGEMM.

`float32` [n, D] as they are. `int8` uint8 [n, D + 8]: D values of 8 bits, then the row's scale and bias in float32;
value = scale · byte + bias. `int4` uint8 [n, ⌈D / 2⌉ + 4]: two values a byte, the low half first, then scale and bias
in float16, so values beyond ±65504 come back as infinities. In an odd width the last half byte means nothing. Optimizer
states are `float32` or `bfloat16`.

Shapes: n rows · D width.
"""

from __future__ import annotations

import fbgemm_gpu.split_embedding_configs  # noqa: F401 — registers torch.ops.fbgemm
import numpy as np
import torch
from torch import Tensor

VALUE_FORMATS = ("float32", "int8", "int4")
STATE_FORMATS = ("float32", "bfloat16")


def encoded_width(format: str, width: int) -> tuple[str, int]:
    """(type, numbers a row) of rows in a format."""
    return {"float32": ("float32", width), "int8": ("uint8", width + 8), "int4": ("uint8", -(-width // 2) + 4)}[format]


def encode_rows(format: str, rows_nD: np.ndarray) -> np.ndarray:
    """float32 [n, D] → its bytes in a format."""
    if format == "float32" or not len(rows_nD):
        dtype, width = encoded_width(format, rows_nD.shape[1])
        return rows_nD.astype(dtype, copy=False).reshape(-1, rows_nD.shape[1] if len(rows_nD) else width)
    rows = torch.from_numpy(rows_nD)
    if format == "int8":
        encoded: Tensor = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows)
    else:
        encoded = _encode_int4(rows)
    return encoded.numpy()


def decode_rows(format: str, encoded: Tensor, width: int) -> Tensor:
    """The inverse of `encode_rows`, up to quantisation: → float32 [n, width]."""
    if format == "float32":
        return encoded
    if not len(encoded):
        return torch.empty(0, width)
    if format == "int8":
        decoded: Tensor = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(encoded.contiguous())
    else:
        decoded = _decode_int4(encoded, width)
    return decoded[:, :width]


def _encode_int4(rows_nD: Tensor) -> Tensor:
    """FBGEMM wants widths in fours: the last column, repeated, changes no row's scale, and its bytes are left out."""
    missing = -rows_nD.shape[1] % 4
    padded = torch.cat([rows_nD, rows_nD[:, -1:].expand(-1, missing)], dim=1) if missing else rows_nD
    encoded: Tensor = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(padded.contiguous(), 4)
    used = -(-rows_nD.shape[1] // 2)
    return torch.cat([encoded[:, :used], encoded[:, -4:]], dim=1) if missing else encoded


def _decode_int4(encoded: Tensor, width: int) -> Tensor:
    missing = -width % 4 // 2
    if missing:
        zeros = encoded.new_zeros(len(encoded), missing)
        encoded = torch.cat([encoded[:, :-4], zeros, encoded[:, -4:]], dim=1)
    decoded: Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(encoded.contiguous(), 4)
    return decoded


def encode_state(format: str, values: np.ndarray) -> np.ndarray:
    """float32 optimizer states → themselves, or the bit patterns of bfloat16."""
    if format == "float32":
        return values
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
