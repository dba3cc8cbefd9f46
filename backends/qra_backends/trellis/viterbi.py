"""Viterbi's algorithm in numba: columns rounded one after another, each along the nearest path through the trellis.

A state is v · 2^k + j: its k lowest bits j fall out of the window after its row, v stays. So of all paths that lead to
the same v only the cheapest is followed, and its j, which says where it came from, is kept for the way back.

Compilers make vectors of loops whose numbers lie side by side. So costs and values lie as [v // lanes, j, v modulo
lanes], with so many lanes that a loop has 256 numbers, or fewer where states are short. The GIL is let go: threads work
side by side. No array is cut or seen as another type in a loop over rows: numba counts references to it each time,
which takes as long as a row of short states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, make_state_values

NUMBA_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
"""Options of numba, without the GIL; fused multiply-adds quicken Viterbi's algorithm by a fifth."""

PIECE_ROWS, LOOKAHEAD_ROWS = 4096, 128
"""Rows of which ways back are kept, and rows looked at beyond them. Paths have long merged by then."""
PROBE_STATE_BITS = 10
"""Bits of a state below which codes are probes, of two bits a weight."""
_UNROLLED = 16  # turns of a loop that a compiler unrolls, which it has to before it makes vectors of the loop around it
_RENEWED = 64  # rows after which the least cost is taken off all costs, so that they stay small
_FAR = np.float32(1e30)
_WORST = np.int32(0x7FFFFFFF)


def compile_once(function: Callable[..., None], **options: Any) -> Any:
    """A compiled function, kept in numba's cache if one can be written.

    The cache knows the file of the function and no other: what it calls has to be there too.
    """
    try:
        return numba.njit(cache=True, **{**NUMBA_OPTIONS, **options})(function)
    except RuntimeError:  # neither beside the source nor in the user's folder
        return numba.njit(**{**NUMBA_OPTIONS, **options})(function)


compile_sums = partial(compile_once, fastmath=True)
"""The same with sums in any order."""


class Layout(NamedTuple):
    """What rounding at a code takes.

    Attributes:
        plain: value of each state, float32 (2^L,).
        ordered: the same in the order in which even rows go through them, then that of odd rows, float32 (2 · 2^L,).
        even_shift, odd_shift: bits that fall out after an even row, and after an odd one.
        L: bits of a state.
    """

    plain: NDArray[np.float32]
    ordered: NDArray[np.float32]
    even_shift: int
    odd_shift: int
    L: int


@lru_cache
def make_layout(code: TrellisCode) -> Layout:
    """The layout of a code's values."""
    plain = (make_state_values(code.L) * VALUE_UNIT).astype(np.float32)
    shifts = code.get_state_shifts()
    # Axes: v // lanes, v modulo lanes, j.
    ordered = [
        plain.reshape(-1, _count_lanes(2**shift, code.L), 2**shift).transpose(0, 2, 1).reshape(-1)
        for shift in shifts
    ]
    return Layout(plain, np.concatenate(ordered), *shifts, code.L)


