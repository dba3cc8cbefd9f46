"""Viterbi's algorithm on a GPU: a column is cut into pieces that are rounded at once, a program each.

First a program around each cut finds the state at the cut, from `MARGIN_ROWS` rows on either side. Then each piece
finds its path from its first state to its last. So pieces join to one path, hardly longer than
the nearest one.

A column takes 2 · MARGIN_ROWS + PIECE_ROWS rows one after another, whatever its length. This was not timed on a card.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, make_value_table

PIECE_ROWS, MARGIN_ROWS = 128, 64
"""Rows; even numbers."""
_FREE = -1  # where any state may be the first, or the last


def round_columns(
    columns: Tensor, inverse: Tensor, scale: Tensor, code: TrellisCode, states: Tensor, errors: Tensor
) -> None:
    """As `viterbi.round_columns`, of tensors on a GPU; `states` is int32."""
    out = columns.shape[1]
    even = -(-out // 2) * 2  # a row of weight 0 follows an odd number of them
    table = make_value_table(code.L, columns.device).float() * VALUE_UNIT
    unit = scale.mean()
    unit = torch.where(unit == 0, 1.0, unit)
    relative, x = (torch.zeros(even, dtype=torch.float32, device=columns.device) for _ in range(2))
    relative[:out] = scale / unit
    starts = torch.arange(0, even, PIECE_ROWS, device=columns.device)
    cuts = starts[1:]
    ends = torch.cat([cuts, cuts.new_full((1,), even)])
    free = torch.full((1,), _FREE, dtype=torch.int32, device=columns.device)
    path = torch.empty(even, dtype=torch.int32, device=columns.device)
    around = torch.empty(len(cuts), 2 * MARGIN_ROWS, dtype=torch.int32, device=columns.device)
    pivots = inverse.diagonal().tolist()
    for i, pivot in enumerate(pivots):
        x[:out] = columns[i] / unit
        if len(cuts):
            first, last = cuts - MARGIN_ROWS, (cuts + MARGIN_ROWS).clamp_max(even)
            anywhere = free.expand(len(cuts))
            _find_paths(x, relative, table, code, first, last, anywhere, anywhere, around)
        joins = torch.cat([free, around[:, MARGIN_ROWS - 1], free])
        _find_paths(x, relative, table, code, starts, ends, joins[:-1], joins[1:], path)
        states[i] = path[:out]
        torch.div(columns[i] - scale * table[states[i]], pivot, out=errors[i])
        columns[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)


def _find_paths(
    x: Tensor,
    scale: Tensor,
    table: Tensor,
    code: TrellisCode,
    first: Tensor,
    last: Tensor,
    start: Tensor,
    end: Tensor,
    states: Tensor,
) -> None:
    """Fill the states of rows from first to last (n,), of even numbers, from the state before them to their last state.

    Args:
        start, end: int32 (n,): the states, or `_FREE`.
        states: int32, (rows,) of the whole column, or (n, most rows).
    """
    even, odd = code.get_state_shifts()
    rows = PIECE_ROWS if states.ndim == 1 else states.shape[1]
    back = torch.empty(len(first), rows << (code.L - even), dtype=torch.uint8, device=x.device)
    _find_path[(len(first),)](
        x,
        scale,
        table,
        first,
        last,
        start.contiguous(),
        end.contiguous(),
        back,
        states,
        ROWS=rows,
        APART=states.ndim == 2,
        L=code.L,
        EVEN=even,
        ODD=odd,
        num_warps=8,
    )


@triton.jit
def _find_path(  # type: ignore[no-untyped-def]
    x,
    scale,
    table,
    first,
    last,
    start,
    end,
    back,
    states,
    ROWS: tl.constexpr,
    APART: tl.constexpr,
    L: tl.constexpr,
    EVEN: tl.constexpr,
    ODD: tl.constexpr,
):
    program = tl.program_id(0)
    row, stop = tl.load(first + program), tl.load(last + program)
    before, after = tl.load(start + program), tl.load(end + program)
    KEPT: tl.constexpr = 1 << (L - EVEN)  # after an even row; after an odd one as many or fewer
    back += program.to(tl.int64) * ROWS * KEPT
    states += program * ROWS if APART else row
    values = tl.load(table + tl.arange(0, 1 << L))
    v = tl.arange(0, 1 << (L - ODD))
    costs = tl.where((before < 0) | (v == before >> ODD), 0.0, 1e30)
    pairs = ((stop - row) // 2).to(tl.int32)
    for pair in range(pairs):
        at, kept = row + 2 * pair, back + 2 * pair * KEPT
        costs = _extend_paths(costs, x + at, scale + at, values, kept, L, ODD, EVEN)
        costs = _extend_paths(costs, x + at + 1, scale + at + 1, values, kept + KEPT, L, EVEN, ODD)
        costs -= tl.min(costs, axis=0)
    tl.debug_barrier()  # what other threads wrote on the way there is read on the way back
    state = tl.argmin(costs, axis=0).to(tl.int32) << ODD
    forced = after >= 0
    state = tl.where(forced, after, state)
    for turn in range(pairs):
        pair = pairs - 1 - turn
        known = tl.load(back + (2 * pair + 1) * KEPT + (state >> ODD)).to(tl.int32)
        state = tl.where(forced & (turn == 0), state, (state >> ODD << ODD) | known)
        tl.store(states + 2 * pair + 1, state)
        kept = state & ((1 << (L - EVEN)) - 1)
        state = kept << EVEN | tl.load(back + 2 * pair * KEPT + kept).to(tl.int32)
        tl.store(states + 2 * pair, state)
        state = (state & ((1 << (L - ODD)) - 1)) << ODD


@triton.jit
def _extend_paths(  # type: ignore[no-untyped-def]
    costs, x, scale, values, back, L: tl.constexpr, BEFORE: tl.constexpr, SHIFT: tl.constexpr
):
    """As `viterbi._make_step`: the cheapest way to each v, the lowest bits of its cost being j."""
    lowest: tl.constexpr = (1 << SHIFT) - 1
    off = tl.load(x) - tl.load(scale) * values
    reached = tl.broadcast_to(costs[None, :], (1 << BEFORE, 1 << (L - BEFORE))).reshape(1 << L)
    cost = (off * off + reached).to(tl.int32, bitcast=True)
    tagged = (cost & ~lowest) | (tl.arange(0, 1 << L) & lowest)
    least = tl.min(tagged.reshape(1 << (L - SHIFT), 1 << SHIFT), axis=1)
    tl.store(back + tl.arange(0, 1 << (L - SHIFT)), (least & lowest).to(tl.uint8))
    return least.to(tl.float32, bitcast=True)
