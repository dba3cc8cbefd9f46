"""Scale of every group of a row: w ≈ scale · (code - 2^(bits - 1)), of least weighted squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from qra_backends.reference.blocks import choose_block_rows
from qra_backends.reference.gptq import Fitted

_SHRINK = tuple(1 - 0.07 * i for i in range(7))  # shares of the full range to start from
_NARROWEST_WHOLE = 5  # bits from which on the full range is the only start: there is next to nothing to clip
_REFITS = 2  # least-squares steps of the scale from each start


def round_to_16_bits(values: Tensor) -> Tensor:
    """The nearest values that float16 and bfloat16 both have, in float32.

    An engine reads scales in the dtype that it computes in, so they have to be the same numbers in either.
    """
    return values.to(torch.bfloat16).to(torch.float16).to(torch.float32)


def fit_groups(weight: Tensor, bits: int, group_size: int, importance: Tensor) -> Fitted:
    """Scale and offset of each group.

    A scale may be negative, which puts the one level more that a side has to where the weights reach further.

    Args:
        weight: float32 (out, in); `group_size` divides in.
        importance: (in,), weight of each column's squared error.

    Returns:
        float32 (out, in / group_size) each; scales are values of `round_to_16_bits`.
    """
    # A group whose inputs were never seen still has to be coded: the floor makes its columns equal.
    importance = importance.unflatten(0, (-1, group_size))
    importance = (
        importance / importance.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) + 1e-6
    )
    parts = [
        _fit_mse(rows.unflatten(1, (-1, group_size)), importance, bits)
        for rows in weight.split(choose_block_rows(weight.shape[1], weight.device))
    ]
    scale = torch.cat(parts).squeeze(-1)
    return Fitted(scale, -(2.0 ** (bits - 1)) * scale)


def _fit_mse(weight: Tensor, importance: Tensor, bits: int) -> Tensor:
    """Scale (out, groups, 1) of weight (out, groups, size); importance (groups, size)."""
    zero = 2 ** (bits - 1)
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    shares = _SHRINK if bits < _NARROWEST_WHOLE else _SHRINK[:1]
    best_error = torch.full_like(largest, torch.inf)
    best_scale = torch.zeros_like(best_error)
    steps, work = torch.empty_like(weight), torch.empty_like(weight)
    weighted = weight * importance
    for scale in (share * largest / reach for share in shares for reach in (-zero, zero - 1)):
        for refit in range(_REFITS + 1):
            scale = round_to_16_bits(scale)
            torch.div(weight, torch.where(scale == 0, 1.0, scale), out=steps).add_(zero).round_()
            steps.clamp_(0, 2**bits - 1).sub_(zero)
            torch.mul(steps, scale, out=work).sub_(weight)
            error = work.square_().mul_(importance).sum(-1, keepdim=True)
            better = error < best_error
            best_error, best_scale = (
                torch.where(better, error, best_error),
                torch.where(better, scale, best_scale),
            )
            if refit < _REFITS:
                pull = torch.mul(steps, weighted, out=work).sum(-1, keepdim=True)
                power = torch.mul(steps.square_(), importance, out=work).sum(-1, keepdim=True)
                scale = torch.where(power > 0, pull / power.clamp_min(1e-30), scale)
    return best_scale
