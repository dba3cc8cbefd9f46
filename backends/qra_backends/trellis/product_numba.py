"""Products with few inputs on a CPU, straight from the streams: inputs are rotated, and no weight is made."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qra_backends.storage import ceil_div
from qra_backends.trellis.code import UNIT, TrellisCode, count_word_rows, make_state_values
from qra_backends.trellis.decode_numba import rotate
from qra_backends.trellis.jit import compile_sums
from qra_backends.trellis.rotation import make_signs

ROWS, TOKENS = 4, 4
"""Rows of one product at a time with a single input, whose states are cut from one word; inputs at a time of several."""
LEAST_PART = 1 << 17
"""Weights for which it pays to wake a thread: about 40 microseconds of work."""


def multiply(codes: Tensor, scale: Tensor, x: Tensor, code: TrellisCode, block: int) -> Tensor:
    """x Wᵀ float32 (n, out) of few inputs, on as many threads as torch has.

    Args:
        codes: uint8 (bytes of a stream, in).
        scale: float16 (out,).
        x: (n, in).
        block: inputs that are rotated together.
    """
    out_features, in_features = len(scale), x.shape[1]
    is_alone = len(x) == 1 and count_word_rows(code) >= ROWS
    inputs = torch.zeros(1 if is_alone else ceil_div(len(x), TOKENS) * TOKENS, in_features)
    inputs[: len(x)] = x
    rotate(inputs.numpy(), make_signs(in_features, x.device).numpy(), np.float32(1 / math.sqrt(block)), block)
    product = torch.empty(len(inputs), out_features)
    multiply_rows = _multiply_one if is_alone else _multiply_four
    arguments = (codes.numpy(), inputs.numpy(), _make_float_values(code.L), code.half_bits, scale.float().numpy())
    _split_rows(
        lambda first, stop: multiply_rows(*arguments, product.numpy(), first, stop), out_features, in_features
    )
    return product[: len(x)]


def _split_rows(work: Callable[[int, int], None], rows: int, columns: int) -> None:
    """Call work(first, stop) for all rows, in as many parts at once as torch has threads."""
    parts = min(torch.get_num_threads(), max(1, rows * columns // LEAST_PART))
    step = ceil_div(ceil_div(rows, parts), ROWS) * ROWS
    others = [
        _make_pool(parts - 1).submit(work, first, min(first + step, rows)) for first in range(step, rows, step)
    ]
    work(0, min(step, rows))
    for other in others:
        other.result()


@lru_cache
def _make_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="qra-product")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_pool.cache_clear)  # the threads are its parent's


@lru_cache
def _make_float_values(L: int) -> NDArray[np.float32]:
    return (make_state_values(L) * UNIT).astype(np.float32)


# Unsigned indices, sums in any order and no stores within a loop let the compiler use AVX-512's gathers.
@compile_sums
def _multiply_one(codes, x, values, half_bits, factor, product, first, stop):  # type: ignore[no-untyped-def]
    """Rows first to stop of the product with one input, four at a time."""
    last, mask, row = len(codes) - 1, np.uint32(len(values) - 1), x[0]
    for j in range(first, stop, 4):
        j1, j2, j3 = min(j + 1, stop - 1), min(j + 2, stop - 1), min(j + 3, stop - 1)
        at = (j * half_bits >> 1) >> 3
        shift0 = np.uint32((j * half_bits >> 1) - 8 * at)
        shift1 = np.uint32((j1 * half_bits >> 1) - 8 * at)
        shift2 = np.uint32((j2 * half_bits >> 1) - 8 * at)
        shift3 = np.uint32((j3 * half_bits >> 1) - 8 * at)
        byte0, byte1 = codes[at], codes[min(at + 1, last)]
        byte2, byte3 = codes[min(at + 2, last)], codes[min(at + 3, last)]
        sum0 = sum1 = sum2 = sum3 = np.float32(0)
        for i in range(codes.shape[1]):
            k = np.uint64(i)
            low = np.uint32(byte0[k]) | np.uint32(byte1[k]) << np.uint32(8)
            word = low | np.uint32(byte2[k]) << np.uint32(16) | np.uint32(byte3[k]) << np.uint32(24)
            sum0 += values[np.uint64(word >> shift0 & mask)] * row[k]
            sum1 += values[np.uint64(word >> shift1 & mask)] * row[k]
            sum2 += values[np.uint64(word >> shift2 & mask)] * row[k]
            sum3 += values[np.uint64(word >> shift3 & mask)] * row[k]
        product[0, j] = sum0 * factor[j]
        product[0, j1] = sum1 * factor[j1]
        product[0, j2] = sum2 * factor[j2]
        product[0, j3] = sum3 * factor[j3]


@compile_sums
def _multiply_four(codes, x, values, half_bits, factor, product, first, stop):  # type: ignore[no-untyped-def]
    """Rows first to stop of the product with a multiple of four inputs, two rows and four inputs at a time."""
    last, mask = len(codes) - 1, np.uint32(len(values) - 1)
    for j in range(first, stop, 2):
        other = min(j + 1, stop - 1)
        at = (j * half_bits >> 1) >> 3
        shift, other_shift = np.uint32((j * half_bits >> 1) - 8 * at), np.uint32((other * half_bits >> 1) - 8 * at)
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
            product[t, j], product[t, other] = sum0 * factor[j], other0 * factor[other]
            product[t + 1, j], product[t + 1, other] = sum1 * factor[j], other1 * factor[other]
            product[t + 2, j], product[t + 2, other] = sum2 * factor[j], other2 * factor[other]
            product[t + 3, j], product[t + 3, other] = sum3 * factor[j], other3 * factor[other]
