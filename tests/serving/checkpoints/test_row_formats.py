"""Row formats: error bounds, edge cases, and the documented layout decoded by plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.checkpoints.row_formats import decode_rows, encode_rows, encode_state, encoded_width

QUANTISED = ("int8", "int4")
LEVELS = {"int8": 255, "int4": 15}


def documented(format: str, encoded: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, scale) by the words of the module's docstring, in float64."""
    if format == "int8":
        numbers = encoded[:, :width]
        scale, bias = encoded[:, width:].copy().view(np.float32).T
    else:
        halves = encoded[:, : -(-width // 2)]
        numbers = np.stack([halves & 15, halves >> 4], axis=2).reshape(len(encoded), -1)[:, :width]
        scale, bias = encoded[:, -4:].copy().view(np.float16).T
    scale, bias = scale.astype(np.float64), bias.astype(np.float64)
    return scale[:, None] * numbers + bias[:, None], scale


def check(format: str, rows_nD: np.ndarray) -> None:
    """Shape, type, layout, and how far what comes back is from what went in."""
    width = rows_nD.shape[1]
    encoded = encode_rows(format, rows_nD)
    dtype, columns = encoded_width(format, width)
    assert (encoded.dtype.name, encoded.shape) == (dtype, (len(rows_nD), columns))
    decoded = decode_rows(format, torch.from_numpy(encoded), width).numpy()
    assert (decoded.dtype, decoded.shape) == (np.dtype(np.float32), rows_nD.shape)
    expected, scale = documented(format, encoded, width)
    size = np.abs(rows_nD).max(axis=1).astype(np.float64)
    span = rows_nD.max(axis=1).astype(np.float64) - rows_nD.min(axis=1)
    assert (np.abs(decoded - expected) <= 1e-6 * (np.abs(expected) + size[:, None]) + 1e-30).all()
    # Half a level from rounding; int8: scale and bias in float32, spans below 1e-8 count as none;
    # int4: scale (in float16) errs by 2^-11 of itself or 2^-25, over 15 levels, and so does the bias.
    bound = scale / 2 + 2e-6 * size + (1e-8 if format == "int8" else 0)
    if format == "int4":
        bound = bound + 2.0**-10 * size + 16 * 2.0**-24
    assert (np.abs(decoded - rows_nD).max(axis=1) <= bound).all()
    varied = span > 1e-4 * np.maximum(size, 0.1)
    assert (scale[varied] <= 1.02 * span[varied] / LEVELS[format] + 1e-7 + 2.0**-10 * size[varied]).all()


@pytest.mark.parametrize("format", QUANTISED)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_quantised_rows_come_back_within_half_a_level(format: str, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 19)))
    largest = data.draw(st.sampled_from([1e-3, 0.1, 1.0, 300.0]))
    numbers = st.floats(-largest, largest, width=32) if largest >= 1 else st.floats(-1, 1, width=32)
    check(format, data.draw(arrays(np.float32, shape, elements=numbers)) * np.float32(min(largest, 1)))


@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, 64, 129])
def test_any_width_one_row_many_rows_and_rows_of_one_value(format: str, width: int) -> None:
    draw = np.random.default_rng(width)
    check(format, draw.standard_normal((1, width)).astype(np.float32))
    check(format, draw.standard_normal((300, width)).astype(np.float32) * np.float32(0.02))
    constant = np.repeat(np.float32([0, 0.5, -3, 100])[:, None], width, axis=1)
    check(format, constant)
    decoded = decode_rows(format, torch.from_numpy(encode_rows(format, constant)), width).numpy()
    assert np.array_equal(decoded, constant), "values that float16 has come back as they are"


@pytest.mark.parametrize("format", QUANTISED)
def test_large_and_small_rows_beside_ordinary_ones_harm_only_themselves(format: str) -> None:
    ordinary = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    large = np.float32(1e30) if format == "int8" else np.float32(6e4)
    rows = np.concatenate([ordinary, ordinary * 1e-6, ordinary / np.abs(ordinary).max() * large])
    check(format, rows)
    alone = encode_rows(format, ordinary)
    assert np.array_equal(encode_rows(format, rows)[:3], alone)


@pytest.mark.parametrize("width", [1, 5, 8])
@pytest.mark.parametrize("format", ["float32", *QUANTISED])
def test_no_rows_have_the_width_of_the_format(format: str, width: int) -> None:
    encoded = encode_rows(format, np.empty((0, width), np.float32))
    dtype, columns = encoded_width(format, width)
    assert (encoded.dtype.name, encoded.shape) == (dtype, (0, columns))
    assert decode_rows(format, torch.from_numpy(encoded), width).shape == (0, width)


def test_float32_keeps_every_bit() -> None:
    rows = np.random.default_rng(0).integers(0, 2**32, (50, 6), dtype=np.uint32).view(np.float32)
    rows[0] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38]
    encoded = encode_rows("float32", rows)
    assert encoded.tobytes() == rows.tobytes()
    assert decode_rows("float32", torch.from_numpy(encoded), 6).numpy().tobytes() == rows.tobytes()


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 4)])
def test_states_keep_every_bit_or_are_rounded_to_bfloat16(shape: tuple[int, ...]) -> None:
    states = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert encode_state("float32", states).tobytes() == states.tobytes()
    bits = encode_state("bfloat16", states)
    assert (bits.dtype, bits.shape) == (np.dtype(np.int16), shape)
    # The upper half of a float32 is its bfloat16; round to the nearest, ties to even.
    whole = states.view(np.uint32).astype(np.uint64)
    expected = (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16
    assert np.array_equal(bits.view(np.uint16), expected.astype(np.uint16))