def _count_lanes(branches: int, L: int = 16) -> int:
    if L < PROBE_STATE_BITS:
        return 16  # floats of the longest vector that there is
    return max(16, 256 // branches)


def _make_step(branches: int, L: int = 16) -> Any:
    """One row: the cheapest way to each v, of the `branches` states that lead to it.

    The lowest bits of a cost make room for j: the smaller number is then the cheaper path, with its j. Indices are
    unsigned, as numba would look for negative ones one by one.
    """
    half, lowest = min(branches, _UNROLLED), np.int32(branches - 1)
    lanes = _count_lanes(branches, L)
    size = branches * lanes  # of a block

    @numba.njit(
        inline="always", **NUMBA_OPTIONS
    )  # called for every row: a call takes as long as short states do
    def step(best, costs, before, after, spread, values, first, x, scale, back, row):  # type: ignore[no-untyped-def]
        turns = before // branches
        blocks = max(1, turns // lanes)
        if turns >= lanes:
            for block in range(blocks):
                start = block * size
                for lane in range(lanes):
                    for j in range(branches):
                        spread[np.uint64(start + j * lanes + lane)] = costs[
                            np.uint64(start + lane * branches + j)
                        ]
        else:  # lanes go through them several times
            for lane in range(lanes):
                for j in range(branches):
                    spread[np.uint64(j * lanes + lane)] = costs[
                        np.uint64((lane & (turns - 1)) * branches + j)
                    ]
        for block in range(after // lanes):
            here, costs_here = first + block * size, (block & (blocks - 1)) * size
            for lane in range(lanes):
                least = _WORST
                for j in range(half):
                    at = j * lanes + lane
                    off = x - scale * values[np.uint64(here + at)]
                    cost = np.float32(off * off + spread[np.uint64(costs_here + at)]).view(np.int32)
                    least = min(least, (cost & ~lowest) | np.int32(j))
                if branches > half:
                    for j in range(half, branches):
                        at = j * lanes + lane
                        off = x - scale * values[np.uint64(here + at)]
                        cost = np.float32(off * off + spread[np.uint64(costs_here + at)]).view(np.int32)
                        least = min(least, (cost & ~lowest) | np.int32(j))
                best[np.uint64(block * lanes + lane)] = least
        for v in range(after):
            back[row, np.uint64(v)] = best[np.uint64(v)] & lowest

    return step


_step_2, _step_4, _step_8, _step_16, _step_32 = map(_make_step, (2, 4, 8, 16, 32))
_step_4_short = _make_step(4, L=PROBE_STATE_BITS - 1)


@numba.njit(**NUMBA_OPTIONS)
def _find_smallest(costs, count):  # type: ignore[no-untyped-def]
    found = 0
    for v in range(1, count):
        if costs[v] < costs[found]:
            found = v
    return found


@numba.njit(**NUMBA_OPTIONS)
def _find_path(x, scale, plan, states, spread, best, back):  # type: ignore[no-untyped-def]
    """Fill the states (out,) of a column x (out,), piece by piece, each from where the one before ended."""
    costs, rows, first = best.view(np.float32), len(x), 0
    while True:
        stop = rows if rows - first <= PIECE_ROWS + LOOKAHEAD_ROWS else first + PIECE_ROWS + LOOKAHEAD_ROWS
        costs[:] = 0 if first == 0 else _FAR
        if first > 0:  # the row before is odd, as a piece has an even number of rows
            costs[states[first - 1] >> plan.odd_shift] = 0
        for row in range(first, stop):
            shift, shift_before, start = plan.even_shift, plan.odd_shift, 0
            if row & 1:
                shift, shift_before, start = plan.odd_shift, plan.even_shift, 1 << plan.L
            before, after, at = 1 << (plan.L - shift_before), 1 << (plan.L - shift), row - first
            if shift == 1:
                _step_2(best, costs, before, after, spread, plan.ordered, start, x[row], scale[row], back, at)
            elif shift == 2 and plan.L < PROBE_STATE_BITS:
                _step_4_short(
                    best, costs, before, after, spread, plan.ordered, start, x[row], scale[row], back, at
                )
            elif shift == 2:
                _step_4(best, costs, before, after, spread, plan.ordered, start, x[row], scale[row], back, at)
            elif shift == 3:
                _step_8(best, costs, before, after, spread, plan.ordered, start, x[row], scale[row], back, at)
            elif shift == 4:
                _step_16(
                    best, costs, before, after, spread, plan.ordered, start, x[row], scale[row], back, at
                )
            else:
                _step_32(
                    best, costs, before, after, spread, plan.ordered, start, x[row], scale[row], back, at
                )
            if row % _RENEWED == _RENEWED - 1:
                least = costs[_find_smallest(costs, after)]
                for v in range(after):
                    costs[v] -= least
        v = _find_smallest(costs, 1 << (plan.L - (plan.even_shift if stop & 1 else plan.odd_shift)))
        for row in range(stop - 1, first - 1, -1):
            shift, shift_before = plan.even_shift, plan.odd_shift
            if row & 1:
                shift, shift_before = plan.odd_shift, plan.even_shift
            state = v << shift | back[row - first, v]
            states[row] = state
            v = state & ((1 << (plan.L - shift_before)) - 1)
        if stop == rows:
            return
        first += PIECE_ROWS


@compile_once
def round_columns(columns, inverse, scale, states, errors, plan):  # type: ignore[no-untyped-def]
    """Round a block of columns in turn, and take from each what the errors of those before it ask for.

    Args:
        columns: float32 (n, out); changed.
        inverse: float32 (n, n), the upper factor of the inverse Hessian.
        scale: float32 (out,).
        states: int32 (n, out), to be filled.
        errors: float32 (n, out), to be filled: each column's error over its pivot.
        plan: a `Layout`.
    """
    size, out = columns.shape
    kept = 1 << (plan.L - min(plan.even_shift, plan.odd_shift))
    spread = np.empty(max(512, kept), np.float32)  # of 32 branches a block has 512, of fewer 256
    best = np.empty(kept, np.int32)
    back = np.empty((min(out, PIECE_ROWS + LOOKAHEAD_ROWS), kept), np.uint8)
    unit = np.float32(scale.mean())
    if unit == 0:
        unit = np.float32(1)
    relative = scale / unit
    for i in range(size):
        column, state, error = columns[i], states[i], errors[i]
        _find_path(column / unit, relative, plan, state, spread, best, back)
        for row in range(out):
            error[row] = (column[row] - scale[row] * plan.plain[state[row]]) / inverse[i, i]
        for later in range(i + 1, size):
            share, other = inverse[i, later], columns[later]
            for row in range(out):
                other[row] -= share * error[row]
