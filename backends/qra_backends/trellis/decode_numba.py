"""Decoding, rotating and multiplying on a CPU, compiled by numba when first used.

Decoding goes a row at a time, which stays in the cache. A product with few inputs makes no weight: it rotates the
inputs, and adds up values as it reads the streams.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from functools import lru_cache

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from qra_backends.storage import ceil_div, choose_block_rows
from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, count_word_rows, make_signs, make_state_values
from qra_backends.trellis.viterbi import NUMBA_OPTIONS, compile_once, compile_sums

PRODUCT_ROWS, PRODUCT_TOKENS = 4, 4
"""Rows at a time of a product with one input, whose states are cut from one word; inputs at a time of several."""
MIN_THREAD_WEIGHTS = 1 << 17
"""Weights of a thread's part of a product, at least: 40 microseconds of work, of which sharing takes about 5."""
_PROCESS = os.getpid()
"""A child by fork has none of its parent's threads."""


def decode_rows(
    codes: Tensor, factor: Tensor, at: Tensor, code: TrellisCode, block: int, dtype: torch.dtype
) -> Tensor:
    """As `linear.decode_rows`, on the host."""
    in_features = codes.shape[1]
    weight = torch.empty(len(at), in_features, dtype=dtype)
    step = choose_block_rows(in_features, codes.device)
    floats = torch.empty(min(step, len(at)), in_features, dtype=torch.float32)
    values = make_state_values(code.L)
    starts, sign = code.locate_state(at).numpy(), make_signs(in_features, codes.device).numpy()
    for start in range(0, len(at), step):
        own = slice(start, start + step)
        rows = floats[: len(at[own])]
        _decode(codes.numpy(), starts[own], values, factor[own].numpy(), sign, block, rows.numpy())
        weight[own] = rows
    return weight


