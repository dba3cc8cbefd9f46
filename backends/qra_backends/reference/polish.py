"""Descent on the output error after error feedback: scales and offsets refitted, codes moved one at a time.

Feedback takes scales and offsets as they are, and never takes a code back. Both are made up for here, in the metric of
the damped Hessian H. With E = W - Q the output error is tr(E H Eᵀ), and R = H Eᵀ half its gradient by E. A group's
scale and offset follow by least squares from its codes, a code from the least of a parabola; no step raises the error.
Where zero points are whole numbers they stay, and the scale alone follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qra_backends.kernels import choice
from qra_backends.reference.packed import GROUP_DTYPE

BLOCK = 64  # columns (of whole groups, where those are shorter) whose gradient is made at once
_STEP = 16  # columns whose changes are spread one by one
_ALIKE = 1e-6  # share of codes' own error below which they are all alike, and tell nothing of the scale


def as_float16(values: Tensor) -> Tensor:
    """Values as `GROUP_DTYPE` has them, in float32."""
    return values.to(GROUP_DTYPE).to(torch.float32)


@dataclass(frozen=True)
class Stack:
    """Codes and their groups: the rows of a weight at several levels side by side, columns first.

    Attributes:
        codes: uint8 (in, rows).
        scale, offset: float32 (groups, rows), of values that can be stored.
        highest: (rows,), the largest code.
        zero: float32 (groups, rows), whole numbers; the offset is then -zero · scale. None: the offset is free.
        stored: gives values as they are stored.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    highest: Tensor
    group_size: int
    zero: Tensor | None = None
    stored: Callable[[Tensor], Tensor] = as_float16

    def columns(self, group: int) -> slice:
        """Of a group."""
        return slice(group * self.group_size, min((group + 1) * self.group_size, len(self.codes)))

    def blocks(self) -> list[range]:
        """Groups that are worked on together."""
        count, step = len(self.scale), max(1, BLOCK // self.group_size)
        return [range(first, min(first + step, count)) for first in range(0, count, step)]


def polish(stack: Stack, columns: Tensor, hessian: Tensor, damping: float, sweeps: int) -> None:
    """Lower the output error of a stack, in place; a sweep takes O(rows · in²).

    Args:
        columns: the weight, float32 (in, rows); becomes what is lost of it.
        hessian: float32 (in, in), without damping.
        damping: what counts as added to each entry of its diagonal.
    """
    for group in range(len(stack.scale)):
        part = stack.columns(group)
        columns[part].sub_(stack.codes[part] * stack.scale[group]).sub_(stack.offset[group])
    lost = columns
    for _ in range(sweeps):
        for groups in stack.blocks():
            block = slice(stack.columns(groups[0]).start, stack.columns(groups[-1]).stop)
            own = hessian[block, block].clone()
            own.diagonal().add_(damping)
            gradient = torch.addmm(lost[block], hessian[block], lost, beta=damping)
            lost[block].sub_(_descend(stack, groups, own, gradient))


def _descend(stack: Stack, groups: range, hessian: Tensor, gradient: Tensor) -> Tensor:
    """One sweep over a block of groups; gives the change of its weights, (columns, rows).

    Args:
        hessian: (columns, columns), damped.
        gradient: (columns, rows), kept up to date for the groups yet to come.
    """
    changes = torch.empty_like(gradient)
    start = stack.columns(groups[0]).start
    for group in groups:
        part = stack.columns(group)
        first, last = part.start - start, part.stop - start
        scale, offset, change = stack.scale[group], stack.offset[group], changes[first:last]
        codes = stack.codes[part].to(torch.float32)
        torch.mul(codes, scale, out=change).add_(offset)
        left, ahead = gradient[first:], hessian[first:, first:last]
        if stack.zero is None:
            _refit(codes, scale, offset, ahead, left, stack.stored)
        else:
            _rescale(codes - stack.zero[group], scale, ahead, left, stack.stored)
            torch.mul(scale, stack.zero[group], out=offset).neg_()
        _move(codes, scale, stack.highest, ahead, left)
        change.sub_(offset).addcmul_(codes, scale, value=-1).neg_()
        stack.codes[part] = codes.to(torch.uint8)
    return changes


def _refit(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    hessian: Tensor,
    gradient: Tensor,
    stored: Callable[[Tensor], Tensor],
) -> None:
    """Scale and offset of a group by least squares, in place, where the error falls with both as they are stored.

    Args:
        codes: (size, rows); scale, offset: (rows,).
        hessian: (columns from the group's first on, size); gradient: (columns from the group's first on, rows).
    """
    size = len(codes)
    spread, ones = hessian @ codes, hessian.sum(1)
    own = spread[:size]
    aa, ab, bb = (codes * own).sum(0), own.sum(0), ones[:size].sum()
    a, b = (codes * gradient[:size]).sum(0), gradient[:size].sum(0)
    determinant = aa * bb - ab.square()
    step = torch.where(determinant > _ALIKE * aa * bb, (bb * a - ab * b) / determinant, 0.0)
    refitted = stored(scale + step)
    ds = refitted - scale
    do = stored(offset + (b - ab * ds) / bb).sub_(offset)
    change = ds * (ds * aa + 2 * do * ab - 2 * a) + do * (do * bb - 2 * b)
    better = (change < 0) & (scale > 0) & (refitted > 0)  # of scale 0 is a group of equal weights, which is exact
    ds, do = torch.where(better, ds, 0.0), torch.where(better, do, 0.0)
    scale.add_(ds)
    offset.add_(do)
    gradient.sub_(spread.mul_(ds)).addr_(ones, do, alpha=-1)


def _rescale(
    steps: Tensor, scale: Tensor, hessian: Tensor, gradient: Tensor, stored: Callable[[Tensor], Tensor]
) -> None:
    """The scale of a group whose weights are steps (size, rows) · scale, in place; the rest as of `_refit`."""
    spread = hessian @ steps
    power, pull = (steps * spread[: len(steps)]).sum(0), (steps * gradient[: len(steps)]).sum(0)
    refitted = stored(scale + torch.where(power > 0, pull / power, 0.0))
    change = refitted - scale
    better = (change * (change * power - 2 * pull) < 0) & (scale * refitted > 0)
    change = torch.where(better, change, 0.0)
    scale.add_(change)
    gradient.sub_(spread.mul_(change))


def _move(codes: Tensor, scale: Tensor, highest: Tensor, hessian: Tensor, gradient: Tensor) -> None:
    """Each code of a group in turn to where the error is least, in place; arguments as of `_refit`."""
    move = _move_plainly
    if choice.usable(codes.device):
        from qra_backends.reference.feedback_triton import move
    for start in range(0, len(codes), _STEP):
        own = slice(start, min(start + _STEP, len(codes)))
        moved = move(codes[own], scale, highest, hessian[own, own], gradient[own])
        gradient[own.stop :].addmm_(hessian[own.stop :, own], moved, alpha=-1)


def _move_plainly(codes: Tensor, scale: Tensor, highest: Tensor, hessian: Tensor, gradient: Tensor) -> Tensor:
    """As `feedback_triton.move`."""
    rate = torch.where(scale == 0, 0.0, 1 / scale)
    lowest, moved = torch.zeros_like(highest), torch.empty_like(codes)
    for i, curvature in enumerate(hessian.diagonal().tolist()):
        code, change = codes[i], moved[i]
        torch.addcmul(code, gradient[i], rate, value=1 / curvature, out=change).round_()
        torch.clamp(change, lowest, highest, out=change).sub_(code)
        code.add_(change)
        change.mul_(scale)
        gradient[i + 1 :].addr_(hessian[i + 1 :, i], change, alpha=-1)
    return moved