def make_product(
    codes: Tensor,
    scale: Tensor,
    code: TrellisCode,
    block: int,
    factors: Sequence[tuple[Tensor, Tensor, float]] = (),
) -> Callable[[Tensor], Tensor]:
    """A function of few inputs x (n, in) that gives x Wᵀ in float32 (n, out), on as many threads as torch has.

    Args:
        codes: uint8 (bytes of a stream, in).
        scale: float16 (out,).
        block: inputs that are rotated together.
        factors: A (rank, in), B (out, rank) and scaling of adapters, whose products are added.
    """
    out_features, in_features = len(scale), codes.shape[1]
    down = np.zeros((sum(len(a) for a, _, _ in factors), in_features), np.float32)
    up = np.zeros((out_features, len(down)), np.float32)
    start = 0
    for a, b, scaling in factors:
        own = slice(start, start + len(a))
        down[own], up[:, own] = a.detach().float().numpy(), (b.detach().float() * scaling).numpy()
        start += len(a)
    factor = scale.float().numpy() * np.float32(VALUE_UNIT)
    stored = (codes.numpy(), factor, up)
    sign, shrink = make_signs(in_features, codes.device).numpy(), np.float32(1 / math.sqrt(block))
    has_pairs = count_word_rows(code) >= PRODUCT_ROWS

    def multiply(x: Tensor) -> Tensor:
        count = x.shape[0]
        is_alone = count == 1 and has_pairs
        inputs = np.zeros(
            (1 if is_alone else ceil_div(count, PRODUCT_TOKENS) * PRODUCT_TOKENS, in_features), np.float32
        )
        torch.from_numpy(inputs)[:count] = x
        inner = np.empty((len(inputs), len(down)), np.float32)
        _project_and_rotate(inputs, down, inner, sign, shrink, block)
        product = np.empty((len(inputs), out_features), np.float32)
        values = _make_value_pairs(code) if is_alone else make_state_values(code.L).astype(np.float32)
        arrays = (*stored, values, inputs, inner, product)
        parts = min(torch.get_num_threads(), out_features * in_features // MIN_THREAD_WEIGHTS)
        if parts > 1 and os.getpid() == _PROCESS and (team := _find_team()) is not None:
            step = ceil_div(ceil_div(out_features, parts), PRODUCT_ROWS) * PRODUCT_ROWS
            sizes = (out_features, in_features, len(codes), len(values), len(down), len(inputs))
            job = np.array(
                [*sizes, code.half_bits, is_alone, step, *(array.ctypes.data for array in arrays)], np.int64
            )
            team(job.ctypes.data, parts)
        else:
            multiply_rows = _multiply_one if is_alone else _multiply_four
            multiply_rows(*arrays, code.half_bits, 0, out_features)
        return torch.from_numpy(product)[:count]

    return multiply


@lru_cache
def _make_value_pairs(code: TrellisCode) -> NDArray[np.int32]:
    """2^16 · second + first, of the values of an even row and the next in `VALUE_UNIT`s, by the bits of both states."""
    values, shift = make_state_values(code.L).astype(np.int32), code.get_state_shifts()[0]
    bits = np.arange(1 << (code.L + shift))
    return (values[bits >> shift] << 16) + values[bits & (len(values) - 1)]


@numba.njit(**NUMBA_OPTIONS)
def _apply_hadamard(weights, block):  # type: ignore[no-untyped-def]
    size = block >> 1
    while size >= (8 if block >= 8 else 1):
        for pair in range(0, len(weights), 2 * size):
            ones, others = weights[pair : pair + size], weights[pair + size : pair + 2 * size]
            for i in range(size):
                one, other = ones[i], others[i]
                ones[i], others[i] = one + other, one - other
        size >>= 1
    if block >= 8:
        _transform_eights(weights)


@numba.njit(**NUMBA_OPTIONS)
def _transform_eights(weights):  # type: ignore[no-untyped-def]
    """The last three stages of a Hadamard product together: apart, they are too short for vectors."""
    for i in range(0, len(weights), 8):
        a, b, c, d, e, f, g, h = weights[i : i + 8]
        a, b, c, d, e, f, g, h = a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h
        a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
        weights[i], weights[i + 1], weights[i + 2], weights[i + 3] = a + b, a - b, c + d, c - d
        weights[i + 4], weights[i + 5], weights[i + 6], weights[i + 7] = e + f, e - f, g + h, g - h


@compile_once
def _decode(codes, starts, values, factor, sign, block, out):  # type: ignore[no-untyped-def]
    last, mask, columns = len(codes) - 1, np.uint32(len(values) - 1), out.shape[1]
    for row in range(len(starts)):
        first, shift = starts[row] >> 3, np.uint32(starts[row] & 7)
        low, middle, high = codes[first], codes[min(first + 1, last)], codes[min(first + 2, last)]
        weights = out[row]
        for i in range(columns):
            word = np.uint32(low[i]) | np.uint32(middle[i]) << np.uint32(8)
            word |= np.uint32(high[i]) << np.uint32(16)
            weights[i] = values[np.uint32(np.uint32(word >> shift) & mask)]
        _apply_hadamard(weights, block)
        for i in range(columns):
            weights[i] *= factor[row] * sign[i]


@compile_once
def rotate(rows, sign, factor, block):  # type: ignore[no-untyped-def]
    """Rows float32 (n, in), contiguous, times the signs (in,), the Hadamard matrix of each block, and a factor."""
    for row in range(len(rows)):
        weights = rows[row]
        for i in range(len(weights)):
            weights[i] *= factor * sign[i]
        _apply_hadamard(weights, block)


@numba.njit(**{**NUMBA_OPTIONS, "fastmath": True})
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(len(a)):
        total += a[np.uint64(i)] * b[np.uint64(i)]
    return total


@compile_sums
def _project_and_rotate(x, down, inner, sign, factor, block):  # type: ignore[no-untyped-def]
    """Inputs (n, in) times the adapters' (rank, in), then rotated in place."""
    for t in range(len(x)):
        for r in range(len(down)):
            inner[t, r] = _dot(down[r], x[t])
        row = x[t]
        for i in range(len(row)):
            row[i] *= factor * sign[i]
        _apply_hadamard(row, block)


# Unsigned indices, sums in any order and no stores within a loop let the compiler use AVX-512's gathers.
@compile_sums
def _multiply_one(codes, factor, up, pairs, x, inner, product, half_bits, first, stop):  # type: ignore[no-untyped-def]
    """Rows first to stop of the product with one input, four at a time, and of its adapters."""
    last, mask, row = len(codes) - 1, np.uint32(len(pairs) - 1), x[0]
    for j in range(first, stop, 4):
        at = (j * half_bits >> 1) >> 3
        shift = np.uint32((j * half_bits >> 1) - 8 * at)
        other_shift = shift + np.uint32(half_bits)
        byte0, byte1 = codes[at], codes[min(at + 1, last)]
        byte2, byte3 = codes[min(at + 2, last)], codes[min(at + 3, last)]
        low = high = other_low = other_high = np.float32(0)
        for i in range(codes.shape[1]):
            k = np.uint64(i)
            half = np.uint32(byte0[k]) | np.uint32(byte1[k]) << np.uint32(8)
            word = half | np.uint32(byte2[k]) << np.uint32(16) | np.uint32(byte3[k]) << np.uint32(24)
            pair = pairs[np.uint64(word >> shift & mask)]
            other_pair = pairs[np.uint64(word >> other_shift & mask)]
            low += np.float32(np.int32(pair << np.int32(16))) * row[k]
            high += np.float32(pair) * row[k]
            other_low += np.float32(np.int32(other_pair << np.int32(16))) * row[k]
            other_high += np.float32(other_pair) * row[k]
        # A pair is 2^16 · second + first, and shifted it is 2^16 · first.
        scale = np.float32(2**-16)
        first_sum, third_sum = low * scale, other_low * scale
        sums = (first_sum, (high - first_sum) * scale, third_sum, (other_high - third_sum) * scale)
        for d in range(min(4, stop - j)):
            product[0, j + d] = sums[d] * factor[j + d] + _dot(up[j + d], inner[0])


@compile_sums
def _multiply_four(codes, factor, up, values, x, inner, product, half_bits, first, stop):  # type: ignore[no-untyped-def]
    """Rows first to stop of the product with a multiple of four inputs, two rows and four inputs at a time."""
    last, mask = len(codes) - 1, np.uint32(len(values) - 1)
    for j in range(first, stop, 2):
        other = min(j + 1, stop - 1)
        at = (j * half_bits >> 1) >> 3
        shift = np.uint32((j * half_bits >> 1) - 8 * at)
        other_shift = np.uint32((other * half_bits >> 1) - 8 * at)
        byte0, byte1 = codes[at], codes[min(at + 1, last)]
        byte2, byte3 = codes[min(at + 2, last)], codes[min(at + 3, last)]
        for t in range(0, len(x), 4):
            x0, x1, x2, x3 = x[t], x[t + 1], x[t + 2], x[t + 3]
            sum0 = sum1 = sum2 = sum3 = np.float32(0)
            other0 = other1 = other2 = other3 = np.float32(0)
            for i in range(codes.shape[1]):
                k = np.uint64(i)
                low = np.uint32(byte0[k]) | np.uint32(byte1[k]) << np.uint32(8)
                word = low | np.uint32(byte2[k]) << np.uint32(16) | np.uint32(byte3[k]) << np.uint32(24)
                value = values[np.uint64(word >> shift & mask)]
                other_value = values[np.uint64(word >> other_shift & mask)]
                sum0 += value * x0[k]
                sum1 += value * x1[k]
                sum2 += value * x2[k]
                sum3 += value * x3[k]
                other0 += other_value * x0[k]
                other1 += other_value * x1[k]
                other2 += other_value * x2[k]
                other3 += other_value * x3[k]
            for row, sums in ((j, (sum0, sum1, sum2, sum3)), (other, (other0, other1, other2, other3))):
                for d in range(4):
                    product[t + d, row] = sums[d] * factor[row] + _dot(up[row], inner[t + d])


@intrinsic
def _read_pointer(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_get_thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
_get_thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())


def _multiply_own_part(job):  # type: ignore[no-untyped-def]
    """The rows of a product that fall to this thread of a team.

    The job has sizes, then addresses of arrays, in the order of `make_product`.
    """
    rows, columns, stream_bytes, states, rank = job[0], job[1], job[2], job[3], job[4]
    tokens, half_bits, is_alone, step = job[5], job[6], job[7], job[8]
    codes = numba.carray(_read_pointer(job[9]), (stream_bytes, columns), np.uint8)  # type: ignore[call-arg]
    factor = numba.carray(_read_pointer(job[10]), (rows,), np.float32)
    up = numba.carray(_read_pointer(job[11]), (rows, rank), np.float32)
    pairs = numba.carray(_read_pointer(job[12]), (states,), np.int32)
    values = numba.carray(_read_pointer(job[12]), (states,), np.float32)
    x = numba.carray(_read_pointer(job[13]), (tokens, columns), np.float32)
    inner = numba.carray(_read_pointer(job[14]), (tokens, rank), np.float32)
    product = numba.carray(_read_pointer(job[15]), (tokens, rows), np.float32)
    for first in range(step * _get_thread_number(), rows, step * _get_thread_count()):
        stop = min(first + step, rows)
        if is_alone:
            _multiply_one(codes, factor, up, pairs, x, inner, product, half_bits, first, stop)
        else:
            _multiply_four(codes, factor, up, values, x, inner, product, half_bits, first, stop)


@lru_cache
def _find_team() -> Callable[[int, int], None] | None:
    """A function that has the threads of torch's own OpenMP make the parts of a product; None without one.

    These threads wait for work without sleep while a model runs. To wake one takes 50 microseconds, as long as half of
    a small product, and those of another library would keep torch's from their cores.
    """
    try:
        start_team = ctypes.CDLL(None).GOMP_parallel  # of GCC, and of Intel's and LLVM's libraries
    except AttributeError:
        return None
    start_team.argtypes, start_team.restype = (
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint),
        None,
    )
    job_type = types.void(types.CPointer(types.int64))
    try:
        own_part = numba.cfunc(job_type, cache=True, **NUMBA_OPTIONS)(_multiply_own_part)
    except RuntimeError:  # as in `compile_once`
        own_part = numba.cfunc(job_type, **NUMBA_OPTIONS)(_multiply_own_part)
    return lambda job, parts: start_team(own_part.address, job, parts, 0)
